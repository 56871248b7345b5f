#include "engine/quantize/operands.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/pass.h"

namespace modelpress::engine {

Tensor TensorOf(const Item& holder) {
  if (holder.is_initializer()) {
    return holder.tensor;
  }
  return holder.node.tensors.empty() ? FromProto(FindAttribute(holder.node.proto, "value")->t()) : holder.node.tensors[0].second;
}

absl::StatusOr<ConstantOperand> RequireConstant(const Graph& graph, ItemId layer, Value value, absl::string_view what) {
  std::optional<ConstantOperand> operand = FindConstantOperand(graph, value);
  if (!operand.has_value()) {
    return MakeError(v1::NODE_UNSUPPORTED,
                     absl::StrCat("its ", what,
                                  " must be an initializer or a Constant, at most behind one Transpose; leave the layer "
                                  "unquantized or fold the tensor"),
                     {.layer = graph.item(layer).name});
  }
  return *operand;
}

absl::StatusOr<ConstantOperand> ToInitializer(Graph& graph, ItemId layer, ItemId user, int input, absl::string_view what) {
  MP_ASSIGN_OR_RETURN(const ConstantOperand operand, RequireConstant(graph, layer, graph.InputOf(user, input), what));
  if (graph.item(operand.holder).is_node()) {
    graph.ReplaceByInitializer(operand.holder, TensorOf(graph.item(operand.holder)));
  }
  return operand;
}

absl::StatusOr<ConstantOperand> OwnOperand(Graph& graph, ItemId layer, ItemId user, int input, absl::string_view what,
                                           bool* copied) {
  MP_ASSIGN_OR_RETURN(ConstantOperand operand, ToInitializer(graph, layer, user, input, what));
  const bool shared = graph.UsesOf(Value{operand.holder, 0}).size() > 1 ||
                      (operand.transpose >= 0 && graph.UsesOf(Value{operand.transpose, 0}).size() > 1);
  if (copied != nullptr) {
    *copied = shared;
  }
  if (!shared) {
    return operand;
  }
  const std::string base = graph.item(layer).name;
  operand.holder =
      graph.AddInitializer(absl::StrCat(base, ".", graph.item(operand.holder).name), graph.item(operand.holder).tensor);
  Value own{operand.holder, 0};
  if (operand.transpose >= 0) {
    const std::string transpose_name = absl::StrCat(base, ".", graph.item(operand.transpose).name);
    operand.transpose = graph.AddNode(transpose_name, graph.item(operand.transpose).node.proto, 1, {OutputName(transpose_name)});
    graph.SetInput(operand.transpose, 0, own);
    own = Value{operand.transpose, 0};
  }
  graph.SetInput(user, input, own);
  return operand;
}

void SetTensor(Graph& graph, const ConstantOperand& operand, Tensor tensor) {
  Tensor& place = graph.mutable_item(operand.holder).tensor;
  tensor.header.set_name(place.name());
  place = std::move(tensor);
}

}  // namespace modelpress::engine
