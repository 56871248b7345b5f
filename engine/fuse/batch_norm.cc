#include "engine/fuse/batch_norm.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/calibrate/weights.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

// Inputs of BatchNormalization.
constexpr int kScale = 1;  // gamma
constexpr int kBias = 2;   // beta
constexpr int kMean = 3;
constexpr int kVariance = 4;
constexpr float kDefaultEpsilon = 1e-5F;
constexpr uint64_t kChunk = 1 << 16;  // elements

struct Pair {
  ItemId conv;
  ItemId batch_norm;
  int64_t channels;
};

bool IsFloat(int data_type) { return data_type == onnx::TensorProto::FLOAT || data_type == onnx::TensorProto::FLOAT16; }

// The vector in input `input` of `id`, if it is a constant float tensor of that many elements.
std::optional<Tensor> VectorOperand(const Graph& graph, ItemId id, int input, int64_t size) {
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(id, input));
  if (!operand.has_value() || operand->transpose >= 0) {
    return std::nullopt;
  }
  Tensor tensor = TensorOf(graph.item(operand->holder));
  if (!IsFloat(tensor.header.data_type()) || tensor.header.dims_size() != 1 || tensor.header.dims(0) != size) {
    return std::nullopt;
  }
  return tensor;
}

// The convolution that `batch_norm` can be folded into.
std::optional<Pair> FindPair(const Graph& graph, ItemId batch_norm, const std::set<std::string>& skipped) {
  const Item& item = graph.item(batch_norm);
  const Value data = graph.InputOf(batch_norm, 0);
  if (!data.is_item() || !graph.item(data.item).Is("Conv") || graph.UsesOf(data).size() != 1 ||
      IntAttribute(item.node.proto, "training_mode", 0) != 0 || skipped.contains(graph.item(data.item).name)) {
    return std::nullopt;
  }
  for (size_t output = 1; output < item.outputs.size(); ++output) {
    if (!item.uses[output].empty()) {
      return std::nullopt;  // running statistics are read: a training graph
    }
  }
  const std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(data.item, 1));
  if (!weight.has_value() || weight->transpose >= 0 || !IsFloat(DataTypeOf(graph.item(weight->holder)))) {
    return std::nullopt;
  }
  const std::vector<int64_t> dims = DimsOf(graph.item(weight->holder));
  if (dims.size() < 3 || dims.size() > 5) {
    return std::nullopt;
  }
  for (int input : {kScale, kBias, kMean, kVariance}) {
    if (!VectorOperand(graph, batch_norm, input, dims[0]).has_value()) {
      return std::nullopt;
    }
  }
  if (!graph.InputOf(data.item, 2).is_none() && !VectorOperand(graph, data.item, 2, dims[0]).has_value()) {
    return std::nullopt;
  }
  return Pair{data.item, batch_norm, dims[0]};
}

absl::StatusOr<std::vector<float>> ReadVector(const Graph& graph, ItemId id, int input, int64_t size) {
  const Tensor tensor = *VectorOperand(graph, id, input, size);
  std::vector<float> values(size);
  MP_RETURN_IF_ERROR(AtPlace(ReadFloats(tensor, 0, absl::MakeSpan(values)), {.layer = graph.item(id).name}));
  return values;
}

absl::StatusOr<bool> AllFinite(const Tensor& tensor) {
  std::vector<float> values(std::min(tensor.ElementCount(), kChunk));
  for (uint64_t first = 0; first < tensor.ElementCount(); first += values.size()) {
    const auto piece = absl::MakeSpan(values).first(std::min<uint64_t>(values.size(), tensor.ElementCount() - first));
    MP_RETURN_IF_ERROR(ReadFloats(tensor, first, piece));
    if (!std::all_of(piece.begin(), piece.end(), [](float value) { return std::isfinite(value); })) {
      return false;
    }
  }
  return true;
}

// A float16 model is folded in float16: every operation is rounded to it. float32 has enough digits that rounding twice does no
// harm.
float RoundTo(int data_type, float value) {
  return data_type == onnx::TensorProto::FLOAT16 ? static_cast<float>(static_cast<_Float16>(value)) : value;
}

Tensor VectorLike(int data_type, const std::vector<float>& values) {
  onnx::TensorProto proto;
  proto.set_data_type(data_type);
  proto.add_dims(static_cast<int64_t>(values.size()));
  if (data_type == onnx::TensorProto::FLOAT) {
    proto.mutable_float_data()->Assign(values.begin(), values.end());
  } else {
    for (float value : values) {
      const auto half = static_cast<_Float16>(value);
      proto.mutable_raw_data()->append(reinterpret_cast<const char*>(&half), sizeof half);
    }
  }
  return FromProto(std::move(proto));
}

// True if the pair was folded, false if a value would not be finite.
absl::StatusOr<bool> Fold(Graph& graph, const Pair& pair, NewBiasName bias_name) {
  const std::string name = graph.item(pair.conv).name;
  MP_ASSIGN_OR_RETURN(const std::vector<float> gamma, ReadVector(graph, pair.batch_norm, kScale, pair.channels));
  MP_ASSIGN_OR_RETURN(const std::vector<float> beta, ReadVector(graph, pair.batch_norm, kBias, pair.channels));
  MP_ASSIGN_OR_RETURN(const std::vector<float> mean, ReadVector(graph, pair.batch_norm, kMean, pair.channels));
  MP_ASSIGN_OR_RETURN(const std::vector<float> variance, ReadVector(graph, pair.batch_norm, kVariance, pair.channels));
  std::vector<float> bias(pair.channels, 0.0F);
  const bool has_bias = !graph.InputOf(pair.conv, 2).is_none();
  if (has_bias) {
    MP_ASSIGN_OR_RETURN(bias, ReadVector(graph, pair.conv, 2, pair.channels));
  }
  const onnx::AttributeProto* attribute = FindAttribute(graph.item(pair.batch_norm).node.proto, "epsilon");
  const float epsilon = attribute == nullptr ? kDefaultEpsilon : attribute->f();

  const ConstantOperand shared_weight = *FindConstantOperand(graph, graph.InputOf(pair.conv, 1));
  const Tensor weight = TensorOf(graph.item(shared_weight.holder));
  const int type = weight.header.data_type();
  std::vector<float> factors(pair.channels);
  for (int64_t c = 0; c < pair.channels; ++c) {
    const float r = RoundTo(type, 1.0F / RoundTo(type, std::sqrt(RoundTo(type, variance[c] + epsilon))));
    factors[c] = RoundTo(type, gamma[c] * r);
    const float centred = RoundTo(type, bias[c] - mean[c]);
    bias[c] = RoundTo(type, RoundTo(type, RoundTo(type, centred * r) * gamma[c]) + beta[c]);
  }
  const uint64_t elements = weight.ElementCount();
  const ChannelMap channels{.run = std::max<uint64_t>(elements / pair.channels, 1),
                            .period = static_cast<uint64_t>(pair.channels),
                            .block = elements,
                            .elements = elements};
  const Tensor folded = Multiplied(weight, channels, factors);
  absl::StatusOr<bool> finite = AllFinite(folded);
  MP_RETURN_IF_ERROR(AtPlace(finite.status(), {.layer = name}));
  if (!*finite || !std::all_of(bias.begin(), bias.end(), [](float value) { return std::isfinite(value); })) {
    return false;
  }

  absl::string_view stem = graph.item(shared_weight.holder).outputs[0];
  const std::string new_bias =
      absl::StrCat(bias_name == NewBiasName::kByWeight && absl::ConsumeSuffix(&stem, ".weight") ? stem : name, ".bias");
  MP_ASSIGN_OR_RETURN(const ConstantOperand own_weight, OwnOperand(graph, pair.conv, pair.conv, 1, "weight"));
  SetTensor(graph, own_weight, folded);
  Tensor bias_tensor = VectorLike(type, bias);
  if (has_bias) {
    MP_ASSIGN_OR_RETURN(const ConstantOperand own_bias, OwnOperand(graph, pair.conv, pair.conv, 2, "bias"));
    SetTensor(graph, own_bias, std::move(bias_tensor));
  } else {
    const ItemId initializer = graph.AddInitializer(new_bias, std::move(bias_tensor));
    graph.mutable_item(pair.conv).inputs.resize(std::max<size_t>(graph.item(pair.conv).inputs.size(), 3));
    graph.SetInput(pair.conv, 2, Value{initializer, 0});
  }

  std::vector<ItemId> parameters;
  for (int input : {kScale, kBias, kMean, kVariance}) {
    parameters.push_back(graph.InputOf(pair.batch_norm, input).item);
  }
  graph.MoveUses(Value{pair.batch_norm, 0}, Value{pair.conv, 0}, absl::StrCat(name, ".unused"));
  graph.Remove(pair.batch_norm);
  for (ItemId parameter : parameters) {
    if (!graph.item(parameter).removed && graph.UsesOf(Value{parameter, 0}).empty()) {
      graph.Remove(parameter);
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<FoldedBatchNorms> FoldBatchNorms(Graph& graph, const std::set<std::string>& skipped, NewBiasName bias_name) {
  std::vector<Pair> pairs;
  for (ItemId id : graph.Order()) {
    if (graph.item(id).Is("BatchNormalization")) {
      if (std::optional<Pair> pair = FindPair(graph, id, skipped); pair.has_value()) {
        pairs.push_back(*pair);
      }
    }
  }
  FoldedBatchNorms result;
  for (const Pair& pair : pairs) {
    const std::string name = graph.item(pair.conv).name;
    const std::string output = graph.NameOf(Value{pair.batch_norm, 0});
    MP_ASSIGN_OR_RETURN(const bool folded, Fold(graph, pair, bias_name));
    if (folded) {
      result.folded.push_back({name, output, pair.conv, pair.batch_norm});
    } else {
      result.warnings.push_back(absl::StrCat(
          "layer '", name, "': its batch normalization is left as it is, since folding it gives a value that is not finite"));
    }
  }
  MP_RETURN_IF_ERROR(graph.Sort());
  return result;
}

}  // namespace modelpress::engine
