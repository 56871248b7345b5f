// save_quant_retrain_model and save_compressed_retrain_model: from the export of a trained module without its wrappers and the
// record file to the two output files (docs/spec/qat.md sections 11 to 13).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_SAVE_RETRAIN_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_SAVE_RETRAIN_MODEL_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

struct SaveRetrainModelCall {
  std::string config_file;  // save_quant_retrain_model only
  std::string model;
  std::string record_file;
  std::string save_path;
  std::vector<std::string> input_names;
  std::vector<std::string> output_names;
  std::map<std::string, std::map<int, std::string>> dynamic_axes;
  std::string module_manifest;
  std::string rewrite_plan;  // save_quant_retrain_model only; empty: config_file is not compared with it
};

absl::StatusOr<SavedModels> SaveQuantRetrainModel(const CallContext& context, const SaveRetrainModelCall& call);
absl::StatusOr<SavedModels> SaveCompressedRetrainModel(const CallContext& context, const SaveRetrainModelCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_SAVE_RETRAIN_MODEL_H_
