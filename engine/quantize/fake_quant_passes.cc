// The passes that make the model for accuracy simulation in ONNX Runtime (docs/spec/save.md section 8). They work on the graph
// that the common passes left, where weights and biases are integers.
#include <cstring>

#include "absl/base/casts.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/pass.h"

namespace modelpress::engine {
namespace {

std::vector<ItemId> NodesOfType(const Graph& graph, absl::string_view op_type) {
  std::vector<ItemId> nodes;
  for (ItemId id : graph.Order()) {
    if (graph.item(id).Is(op_type)) {
      nodes.push_back(id);
    }
  }
  return nodes;
}

// "conv1.quant" -> "conv1"
std::string LayerOf(const std::string& node_name) { return node_name.substr(0, node_name.rfind('.')); }

onnx::NodeProto CastNode(onnx::TensorProto::DataType to) {
  onnx::NodeProto cast = NewNode("Cast", "cast of the Fakequant");
  AddInt(cast, "to", to);
  return cast;
}

// Adds a node named `name` with inputs `inputs`.
ItemId AddLinked(Graph& graph, const std::string& name, onnx::NodeProto node, const std::vector<Value>& inputs) {
  const ItemId id = graph.AddNode(name, std::move(node), static_cast<int>(inputs.size()), {OutputName(name)});
  for (size_t i = 0; i < inputs.size(); ++i) {
    graph.SetInput(id, static_cast<int>(i), inputs[i]);
  }
  return id;
}

// 8.1: an RNN is quantized and dequantized at its inputs; the operator itself stays float.
class FakeQuantizeRnnInputs final : public Pass {
 public:
  explicit FakeQuantizeRnnInputs(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "FakeQuantizeRnnInputs"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      if (layer.rule->is_rnn()) {
        const LayerFactors& factors = *layer.factors;
        Insert(graph, layer, 0, factors.scale_d, factors.offset_d);
        Insert(graph, layer, layer.rule->initial_h, factors.scale_h, factors.offset_h);
      }
    }
    return absl::OkStatus();
  }

 private:
  static void Insert(Graph& graph, const RecordedLayer& layer, int input, float scale, int offset) {
    const std::string base = graph.item(layer.id).name;
    const std::string type = IntegerTypeName(layer.factors->rnn_activation_bits);
    auto node = [&](const char* op_type, float node_scale) {
      onnx::NodeProto proto = NewNode(op_type);
      AddFloat(proto, "scale", node_scale);
      AddFloat(proto, "offset", static_cast<float>(offset));
      AddString(proto, "dst_type", type);
      return proto;
    };
    const std::string suffix = absl::StrCat(".output", input);
    const ItemId quant =
        graph.AddNode(absl::StrCat(base, ".quant"), node("AscendQuant", 1.0F / scale), 1, {absl::StrCat(base, ".quant", suffix)});
    const ItemId anti_quant = graph.AddNode(absl::StrCat(base, ".anti_quant"), node("AscendAntiQuant", scale), 1,
                                            {absl::StrCat(base, ".antiquant", suffix)});
    graph.InsertBefore(layer.id, input, quant);
    graph.InsertBefore(layer.id, input, anti_quant);
  }

  SaveStep& step_;
};

// 8.2: AscendQuant becomes clip(round(x * scale) + offset, low, high) - offset.
class FakeQuantizeActivations final : public Pass {
 public:
  explicit FakeQuantizeActivations(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "FakeQuantizeActivations"; }

  absl::Status Run(Graph& graph) override {
    for (ItemId quant : NodesOfType(graph, "AscendQuant")) {
      const onnx::NodeProto proto = graph.item(quant).node.proto;
      const std::string base = absl::StrCat(graph.item(quant).name, ".fakequant");
      const std::string& type = FindAttribute(proto, "dst_type")->s();
      const int bits = type == "INT16" ? 16 : type == "INT4" ? 4 : 8;
      const auto limit = static_cast<float>(1 << (bits - 1));
      auto constant = [&](const char* name, float value, const char* doc) {
        return Value{
            AddConstant(graph, absl::StrCat(base, ".", name), FloatTensor({value}), absl::StrCat(doc, " of the Fakequant")), 0};
      };
      const Value scale = constant("scale", FindAttribute(proto, "scale")->f(), "scale");
      const Value offset = constant("offset", FindAttribute(proto, "offset")->f(), "offset");
      const Value low = constant("min_val", -limit, "clip min");
      const Value high = constant("max_val", limit - 1, "clip max");
      const Value input = graph.InputOf(quant, 0);
      auto node = [&](const char* op_type, const char* name, const std::vector<Value>& inputs) {
        return Value{
            AddLinked(graph, absl::StrCat(base, ".", name), NewNode(op_type, absl::StrCat(name, " of the Fakequant")), inputs),
            0};
      };
      const Value mul = node("Mul", "mul", {input, scale});
      const Value round = node("Round", "round", {mul});
      const Value add = node("Add", "add", {round, offset});
      const Value clip = node("Clip", "clip", {add, low, high});
      const Value sub = node("Sub", "sub", {clip, offset});
      if (step_.float16_layers.contains(LayerOf(graph.item(quant).name))) {
        const std::string name = absl::StrCat(base, ".cast");
        const ItemId cast = graph.AddNode(name, CastNode(onnx::TensorProto::FLOAT), 1, {OutputName(name)});
        graph.InsertBefore(mul.item, 0, cast);
      }
      graph.MoveUses(Value{quant, 0}, sub, "");
      graph.Remove(quant);
    }
    return absl::OkStatus();
  }

 private:
  SaveStep& step_;
};

// 8.3: integer weights become floats that hold the integers; those of an RNN, floats that hold what they stand for.
class FakeQuantizeWeightTensors final : public Pass {
 public:
  explicit FakeQuantizeWeightTensors(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "FakeQuantizeWeightTensors"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      for (int input : {layer.rule->weight, layer.rule->recurrence}) {
        if (input < 0) {
          continue;
        }
        std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(layer.id, input));
        Tensor& tensor = graph.mutable_item(operand->holder).tensor;
        const IntegerWeightPtr& weight = step_.quantized.weights.at(tensor.name());
        SetData(tensor, onnx::TensorProto::FLOAT, DataField::kFloat,
                layer.rule->is_rnn() ? AsDequantized(weight) : AsFloatIntegers(weight));
      }
    }
    return absl::OkStatus();
  }

 private:
  SaveStep& step_;
};

// 8.4: AscendDequant becomes a multiplication.
class FakeDequantizeOutputs final : public Pass {
 public:
  explicit FakeDequantizeOutputs(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "FakeDequantizeOutputs"; }

  absl::Status Run(Graph& graph) override {
    for (ItemId dequant : NodesOfType(graph, "AscendDequant")) {
      const std::string layer = LayerOf(graph.item(dequant).name);
      const Value data = graph.InputOf(dequant, 0);
      const Value param = graph.InputOf(dequant, 1);
      MP_ASSIGN_OR_RETURN(std::vector<float> scales, ReadScales(graph.item(param.item).tensor));
      std::vector<int64_t> dims(DequantRank(graph, data), 1);
      dims[1] = static_cast<int64_t>(scales.size());
      const std::string base = absl::StrCat(layer, ".fakedequant");
      const ItemId constant =
          AddConstant(graph, absl::StrCat(base, ".dqscale"), FloatTensor(scales, dims), "scale of the Fake dequant");
      Value last{
          AddLinked(graph, absl::StrCat(base, ".mul"), NewNode("Mul", "mul of the Fake dequant"), {data, Value{constant, 0}}), 0};
      if (step_.float16_layers.contains(layer)) {
        last = Value{AddLinked(graph, absl::StrCat(base, ".cast"), CastNode(onnx::TensorProto::FLOAT16), {last}), 0};
      }
      graph.MoveUses(Value{dequant, 0}, last, absl::StrCat(graph.item(dequant).name, "_output0"));
      graph.Remove(dequant);
      if (graph.UsesOf(param).empty()) {
        graph.Remove(param.item);
      }
    }
    return absl::OkStatus();
  }

 private:
  static absl::StatusOr<std::vector<float>> ReadScales(const Tensor& param) {
    MP_ASSIGN_OR_RETURN(onnx::TensorProto proto, ToProto(param));
    std::vector<float> scales;
    for (uint64_t bits : proto.uint64_data()) {
      scales.push_back(absl::bit_cast<float>(static_cast<uint32_t>(bits)));
    }
    return scales;
  }

  // Rank of the scale: of the weight behind a convolution, else 2.
  static size_t DequantRank(const Graph& graph, Value data) {
    const Item& layer = graph.item(data.item);
    const OpRule* rule = FindOpRule(layer.node.proto.op_type());
    if (rule == nullptr || (rule->kind != OpKind::kConv && rule->kind != OpKind::kConvTranspose)) {
      return 2;
    }
    return DimsOf(graph.item(FindConstantOperand(graph, graph.InputOf(data.item, rule->weight))->holder)).size();
  }

  SaveStep& step_;
};

// 8.5: AscendAntiQuant becomes a multiplication; its offset was taken off already.
class FakeAntiQuantize final : public Pass {
 public:
  absl::string_view name() const override { return "FakeAntiQuantize"; }

  absl::Status Run(Graph& graph) override {
    for (ItemId anti_quant : NodesOfType(graph, "AscendAntiQuant")) {
      const std::string base = absl::StrCat(graph.item(anti_quant).name, ".fake_antiquant");
      const float scale = FindAttribute(graph.item(anti_quant).node.proto, "scale")->f();
      const ItemId constant = AddConstant(graph, absl::StrCat(base, ".scale"), FloatTensor({scale}), "scale of the Fakequant");
      const ItemId mul = AddLinked(graph, absl::StrCat(base, ".mul"), NewNode("Mul", "mul of the Fakequant"),
                                   {graph.InputOf(anti_quant, 0), Value{constant, 0}});
      graph.MoveUses(Value{anti_quant, 0}, Value{mul, 0}, "");
      graph.Remove(anti_quant);
    }
    return absl::OkStatus();
  }
};

// 8.6: int32 biases become floats that hold the integers; those of an RNN, floats that hold what they stand for.
class FakeQuantizeBiases final : public Pass {
 public:
  explicit FakeQuantizeBiases(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "FakeQuantizeBiases"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      std::optional<BiasPlace> place = FindBias(graph, layer.id, *layer.rule);
      if (!place.has_value()) {
        continue;
      }
      if (const Value bias = graph.InputOf(place->item, place->input); bias.is_item() && graph.item(bias.item).Is("Cast")) {
        graph.SetInput(place->item, place->input, graph.InputOf(bias.item, 0));
        graph.Remove(bias.item);
      }
      Tensor& tensor = graph.mutable_item(graph.InputOf(place->item, place->input).item).tensor;
      const std::vector<int32_t>& integers = step_.quantized.biases.at(tensor.name());
      std::vector<float> values(integers.begin(), integers.end());
      if (layer.rule->is_rnn()) {
        MP_ASSIGN_OR_RETURN(std::vector<float> scales, BiasScales(layer, graph.item(layer.id), values.size()));
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] *= scales[i];
        }
      }
      SetData(tensor, onnx::TensorProto::FLOAT, DataField::kFloat, FloatPayload(values));
    }
    return absl::OkStatus();
  }

 private:
  SaveStep& step_;
};

}  // namespace

std::vector<std::unique_ptr<Pass>> FakeQuantPasses(SaveStep& step) {
  std::vector<std::unique_ptr<Pass>> passes;
  passes.push_back(std::make_unique<FakeQuantizeRnnInputs>(step));
  passes.push_back(std::make_unique<FakeQuantizeActivations>(step));
  passes.push_back(std::make_unique<FakeQuantizeWeightTensors>(step));
  passes.push_back(std::make_unique<FakeDequantizeOutputs>(step));
  passes.push_back(std::make_unique<FakeAntiQuantize>());
  passes.push_back(std::make_unique<FakeQuantizeBiases>(step));
  return passes;
}

}  // namespace modelpress::engine
