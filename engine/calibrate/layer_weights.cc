#include "engine/calibrate/layer_weights.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/calibrate/weights.h"
#include "engine/quantize/layer_factors.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

uint64_t Product(const std::vector<int64_t>& dims, size_t first = 0) {
  uint64_t product = 1;
  for (size_t axis = first; axis < dims.size(); ++axis) {
    product *= dims[axis];
  }
  return product;
}

ChannelMap WholeTensor(uint64_t elements) {
  return {.run = std::max<uint64_t>(elements, 1), .period = 1, .block = std::max<uint64_t>(elements, 1), .elements = elements};
}

void SetScales(const std::vector<float>& scales, google::protobuf::RepeatedField<float>* scale,
               google::protobuf::RepeatedField<int32_t>* offset) {
  scale->Assign(scales.begin(), scales.end());
  offset->Resize(0, 0);
  offset->Resize(static_cast<int>(scales.size()), 0);
}

class WeightQuantizer {
 public:
  WeightQuantizer(Graph& graph, WeightStep& step) : graph_(graph), step_(step) {}

  absl::Status Run(const ConfiguredLayer& layer) {
    const std::string name = graph_.item(layer.node).name;
    AMCTPytorchProto::SingleLayerRecord& entry = RecordEntry(step_.record, name);
    if (layer.rule->kind == OpKind::kAveragePool) {
      SetScales({1.0F}, entry.mutable_scale_w(), entry.mutable_offset_w());
      return absl::OkStatus();
    }
    entry.set_wts_type(IntegerTypeName(layer.config->weight.bits));
    if (layer.rule->is_rnn()) {
      return RunRnn(layer, name, entry);
    }
    MP_ASSIGN_OR_RETURN(const ConstantOperand operand, OwnOperand(graph_, layer.node, layer.node, layer.rule->weight, "weight"));
    Tensor weight = graph_.item(operand.holder).tensor;
    const std::vector<int64_t> dims(weight.header.dims().begin(), weight.header.dims().end());
    const Item& item = graph_.item(layer.node);
    if (auto factors = step_.balance.find(name); factors != step_.balance.end()) {
      weight = Multiplied(weight, InputChannelMap(item, *layer.rule, dims, operand.transpose >= 0), factors->second);
      SetTensor(graph_, operand, weight);
    }
    const ChannelMap channels = OutputChannelMap(item, *layer.rule, dims, layer.config->weight.channel_wise);
    if (layer.config->weight.algorithm == WeightConfig::Algorithm::kAda) {
      MP_ASSIGN_OR_RETURN(const std::vector<float> scales, KlScales(weight, channels, step_.threads));
      SetScales(scales, entry.mutable_scale_w(), entry.mutable_offset_w());
      step_.adaround_layers.push_back(name);
      return absl::OkStatus();
    }
    MP_ASSIGN_OR_RETURN(const std::vector<float> scales, ArqScales(weight, channels, layer.config->weight.bits, step_.threads));
    SetScales(scales, entry.mutable_scale_w(), entry.mutable_offset_w());
    // The modified model keeps the float weights of a ConvTranspose (ptq.md section 6); save_model quantizes them.
    if (layer.rule->kind != OpKind::kConvTranspose) {
      SetTensor(graph_, operand, FakeQuantized(weight, channels, scales, layer.config->weight.bits));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status RunRnn(const ConfiguredLayer& layer, const std::string& name, AMCTPytorchProto::SingleLayerRecord& entry) {
    const bool channel_wise = layer.config->weight.channel_wise;
    auto run = [&](int input, absl::string_view what, google::protobuf::RepeatedField<float>* scale,
                   google::protobuf::RepeatedField<int32_t>* offset) -> absl::StatusOr<Tensor> {
      MP_ASSIGN_OR_RETURN(const ConstantOperand operand, OwnOperand(graph_, layer.node, layer.node, input, what));
      Tensor weight = graph_.item(operand.holder).tensor;
      const std::vector<int64_t> dims(weight.header.dims().begin(), weight.header.dims().end());
      const ChannelMap channels = OutputChannelMap(graph_.item(layer.node), *layer.rule, dims, channel_wise);
      MP_ASSIGN_OR_RETURN(const std::vector<float> scales, ArqScales(weight, channels, layer.config->weight.bits, step_.threads));
      SetScales(scales, scale, offset);
      SetTensor(graph_, operand, FakeQuantized(weight, channels, scales, layer.config->weight.bits));
      return weight;
    };
    MP_ASSIGN_OR_RETURN(Tensor w, run(layer.rule->weight, "W", entry.mutable_scale_w(), entry.mutable_offset_w()));
    MP_ASSIGN_OR_RETURN(Tensor r, run(layer.rule->recurrence, "R", entry.mutable_scale_r(), entry.mutable_offset_r()));
    step_.rnn_weights[name] = {std::move(w), std::move(r)};
    return absl::OkStatus();
  }

  Graph& graph_;
  WeightStep& step_;
};

}  // namespace

absl::StatusOr<std::vector<ConfiguredLayer>> FindConfiguredLayers(const Graph& graph, const QuantConfig& config) {
  std::map<absl::string_view, ItemId> nodes;
  for (ItemId id : graph.Order()) {
    if (graph.item(id).is_node()) {
      nodes.emplace(graph.item(id).name, id);
    }
  }
  std::vector<ConfiguredLayer> layers;
  for (const LayerConfig& layer : config.layers) {
    auto node = nodes.find(layer.name);
    const OpRule* rule = node == nodes.end() ? nullptr : FindOpRule(graph.item(node->second).node.proto.op_type());
    if (rule == nullptr) {
      return MakeError(v1::CONFIG_UNKNOWN_LAYER, "the model has no such layer that could be quantized", {.layer = layer.name});
    }
    if (const std::string why_not = WhyNotQuantizable(graph, node->second); !why_not.empty()) {
      return MakeError(v1::NODE_UNSUPPORTED, absl::StrCat("it cannot be quantized: ", why_not, "; skip it in the configuration"),
                       {.layer = layer.name});
    }
    layers.push_back({node->second, rule, &layer});
  }
  return layers;
}

bool IsBalanced(const ConfiguredLayer& layer) {
  return layer.config->migration_strength.has_value() && layer.rule->balance_factors;
}

ChannelMap OutputChannelMap(const Item& layer, const OpRule& rule, const std::vector<int64_t>& dims, bool channel_wise) {
  const uint64_t elements = Product(dims);
  if (elements == 0 || dims.size() < 2) {
    return WholeTensor(elements);
  }
  if (rule.is_rnn()) {  // [1, gates * hidden, inputs]
    const uint64_t rows = channel_wise ? dims[1] : rule.gates;
    return {.run = elements / rows, .period = rows, .block = elements, .elements = elements};
  }
  if (!channel_wise) {
    return WholeTensor(elements);
  }
  if (rule.kind == OpKind::kConvTranspose) {  // [Cin, Cout / group, ...]
    const uint64_t block = elements / std::max<int64_t>(GroupOf(layer), 1);
    return {.run = Product(dims, 2), .period = static_cast<uint64_t>(dims[1]), .block = block, .elements = elements};
  }
  return {.run = Product(dims, 1), .period = static_cast<uint64_t>(dims[0]), .block = elements, .elements = elements};
}

ChannelMap InputChannelMap(const Item& layer, const OpRule& rule, const std::vector<int64_t>& dims, bool transposed) {
  const uint64_t elements = Product(dims);
  if (elements == 0 || dims.size() < 2) {
    return WholeTensor(elements);
  }
  if (rule.kind == OpKind::kConv) {  // [Cout, Cin / group, ...]
    const uint64_t block = elements / std::max<int64_t>(GroupOf(layer), 1);
    return {.run = Product(dims, 2), .period = static_cast<uint64_t>(dims[1]), .block = block, .elements = elements};
  }
  const bool inputs_last = transposed != (rule.kind == OpKind::kGemm && IntAttribute(layer.node.proto, "transB", 0) == 1);
  if (inputs_last) {
    return {.run = 1, .period = static_cast<uint64_t>(dims[1]), .block = elements, .elements = elements};
  }
  return {.run = Product(dims, 1), .period = static_cast<uint64_t>(dims[0]), .block = elements, .elements = elements};
}

absl::Status QuantizeWeights(Graph& graph, const std::vector<ConfiguredLayer>& layers, WeightStep& step) {
  WeightQuantizer quantizer(graph, step);
  uint64_t done = 0;
  for (const ConfiguredLayer& layer : layers) {
    MP_RETURN_IF_ERROR(AtPlace(quantizer.Run(layer), {.layer = graph.item(layer.node).name}));
    if (step.progress) {
      step.progress(++done, layers.size());
    }
  }
  return graph.Sort();
}

AMCTPytorchProto::SingleLayerRecord& RecordEntry(AMCTPytorchProto::ScaleOffsetRecord& record, const std::string& layer) {
  for (auto& entry : *record.mutable_record()) {
    if (entry.key() == layer) {
      return *entry.mutable_value();
    }
  }
  AMCTPytorchProto::MapFiledEntry& entry = *record.add_record();
  entry.set_key(layer);
  return *entry.mutable_value();
}

}  // namespace modelpress::engine
