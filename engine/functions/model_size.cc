#include "engine/functions/model_size.h"

#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/prune/shapes.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

// Elements of the constant in an input; nullopt: it is none.
std::optional<uint64_t> ConstantSize(const Graph& graph, ItemId id, int input) {
  const auto operand = input < 0 ? std::nullopt : FindConstantOperand(graph, graph.InputOf(id, input));
  return operand.has_value() ? std::optional(TensorOf(graph.item(operand->holder)).ElementCount()) : std::nullopt;
}

using Shapes = absl::flat_hash_map<std::string, std::vector<int64_t>>;

// Null: not even the rank is known.
const std::vector<int64_t>* Find(const Shapes& shapes, const std::string& tensor) {
  const auto it = shapes.find(tensor);
  return it == shapes.end() ? nullptr : &it->second;
}

// The product of the dims of a tensor but for the first `first` and the last `from_end`; nullopt: one of them is not known.
std::optional<uint64_t> Positions(const Shapes& shapes, const std::string& tensor, size_t first, size_t from_end) {
  const std::vector<int64_t>* dims = Find(shapes, tensor);
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

LayerSize Measure(const Graph& graph, const Shapes& shapes, ItemId id, const OpRule& rule, uint64_t weight) {
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
      const std::vector<int64_t>* dims = Find(shapes, item.outputs[0]);
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
  const absl::StatusOr<ShapeModel> model = ShapeModel::Create(graph);
  const Shapes shapes = model.ok() ? model->original().shapes : Shapes();
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
