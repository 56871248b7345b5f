#include "engine/quantize/deploy_check.h"

#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/graph/graph.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {
namespace {

absl::Status Invalid(const std::string& layer, absl::string_view what) {
  return MakeError(v1::OUTPUT_INVALID, absl::StrCat("the deploy model is not as it should be: ", what), {.layer = layer});
}

absl::Status CheckNodes(const Model& model) {
  absl::flat_hash_set<std::string> known;
  for (const auto& input : model.shell.graph().input()) {
    known.insert(input.name());
  }
  for (const Tensor& tensor : model.initializers) {
    known.insert(tensor.name());
  }
  for (const onnx::SparseTensorProto& sparse : model.sparse_initializers) {
    known.insert(sparse.values().name());
  }
  for (const Node& node : model.nodes) {
    for (const std::string& input : node.proto.input()) {
      if (!input.empty() && !known.contains(input)) {
        return Invalid(node.proto.name(), absl::StrCat("'", input, "' is used before it is produced"));
      }
    }
    known.insert(node.proto.output().begin(), node.proto.output().end());
    if (FindAttribute(node.proto, "op_data_type") != nullptr || node.proto.op_type() == "QuantIdentity") {
      return Invalid(node.proto.name(), "a mark of the modified model is left");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckQuantizer(const Graph& graph, Value value, const std::string& layer) {
  if (value.is_item() && graph.item(value.item).Is("Pad")) {  // of a pooling layer
    value = graph.InputOf(value.item, 0);
  }
  if (!value.is_item() || !graph.item(value.item).Is("AscendQuant")) {
    return Invalid(layer, "its activation is not quantized");
  }
  const onnx::NodeProto& node = graph.item(value.item).node.proto;
  const auto* scale = FindAttribute(node, "scale");
  const auto* dst_type = FindAttribute(node, "dst_type");
  if (scale == nullptr || !(scale->f() > 0) || FindAttribute(node, "offset") == nullptr || dst_type == nullptr ||
      (dst_type->s() != "INT4" && dst_type->s() != "INT8" && dst_type->s() != "INT16")) {
    return Invalid(layer, "the attributes of its AscendQuant are wrong");
  }
  return absl::OkStatus();
}

absl::Status CheckDequantizer(const Graph& graph, Value output, size_t scales, const std::string& layer) {
  const std::vector<Use>& uses = graph.UsesOf(output);
  if (uses.size() != 1 || uses[0].item == Use::kGraphOutput || !graph.item(uses[0].item).Is("AscendDequant")) {
    return Invalid(layer, "its output is not dequantized");
  }
  const Value param = graph.InputOf(uses[0].item, 1);
  if (!param.is_item() || DataTypeOf(graph.item(param.item)) != onnx::TensorProto::UINT64 ||
      DimsOf(graph.item(param.item)) != std::vector<int64_t>{static_cast<int64_t>(scales)}) {
    return Invalid(layer, "the parameters of its AscendDequant do not match its scales");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckDeployModel(const Model& model, const FactorsByLayer& factors, const ReferenceDefects& defects) {
  MP_RETURN_IF_ERROR(CheckNodes(model));
  MP_ASSIGN_OR_RETURN(Graph graph, Graph::Create(model, defects));
  for (const auto& [layer, layer_factors] : factors) {
    const ItemId id = graph.Find(layer);
    if (id < 0) {
      return Invalid(layer, "the layer is gone");
    }
    const OpRule* rule = FindOpRule(graph.item(id).node.proto.op_type());
    const bool device_rnn = rule == nullptr;
    for (int input : device_rnn ? std::vector<int>{1, 2} : std::vector<int>{rule->weight}) {
      if (input < 0) {
        continue;
      }
      std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(id, input));
      const int type = weight.has_value() ? DataTypeOf(graph.item(weight->holder)) : 0;
      if (type != onnx::TensorProto::INT8 && type != onnx::TensorProto::INT4) {
        return Invalid(layer, "its weight is not an integer tensor");
      }
    }
    if (device_rnn) {
      if (FindAttribute(graph.item(id).node.proto, "quant_scale_x") == nullptr) {
        return Invalid(layer, "it was not replaced by the device's operator");
      }
      continue;
    }
    MP_RETURN_IF_ERROR(CheckQuantizer(graph, graph.InputOf(id, 0), layer));
    const std::optional<BiasPlace> bias = FindBias(graph, id, *rule);
    const ItemId last = bias.has_value() ? bias->item : id;
    MP_RETURN_IF_ERROR(CheckDequantizer(graph, Value{last, 0}, layer_factors.scale_w.size(), layer));
    if (bias.has_value()) {
      Value value = graph.InputOf(bias->item, bias->input);
      if (value.is_item() && graph.item(value.item).Is("Cast")) {
        value = graph.InputOf(value.item, 0);
      }
      if (!value.is_item() || DataTypeOf(graph.item(value.item)) != onnx::TensorProto::INT32) {
        return Invalid(layer, "its bias is not an int32 tensor");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace modelpress::engine
