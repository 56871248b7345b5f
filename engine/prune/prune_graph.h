// The graph on which prune records are found: one without the operators that do not matter to channels (docs/spec/prune.md
// section 3). A view of a Graph, which stays as it is.
#ifndef MODELPRESS_ENGINE_PRUNE_PRUNE_GRAPH_H_
#define MODELPRESS_ENGINE_PRUNE_PRUNE_GRAPH_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

// The type of the node that stands for a global pool and the Flatten or Reshape behind it: [N, C, H, W] -> [N, C].
inline constexpr char kPoolFlatten[] = "D4toD2";

// By tensor name; -1: not known (ShapeReport::shapes).
using TensorShapes = absl::flat_hash_map<std::string, std::vector<int64_t>>;

struct PruneNode {
  ItemId item = -1;           // kPoolFlatten: the Flatten or Reshape
  std::string op_type;        // "domain.Type" outside ONNX's own domain
  std::string name;           // kPoolFlatten: "<pool>.<flatten>"
  std::vector<Value> inputs;  // what it reads once the bypassed operators are gone, captures of subgraphs included
};

struct PruneGraph {
  std::vector<PruneNode> nodes;  // in the graph's order; a kPoolFlatten right behind its producer
  std::vector<Value> outputs;    // of the graph
  // Nodes whose results nothing reads. They are run all the same, so what they read must suit them.
  absl::flat_hash_set<ItemId> unused;
};

// `linears`: MatMul nodes that are layers; the Add of a bias behind one is left out.
PruneGraph SimplifyForPruning(const Graph& graph, const absl::flat_hash_set<ItemId>& linears, const TensorShapes& shapes);

// Null where not even the rank is known.
inline const std::vector<int64_t>* FindShape(const TensorShapes& shapes, const std::string& tensor) {
  auto it = shapes.find(tensor);
  return it == shapes.end() ? nullptr : &it->second;
}

// The integers of a small constant. nullopt: it is none.
std::optional<std::vector<int64_t>> ConstantInts(const Graph& graph, Value value);

// True for a constant with one element.
bool IsScalarConstant(const Graph& graph, Value value);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_PRUNE_GRAPH_H_
