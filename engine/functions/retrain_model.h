// create_ and restore_ of prune, quant and compressed retraining: the model that a training process goes on with, as a pruned
// ONNX model and as a rewrite plan for a torch module (docs/spec/prune.md sections 1, 9 and 12, qat.md sections 2, 13 and 16).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_RETRAIN_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_RETRAIN_MODEL_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"
#include "engine/prune/groups.h"

namespace modelpress::engine {

// Fields of the same names of api/modelpress/v1/compression.proto; a function ignores those that its request does not have.
struct RetrainModelCall {
  std::string model;
  std::string config_file;        // quant_retrain: JSON
  std::string config_definition;  // the others: .cfg
  std::string record_file;
  std::string save_path;
  bool plan_only = false;
  std::string module_manifest;
  std::string weights;
  std::string state_dict_name;
  ChannelPruneOptions prune_options;
};

struct RetrainModel {
  WrittenFile record_file;  // names are empty where nothing was written
  WrittenFile rewrite_plan;
  WrittenFile pruned_model;
  std::vector<WrittenFile> external_data;
  WrittenFile report;
  std::string report_json;  // the content of `report`, also when validate_only wrote no file
  std::vector<std::string> warnings;
};

absl::StatusOr<RetrainModel> CreatePruneRetrainModel(const CallContext& context, const RetrainModelCall& call);
absl::StatusOr<RetrainModel> RestorePruneRetrainModel(const CallContext& context, const RetrainModelCall& call);
absl::StatusOr<RetrainModel> CreateQuantRetrainModel(const CallContext& context, const RetrainModelCall& call);
absl::StatusOr<RetrainModel> RestoreQuantRetrainModel(const CallContext& context, const RetrainModelCall& call);
absl::StatusOr<RetrainModel> CreateCompressedRetrainModel(const CallContext& context, const RetrainModelCall& call);
absl::StatusOr<RetrainModel> RestoreCompressedRetrainModel(const CallContext& context, const RetrainModelCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_RETRAIN_MODEL_H_
