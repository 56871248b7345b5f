// What sets a modified model, the product of quantize_model, apart from an ordinary one (docs/spec/ptq.md section 6).
#ifndef MODELPRESS_ENGINE_QUANTIZE_MODIFIED_MODEL_H_
#define MODELPRESS_ENGINE_QUANTIZE_MODIFIED_MODEL_H_

#include <string>

#include "absl/container/flat_hash_set.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"

namespace modelpress::engine {

// Marks a layer with the type of its output: attribute op_data_type, "float" or "float16". ONNX Runtime refuses a model with it.
void AddDataType(Graph& graph, ItemId layer, bool float16);

// Takes op_data_type off every node; returns the names of the float16 ones.
absl::flat_hash_set<std::string> TakeDataTypes(Model& model);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_MODIFIED_MODEL_H_
