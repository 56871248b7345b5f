// save_prune_retrain_model(model, save_path, ...): stores a pruned or 2:4 sparse model (save.md section 12).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_SAVE_PRUNE_RETRAIN_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_SAVE_PRUNE_RETRAIN_MODEL_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/functions/functions.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

// Checks that `model` is a readable, well-formed ONNX model and writes it unchanged under both output names, with its external
// data files, under the names the model gives them, beside it. With `record_file` also checks that the model is pruned and sparse
// as the record file says. MODEL_MARKED: it is an export with marks, which no other program understands.
absl::StatusOr<SavedModels> SavePruneRetrainModel(const CallContext& context, const std::string& model,
                                                  const std::string& save_path, const std::string& record_file = "");

// The same under another function's name in the report, with `warnings` of its own.
absl::StatusOr<SavedModels> SavePruned(const CallContext& context, const std::string& function, const std::string& model,
                                       const std::string& save_path, const std::string& record_file,
                                       std::vector<std::string> warnings = {});

// Checks a model whose nodes have the layers' names against the prune records: every pruned layer has its width (PRUNE_FAILED),
// and every sparse one two zeros in four (NOT_SPARSE). A pruned layer that is not found gives a warning: an export may lose its
// name.
absl::Status CheckPruneRecords(const Graph& graph, const AMCTPytorchProto::ScaleOffsetRecord& record, int threads,
                               std::vector<std::string>& warnings);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_SAVE_PRUNE_RETRAIN_MODEL_H_
