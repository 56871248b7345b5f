#include "server/rpc/call_files.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

// "results/m", "deploy_model.onnx" -> "results/m_deploy_model.onnx"; "results/" has no prefix. The exact rule for prefixes is the
// engine's (save.md section 1.1).
std::string Prefixed(const std::string& save_path, absl::string_view base) {
  const bool names_folder = save_path.empty() || save_path.ends_with('/');
  return absl::StrCat(save_path, names_folder ? "" : "_", base);
}

void AddSaved(const std::string& save_path, CallFiles& files) {
  for (const char* base : {"deploy_model.onnx", "fake_quant_model.onnx", "report.json"}) {
    files.outputs.push_back({Prefixed(save_path, base), "save_path"});
  }
}

void AddIfGiven(const std::string& path, const std::string& field, CallFiles& files) {
  if (!path.empty()) {
    files.inputs.push_back({path, field, InputKind::kFile});
  }
}

void AddData(const v1::CalibrationData& data, const std::string& field, CallFiles& files) {
  files.inputs.push_back({data.path(), absl::StrCat(field, ".path"), InputKind::kFileOrFolder});
}

absl::Status Invalid(absl::string_view message, const std::string& field) {
  return MakeError(v1::REQUEST_INVALID, message, {.field = field});
}

// What all calls of retraining read.
template <typename Request>
CallFiles ModelFiles(const Request& request) {
  CallFiles files{.inputs = {{request.model(), "model", InputKind::kModel}}, .outputs = {}};
  AddIfGiven(request.module_manifest(), "module_manifest", files);
  return files;
}

// What create and restore calls write under save_path.
void AddRetrainModel(const std::string& save_path, bool with_model, CallFiles& files) {
  for (const char* base : {"rewrite_plan.json", "report.json"}) {
    files.outputs.push_back({Prefixed(save_path, base), "save_path"});
  }
  if (with_model) {
    files.outputs.push_back({Prefixed(save_path, "pruned_model.onnx"), "save_path"});
  }
}

// Of create and restore calls that prune; the record file is to be added.
template <typename Request>
CallFiles PruneFiles(const Request& request) {
  CallFiles files = ModelFiles(request);
  files.inputs.push_back({request.config_definition(), "config_definition"});
  AddRetrainModel(request.save_path(), !request.plan_only(), files);
  return files;
}

template <typename Request>
CallFiles CreatePrunedFiles(const Request& request) {
  CallFiles files = PruneFiles(request);
  files.outputs.push_back({request.record_file(), "record_file"});
  return files;
}

template <typename Request>
absl::Status AddWeights(const Request& request, CallFiles& files) {
  if (request.weights().empty() && !request.state_dict_name().empty()) {
    return Invalid("state_dict_name chooses entries of weights, which are not given; give them, or leave it out",
                   "state_dict_name");
  }
  AddIfGiven(request.weights(), "weights", files);
  return absl::OkStatus();
}

template <typename Request>
absl::StatusOr<CallFiles> RestorePrunedFiles(const Request& request) {
  CallFiles files = PruneFiles(request);
  files.inputs.push_back({request.record_file(), "record_file"});
  MP_RETURN_IF_ERROR(AddWeights(request, files));
  return files;
}

template <typename Request>
CallFiles QuantRetrainFiles(const Request& request) {
  CallFiles files = ModelFiles(request);
  files.inputs.push_back({request.config_file(), "config_file"});
  AddRetrainModel(request.save_path(), /*with_model=*/false, files);
  files.outputs.push_back({request.record_file(), "record_file"});
  return files;
}

template <typename Request>
CallFiles SaveRetrainFiles(const Request& request) {
  CallFiles files = ModelFiles(request);
  files.inputs.push_back({request.record_file(), "record_file"});
  AddSaved(request.save_path(), files);
  return files;
}

}  // namespace

absl::StatusOr<CallFiles> FilesOf(v1::SaveModelRequest& request) {
  CallFiles files{.inputs = {{request.modified_onnx_file(), "modified_onnx_file", InputKind::kModel},
                             {request.record_file(), "record_file", InputKind::kFile}},
                  .outputs = {}};
  AddSaved(request.save_path(), files);
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::SavePruneRetrainModelRequest& request) {
  CallFiles files{.inputs = {{request.model(), "model", InputKind::kModel}}, .outputs = {}};
  AddIfGiven(request.record_file(), "record_file", files);
  AddSaved(request.save_path(), files);
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::CreateQuantConfigRequest& request) {
  if (!request.kv_cache_layers().empty() && !request.kv_cache()) {
    return Invalid("layers are named for key-value caches, which are not asked for; set kv_cache too", "kv_cache_layers");
  }
  CallFiles files{.inputs = {{request.model(), "model", InputKind::kModel}}, .outputs = {{request.config_file(), "config_file"}}};
  AddIfGiven(request.config_definition(), "config_definition", files);
  AddIfGiven(request.module_manifest(), "module_manifest", files);
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::QuantizePreprocessRequest& request) {
  CallFiles files{.inputs = {{request.model(), "model", InputKind::kModel}, {request.config_file(), "config_file"}},
                  .outputs = {{request.record_file(), "record_file"}}};
  AddData(request.calibration_data(), "calibration_data", files);
  AddIfGiven(request.module_manifest(), "module_manifest", files);
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::QuantizeModelRequest& request) {
  const std::string& save_path = request.save_path();
  const bool saves = !save_path.empty();
  if (saves && !request.has_calibration_data()) {
    return Invalid("a model can only be saved after calibration; give calibration data, or leave save_path empty",
                   "calibration_data");
  }
  if (!saves && request.config_file().empty()) {
    return Invalid("without save_path the configuration needs a name; make one with CreateQuantConfig", "config_file");
  }
  if (!request.config_file().empty() && (!request.config_definition().empty() || !request.skip_layers().empty() ||
                                         request.has_batch_num() || request.has_activation_offset())) {
    return Invalid(
        "config_file is given, so skip_layers, batch_num, activation_offset and config_definition have no effect; leave out "
        "these or that",
        "config_file");
  }
  if (request.has_batch_num() && request.batch_num() == 0) {
    return Invalid("batch_num must be greater than 0; leave it out for as many batches as there are", "batch_num");
  }
  CallFiles files{.inputs = {{request.model(), "model", InputKind::kModel}}, .outputs = {}};
  if (!request.record_file().empty()) {  // one that the service names is new
    files.inputs.push_back({request.record_file(), "record_file", InputKind::kFileIfThere});
  }
  if (saves && request.modified_onnx_file().empty()) {
    request.set_modified_onnx_file(Prefixed(save_path, "modified_model.onnx"));
  }
  if (saves && request.record_file().empty()) {
    request.set_record_file(Prefixed(save_path, "record.txt"));
  }
  files.outputs = {{request.modified_onnx_file(), "modified_onnx_file"}, {request.record_file(), "record_file"}};
  AddIfGiven(request.config_file(), "config_file", files);
  AddIfGiven(request.config_definition(), "config_definition", files);
  AddIfGiven(request.module_manifest(), "module_manifest", files);
  if (request.has_calibration_data()) {
    AddData(request.calibration_data(), "calibration_data", files);
  }
  if (request.has_sample_data()) {
    AddData(request.sample_data(), "sample_data", files);
  }
  if (saves) {
    AddSaved(save_path, files);
    files.outputs.push_back({Prefixed(save_path, "report.html"), "save_path"});
    if (request.config_file().empty()) {
      files.outputs.push_back({Prefixed(save_path, "config.json"), "save_path"});
    }
  }
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::CalibrateRequest& request) {
  const bool kv_cache = request.modified_onnx_file().empty();
  if (kv_cache && request.model().empty()) {
    return Invalid("there is no model; give the modified one, or for key-value caches the model itself", "modified_onnx_file");
  }
  CallFiles files{.inputs = {{request.config_file(), "config_file"},
                             {request.record_file(), "record_file", kv_cache ? InputKind::kFileIfThere : InputKind::kFile}},
                  .outputs = {{request.record_file(), "record_file"}}};
  for (const auto& [path, field] :
       {std::pair(request.modified_onnx_file(), "modified_onnx_file"), std::pair(request.model(), "model")}) {
    if (!path.empty()) {
      files.inputs.push_back({path, field, InputKind::kModel});
    }
  }
  AddData(request.calibration_data(), "calibration_data", files);
  AddIfGiven(request.module_manifest(), "module_manifest", files);
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::CreatePruneRetrainModelRequest& request) { return CreatePrunedFiles(request); }

absl::StatusOr<CallFiles> FilesOf(v1::RestorePruneRetrainModelRequest& request) { return RestorePrunedFiles(request); }

absl::StatusOr<CallFiles> FilesOf(v1::AutoChannelPruneSearchRequest& request) {
  CallFiles files = ModelFiles(request);
  files.inputs.push_back({request.config(), "config"});
  files.inputs.push_back({request.sensitivities(), "sensitivities"});
  AddIfGiven(request.override_prune_cfg(), "override_prune_cfg", files);
  files.outputs.push_back({request.output_cfg(), "output_cfg"});
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::CreateQuantRetrainConfigRequest& request) {
  CallFiles files = ModelFiles(request);
  AddIfGiven(request.config_definition(), "config_definition", files);
  files.outputs.push_back({request.config_file(), "config_file"});
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::CreateQuantRetrainModelRequest& request) { return QuantRetrainFiles(request); }

absl::StatusOr<CallFiles> FilesOf(v1::RestoreQuantRetrainModelRequest& request) {
  CallFiles files = QuantRetrainFiles(request);
  MP_RETURN_IF_ERROR(AddWeights(request, files));
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::SaveQuantRetrainModelRequest& request) {
  CallFiles files = SaveRetrainFiles(request);
  files.inputs.push_back({request.config_file(), "config_file"});
  AddIfGiven(request.rewrite_plan(), "rewrite_plan", files);
  return files;
}

absl::StatusOr<CallFiles> FilesOf(v1::CreateCompressedRetrainModelRequest& request) { return CreatePrunedFiles(request); }

absl::StatusOr<CallFiles> FilesOf(v1::RestoreCompressedRetrainModelRequest& request) { return RestorePrunedFiles(request); }

absl::StatusOr<CallFiles> FilesOf(v1::SaveCompressedRetrainModelRequest& request) { return SaveRetrainFiles(request); }

absl::Status CheckFiles(const CallFiles& files) {
  for (const Input& input : files.inputs) {
    MP_RETURN_IF_ERROR(CheckPath(input.path, input.field));
  }
  std::map<std::string, std::string> fields;  // path -> field, of outputs
  for (const Output& output : files.outputs) {
    MP_RETURN_IF_ERROR(CheckPath(output.path, output.field));
    const auto [other, inserted] = fields.emplace(output.path, output.field);
    if (!inserted) {
      return Invalid(absl::StrCat("'", output.path, "' would be written twice, as ", other->second, " and as ", output.field,
                                  "; give them different names"),
                     output.field);
    }
  }
  for (const Output& output : files.outputs) {
    for (size_t slash = output.path.find('/'); slash != std::string::npos; slash = output.path.find('/', slash + 1)) {
      const auto other = fields.find(output.path.substr(0, slash));
      if (other != fields.end()) {
        return Invalid(absl::StrCat("'", other->first, "' would be written as a file (", other->second,
                                    ") and is the folder of '", output.path, "'; give them different names"),
                       output.field);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace modelpress::server
