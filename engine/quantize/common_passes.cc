// The passes that both output models share (docs/spec/save.md section 6).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <tuple>

#include "absl/base/casts.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/operands.h"
#include "engine/quantize/pass.h"

namespace modelpress::engine {
namespace {

// Which scale belongs to which element of a layer's weight (`recurrence`: of R).
ScaleRuns ScalesOf(const RecordedLayer& layer, const Item& item, const std::vector<int64_t>& dims, bool recurrence) {
  const std::vector<float>& scales = recurrence ? layer.factors->scale_r : layer.factors->scale_w;
  uint64_t count = 1;
  for (int64_t dim : dims) {
    count *= dim;
  }
  auto product_from = [&dims](size_t axis) {
    uint64_t product = 1;
    for (; axis < dims.size(); ++axis) {
      product *= dims[axis];
    }
    return product;
  };
  ScaleRuns runs;
  runs.scales = scales;
  if (scales.size() == 1) {
    runs.run_length = std::max<uint64_t>(count, 1);
  } else if (layer.rule->is_rnn()) {  // [1, gates * hidden, inputs]: one per row, or one per gate
    runs.run_length = product_from(1) / scales.size();
  } else if (layer.rule->kind == OpKind::kConvTranspose) {  // [Cin, Cout / group, ...]
    const int64_t cin_per_group = std::max<int64_t>(dims[0] / GroupOf(item), 1);
    runs.scales.clear();
    for (int64_t i = 0; i < dims[0] * dims[1]; ++i) {
      runs.scales.push_back(scales[i / dims[1] / cin_per_group * dims[1] + i % dims[1]]);
    }
    runs.run_length = product_from(2);
  } else {
    runs.run_length = product_from(1);
  }
  return runs;
}

// Every weight and bias that is about to be rewritten becomes an initializer used by nobody else: values of Constant nodes move
// into initializers, and tensors with other uses are copied. The reference crashes on the former and quantizes the latter twice.
class OwnOperands final : public Pass {
 public:
  explicit OwnOperands(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "OwnOperands"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      for (int input : {layer.rule->weight, layer.rule->recurrence}) {
        if (input >= 0) {
          MP_RETURN_IF_ERROR(Own(graph, layer.id, layer.id, input, "weight"));
        }
      }
      if (std::optional<BiasPlace> bias = FindBias(graph, layer.id, *layer.rule); bias.has_value()) {
        MP_RETURN_IF_ERROR(Own(graph, layer.id, bias->item, bias->input, "bias"));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Own(Graph& graph, ItemId layer, ItemId user, int input, absl::string_view what) {
    if (step_.defects.quantizes_shared_tensors_twice) {
      return ToInitializer(graph, layer, user, input, what).status();
    }
    bool copied = false;
    MP_RETURN_IF_ERROR(OwnOperand(graph, layer, user, input, what, &copied).status());
    if (copied) {
      step_.deviations.insert(
          absl::StrCat("layer '", graph.item(layer).name, "' shares a tensor and got a copy of its own (6.4)"));
    }
    return absl::OkStatus();
  }

  SaveStep& step_;
};

// 6.1: Gemm with transB = 1 gets its weight transposed.
class TransposeGemmWeight final : public Pass {
 public:
  explicit TransposeGemmWeight(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "TransposeGemmWeight"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      Item& gemm = graph.mutable_item(layer.id);
      if (layer.rule->kind != OpKind::kGemm || IntAttribute(gemm.node.proto, "transB", 0) != 1) {
        continue;
      }
      MP_ASSIGN_OR_RETURN(ConstantOperand operand, RequireConstant(graph, layer.id, graph.InputOf(layer.id, 1), "weight"));
      Tensor& weight = graph.mutable_item(operand.holder).tensor;
      if (weight.header.dims_size() != 2) {
        return MakeError(v1::TENSOR_INVALID,
                         absl::StrCat("the weight of a Gemm must have rank 2, not ", weight.header.dims_size()),
                         {.layer = gemm.name});
      }
      const int64_t rows = weight.header.dims(0);
      const int64_t columns = weight.header.dims(1);
      PayloadPtr transposed = TransposeToFloat(weight, rows, columns, stripes_);
      weight.header.set_dims(0, columns);
      weight.header.set_dims(1, rows);
      SetData(weight, onnx::TensorProto::FLOAT, DataField::kFloat, std::move(transposed));
      for (onnx::AttributeProto& attribute : *gemm.node.proto.mutable_attribute()) {
        if (attribute.name() == "transB") {
          attribute.set_i(0);
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  SaveStep& step_;
  std::shared_ptr<StripeCache> stripes_ = std::make_shared<StripeCache>();
};

// 6.2: activations of balanced layers are divided by their factors; the weights contain them already.
class BalanceActivations final : public Pass {
 public:
  explicit BalanceActivations(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "BalanceActivations"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      const std::vector<float>& factors = layer.factors->tensor_balance_factor;
      if (factors.empty()) {
        continue;
      }
      const std::string base = graph.item(layer.id).name;
      MP_ASSIGN_OR_RETURN(ConstantOperand operand,
                          RequireConstant(graph, layer.id, graph.InputOf(layer.id, layer.rule->weight), "weight"));
      const Item& weight = graph.item(operand.holder);
      const size_t rank = DimsOf(weight).size();
      std::vector<int64_t> dims(rank >= 3 && rank <= 5 ? rank : 2, 1);
      dims[1] = static_cast<int64_t>(factors.size());
      std::vector<float> reciprocals;
      reciprocals.reserve(factors.size());
      for (float factor : factors) {
        reciprocals.push_back(1.0F / factor);
      }
      onnx::TensorProto tensor = FloatTensor(reciprocals, dims);
      if (DataTypeOf(weight) == onnx::TensorProto::FLOAT16) {
        ToFloat16(tensor);
      }
      const ItemId constant =
          AddConstant(graph, absl::StrCat(base, ".tensor_balance_factor"), std::move(tensor), "tensor_balance_factor");
      const std::string mul_name = absl::StrCat(base, ".mul");
      const ItemId mul = graph.AddNode(mul_name, NewNode("Mul", "mul of the dmq_balancer"), 2, {OutputName(mul_name)});
      graph.InsertBefore(layer.id, 0, mul);
      graph.SetInput(mul, 1, Value{constant, 0});
    }
    return absl::OkStatus();
  }

 private:
  static void ToFloat16(onnx::TensorProto& tensor) {
    std::string raw;
    for (float value : tensor.float_data()) {
      const uint16_t half = FloatToHalf(value);
      raw.append(reinterpret_cast<const char*>(&half), sizeof(half));
    }
    tensor.set_data_type(onnx::TensorProto::FLOAT16);
    tensor.clear_float_data();
    tensor.set_raw_data(raw);
  }

  // Rounds to nearest even, as NumPy does.
  static uint16_t FloatToHalf(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    return absl::bit_cast<uint16_t>(half);
  }

  SaveStep& step_;
};

// 6.3: an AscendQuant in front of every activation input.
class QuantizeActivations final : public Pass {
 public:
  explicit QuantizeActivations(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "QuantizeActivations"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      if (layer.rule->is_rnn()) {
        continue;
      }
      const std::string base = graph.item(layer.id).name;
      ItemId at = layer.id;
      if (layer.rule->kind == OpKind::kAveragePool) {  // padding belongs to the pooling: quantize in front of it
        const Value producer = graph.InputOf(layer.id, 0);
        if (producer.is_item() && graph.item(producer.item).Is("Pad") &&
            graph.item(producer.item).name == absl::StrCat(base, "_pad") && graph.UsesOf(producer).size() == 1) {
          at = producer.item;
        }
      }
      onnx::NodeProto node = NewNode("AscendQuant");
      AddFloat(node, "scale", 1.0F / layer.factors->scale_d);
      AddFloat(node, "offset", static_cast<float>(layer.factors->offset_d));
      AddString(node, "dst_type", IntegerTypeName(layer.factors->activation_bits));
      const std::string name = absl::StrCat(base, ".quant");
      const ItemId quant = graph.AddNode(name, std::move(node), 1, {OutputName(name)});
      step_quants_.emplace_back(quant, layer.factors);
      graph.InsertBefore(at, 0, quant);
    }
    return absl::OkStatus();
  }

  // The quantizers made, with their layers' factors; MergeQuantizers needs them.
  const std::vector<std::pair<ItemId, const LayerFactors*>>& quantizers() const { return step_quants_; }

 private:
  SaveStep& step_;
  std::vector<std::pair<ItemId, const LayerFactors*>> step_quants_;
};

// 6.4: weights become integers.
class QuantizeWeightTensors final : public Pass {
 public:
  explicit QuantizeWeightTensors(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "QuantizeWeightTensors"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      for (int input : {layer.rule->weight, layer.rule->recurrence}) {
        if (input < 0) {
          continue;
        }
        const Item& item = graph.item(layer.id);
        MP_ASSIGN_OR_RETURN(ConstantOperand operand, RequireConstant(graph, layer.id, graph.InputOf(layer.id, input), "weight"));
        Tensor& tensor = graph.mutable_item(operand.holder).tensor;
        MP_RETURN_IF_ERROR(CheckType(tensor, item));
        const std::vector<int64_t> dims(tensor.header.dims().begin(), tensor.header.dims().end());
        auto weight = std::make_shared<IntegerWeight>(tensor, ScalesOf(layer, item, dims, input == layer.rule->recurrence),
                                                      layer.factors->weight_bits, item.name);
        step_.quantized.weights[tensor.name()] = weight;
        if (layer.factors->weight_bits == 4) {
          SetData(tensor, onnx::TensorProto::INT4, DataField::kRaw, AsNibbles(weight));
        } else {
          SetData(tensor, onnx::TensorProto::INT8, DataField::kRaw, AsInt8(weight));
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status CheckType(const Tensor& tensor, const Item& layer) const {
    switch (tensor.header.data_type()) {
      case onnx::TensorProto::FLOAT:
      case onnx::TensorProto::FLOAT16:
      case onnx::TensorProto::BFLOAT16:
      case onnx::TensorProto::DOUBLE:
        return absl::OkStatus();
      case onnx::TensorProto::INT8:
        if (step_.defects.requantizes_integer_weights || step_.defects.quantizes_shared_tensors_twice) {
          return absl::OkStatus();
        }
        break;
      default:
        break;
    }
    return MakeError(
        v1::TENSOR_INVALID,
        absl::StrCat("weight '", tensor.name(), "' has type ",
                     onnx::TensorProto::DataType_Name(static_cast<onnx::TensorProto::DataType>(tensor.header.data_type())),
                     "; only float weights can be quantized"),
        {.layer = layer.name});
  }

  SaveStep& step_;
};

// 6.5: an AscendDequant behind every layer, or behind the Add that holds a MatMul's bias.
class DequantizeOutputs final : public Pass {
 public:
  explicit DequantizeOutputs(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "DequantizeOutputs"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      if (layer.rule->is_rnn()) {
        continue;
      }
      const std::string base = graph.item(layer.id).name;
      ItemId behind = layer.id;
      if (layer.rule->kind == OpKind::kMatMul) {
        const ItemId add = FindMatMulBiasAdd(graph, layer.id);
        behind = add >= 0 ? add : layer.id;
      }
      const ItemId param = AddDequantParam(graph, base, Times(layer.factors->scale_w, layer.factors->scale_d),
                                           layer.factors->truncates_dequant_scale);
      onnx::NodeProto node = NewNode("AscendDequant");
      AddInt(node, "dtype", 0);  // 0 for float16 layers too, as the reference writes it
      const std::string name = absl::StrCat(base, ".dequant");
      const ItemId dequant = graph.AddNode(name, std::move(node), 2, {OutputName(name)});
      graph.MoveUses(Value{behind, 0}, Value{dequant, 0}, absl::StrCat(graph.item(behind).name, "_output0"));
      graph.SetInput(dequant, 0, Value{behind, 0});
      graph.SetInput(dequant, 1, Value{param, 0});
    }
    return absl::OkStatus();
  }

 private:
  SaveStep& step_;
};

// 6.7: biases become int32.
class QuantizeBiases final : public Pass {
 public:
  explicit QuantizeBiases(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "QuantizeBiases"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      std::optional<BiasPlace> place = FindBias(graph, layer.id, *layer.rule);
      if (!place.has_value()) {
        continue;
      }
      const Item& item = graph.item(layer.id);
      MP_ASSIGN_OR_RETURN(ConstantOperand operand,
                          RequireConstant(graph, layer.id, graph.InputOf(place->item, place->input), "bias"));
      Tensor& bias = graph.mutable_item(operand.holder).tensor;
      MP_ASSIGN_OR_RETURN(std::vector<float> scales, BiasScales(layer, item, bias.ElementCount()));
      MP_ASSIGN_OR_RETURN(std::vector<int32_t> integers, Quantize(bias, scales, item));
      SetData(bias, onnx::TensorProto::INT32, DataField::kInt32, Int32Payload(integers));
      step_.quantized.biases[bias.name()] = std::move(integers);
      if (layer.factors->activation_bits == 4) {
        onnx::NodeProto node = NewNode("Cast");
        AddInt(node, "to", onnx::TensorProto::FLOAT);
        const std::string name = absl::StrCat(item.name, ".bias_quant");
        const ItemId cast = graph.AddNode(name, std::move(node), 1, {OutputName(name)});
        graph.InsertBefore(place->item, place->input, cast);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<int32_t>> Quantize(const Tensor& bias, const std::vector<float>& scales, const Item& layer) const {
    const uint64_t count = scales.size();
    std::vector<int32_t> integers(count);
    switch (bias.header.data_type()) {
      case onnx::TensorProto::FLOAT:
      case onnx::TensorProto::FLOAT16:
      case onnx::TensorProto::BFLOAT16: {
        std::vector<float> values(count);
        MP_RETURN_IF_ERROR(ReadFloats(bias, 0, absl::MakeSpan(values)));
        for (uint64_t i = 0; i < count; ++i) {
          MP_ASSIGN_OR_RETURN(integers[i], ToInt32(std::nearbyint(values[i] / scales[i]), i, layer));
        }
        return integers;
      }
      case onnx::TensorProto::DOUBLE: {
        std::vector<double> values(count);
        MP_RETURN_IF_ERROR(
            bias.payload->Read(0, absl::MakeSpan(reinterpret_cast<uint8_t*>(values.data()), values.size() * sizeof(double))));
        for (uint64_t i = 0; i < count; ++i) {
          MP_ASSIGN_OR_RETURN(integers[i], ToInt32(std::nearbyint(values[i] / static_cast<double>(scales[i])), i, layer));
        }
        return integers;
      }
      case onnx::TensorProto::INT32: {
        auto earlier = step_.quantized.biases.find(bias.name());
        if (step_.defects.quantizes_shared_tensors_twice && earlier != step_.quantized.biases.end()) {
          for (uint64_t i = 0; i < count; ++i) {  // int32 / float32 is float64 in NumPy
            MP_ASSIGN_OR_RETURN(integers[i],
                                ToInt32(std::nearbyint(earlier->second[i] / static_cast<double>(scales[i])), i, layer));
          }
          return integers;
        }
        break;
      }
      default:
        break;
    }
    return MakeError(v1::TENSOR_INVALID, absl::StrCat("bias '", bias.name(), "' is not a float tensor"), {.layer = layer.name});
  }

  template <typename Float>
  absl::StatusOr<int32_t> ToInt32(Float q, uint64_t element, const Item& layer) const {
    constexpr Float kLimit = static_cast<Float>(2147483648.0);
    // 2^31 in float32; in float64 the largest int32 is exact and is the bound.
    const bool wraps = std::isnan(q) || (sizeof(Float) == sizeof(float) && q == kLimit);
    if (wraps && step_.defects.wraps_bias) {
      return std::numeric_limits<int32_t>::min();
    }
    if (wraps || !(q >= -kLimit && q < kLimit)) {
      return MakeError(v1::BIAS_OVERFLOW,
                       absl::StrCat("bias element ", element, " divided by scale_w * scale_d is ", q,
                                    ", which does not fit int32; scale_w or scale_d is too small for this layer"),
                       {.layer = layer.name});
    }
    return static_cast<int32_t>(q);
  }

  SaveStep& step_;
};

// 6.8: quantizers of one tensor with the same parameters become one.
class MergeQuantizers final : public Pass {
 public:
  explicit MergeQuantizers(const QuantizeActivations& made) : made_(made) {}
  absl::string_view name() const override { return "MergeQuantizers"; }

  absl::Status Run(Graph& graph) override {
    std::map<ItemId, const LayerFactors*> factors(made_.quantizers().begin(), made_.quantizers().end());
    std::set<std::pair<ItemId, int>> done;
    for (const auto& quantizer : made_.quantizers()) {
      const Value producer = graph.InputOf(quantizer.first, 0);
      if (producer.is_none() || !done.insert({producer.item, producer.output}).second) {
        continue;  // merged already, or its tensor is done
      }
      std::map<std::tuple<uint32_t, int, std::string>, ItemId> first;
      for (const Use& use : std::vector<Use>(graph.UsesOf(producer))) {
        auto it = factors.find(use.item);
        if (it == factors.end()) {
          continue;
        }
        const LayerFactors& f = *it->second;
        auto [kept, is_first] = first.try_emplace({absl::bit_cast<uint32_t>(f.scale_d), f.offset_d, f.merge_type}, use.item);
        if (!is_first) {
          graph.MoveUses(Value{use.item, 0}, Value{kept->second, 0}, "");
          graph.Remove(use.item);
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  const QuantizeActivations& made_;
};

}  // namespace

std::vector<std::unique_ptr<Pass>> CommonPasses(SaveStep& step) {
  auto quantize_activations = std::make_unique<QuantizeActivations>(step);
  const QuantizeActivations& made = *quantize_activations;
  std::vector<std::unique_ptr<Pass>> passes;
  passes.push_back(std::make_unique<OwnOperands>(step));
  passes.push_back(std::make_unique<TransposeGemmWeight>(step));
  passes.push_back(std::make_unique<BalanceActivations>(step));
  passes.push_back(std::move(quantize_activations));
  passes.push_back(std::make_unique<QuantizeWeightTensors>(step));
  passes.push_back(std::make_unique<DequantizeOutputs>(step));
  passes.push_back(std::make_unique<QuantizeBiases>(step));
  passes.push_back(std::make_unique<MergeQuantizers>(made));
  return passes;
}

}  // namespace modelpress::engine
