// The passes that make the model for the device (docs/spec/save.md section 7).
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/pass.h"

namespace modelpress::engine {
namespace {

// 7.1: INT4 weights are packed two to a byte along their input channels, in a tensor of type INT8 and half that dimension.
class PackInt4Weights final : public Pass {
 public:
  explicit PackInt4Weights(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "PackInt4Weights"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      for (int input : {layer.rule->weight, layer.rule->recurrence}) {
        if (input < 0 || !layer.factors->packs_int4) {
          continue;
        }
        std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(layer.id, input));
        Tensor& tensor = graph.mutable_item(operand->holder).tensor;
        const int axis = layer.rule->cin_axis;
        const int64_t length = axis < tensor.header.dims_size() ? tensor.header.dims(axis) : 0;
        if (length % 2 != 0 || length == 0) {
          return MakeError(v1::TENSOR_INVALID,
                           absl::StrCat("wts_type INT4 packs pairs of input channels, but dimension ", axis, " of weight '",
                                        tensor.name(), "' is ", length, "; use INT8 for this layer"),
                           {.layer = graph.item(layer.id).name});
        }
        uint64_t inner = 1;
        for (int i = axis + 1; i < tensor.header.dims_size(); ++i) {
          inner *= tensor.header.dims(i);
        }
        tensor.header.set_dims(axis, length / 2);
        SetData(tensor, onnx::TensorProto::INT8, DataField::kRaw,
                AsNibblesAlongAxis(step_.quantized.weights.at(tensor.name()), inner));
      }
    }
    return absl::OkStatus();
  }

 private:
  SaveStep& step_;
};

// 7.2: LSTM and GRU become the device's own operators.
class ReplaceRnns final : public Pass {
 public:
  explicit ReplaceRnns(SaveStep& step) : step_(step) {}
  absl::string_view name() const override { return "ReplaceRnns"; }

  absl::Status Run(Graph& graph) override {
    for (const RecordedLayer& layer : RecordedLayers(graph, step_.factors)) {
      if (layer.rule->is_rnn()) {
        Replace(graph, layer);
      }
    }
    return absl::OkStatus();
  }

 private:
  static void Replace(Graph& graph, const RecordedLayer& layer) {
    const bool lstm = layer.rule->kind == OpKind::kLstm;
    const LayerFactors& factors = *layer.factors;
    const ItemId device = graph.AddReplacement(layer.id, DeviceNode(graph.item(layer.id).node.proto, layer, lstm), lstm ? 9 : 8);
    std::vector<float> scales = Times(factors.scale_w, factors.scale_d);
    const std::vector<float> recurrent = Times(factors.scale_r, factors.scale_h);
    scales.insert(scales.end(), recurrent.begin(), recurrent.end());
    const ItemId param = AddDequantParam(graph, graph.item(layer.id).name, scales, /*truncate=*/false);

    // X, W, R, initial_h, [initial_c], B, sequence_lens, none, parameters; the numbers are the inputs of the ONNX operator.
    std::vector<int> from = {0, 1, 2, 5};
    if (lstm) {
      from.push_back(6);
    }
    from.insert(from.end(), {3, 4});
    for (size_t i = 0; i < from.size(); ++i) {
      graph.SetInput(device, static_cast<int>(i), graph.InputOf(layer.id, from[i]));
    }
    graph.SetInput(device, static_cast<int>(from.size()) + 1, Value{param, 0});
    graph.Remove(layer.id);
  }

  static onnx::NodeProto DeviceNode(const onnx::NodeProto& old, const RecordedLayer& layer, bool lstm) {
    const LayerFactors& factors = *layer.factors;
    const char* const reset = lstm ? "input_forget" : "linear_before_reset";
    const std::array<const char*, 6> defaults = {
        "activation_alpha", "activation_beta", "activations", "clip", "direction", reset};
    onnx::NodeProto node = NewNode(std::string(layer.rule->deploy_op_type));
    for (const onnx::AttributeProto& attribute : old.attribute()) {
      if (attribute.name() == "hidden_size" || std::find(defaults.begin(), defaults.end(), attribute.name()) != defaults.end()) {
        *node.add_attribute() = attribute;
        if (attribute.name() == "linear_before_reset" && attribute.i() != 0) {
          node.mutable_attribute(node.attribute_size() - 1)->set_i(1);
        }
      }
    }
    for (const char* name : defaults) {
      if (FindAttribute(node, name) != nullptr) {
        continue;
      }
      const absl::string_view key = name;
      if (key == "clip") {
        AddFloat(node, name, -1);
      } else if (key == "direction") {
        AddString(node, name, "forward");
      } else if (key == reset) {
        AddInt(node, name, lstm ? 0 : 1);
      } else {
        onnx::AttributeProto& list = *node.add_attribute();
        list.set_name(name);
        list.set_type(key == "activations" ? onnx::AttributeProto::STRINGS : onnx::AttributeProto::FLOATS);
      }
    }
    AddInt(node, "quant_sqrt_mode_x", 0);
    AddInt(node, "quant_sqrt_mode_h", 0);
    AddFloat(node, "quant_scale_x", 1.0F / factors.scale_d);
    AddFloat(node, "quant_offset_x", static_cast<float>(factors.offset_d));
    AddFloat(node, "quant_scale_h", 1.0F / factors.scale_h);
    AddFloat(node, "quant_offset_h", static_cast<float>(factors.offset_h));
    AddInt(node, "quant_dtype", factors.rnn_activation_bits == 16 ? 6 : 2);
    return node;
  }

  SaveStep& step_;
};

}  // namespace

std::vector<std::unique_ptr<Pass>> DeployPasses(SaveStep& step) {
  std::vector<std::unique_ptr<Pass>> passes;
  passes.push_back(std::make_unique<PackInt4Weights>(step));
  passes.push_back(std::make_unique<ReplaceRnns>(step));
  return passes;
}

}  // namespace modelpress::engine
