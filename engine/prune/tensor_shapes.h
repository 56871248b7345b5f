// Shapes of the tensors of a graph, as far as ONNX's shape inference tells.
#ifndef MODELPRESS_ENGINE_PRUNE_TENSOR_SHAPES_H_
#define MODELPRESS_ENGINE_PRUNE_TENSOR_SHAPES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

class TensorShapes {
 public:
  // Infers the shapes from those of the graph's inputs and initializers. Only the values of small constants are read, so tensors
  // may lack their data. Whatever cannot be inferred is left out: no failure.
  static TensorShapes Infer(const Graph& graph);

  // Null if not even the rank is known; unknown dims are -1.
  const std::vector<int64_t>* Find(const std::string& tensor) const {
    auto it = shapes_.find(tensor);
    return it == shapes_.end() ? nullptr : &it->second;
  }

 private:
  absl::flat_hash_map<std::string, std::vector<int64_t>> shapes_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_TENSOR_SHAPES_H_
