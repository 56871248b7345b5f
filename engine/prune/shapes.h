// Whether the shapes of a graph fit together, also with other weights than it has (docs/spec/prune.md section 8).
#ifndef MODELPRESS_ENGINE_PRUNE_SHAPES_H_
#define MODELPRESS_ENGINE_PRUNE_SHAPES_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/graph/graph.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

struct OperandShape {
  int data_type = 0;          // onnx.TensorProto.DataType
  std::vector<int64_t> dims;  // as the node sees it
};

// What is to be different from the graph.
struct ShapeChanges {
  std::map<std::pair<ItemId, int>, OperandShape> operands;  // constant operands, by node and input
  std::map<ItemId, int64_t> groups;                         // attribute group
};

struct ShapeReport {
  // By tensor name; -1: not known. Tensors of which not even the rank is known are missing.
  absl::flat_hash_map<std::string, std::vector<int64_t>> shapes;
  // The first node that does not fit and why: "Conv 'conv2' takes 8 channels, its input has 4". Empty: everything fits.
  std::string problem;
  // Reshape nodes whose constant sizes carry a number of channels that has changed, with sizes that fit.
  std::map<ItemId, std::vector<int64_t>> reshapes;
};

// Infers shapes with the onnx library from a copy of the graph without weights.
class ShapeModel {
 public:
  // Infers the graph's own shapes. MODEL_LIMIT, INTERNAL_ERROR.
  static absl::StatusOr<ShapeModel> Create(const Graph& graph);

  // The shapes of the graph as it is. What does not fit in it already is no problem, here and below.
  const ShapeReport& original() const { return original_; }
  // The shapes with the changes.
  ShapeReport With(const ShapeChanges& changes) const;

 private:
  ShapeModel() = default;
  ShapeReport Infer(const onnx::ModelProto& proto, bool strict, std::string& error) const;
  // What is wrong with a node of base_, by its index.
  static std::map<int, std::string> Problems(const onnx::ModelProto& proto, const ShapeReport& report);
  // Adjusts the sizes of Reshape nodes in `proto`; true if one was changed.
  bool AdjustReshapes(onnx::ModelProto& proto, ShapeReport& report) const;

  onnx::ModelProto base_;
  absl::flat_hash_map<ItemId, int> nodes_;             // index in base_
  std::vector<ItemId> items_;                          // by index in base_
  std::map<std::string, std::vector<int64_t>> sizes_;  // values of small constant int64 vectors, by tensor name
  std::map<int, std::string> known_problems_;          // of the graph as it is
  bool strict_ = true;                                 // the graph passes strict inference
  ShapeReport original_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_SHAPES_H_
