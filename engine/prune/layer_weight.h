// The weight of a convolution or a Linear, seen as its torch module sees it.
#ifndef MODELPRESS_ENGINE_PRUNE_LAYER_WEIGHT_H_
#define MODELPRESS_ENGINE_PRUNE_LAYER_WEIGHT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/graph/graph.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {

struct LayerWeight {
  ConstantOperand operand;      // input 1 of the node
  std::vector<int64_t> stored;  // dims of the tensor in the model
  std::vector<int64_t> dims;    // in torch's layout: [Cout, Cin/groups, k...]; ConvTranspose [Cin, Cout/groups, k...]; [out, in]
  bool transposed = false;      // a Linear that the model stores as [in, out]
  int64_t groups = 1;

  // Axis of the stored tensor that is axis `axis` of torch's.
  int StoredAxis(int axis) const { return transposed ? 1 - axis : axis; }
};

// The weight of a Conv, ConvTranspose, Gemm or MatMul node. PRUNE_FAILED with the layer: the node is another one, its weight is
// no constant, or it is of a shape or stored in a way that no torch module has.
absl::StatusOr<LayerWeight> FindLayerWeight(const Graph& graph, ItemId layer);

// True for a convolution in which every input channel has a group of its own.
inline bool IsDepthwise(const LayerWeight& weight) { return weight.groups > 1 && weight.dims[1] == 1; }

// The node called `name`. PRUNE_FAILED: there is none.
absl::StatusOr<ItemId> FindPrunedNode(const Graph& graph, absl::string_view name);

// "[2, 3]".
std::string ShapeText(const std::vector<int64_t>& dims);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_LAYER_WEIGHT_H_
