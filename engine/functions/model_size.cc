#include "engine/functions/model_size.h"

#include <vector>

#include "engine/prune/tensor_shapes.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

// Elements of the constant in an input; nullopt: it is none.
std::optional<uint64_t> ConstantSize(const Graph& graph, ItemId id, int input) {
  const auto operand = input < 0 ? std::nullopt : FindConstantOperand(graph, graph.InputOf(id, input));
  return operand.has_value() ? std::optional(TensorOf(graph.item(operand->holder)).ElementCount()) : std::nullopt;
}

// The product of dims [first, last) of a tensor; nullopt: one of them is not known.
std::optional<uint64_t> Positions(const TensorShapes& shapes, const std::string& tensor, size_t first, size_t from_end) {
  const std::vector<int64_t>* dims = shapes.Find(tensor);
  if (dims == nullptr || dims->size() < first + from_end) {
    return std::nullopt;
  }
  uint64_t product = 1;
  for (size_t i = first; i + from_end < dims->size(); ++i) {
    if ((*dims)[i] < 0) {
      return std::nullopt;
    }
    product *= (*dims)[i];
  }
  return product;
}

LayerSize Measure(const Graph& graph, const TensorShapes& shapes, ItemId id, const OpRule& rule, uint64_t weight) {
  const Item& item = graph.item(id);
  LayerSize size = {.parameters = weight};
  std::optional<uint64_t> positions;  // how often every weight is used for one sample
  switch (rule.kind) {
    case OpKind::kConv:
      positions = Positions(shapes, item.outputs[0], 2, 0);
      break;
    case OpKind::kConvTranspose:
      positions = Positions(shapes, graph.NameOf(graph.InputOf(id, 0)), 2, 0);
      break;
    case OpKind::kGemm:
      positions = 1;
      break;
    case OpKind::kMatMul: {
      const std::vector<int64_t>* dims = shapes.Find(item.outputs[0]);
      positions = dims != nullptr && dims->size() < 3 ? std::optional<uint64_t>(1) : Positions(shapes, item.outputs[0], 1, 1);
      break;
    }
    case OpKind::kLstm:
    case OpKind::kGru:  // [sequence, batch, features]
      positions = Positions(shapes, graph.NameOf(graph.InputOf(id, 0)), 0, 2);
      size.parameters += ConstantSize(graph, id, rule.recurrence).value_or(0);
      break;
    case OpKind::kAveragePool:
      break;
  }
  if (positions.has_value()) {
    size.macs = size.parameters * *positions;
  }
  if (const std::optional<BiasPlace> bias = FindBias(graph, id, rule); bias.has_value()) {
    size.parameters += ConstantSize(graph, bias->item, bias->input).value_or(0);
  }
  return size;
}

}  // namespace

ModelSize MeasureModel(const Graph& graph) {
  const TensorShapes shapes = TensorShapes::Infer(graph);
  ModelSize size = {.macs = 0};
  for (ItemId id : graph.Order()) {
    const Item& item = graph.item(id);
    if (item.is_initializer()) {
      size.parameters += item.tensor.ElementCount();
      size.bytes += item.tensor.payload == nullptr ? 0 : item.tensor.payload->size();
      continue;
    }
    const OpRule* rule = item.is_node() ? FindOpRule(item.node.proto.op_type()) : nullptr;
    const std::optional<uint64_t> weight = rule == nullptr ? std::nullopt : ConstantSize(graph, id, rule->weight);
    if (!weight.has_value()) {
      continue;
    }
    LayerSize& layer = size.layers[item.name] = Measure(graph, shapes, id, *rule, *weight);
    size.macs = size.macs.has_value() && layer.macs.has_value() ? std::optional(*size.macs + *layer.macs) : std::nullopt;
  }
  return size;
}

}  // namespace modelpress::engine
