#include "engine/prune/layer_weight.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

absl::Status Unusable(const Item& layer, absl::string_view why) {
  return MakeError(v1::PRUNE_FAILED, why, {.layer = layer.name});
}

bool SwapsTwoAxes(const Item& transpose) {
  const auto* perm = FindAttribute(transpose.node.proto, "perm");
  return perm == nullptr || (perm->ints_size() == 2 && perm->ints(0) == 1 && perm->ints(1) == 0);
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& dims) { return absl::StrCat("[", absl::StrJoin(dims, ", "), "]"); }

absl::StatusOr<ItemId> FindPrunedNode(const Graph& graph, absl::string_view name) {
  const ItemId id = graph.Find(name);
  if (id < 0 || !graph.item(id).is_node()) {
    return MakeError(v1::PRUNE_FAILED, "the record names a node that is not in the model; it was made from another model",
                     {.layer = std::string(name)});
  }
  return id;
}

absl::StatusOr<LayerWeight> FindLayerWeight(const Graph& graph, ItemId layer) {
  const Item& item = graph.item(layer);
  const bool convolution = item.Is("Conv") || item.Is("ConvTranspose");
  const bool linear = item.Is("Gemm") || item.Is("MatMul");
  if (!convolution && !linear) {
    return Unusable(
        item, absl::StrCat("it is a ", item.is_node() ? item.node.proto.op_type() : "tensor", ", not a convolution or a Linear"));
  }
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(layer, 1));
  if (!operand.has_value()) {
    return Unusable(item, "its weight is not a constant of the model");
  }
  LayerWeight weight = {.operand = *operand, .stored = DimsOf(graph.item(operand->holder))};
  weight.dims = weight.stored;
  if (convolution) {
    weight.groups = GroupOf(item);
    if (weight.dims.size() < 3 || operand->transpose >= 0 || weight.groups < 1 || weight.dims[0] % weight.groups != 0) {
      return Unusable(item, absl::StrCat("its weight of shape ", ShapeText(weight.stored), " with ", weight.groups,
                                         " groups is none of a convolution's module"));
    }
    return weight;
  }
  if (weight.dims.size() != 2 || (operand->transpose >= 0 && !SwapsTwoAxes(graph.item(operand->transpose))) ||
      IntAttribute(item.node.proto, "transA", 0) != 0) {
    return Unusable(item, absl::StrCat("with a weight of shape ", ShapeText(weight.stored), " it is none of a Linear module"));
  }
  weight.transposed = (IntAttribute(item.node.proto, "transB", 0) == 0) != (operand->transpose >= 0);
  if (weight.transposed) {
    std::swap(weight.dims[0], weight.dims[1]);
  }
  return weight;
}

}  // namespace modelpress::engine
