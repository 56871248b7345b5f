#include "engine/calibrate/kv_cache.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

// One estimator for all values, or one per index of the last axis.
class OutputConsumer final : public ActivationConsumer {
 public:
  OutputConsumer(const ActivationConfig& config, size_t channels, int threads) : threads_(threads), channel_(channels) {
    for (size_t i = 0; i < channels; ++i) {
      estimators_.push_back(NewRangeEstimator(config));
    }
  }

  bool wants_pass() const override {
    return std::any_of(estimators_.begin(), estimators_.end(), [](const auto& estimator) { return estimator->wants_pass(); });
  }

  absl::Status Add(absl::Span<const absl::Span<const float>> values) override {
    if (estimators_.size() == 1) {
      return estimators_[0]->wants_pass() ? estimators_[0]->Add(values, threads_) : absl::OkStatus();
    }
    for (std::vector<float>& channel : channel_) {
      channel.clear();
    }
    size_t index = 0;
    for (const absl::Span<const float> piece : values) {
      for (float value : piece) {
        channel_[index].push_back(value);
        index = index + 1 == channel_.size() ? 0 : index + 1;
      }
    }
    for (size_t i = 0; i < channel_.size(); ++i) {
      if (estimators_[i]->wants_pass()) {
        const absl::Span<const float> piece = channel_[i];
        MP_RETURN_IF_ERROR(estimators_[i]->Add({&piece, 1}, threads_));
      }
    }
    return absl::OkStatus();
  }

  absl::Status EndPass() override {
    for (const auto& estimator : estimators_) {
      if (estimator->wants_pass()) {
        MP_RETURN_IF_ERROR(estimator->EndPass());
      }
    }
    return absl::OkStatus();
  }

  std::string Save() const override { return SaveEstimators(estimators_); }
  bool Load(absl::string_view state) override { return LoadEstimators(state, estimators_); }

  const std::vector<std::unique_ptr<RangeEstimator>>& estimators() const { return estimators_; }

 private:
  int threads_;
  std::vector<std::unique_ptr<RangeEstimator>> estimators_;
  std::vector<std::vector<float>> channel_;  // a batch's values of each
};

// The tensor that a Linear layer writes, and its number of features.
struct LinearOutput {
  std::string tensor;
  size_t features = 0;
};

// What a Linear of `features` outputs that became a MatMul writes: the Add of its bias, if it has one. Exporters put the bias on
// either side (the rules of the record, FindMatMulBiasAdd, know the right one only).
Value OutputWithBias(const Graph& graph, ItemId matmul, int64_t features) {
  const Value output{matmul, 0};
  const std::vector<Use>& uses = graph.UsesOf(output);
  if (uses.size() != 1 || uses[0].item == Use::kGraphOutput || !graph.item(uses[0].item).Is("Add")) {
    return output;
  }
  const ItemId add = uses[0].item;
  for (int input : {0, 1}) {
    const std::optional<ConstantOperand> bias = FindConstantOperand(graph, graph.InputOf(add, input));
    if (bias.has_value() && DimsOf(graph.item(bias->holder)) == std::vector<int64_t>{features}) {
      return Value{add, 0};
    }
  }
  return output;
}

absl::StatusOr<LinearOutput> OutputOf(const Graph& graph, const std::string& layer) {
  const ItemId node = graph.Find(layer);
  const OpRule* rule = node < 0 ? nullptr : FindOpRule(graph.item(node).node.proto.op_type());
  if (rule == nullptr || (rule->kind != OpKind::kGemm && rule->kind != OpKind::kMatMul)) {
    return MakeError(v1::CONFIG_UNKNOWN_LAYER, "the model has no such Linear layer", {.layer = layer});
  }
  MP_ASSIGN_OR_RETURN(const ConstantOperand weight, RequireConstant(graph, node, graph.InputOf(node, rule->weight), "weight"));
  const std::vector<int64_t> dims = DimsOf(graph.item(weight.holder));
  if (dims.size() != 2) {
    return MakeError(v1::NODE_UNSUPPORTED, "its weight does not have rank 2", {.layer = layer});
  }
  const bool outputs_first =
      (weight.transpose >= 0) != (rule->kind == OpKind::kGemm && IntAttribute(graph.item(node).node.proto, "transB", 0) == 1);
  const int64_t features = dims[outputs_first ? 0 : 1];
  const Value output = rule->kind == OpKind::kMatMul ? OutputWithBias(graph, node, features) : Value{node, 0};
  return LinearOutput{graph.NameOf(output), static_cast<size_t>(features)};
}

}  // namespace

absl::StatusOr<CollectSummary> CalibrateKvCache(const Graph& graph, const KvCacheConfig& config, CalibrationData& data,
                                                const ActivationStepOptions& options,
                                                AMCTPytorchProto::ScaleOffsetRecord& record) {
  ModelRunnerOptions runner_options{.tensors = {}, .threads = options.threads, .scratch_folder = options.scratch_folder};
  std::vector<Tap> taps;
  std::vector<std::unique_ptr<OutputConsumer>> owned;
  std::vector<ActivationConsumer*> consumers;
  for (const KvCacheLayer& layer : config.layers) {
    MP_ASSIGN_OR_RETURN(const LinearOutput output, OutputOf(graph, layer.name));
    taps.push_back({.parts = {{static_cast<int>(runner_options.tensors.size()), false}}, .layer = layer.name});
    runner_options.tensors.push_back(output.tensor);
    owned.push_back(std::make_unique<OutputConsumer>(layer.activation, layer.per_channel ? output.features : 1, options.threads));
    consumers.push_back(owned.back().get());
  }
  MP_ASSIGN_OR_RETURN(const Model model, graph.ToModel());
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner, ModelRunner::Create(model, runner_options));
  CollectOptions collect;
  collect.scratch_folder = options.scratch_folder;
  collect.progress = options.progress;
  collect.threads = options.threads;
  collect.checkpoint = options.checkpoint;
  MP_ASSIGN_OR_RETURN(CollectSummary summary, CollectActivations(*runner, data, taps, consumers, collect));
  for (size_t i = 0; i < owned.size(); ++i) {
    const std::string& name = config.layers[i].name;
    auto entry = std::find_if(record.mutable_record()->begin(), record.mutable_record()->end(),
                              [&](const auto& candidate) { return candidate.key() == name; });
    AMCTPytorchProto::MapFiledEntry* place = entry == record.mutable_record()->end() ? record.add_record() : &*entry;
    place->set_key(name);
    AMCTPytorchProto::SingleLayerKVCacheRecord& value = *place->mutable_kv_cache_value();
    value.Clear();
    for (const std::unique_ptr<RangeEstimator>& estimator : owned[i]->estimators()) {
      absl::StatusOr<ActivationFactors> factors = estimator->Factors();
      MP_RETURN_IF_ERROR(AtPlace(factors.status(), {.layer = name}));
      value.add_scale(factors->scale);
      value.add_offset(factors->offset);
    }
  }
  return summary;
}

}  // namespace modelpress::engine
