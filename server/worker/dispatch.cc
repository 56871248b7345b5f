#include "server/worker/dispatch.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/functions/calibrate.h"
#include "engine/functions/create_quant_config.h"
#include "engine/functions/quantize_model.h"
#include "engine/functions/quantize_preprocess.h"
#include "engine/functions/save_model.h"
#include "engine/functions/save_prune_retrain_model.h"
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
RunResult SavedResult(const engine::SavedModels& saved, bool validate_only) {
  ResultOf<Response> result;
  if (!validate_only) {
    result.Add(saved.deploy_model, &Response::mutable_deploy_model);
    result.Add(saved.fake_quant_model, &Response::mutable_fake_quant_model);
    result.Add(saved.external_data, &Response::add_external_data);
    result.Add(saved.report, &Response::mutable_report);
  }
  return result.Finish(saved.warnings);
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
  return SavedResult<v1::SaveModelResponse>(saved, context.validate_only);
}

absl::StatusOr<RunResult> Run(const CallContext& context, const v1::SavePruneRetrainModelRequest& request) {
  MP_ASSIGN_OR_RETURN(const engine::SavedModels saved,
                      engine::SavePruneRetrainModel(context, request.model(), request.save_path()));
  return SavedResult<v1::SavePruneRetrainModelResponse>(saved, context.validate_only);
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
  ResultOf<Response> result;
  result.Add(saved.config_file, &Response::mutable_config_file);
  return result.Finish(saved.warnings);
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
  engine::QuantizeModelCall call{.config_file = request.config_file(),
                                 .arguments = ArgumentsOf(request, /*default_batch_num=*/0),
                                 .config_definition = request.config_definition(),
                                 .modified_onnx_file = request.modified_onnx_file(),
                                 .record_file = request.record_file(),
                                 .model = request.model(),
                                 .input_names = Strings(request.input_names()),
                                 .output_names = Strings(request.output_names()),
                                 .dynamic_axes = {},
                                 .module_manifest = request.module_manifest(),
                                 .data = DataOf(request.calibration_data()),
                                 .sample = DataOf(request.sample_data()),
                                 .saves = !request.save_path().empty(),
                                 .save_path = request.save_path()};
  for (const auto& [name, axes] : request.dynamic_axes()) {
    call.dynamic_axes[name].insert(axes.labels().begin(), axes.labels().end());
  }
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

// Runs the function of the first type that `any` holds.
template <typename Request, typename... Others>
absl::StatusOr<RunResult> DispatchAmong(const google::protobuf::Any& any, CallContext& context) {
  if (Request request; any.UnpackTo(&request)) {
    context.validate_only = request.options().validate_only();
    context.defects = request.options().reference_defects() ? engine::ReferenceDefects::All() : engine::ReferenceDefects();
    return Run(context, request);
  }
  if constexpr (sizeof...(Others) > 0) {
    return DispatchAmong<Others...>(any, context);
  }
  return MakeError(v1::INTERNAL_ERROR, absl::StrCat("this engine does not know requests of type ", any.type_url()));
}

}  // namespace

absl::StatusOr<RunResult> Dispatch(const google::protobuf::Any& request, CallContext& context) {
  return DispatchAmong<v1::CreateQuantConfigRequest, v1::QuantizePreprocessRequest, v1::QuantizeModelRequest,
                       v1::CalibrateRequest, v1::SaveModelRequest, v1::SavePruneRetrainModelRequest>(request, context);
}

}  // namespace modelpress::server
