#include "engine/retrain/plan.h"

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/quantize/layer_factors.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {
namespace {

constexpr int kBatchNormScale = 1;  // input of BatchNormalization

bool ComesFromRelu(const Graph& graph, Value value) { return value.is_item() && graph.item(value.item).Is("Relu"); }

// n0 of docs/spec/qat.md sections 5.2 and 8.
int64_t NumScales(const Graph& graph, ItemId node, const WeightRetrainConfig& weight) {
  const Item& item = graph.item(node);
  const OpRule& rule = *FindOpRule(item.node.proto.op_type());
  if (!weight.channel_wise || rule.kind == OpKind::kGemm || rule.kind == OpKind::kMatMul) {
    return rule.is_rnn() ? rule.gates : 1;
  }
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(node, rule.weight));
  return operand.has_value() ? OutputChannels(item, rule, DimsOf(graph.item(operand->holder))) : 0;
}

class Planner {
 public:
  Planner(const Graph& graph, const RetrainLayers& layers, const Layers& all_layers,
          const std::map<std::string, SelectiveMask>& masks)
      : graph_(graph), masks_(masks) {
    for (size_t i = 0; i < layers.nodes.size(); ++i) {
      layers_[layers.catalog.layers[i].name] = {layers.nodes[i], &layers.catalog.layers[i].type};
    }
    for (const auto& [id, name] : all_layers.batch_norms) {
      if (graph.UsesOf(graph.InputOf(id, kBatchNormScale)).size() == 1) {  // one that is used again cannot be moved
        batch_norms_[id] = name;
      }
    }
  }

  v1::RewritePlan Make(const RetrainConfig& config) {
    v1::RewritePlan plan;
    plan.set_batch_num(config.batch_num);
    plan.set_force_fp16_quant(config.force_fp16_quant);
    plan.set_config(config.json);
    for (const LayerRetrainConfig& layer : config.layers) {
      const bool selective = masks_.contains(layer.name) && std::holds_alternative<SelectivePruneConfig>(layer.prune);
      if ((layer.quantizes || selective) && layers_.at(layer.name).node >= 0) {
        *plan.add_layers() = MakeLayer(layer, selective);
      }
    }
    Share(plan);
    return plan;
  }

 private:
  struct LayerNode {
    ItemId node = -1;
    const std::string* type = nullptr;
  };
  // What must be equal for layers to share an activation quantizer.
  struct SharingKey {
    Value source;
    bool explicit_fixed_min;
    std::string settings;
    bool operator<(const SharingKey& other) const {
      return std::tie(source.item, source.output, explicit_fixed_min, settings) <
             std::tie(other.source.item, other.source.output, other.explicit_fixed_min, other.settings);
    }
  };

  v1::WrappedLayer MakeLayer(const LayerRetrainConfig& config, bool selective) {
    const LayerNode& layer = layers_.at(config.name);
    v1::WrappedLayer wrapped;
    wrapped.set_module(config.name);
    wrapped.set_torch_type(*layer.type);
    wrapped.set_onnx_type(graph_.item(layer.node).node.proto.op_type());
    wrapped.set_num_scales(1);
    if (selective) {
      const SelectiveMask& mask = masks_.at(config.name);
      v1::SelectivePruning& pruning = *wrapped.mutable_selective();
      pruning.set_prune_algo("l1_selective_prune");
      pruning.set_n_out_of_m_type("M4N2");
      pruning.set_prune_axis(mask.axis);
      pruning.set_update_freq(std::get<SelectivePruneConfig>(config.prune).update_freq);
      pruning.mutable_mask_shape()->Assign(mask.shape.begin(), mask.shape.end());
      pruning.mutable_mask()->Assign(mask.packed.begin(), mask.packed.end());
    }
    if (config.quantizes) {
      FillActivation(config.activation, layer.node, selective, *wrapped.mutable_act());
      v1::WeightQuantizer& weight = *wrapped.mutable_weight();
      weight.set_algo(config.weight.algorithm == WeightRetrainConfig::Algorithm::kUlq ? "ulq_retrain" : "arq_retrain");
      weight.set_dst_type(IntegerTypeName(config.weight.bits));
      weight.set_num_bits(config.weight.bits);
      weight.set_channel_wise(config.weight.channel_wise);
      wrapped.set_num_scales(NumScales(graph_, layer.node, config.weight));
      if (const std::string* bn = AbsorbedBatchNorm(layer.node); bn != nullptr) {
        wrapped.set_bn(*bn);
      }
      NoteSharing(config, layer, selective, wrapped);
    }
    return wrapped;
  }

  void FillActivation(const ActivationRetrainConfig& config, ItemId node, bool selective, v1::ActivationQuantizer& act) const {
    const OpRule& rule = *FindOpRule(graph_.item(node).node.proto.op_type());
    act.set_algo("ulq_quantize");
    act.set_dst_type(IntegerTypeName(config.bits));
    act.set_num_bits(config.bits);
    act.set_ifmr_init(!config.clip.has_value());
    if (config.clip.has_value()) {
      act.set_clip_max(config.clip->first);
      act.set_clip_min(config.clip->second);
    }
    act.set_fixed_min(config.fixed_min.value_or(ComesFromRelu(graph_, graph_.InputOf(node, 0))));
    // A value that is given counts for the hidden state too; and the reference takes the one it derived for given when it comes
    // by again to make a layer 2:4 sparse.
    act.set_h_fixed_min(config.fixed_min.has_value() || selective
                            ? act.fixed_min()
                            : rule.is_rnn() && ComesFromRelu(graph_, graph_.InputOf(node, rule.initial_h)));
  }

  // The batch norm that moves into the layer's wrapper (qat.md section 5.3); null: none.
  const std::string* AbsorbedBatchNorm(ItemId node) const {
    const Item& item = graph_.item(node);
    if (!item.Is("Conv") || item.outputs.size() != 1 || item.uses[0].size() != 1 || item.uses[0][0].input != 0) {
      return nullptr;
    }
    const auto it = batch_norms_.find(item.uses[0][0].item);
    return it == batch_norms_.end() ? nullptr : &it->second;
  }

  void NoteSharing(const LayerRetrainConfig& config, const LayerNode& layer, bool selective, const v1::WrappedLayer& wrapped) {
    const Value source = graph_.InputOf(layer.node, 0);
    // A recurrent layer reads the tensor several times in the reference's eyes (qat.md section 6.5).
    const size_t own_uses = *layer.type == "LSTM" ? 3 : *layer.type == "GRU" ? 2 : 1;
    if (!selective && graph_.UsesOf(source).size() > own_uses) {  // the settings of sparse layers hold the layer's name
      sharing_[config.name] = {
          .source = source,
          .explicit_fixed_min = config.activation.fixed_min.has_value(),
          .settings = absl::StrCat(wrapped.act().SerializeAsString(), "/", wrapped.weight().SerializeAsString())};
    }
  }

  // The first layer in the plan's order owns the quantizer.
  void Share(v1::RewritePlan& plan) const {
    std::map<SharingKey, std::string> owners;
    for (v1::WrappedLayer& layer : *plan.mutable_layers()) {
      if (const auto key = sharing_.find(layer.module()); key != sharing_.end()) {
        if (const auto [owner, is_first] = owners.emplace(key->second, layer.module()); !is_first) {
          layer.set_share_main(owner->second);
        }
      }
    }
  }

  const Graph& graph_;
  const std::map<std::string, SelectiveMask>& masks_;
  std::map<std::string, LayerNode> layers_;
  std::map<ItemId, std::string> batch_norms_;
  std::map<std::string, SharingKey> sharing_;  // by layer
};

}  // namespace

v1::RewritePlan MakeWrapPlan(const Graph& graph, const RetrainLayers& layers, const Layers& all_layers,
                             const RetrainConfig& config, const std::map<std::string, SelectiveMask>& masks) {
  return Planner(graph, layers, all_layers, masks).Make(config);
}

}  // namespace modelpress::engine
