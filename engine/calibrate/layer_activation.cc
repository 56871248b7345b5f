#include "engine/calibrate/layer_activation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numbers>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {
namespace {

absl::Status Unsupported(const Graph& graph, ItemId layer, absl::string_view why) {
  return MakeError(v1::NODE_UNSUPPORTED, absl::StrCat("AdaRound does not work on this layer: ", why, "; calibrate it with ARQ"),
                   {.layer = graph.item(layer).name});
}

struct Constant {
  std::vector<int64_t> dims;
  std::vector<float> values;
};

// A constant operand of up to `most` elements, through Identity nodes (exporters let equal initializers share one).
absl::StatusOr<std::optional<Constant>> ReadConstant(const Graph& graph, Value value, uint64_t most) {
  while (value.is_item() && graph.item(value.item).Is("Identity")) {
    value = graph.InputOf(value.item, 0);
  }
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, value);
  if (!operand.has_value() || operand->transpose >= 0) {
    return std::nullopt;
  }
  const Item& holder = graph.item(operand->holder);
  Tensor tensor;
  if (holder.is_initializer()) {
    tensor = holder.tensor;
  } else if (!holder.node.tensors.empty()) {
    tensor = holder.node.tensors[0].second;
  } else {
    tensor = FromProto(FindAttribute(holder.node.proto, "value")->t());
  }
  if (tensor.ElementCount() > most) {
    return std::nullopt;
  }
  Constant constant = {.dims = DimsOf(holder), .values = std::vector<float>(tensor.ElementCount())};
  if (absl::Status status = ReadFloats(tensor, 0, absl::MakeSpan(constant.values)); !status.ok()) {
    return AtPlace(status, {.layer = holder.name});
  }
  return constant;
}

absl::StatusOr<std::optional<float>> ReadScalar(const Graph& graph, Value value) {
  MP_ASSIGN_OR_RETURN(const std::optional<Constant> constant, ReadConstant(graph, value, 1));
  return constant.has_value() && constant->values.size() == 1 ? std::optional(constant->values[0]) : std::nullopt;
}

// The node that alone uses `value`; -1: none, several, or a graph output.
ItemId OnlyConsumer(const Graph& graph, Value value) {
  const std::vector<Use>& uses = graph.UsesOf(value);
  return uses.size() == 1 && uses[0].item != Use::kGraphOutput ? uses[0].item : -1;
}

int64_t OutputChannelsOf(const Graph& graph, ItemId layer) {
  const Item& item = graph.item(layer);
  const OpRule* rule = FindOpRule(item.node.proto.op_type());
  const std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(layer, 1));
  if (rule == nullptr || !weight.has_value()) {
    return -1;
  }
  const std::vector<int64_t> dims = DimsOf(graph.item(weight->holder));
  if (dims.size() < 2) {
    return -1;
  }
  if (rule->kind == OpKind::kGemm || rule->kind == OpKind::kMatMul) {
    const bool transposed = (IntAttribute(item.node.proto, "transB", 0) == 1) != (weight->transpose >= 0);
    return dims[transposed ? 0 : 1];
  }
  return OutputChannels(item, *rule, dims);
}

// The Add that holds a MatMul's bias. Unlike FindMatMulBiasAdd, which follows the rules of the record, as either input: torch 2.6
// puts the bias first.
struct BiasAdd {
  ItemId add = -1;
  Constant bias;
};
absl::StatusOr<std::optional<BiasAdd>> FindBiasAdd(const Graph& graph, ItemId matmul) {
  const ItemId add = OnlyConsumer(graph, Value{matmul, 0});
  const int64_t channels = OutputChannelsOf(graph, matmul);
  if (add < 0 || !graph.item(add).Is("Add") || channels < 0) {
    return std::nullopt;
  }
  for (int input : {0, 1}) {
    MP_ASSIGN_OR_RETURN(std::optional<Constant> bias, ReadConstant(graph, graph.InputOf(add, input), channels));
    if (bias.has_value() && bias->dims == std::vector<int64_t>{channels}) {
      return BiasAdd{add, *std::move(bias)};
    }
  }
  return std::nullopt;
}

// GELU has no operator before opset 20, so exporters spell it out. It is told by what the nodes between `input` and some value
// compute, whatever their order.
class Formula {
 public:
  explicit Formula(const Graph& graph, Value input) : graph_(graph), input_(input) {
    known_[Key(input)] = Points(kPoints.begin(), kPoints.end());
  }

  // The value behind the formula, and which it is; kNone where there is none.
  absl::StatusOr<std::pair<Value, LayerActivation::Kind>> Match() {
    constexpr int kMaxNodes = 16;
    Value end = input_;
    for (int nodes = 0; nodes < kMaxNodes; ++nodes) {
      MP_ASSIGN_OR_RETURN(const std::optional<Value> next, Advance());
      if (!next.has_value()) {
        break;
      }
      end = *next;
      if (!UsedElsewhere(end)) {
        if (const LayerActivation::Kind kind = KindOf(known_.at(Key(end))); kind != LayerActivation::Kind::kNone) {
          return std::make_pair(end, kind);
        }
      }
    }
    return std::make_pair(input_, LayerActivation::Kind::kNone);
  }

 private:
  using Points = std::vector<double>;
  static constexpr std::array<double, 7> kPoints = {-3, -1.5, -0.5, -0.125, 0.25, 1, 2.5};

  static std::pair<ItemId, int> Key(Value value) { return {value.item, value.output}; }

  static double Gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2)); }
  static double GeluTanh(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  }

  static LayerActivation::Kind KindOf(const Points& points) {
    const auto is = [&points](double (*function)(double)) {
      constexpr double kTolerance = 1e-6;  // of float constants; the two formulas differ by 1e-4
      for (size_t i = 0; i < kPoints.size(); ++i) {
        if (!(std::abs(points[i] - function(kPoints[i])) < kTolerance)) {
          return false;
        }
      }
      return true;
    };
    return is(Gelu)       ? LayerActivation::Kind::kGelu
           : is(GeluTanh) ? LayerActivation::Kind::kGeluTanh
                          : LayerActivation::Kind::kNone;
  }

  // Computes one more node out of what is known; nullopt: there is none that can be computed.
  absl::StatusOr<std::optional<Value>> Advance() {
    for (const auto& [key, points] : known_) {
      for (const Use& use : graph_.UsesOf(Value{key.first, key.second})) {
        if (use.item == Use::kGraphOutput || known_.contains({use.item, 0})) {
          continue;
        }
        MP_ASSIGN_OR_RETURN(const std::optional<Points> computed, Compute(use.item));
        if (computed.has_value()) {
          known_[{use.item, 0}] = *computed;
          return Value{use.item, 0};
        }
      }
    }
    return std::nullopt;
  }

  absl::StatusOr<std::optional<Points>> Compute(ItemId id) const {
    const std::string& type = graph_.item(id).node.proto.op_type();
    const bool unary = type == "Erf" || type == "Tanh";
    if (!unary && type != "Add" && type != "Mul" && type != "Div" && type != "Pow") {
      return std::nullopt;
    }
    std::array<Points, 2> operands;
    for (int input = 0; input < (unary ? 1 : 2); ++input) {
      const Value value = graph_.InputOf(id, input);
      if (const auto it = known_.find(Key(value)); it != known_.end()) {
        operands[input] = it->second;
        continue;
      }
      MP_ASSIGN_OR_RETURN(const std::optional<float> scalar, ReadScalar(graph_, value));
      if (!scalar.has_value()) {
        return std::nullopt;
      }
      operands[input].assign(kPoints.size(), *scalar);
    }
    Points result(kPoints.size());
    for (size_t i = 0; i < result.size(); ++i) {
      const double a = operands[0][i];
      const double b = unary ? 0 : operands[1][i];
      result[i] = type == "Erf"    ? std::erf(a)
                  : type == "Tanh" ? std::tanh(a)
                  : type == "Add"  ? a + b
                  : type == "Mul"  ? a * b
                  : type == "Div"  ? a / b
                                   : std::pow(a, b);
    }
    return result;
  }

  // True if something that is not part of the formula uses one of its values before `end`.
  bool UsedElsewhere(Value end) const {
    return std::any_of(known_.begin(), known_.end(), [&](const auto& entry) {
      const Value value{entry.first.first, entry.first.second};
      const std::vector<Use>& uses = graph_.UsesOf(value);
      return value != end && std::any_of(uses.begin(), uses.end(), [this](const Use& use) {
               return use.item == Use::kGraphOutput || !known_.contains({use.item, 0});
             });
    });
  }

  const Graph& graph_;
  Value input_;
  std::map<std::pair<ItemId, int>, Points> known_;  // what values are at kPoints
};

float FloatAttribute(const onnx::NodeProto& node, absl::string_view name, float fallback) {
  const onnx::AttributeProto* attribute = FindAttribute(node, name);
  return attribute == nullptr ? fallback : attribute->f();
}

// Bounds of a Clip: attributes up to opset 6, inputs from 11 on.
absl::StatusOr<bool> IsRelu6(const Graph& graph, ItemId clip) {
  const onnx::NodeProto& node = graph.item(clip).node.proto;
  if (graph.item(clip).input_count() == 1) {
    return FloatAttribute(node, "min", -1) == 0 && FloatAttribute(node, "max", -1) == 6;
  }
  MP_ASSIGN_OR_RETURN(const std::optional<float> low, ReadScalar(graph, graph.InputOf(clip, 1)));
  MP_ASSIGN_OR_RETURN(const std::optional<float> high, ReadScalar(graph, graph.InputOf(clip, 2)));
  return low == 0 && high == 6;
}

// Slopes that go with output channels: one, or as many as there are, along axis 1 of images ([C, 1, 1]) or the last of a Linear
// ([C]).
bool SlopesFit(const Constant& slopes, int64_t channels, bool linear) {
  if (slopes.values.size() == 1) {
    return true;
  }
  std::vector<int64_t> wanted = {channels};
  if (!linear) {
    wanted.insert(wanted.end(), {1, 1});
  }
  std::vector<int64_t> dims = slopes.dims;
  while (dims.size() > wanted.size() && dims.front() == 1) {
    dims.erase(dims.begin());
  }
  return dims == wanted;
}

absl::StatusOr<LayerActivation> ActivationOfNode(const Graph& graph, ItemId id, int64_t channels, bool linear) {
  using Kind = LayerActivation::Kind;
  const onnx::NodeProto& node = graph.item(id).node.proto;
  const std::string& type = node.op_type();
  if (!node.domain().empty() && node.domain() != "ai.onnx") {
    return LayerActivation{};
  }
  if (type == "Relu") {
    return LayerActivation{.kind = Kind::kRelu};
  }
  if (type == "Sigmoid") {
    return LayerActivation{.kind = Kind::kSigmoid};
  }
  if (type == "Tanh") {
    return LayerActivation{.kind = Kind::kTanh};
  }
  if (type == "LeakyRelu") {
    return LayerActivation{.kind = Kind::kLeakyRelu, .slope = FloatAttribute(node, "alpha", 0.01f)};
  }
  if (type == "Gelu") {
    const onnx::AttributeProto* approximate = FindAttribute(node, "approximate");
    return LayerActivation{.kind = approximate != nullptr && approximate->s() == "tanh" ? Kind::kGeluTanh : Kind::kGelu};
  }
  if (type == "Clip") {
    MP_ASSIGN_OR_RETURN(const bool relu6, IsRelu6(graph, id));
    return LayerActivation{.kind = relu6 ? Kind::kRelu6 : Kind::kNone};
  }
  if (type == "PRelu") {
    MP_ASSIGN_OR_RETURN(std::optional<Constant> slopes,
                        ReadConstant(graph, graph.InputOf(id, 1), std::max<int64_t>(channels, 1)));
    if (slopes.has_value() && SlopesFit(*slopes, channels, linear)) {
      return LayerActivation{.kind = Kind::kPRelu, .slopes = std::move(slopes->values)};
    }
  }
  return LayerActivation{};
}

std::vector<int64_t> IntsAttribute(const onnx::NodeProto& node, absl::string_view name, std::vector<int64_t> fallback) {
  const onnx::AttributeProto* attribute = FindAttribute(node, name);
  return attribute == nullptr ? std::move(fallback) : std::vector<int64_t>(attribute->ints().begin(), attribute->ints().end());
}

// Fills strides, pads, dilations, output_padding and groups.
absl::Status ReadConvAttributes(const Graph& graph, ItemId layer, absl::Span<const int64_t> input_dims, LinearOperator& op) {
  const onnx::NodeProto& node = graph.item(layer).node.proto;
  const bool transposed = op.kind == LinearOperator::Kind::kConvTranspose2d;
  op.groups = GroupOf(graph.item(layer));
  op.strides = IntsAttribute(node, "strides", {1, 1});
  op.dilations = IntsAttribute(node, "dilations", {1, 1});
  op.pads = IntsAttribute(node, "pads", {0, 0, 0, 0});
  op.output_padding = transposed ? IntsAttribute(node, "output_padding", {0, 0}) : std::vector<int64_t>{0, 0};
  const auto below = [](const std::vector<int64_t>& values, int64_t least) {
    return std::any_of(values.begin(), values.end(), [least](int64_t value) { return value < least; });
  };
  if (op.groups < 1 || op.strides.size() != 2 || op.dilations.size() != 2 || op.pads.size() != 4 ||
      op.output_padding.size() != 2 || below(op.strides, 1) || below(op.dilations, 1) || below(op.pads, 0) ||
      below(op.output_padding, 0)) {
    return Unsupported(graph, layer,
                       "group, strides, dilations, pads or output_padding have the wrong length or a value out of range");
  }
  if (FindAttribute(node, "output_shape") != nullptr) {
    return Unsupported(graph, layer, "it has the attribute output_shape instead of pads");
  }
  const onnx::AttributeProto* attribute = FindAttribute(node, "auto_pad");
  const std::string auto_pad = attribute == nullptr || attribute->s().empty() ? "NOTSET" : attribute->s();
  if (auto_pad == "VALID") {
    op.pads = {0, 0, 0, 0};
  } else if (auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER") {
    if (input_dims.size() != 4) {
      return Unsupported(graph, layer, absl::StrCat("its input has rank ", input_dims.size(), ", not 4"));
    }
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t in = input_dims[2 + axis];
      const int64_t stride = op.strides[axis];
      const int64_t reach = op.dilations[axis] * (op.weight_dims[2 + axis] - 1) + 1;
      // A convolution's output is ceil(in / stride) long, a transposed one's in * stride.
      const int64_t total = transposed ? reach - stride + op.output_padding[axis]
                                       : std::max<int64_t>(0, ((in + stride - 1) / stride - 1) * stride + reach - in);
      if (total < 0) {
        return Unsupported(graph, layer, absl::StrCat("auto_pad ", auto_pad, " would have to cut its output"));
      }
      const int64_t smaller = total / 2;
      op.pads[axis] = auto_pad == "SAME_UPPER" ? smaller : total - smaller;
      op.pads[2 + axis] = total - op.pads[axis];
    }
  } else if (auto_pad != "NOTSET") {
    return Unsupported(graph, layer, absl::StrCat("its auto_pad is '", auto_pad, "'"));
  }
  return absl::OkStatus();
}

// The bias at input 2 of a Conv, ConvTranspose or Gemm.
absl::StatusOr<std::vector<float>> ReadBias(const Graph& graph, ItemId layer) {
  const Value value = graph.InputOf(layer, 2);
  if (value.is_none()) {
    return std::vector<float>();
  }
  const int64_t channels = OutputChannelsOf(graph, layer);
  MP_ASSIGN_OR_RETURN(std::optional<Constant> bias, ReadConstant(graph, value, std::max<int64_t>(channels, 1)));
  if (bias.has_value() && bias->values.size() == 1) {
    return std::vector<float>(channels, bias->values[0]);  // Gemm: a scalar for all
  }
  if (!bias.has_value() || bias->values.size() != channels || bias->dims.back() != channels) {
    return Unsupported(graph, layer, absl::StrCat("its bias is not a constant of its ", channels, " output channels"));
  }
  return std::move(bias->values);
}

}  // namespace

absl::StatusOr<ActivatedLayer> FindLayerActivation(const Graph& graph, ItemId layer) {
  const Item& item = graph.item(layer);
  const bool linear = item.Is("Gemm") || item.Is("MatMul");
  ActivatedLayer result{.output = {layer, 0}, .activation = {}, .activated = {layer, 0}};
  if (item.Is("MatMul")) {
    MP_ASSIGN_OR_RETURN(const std::optional<BiasAdd> bias, FindBiasAdd(graph, layer));
    if (bias.has_value()) {
      result.output = {bias->add, 0};
    }
  }
  result.activated = result.output;
  if (const ItemId consumer = OnlyConsumer(graph, result.output); consumer >= 0 && graph.InputOf(consumer, 0) == result.output) {
    MP_ASSIGN_OR_RETURN(result.activation, ActivationOfNode(graph, consumer, OutputChannelsOf(graph, layer), linear));
    if (result.activation.kind != LayerActivation::Kind::kNone) {
      result.activated = {consumer, 0};
      return result;
    }
  }
  MP_ASSIGN_OR_RETURN(const auto formula, Formula(graph, result.output).Match());
  result.activated = formula.first;
  result.activation = {.kind = formula.second};
  return result;
}

absl::StatusOr<LinearOperator> LinearOperatorOf(const Graph& graph, ItemId layer, absl::Span<const int64_t> input_dims) {
  const Item& item = graph.item(layer);
  const onnx::NodeProto& node = item.node.proto;
  const OpRule* rule = FindOpRule(node.op_type());
  LinearOperator op;
  const bool linear = rule != nullptr && (rule->kind == OpKind::kGemm || rule->kind == OpKind::kMatMul);
  if (!linear && (rule == nullptr || (rule->kind != OpKind::kConv && rule->kind != OpKind::kConvTranspose))) {
    return Unsupported(graph, layer, absl::StrCat("its operator is ", node.op_type()));
  }
  const std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(layer, 1));
  if (!weight.has_value()) {
    return Unsupported(graph, layer, "its weight is not a constant");
  }
  op.weight_dims = DimsOf(graph.item(weight->holder));
  if (const size_t rank = linear ? 2 : 4; op.weight_dims.size() != rank) {
    return Unsupported(graph, layer, absl::StrCat("its weight has rank ", op.weight_dims.size(), ", not ", rank));
  }
  if (!linear) {
    op.kind = rule->kind == OpKind::kConv ? LinearOperator::Kind::kConv2d : LinearOperator::Kind::kConvTranspose2d;
    const std::vector<int64_t> kernel(op.weight_dims.begin() + 2, op.weight_dims.end());
    if (weight->transpose >= 0) {
      return Unsupported(graph, layer, "a Transpose stands between it and its weight");
    }
    if (IntsAttribute(node, "kernel_shape", kernel) != kernel) {
      return Unsupported(graph, layer, "its kernel_shape is not that of its weight");
    }
    MP_RETURN_IF_ERROR(ReadConvAttributes(graph, layer, input_dims, op));
    MP_ASSIGN_OR_RETURN(op.bias, ReadBias(graph, layer));
    return op;
  }
  op.kind = LinearOperator::Kind::kLinear;
  op.trans_b = (IntAttribute(node, "transB", 0) == 1) != (weight->transpose >= 0);
  if (rule->kind == OpKind::kMatMul) {
    MP_ASSIGN_OR_RETURN(std::optional<BiasAdd> bias, FindBiasAdd(graph, layer));
    if (bias.has_value()) {
      op.bias = std::move(bias->bias.values);
    }
    return op;
  }
  if (IntAttribute(node, "transA", 0) != 0) {
    return Unsupported(graph, layer, "its transA is 1");
  }
  if (FloatAttribute(node, "alpha", 1) != 1 || (FloatAttribute(node, "beta", 1) != 1 && !graph.InputOf(layer, 2).is_none())) {
    return Unsupported(graph, layer, "its alpha or beta is not 1");
  }
  MP_ASSIGN_OR_RETURN(op.bias, ReadBias(graph, layer));
  return op;
}

}  // namespace modelpress::engine
