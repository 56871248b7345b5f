#include "server/worker/dispatch.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/functions/auto_channel_prune_search.h"
#include "engine/functions/calibrate.h"
#include "engine/functions/create_quant_config.h"
#include "engine/functions/create_quant_retrain_config.h"
#include "engine/functions/quantize_model.h"
#include "engine/functions/quantize_preprocess.h"
#include "engine/functions/retrain_model.h"
#include "engine/functions/save_model.h"
#include "engine/functions/save_prune_retrain_model.h"
#include "engine/functions/save_retrain_model.h"
#include "modelpress/v1/compression.pb.h"

namespace modelpress::server {
namespace {

using engine::CallContext;

// Collects what a function has made. A file without a name was not written.
template <typename Response>
class ResultOf {
 public:
  void Add(const engine::WrittenFile& written, v1::File* (Response::*field)()) {
    if (!written.name.empty()) {
      (response_.*field)()->set_name(written.name);
      RunResult::Output& output = *result_.add_outputs();
      output.set_name(written.name);
      output.set_sha256(written.sha256);
      output.set_size_bytes(written.size);
    }
  }
  void Add(const std::vector<engine::WrittenFile>& written, v1::File* (Response::*field)()) {
    for (const engine::WrittenFile& file : written) {
      Add(file, field);
    }
  }
  // The report, or in the place of a file that was not written (validate_only) what it would say.
  void AddReport(const engine::WrittenFile& written, const std::string& content) {
    if (written.name.empty()) {
      result_.set_report(content);
    }
    Add(written, &Response::mutable_report);
  }
  RunResult Finish(const std::vector<std::string>& warnings) {
    result_.mutable_response()->PackFrom(response_);
    for (const std::string& warning : warnings) {
      result_.add_warnings(warning);
    }
    return std::move(result_);
  }

 private:
  Response response_;
  RunResult result_;
};

// The responses of the functions that save models have the same fields.
template <typename Response>
RunResult SavedResult(const engine::SavedModels& saved) {
  ResultOf<Response> result;
  result.Add(saved.deploy_model, &Response::mutable_deploy_model);
  result.Add(saved.fake_quant_model, &Response::mutable_fake_quant_model);
  result.Add(saved.external_data, &Response::add_external_data);
  result.AddReport(saved.report, saved.report_json);
  return result.Finish(saved.warnings);
}

template <typename Response>
RunResult ConfigResult(const engine::SavedConfig& saved, v1::File* (Response::*field)()) {
  ResultOf<Response> result;
  result.Add(saved.config_file, field);
  return result.Finish(saved.warnings);
}

RunResult RetrainResult(const engine::RetrainModel& made) {
  using Response = v1::RetrainModelResponse;
  ResultOf<Response> result;
  result.Add(made.record_file, &Response::mutable_record_file);
  result.Add(made.rewrite_plan, &Response::mutable_rewrite_plan);
  result.Add(made.pruned_model, &Response::mutable_pruned_model);
  result.Add(made.external_data, &Response::add_external_data);
  result.AddReport(made.report, made.report_json);
  return result.Finish(made.warnings);
}

template <typename Response>
RunResult RecordResult(const engine::SavedRecord& saved) {
  ResultOf<Response> result;
  result.Add(saved.record_file, &Response::mutable_record_file);
  return result.Finish(saved.warnings);
}

std::vector<std::string> Strings(const google::protobuf::RepeatedPtrField<std::string>& field) {
  return {field.begin(), field.end()};
}

std::map<std::string, std::map<int, std::string>> AxesOf(const google::protobuf::Map<std::string, v1::DynamicAxes>& field) {
  std::map<std::string, std::map<int, std::string>> dynamic_axes;
  for (const auto& [name, axes] : field) {
    dynamic_axes[name].insert(axes.labels().begin(), axes.labels().end());
  }
  return dynamic_axes;
}

engine::CalibrationInput DataOf(const v1::CalibrationData& data) {
  return {.path = data.path(), .batch_size = static_cast<int64_t>(data.batch_size())};
}

// The three arguments that a .cfg replaces. `default_batch_num`: where the request has none.
template <typename Request>
engine::QuantConfigArguments ArgumentsOf(const Request& request, int64_t default_batch_num) {
  return {.skip_layers = Strings(request.skip_layers()),
          .batch_num = request.has_batch_num() ? request.batch_num() : default_batch_num,
          .activation_offset = !request.has_activation_offset() || request.activation_offset()};
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::SaveModelRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedModels saved,
                      engine::SaveModel(context, request.modified_onnx_file(), request.record_file(), request.save_path()));
  return SavedResult<v1::SaveModelResponse>(saved);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::SavePruneRetrainModelRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedModels saved,
                      engine::SavePruneRetrainModel(context, request.model(), request.save_path(), request.record_file()));
  return SavedResult<v1::SavePruneRetrainModelResponse>(saved);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::CreateQuantConfigRequest& request) {
  using Response = v1::CreateQuantConfigResponse;
  MP_ASSIGN_OR_RETURN(const engine::SavedConfig saved,
                      engine::CreateQuantConfig(context, {.config_file = request.config_file(),
                                                          .model = request.model(),
                                                          .arguments = ArgumentsOf(request, /*default_batch_num=*/1),
                                                          .config_definition = request.config_definition(),
                                                          .module_manifest = request.module_manifest(),
                                                          .kv_cache = request.kv_cache(),
                                                          .kv_cache_layers = Strings(request.kv_cache_layers())}));
  return ConfigResult(saved, &Response::mutable_config_file);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::QuantizePreprocessRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedRecord saved,
                      engine::QuantizePreprocess(context, {.config_file = request.config_file(),
                                                           .record_file = request.record_file(),
                                                           .model = request.model(),
                                                           .data = DataOf(request.calibration_data()),
                                                           .module_manifest = request.module_manifest()}));
  return RecordResult<v1::QuantizePreprocessResponse>(saved);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::QuantizeModelRequest& request) {
  using Response = v1::QuantizeModelResponse;
  const engine::QuantizeModelCall call{.config_file = request.config_file(),
                                       .arguments = ArgumentsOf(request, /*default_batch_num=*/0),
                                       .config_definition = request.config_definition(),
                                       .modified_onnx_file = request.modified_onnx_file(),
                                       .record_file = request.record_file(),
                                       .model = request.model(),
                                       .input_names = Strings(request.input_names()),
                                       .output_names = Strings(request.output_names()),
                                       .dynamic_axes = AxesOf(request.dynamic_axes()),
                                       .module_manifest = request.module_manifest(),
                                       .data = DataOf(request.calibration_data()),
                                       .sample = DataOf(request.sample_data()),
                                       .saves = !request.save_path().empty(),
                                       .save_path = request.save_path()};
  MP_ASSIGN_OR_RETURN(const engine::QuantizedModel quantized, engine::QuantizeModel(context, call));
  ResultOf<Response> result;
  result.Add(quantized.config_file, &Response::mutable_config_file);
  result.Add(quantized.modified_onnx_file, &Response::mutable_modified_onnx_file);
  result.Add(quantized.record_file, &Response::mutable_record_file);
  result.Add(quantized.deploy_model, &Response::mutable_deploy_model);
  result.Add(quantized.fake_quant_model, &Response::mutable_fake_quant_model);
  result.Add(quantized.external_data, &Response::add_external_data);
  result.Add(quantized.report, &Response::mutable_report);
  result.Add(quantized.report_html, &Response::mutable_report_html);
  return result.Finish(quantized.warnings);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::CalibrateRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedRecord saved,
                      engine::Calibrate(context, {.modified_onnx_file = request.modified_onnx_file(),
                                                  .record_file = request.record_file(),
                                                  .config_file = request.config_file(),
                                                  .model = request.model(),
                                                  .data = DataOf(request.calibration_data()),
                                                  .module_manifest = request.module_manifest()}));
  return RecordResult<v1::CalibrateResponse>(saved);
}

// What the create and restore calls of retraining have in common; what only some have is to be set.
template <typename Request>
engine::RetrainModelCall RetrainCallOf(const Request& request) {
  engine::RetrainModelCall call;
  call.model = request.model();
  call.record_file = request.record_file();
  call.save_path = request.save_path();
  call.module_manifest = request.module_manifest();
  return call;
}

using RetrainFunction = absl::StatusOr<engine::RetrainModel>(const CallContext&, const engine::RetrainModelCall&);

template <typename Request>
absl::StatusOr<RunResult> RunCreatePruned(const CallContext& context, const Request& request, RetrainFunction* function) {
  engine::RetrainModelCall call = RetrainCallOf(request);
  call.config_definition = request.config_definition();
  call.plan_only = request.plan_only();
  call.prune_options = {.extended = request.prune_options().extended(),
                        .rank_by_all_producers = request.prune_options().rank_by_all_producers()};
  MP_ASSIGN_OR_RETURN(const engine::RetrainModel made, function(context, call));
  return RetrainResult(made);
}

template <typename Request>
absl::StatusOr<RunResult> RunRestorePruned(const CallContext& context, const Request& request, RetrainFunction* function) {
  engine::RetrainModelCall call = RetrainCallOf(request);
  call.config_definition = request.config_definition();
  call.plan_only = request.plan_only();
  call.weights = request.weights();
  call.state_dict_name = request.state_dict_name();
  MP_ASSIGN_OR_RETURN(const engine::RetrainModel made, function(context, call));
  return RetrainResult(made);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::CreatePruneRetrainModelRequest& request) {
  return RunCreatePruned(context, request, engine::CreatePruneRetrainModel);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::RestorePruneRetrainModelRequest& request) {
  return RunRestorePruned(context, request, engine::RestorePruneRetrainModel);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::CreateCompressedRetrainModelRequest& request) {
  return RunCreatePruned(context, request, engine::CreateCompressedRetrainModel);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::RestoreCompressedRetrainModelRequest& request) {
  return RunRestorePruned(context, request, engine::RestoreCompressedRetrainModel);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::CreateQuantRetrainModelRequest& request) {
  engine::RetrainModelCall call = RetrainCallOf(request);
  call.config_file = request.config_file();
  MP_ASSIGN_OR_RETURN(const engine::RetrainModel made, engine::CreateQuantRetrainModel(context, call));
  return RetrainResult(made);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::RestoreQuantRetrainModelRequest& request) {
  engine::RetrainModelCall call = RetrainCallOf(request);
  call.config_file = request.config_file();
  call.weights = request.weights();
  call.state_dict_name = request.state_dict_name();
  MP_ASSIGN_OR_RETURN(const engine::RetrainModel made, engine::RestoreQuantRetrainModel(context, call));
  return RetrainResult(made);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::AutoChannelPruneSearchRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedConfig saved,
                      engine::AutoChannelPruneSearch(context, {.model = request.model(),
                                                               .config = request.config(),
                                                               .output_cfg = request.output_cfg(),
                                                               .sensitivities = request.sensitivities(),
                                                               .module_manifest = request.module_manifest(),
                                                               .override_prune_cfg = request.override_prune_cfg()}));
  return ConfigResult(saved, &v1::AutoChannelPruneSearchResponse::mutable_output_cfg);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::CreateQuantRetrainConfigRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedConfig saved,
                      engine::CreateQuantRetrainConfig(context, {.config_file = request.config_file(),
                                                                 .model = request.model(),
                                                                 .config_definition = request.config_definition(),
                                                                 .module_manifest = request.module_manifest()}));
  return ConfigResult(saved, &v1::CreateQuantConfigResponse::mutable_config_file);
}

// What both save calls of quantization-aware training have.
template <typename Request>
engine::SaveRetrainModelCall SaveRetrainCallOf(const Request& request) {
  engine::SaveRetrainModelCall call;
  call.model = request.model();
  call.record_file = request.record_file();
  call.save_path = request.save_path();
  call.input_names = Strings(request.input_names());
  call.output_names = Strings(request.output_names());
  call.dynamic_axes = AxesOf(request.dynamic_axes());
  call.module_manifest = request.module_manifest();
  return call;
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::SaveQuantRetrainModelRequest& request) {
  engine::SaveRetrainModelCall call = SaveRetrainCallOf(request);
  call.config_file = request.config_file();
  call.rewrite_plan = request.rewrite_plan();
  MP_ASSIGN_OR_RETURN(const engine::SavedModels saved, engine::SaveQuantRetrainModel(context, call));
  return SavedResult<v1::SaveModelResponse>(saved);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::SaveCompressedRetrainModelRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedModels saved, engine::SaveCompressedRetrainModel(context, SaveRetrainCallOf(request)));
  return SavedResult<v1::SaveModelResponse>(saved);
}

// The model of a request, to which an error about its content belongs that names no file: ONNX Runtime knows none.
template <typename Request>
absl::Status AtModel(const absl::Status& status, const Request& request) {
  const ErrorPlace place = PlaceOf(status);
  if (!absl::IsInvalidArgument(status) || !place.file.empty() || !place.field.empty()) {
    return status;
  }
  std::string model;
  if constexpr (requires { request.model(); }) {
    model = request.model();
  }
  if constexpr (requires { request.modified_onnx_file(); }) {
    model = model.empty() ? request.modified_onnx_file() : model;
  }
  return AtPlace(status, {.file = model});
}

// Runs the function of the first type that `any` holds.
template <typename Request, typename... Others>
absl::StatusOr<RunResult> DispatchAmong(const google::protobuf::Any& any, CallContext& context) {
  if (Request request; any.UnpackTo(&request)) {
    context.validate_only = request.options().validate_only();
    context.defects = request.options().reference_defects() ? engine::ReferenceDefects::All() : engine::ReferenceDefects();
    absl::StatusOr<RunResult> result = Run(context, request);
    MP_RETURN_IF_ERROR(AtModel(result.status(), request));
    return result;
  }
  if constexpr (sizeof...(Others) > 0) {
    return DispatchAmong<Others...>(any, context);
  }
  return MakeError(v1::INTERNAL_ERROR, absl::StrCat("this engine does not know requests of type ", any.type_url()));
}

}  // namespace

absl::StatusOr<RunResult> Dispatch(const google::protobuf::Any& request, CallContext& context) {
  return DispatchAmong<
      v1::CreateQuantConfigRequest, v1::QuantizePreprocessRequest, v1::QuantizeModelRequest, v1::CalibrateRequest,
      v1::SaveModelRequest, v1::CreatePruneRetrainModelRequest, v1::RestorePruneRetrainModelRequest,
      v1::AutoChannelPruneSearchRequest, v1::CreateQuantRetrainConfigRequest, v1::CreateQuantRetrainModelRequest,
      v1::RestoreQuantRetrainModelRequest, v1::SaveQuantRetrainModelRequest, v1::CreateCompressedRetrainModelRequest,
      v1::RestoreCompressedRetrainModelRequest, v1::SaveCompressedRetrainModelRequest, v1::SavePruneRetrainModelRequest>(request,
                                                                                                                         context);
}

}  // namespace modelpress::server
