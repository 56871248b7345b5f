#include "engine/quantize/op_rules.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace modelpress::engine {
namespace {

constexpr std::array<OpRule, 7> kRules = {{
    // op_type          kind                    W  bias  R  h0 gates cin per-channel balance deploy
    {"Conv", OpKind::kConv, 1, 2, -1, -1, 0, 1, true, true, ""},
    {"ConvTranspose", OpKind::kConvTranspose, 1, 2, -1, -1, 0, 0, true, true, ""},
    {"Gemm", OpKind::kGemm, 1, 2, -1, -1, 0, 0, false, true, ""},
    {"MatMul", OpKind::kMatMul, 1, -1, -1, -1, 0, 0, false, true, ""},
    {"AveragePool", OpKind::kAveragePool, -1, -1, -1, -1, 0, 0, false, false, ""},
    {"LSTM", OpKind::kLstm, 1, 3, 2, 5, 4, 2, true, false, "BasicLSTMInplaceFillWindowCache"},
    {"GRU", OpKind::kGru, 1, 3, 2, 5, 3, 2, true, false, "BasicGRUInplaceFillWindowCache"},
}};

constexpr int kInitialC = 6;  // LSTM
constexpr int kPeephole = 7;  // LSTM

bool IsConstant(const Item& item) {
  return item.is_initializer() || (item.Is("Constant") && FindAttribute(item.node.proto, "value") != nullptr);
}

// The tensor of a Constant node, without its data.
const onnx::TensorProto& ConstantHeader(const Item& constant) {
  return constant.node.tensors.empty() ? FindAttribute(constant.node.proto, "value")->t()
                                       : constant.node.tensors[0].second.header;
}

std::string WhyNotRnn(const Graph& graph, ItemId id, const OpRule& rule) {
  const Item& item = graph.item(id);
  const onnx::NodeProto& node = item.node.proto;
  const bool lstm = rule.kind == OpKind::kLstm;
  auto is_state = [&](int input) {
    Value value = graph.InputOf(id, input);
    return !value.is_none() && graph.ReachableFromGraphInput(value);
  };
  if (!is_state(rule.initial_h)) {
    return "initial_h must be computed from a graph input";
  }
  if (lstm && !is_state(kInitialC)) {
    return "initial_c must be computed from a graph input";
  }
  if (lstm && !graph.InputOf(id, kPeephole).is_none()) {
    return "it has peephole weights (input P)";
  }
  if (const int wanted = lstm ? 3 : 2; static_cast<int>(item.outputs.size()) < wanted) {
    return absl::StrCat("it has fewer than ", wanted, " outputs");
  }
  for (int input : {rule.weight, rule.recurrence}) {
    std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(id, input));
    if (!weight.has_value()) {
      return absl::StrCat(input == rule.weight ? "W" : "R", " is not a constant");
    }
    std::vector<int64_t> dims = DimsOf(graph.item(weight->holder));
    if (dims.size() != 3 || dims[0] != 1 || dims[1] % rule.gates != 0) {
      return absl::StrCat(input == rule.weight ? "W" : "R", " must have the shape [1, ", rule.gates, " * hidden, inputs]");
    }
  }
  for (const char* forbidden : {"activation_alpha", "activation_beta", "activations"}) {
    if (FindAttribute(node, forbidden) != nullptr) {
      return absl::StrCat("attribute ", forbidden, " is not supported");
    }
  }
  if (lstm && FindAttribute(node, "clip") != nullptr) {
    return "attribute clip is not supported";
  }
  if (const auto* direction = FindAttribute(node, "direction"); direction != nullptr && direction->s() != "forward") {
    return absl::StrCat("direction '", direction->s(), "' is not supported");
  }
  if (lstm && IntAttribute(node, "input_forget", 0) != 0) {
    return "attribute input_forget is not supported";
  }
  if (IntAttribute(node, "layout", 0) != 0) {
    return "layout 1 is not supported";
  }
  if (!lstm && IntAttribute(node, "linear_before_reset", 0) == 0) {
    return "linear_before_reset must be 1";
  }
  return "";
}

}  // namespace

const OpRule* FindOpRule(absl::string_view op_type) {
  auto it = std::find_if(kRules.begin(), kRules.end(), [op_type](const OpRule& rule) { return rule.op_type == op_type; });
  return it == kRules.end() ? nullptr : &*it;
}

std::optional<ConstantOperand> FindConstantOperand(const Graph& graph, Value value) {
  ConstantOperand operand;
  if (value.is_item() && graph.item(value.item).Is("Transpose")) {
    operand.transpose = value.item;
    value = graph.InputOf(value.item, 0);
  }
  if (!value.is_item() || !IsConstant(graph.item(value.item))) {
    return std::nullopt;
  }
  operand.holder = value.item;
  return operand;
}

std::vector<int64_t> DimsOf(const Graph& graph, const ConstantOperand& operand) {
  std::vector<int64_t> dims = DimsOf(graph.item(operand.holder));
  if (operand.transpose < 0) {
    return dims;
  }
  std::vector<int64_t> seen(dims.rbegin(), dims.rend());
  const auto* perm = FindAttribute(graph.item(operand.transpose).node.proto, "perm");
  if (perm != nullptr && perm->ints_size() == static_cast<int>(dims.size())) {
    for (size_t i = 0; i < dims.size(); ++i) {
      const int64_t axis = perm->ints(static_cast<int>(i));
      seen[i] = axis >= 0 && axis < static_cast<int64_t>(dims.size()) ? dims[axis] : 0;
    }
  }
  return seen;
}

std::vector<int64_t> DimsOf(const Item& holder) {
  const onnx::TensorProto& header = holder.is_initializer() ? holder.tensor.header : ConstantHeader(holder);
  return {header.dims().begin(), header.dims().end()};
}

int DataTypeOf(const Item& holder) {
  return (holder.is_initializer() ? holder.tensor.header : ConstantHeader(holder)).data_type();
}

ItemId FindMatMulBiasAdd(const Graph& graph, ItemId matmul) {
  const std::vector<Use>& uses = graph.UsesOf(Value{matmul, 0});
  if (uses.size() != 1 || uses[0].item == Use::kGraphOutput || !graph.item(uses[0].item).Is("Add")) {
    return -1;
  }
  const ItemId add = uses[0].item;
  const Value bias = graph.InputOf(add, 1);
  if (!bias.is_item()) {
    return -1;
  }
  ItemId holder = bias.item;
  if (graph.item(holder).Is("Cast") && graph.item(holder).name == absl::StrCat(graph.item(matmul).name, ".bias_quant")) {
    holder = graph.InputOf(holder, 0).item;  // the Cast that bias quantization puts there for 4-bit activations
  }
  std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(matmul, 1));
  if (!IsConstant(graph.item(holder)) || !weight.has_value()) {
    return -1;
  }
  const std::vector<int64_t> dims = DimsOf(graph.item(holder));
  const std::vector<int64_t> weight_dims = DimsOf(graph.item(weight->holder));
  return dims.size() == 1 && !weight_dims.empty() && dims[0] == weight_dims.back() ? add : -1;
}

std::optional<BiasPlace> FindBias(const Graph& graph, ItemId layer, const OpRule& rule) {
  if (rule.kind == OpKind::kMatMul) {
    const ItemId add = FindMatMulBiasAdd(graph, layer);
    return add < 0 ? std::nullopt : std::optional<BiasPlace>({add, 1});
  }
  if (rule.bias < 0 || graph.InputOf(layer, rule.bias).is_none()) {
    return std::nullopt;
  }
  return BiasPlace{layer, rule.bias};
}

std::string WhyNotQuantizable(const Graph& graph, ItemId id) {
  const Item& item = graph.item(id);
  if (!item.is_node()) {
    return "it is an initializer";
  }
  const OpRule* rule = FindOpRule(item.node.proto.op_type());
  if (rule == nullptr) {
    return absl::StrCat("operator ", item.node.proto.op_type(), " is not supported");
  }
  switch (rule->kind) {
    case OpKind::kConv:
    case OpKind::kConvTranspose: {
      int spatial = 0;
      if (const auto* kernel_shape = FindAttribute(item.node.proto, "kernel_shape"); kernel_shape != nullptr) {
        spatial = kernel_shape->ints_size();
      } else if (auto weight = FindConstantOperand(graph, graph.InputOf(id, 1)); weight.has_value()) {
        spatial = static_cast<int>(DimsOf(graph.item(weight->holder)).size()) - 2;
      }
      return spatial >= 1 && spatial <= 3 ? ""
                                          : absl::StrCat("it has ", spatial, " spatial dimensions; 1, 2 and 3 are supported");
    }
    case OpKind::kGemm:
      return IntAttribute(item.node.proto, "transA", 0) == 1 ? "transA is 1" : "";
    case OpKind::kMatMul: {
      if (FindConstantOperand(graph, graph.InputOf(id, 0)).has_value()) {
        return "its first input is a constant";
      }
      std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(id, 1));
      if (!weight.has_value()) {
        return "its second input is not a constant";
      }
      const size_t rank = DimsOf(graph.item(weight->holder)).size();
      return rank == 2 ? "" : absl::StrCat("its weight has rank ", rank, ", not 2");
    }
    case OpKind::kAveragePool:
      return "";
    case OpKind::kLstm:
    case OpKind::kGru:
      return WhyNotRnn(graph, id, *rule);
  }
  return "";
}

int64_t GroupOf(const Item& layer) { return IntAttribute(layer.node.proto, "group", 1); }

int64_t InputChannels(const Item& layer, const OpRule& rule, const std::vector<int64_t>& weight_dims) {
  if (weight_dims.size() < 2) {
    return 0;
  }
  switch (rule.kind) {
    case OpKind::kConv:
      return weight_dims[1] * GroupOf(layer);
    case OpKind::kGemm:
      return weight_dims[IntAttribute(layer.node.proto, "transB", 0) == 1 ? 1 : 0];
    default:
      return weight_dims[0];
  }
}

int64_t OutputChannels(const Item& layer, const OpRule& rule, const std::vector<int64_t>& weight_dims) {
  if (weight_dims.size() < 2) {
    return 0;
  }
  switch (rule.kind) {
    case OpKind::kConv:
      return weight_dims[0];
    case OpKind::kConvTranspose:
      return weight_dims[1] * GroupOf(layer);
    default:
      return weight_dims[1];  // RNN: gates * hidden
  }
}

}  // namespace modelpress::engine
