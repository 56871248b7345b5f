// Constant operands of layers, made ready to be rewritten.
#ifndef MODELPRESS_ENGINE_QUANTIZE_OPERANDS_H_
#define MODELPRESS_ENGINE_QUANTIZE_OPERANDS_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/graph/graph.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {

// The tensor of an initializer or of a Constant node.
Tensor TensorOf(const Item& holder);

// What FindConstantOperand finds, else NODE_UNSUPPORTED with the layer. `what` names the operand: "weight".
absl::StatusOr<ConstantOperand> RequireConstant(const Graph& graph, ItemId layer, Value value, absl::string_view what);

// Makes the constant in input `input` of `user` an initializer: the value of a Constant node moves into one.
absl::StatusOr<ConstantOperand> ToInitializer(Graph& graph, ItemId layer, ItemId user, int input, absl::string_view what);

// The same, and one that nobody else reads: a shared tensor is copied, with the Transpose in front of it, under names that begin
// with the layer's. `copied` tells.
absl::StatusOr<ConstantOperand> OwnOperand(Graph& graph, ItemId layer, ItemId user, int input, absl::string_view what,
                                           bool* copied = nullptr);

// Puts `tensor` where the operand's tensor is, under the name that it has there. The operand is an initializer.
void SetTensor(Graph& graph, const ConstantOperand& operand, Tensor tensor);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_OPERANDS_H_
