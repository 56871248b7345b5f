// save_prune_retrain_model(model, save_path, ...): stores a pruned or 2:4 sparse model (save.md section 12).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_SAVE_PRUNE_RETRAIN_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_SAVE_PRUNE_RETRAIN_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

// Checks that `model` is a readable, well-formed ONNX model and writes it unchanged under both output names, with its external
// data files, under the names the model gives them, beside it.
absl::StatusOr<SavedModels> SavePruneRetrainModel(const CallContext& context, const std::string& model,
                                                  const std::string& save_path);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_SAVE_PRUNE_RETRAIN_MODEL_H_
