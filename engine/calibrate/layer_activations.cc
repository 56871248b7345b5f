#include "engine/calibrate/layer_activations.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/layer_factors.h"

namespace modelpress::engine {
namespace {

class EstimatorConsumer final : public ActivationConsumer {
 public:
  EstimatorConsumer(const ActivationConfig& config, int threads) : estimator_(NewRangeEstimator(config)), threads_(threads) {}

  bool wants_pass() const override { return estimator_->wants_pass(); }
  absl::Status Add(absl::Span<const absl::Span<const float>> values) override { return estimator_->Add(values, threads_); }
  absl::Status EndPass() override { return estimator_->EndPass(); }
  std::string Save() const override { return SaveEstimators({&estimator_, 1}); }
  bool Load(absl::string_view state) override { return LoadEstimators(state, {&estimator_, 1}); }
  const RangeEstimator& estimator() const { return *estimator_; }

 private:
  std::unique_ptr<RangeEstimator> estimator_;
  int threads_;
};

// The tensors to watch and who watches them. Equal requests are made once.
class TapList {
 public:
  explicit TapList(int threads) : threads_(threads) {}

  // Index of the consumer of these tensors with this configuration.
  int Add(const std::vector<std::pair<std::string, bool>>& parts, const ActivationConfig& config, const std::string& layer) {
    const Key key = {parts,
                     {config.algorithm, config.bits, config.asymmetric, config.max_percentile, config.min_percentile,
                      config.search_start, config.search_end, config.search_step, config.bins}};
    auto [it, is_new] = known_.try_emplace(key, static_cast<int>(taps_.size()));
    if (is_new) {
      Tap tap{.layer = layer};
      for (const auto& [tensor, drops_last_step] : parts) {
        auto found = std::find(tensors_.begin(), tensors_.end(), tensor);
        tap.parts.push_back({static_cast<int>(found - tensors_.begin()), drops_last_step});
        if (found == tensors_.end()) {
          tensors_.push_back(tensor);
        }
      }
      taps_.push_back(std::move(tap));
      consumers_.push_back(std::make_unique<EstimatorConsumer>(config, threads_));
    }
    return it->second;
  }

  const std::vector<std::string>& tensors() const { return tensors_; }
  const std::vector<Tap>& taps() const { return taps_; }
  std::vector<ActivationConsumer*> consumers() const {
    std::vector<ActivationConsumer*> result;
    result.reserve(consumers_.size());
    for (const auto& consumer : consumers_) {
      result.push_back(consumer.get());
    }
    return result;
  }
  const RangeEstimator& estimator(int index) const { return consumers_[index]->estimator(); }

 private:
  using Settings = std::tuple<ActivationConfig::Algorithm, int, bool, double, double, double, double, double, int>;
  using Key = std::pair<std::vector<std::pair<std::string, bool>>, Settings>;
  int threads_;
  std::map<Key, int> known_;
  std::vector<std::string> tensors_;
  std::vector<Tap> taps_;
  std::vector<std::unique_ptr<EstimatorConsumer>> consumers_;
};

// The output Y of an RNN; an exporter that needs only the last step leaves it without a name.
std::string NameY(Graph& graph, ItemId rnn) {
  std::string& name = graph.mutable_item(rnn).outputs[0];
  if (name.empty()) {
    name = absl::StrCat(graph.item(rnn).name, ".all_steps");
  }
  return name;
}

}  // namespace

absl::StatusOr<ActivationStepResult> CalibrateActivations(Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                                          CalibrationData& data, const ActivationStepOptions& options,
                                                          AMCTPytorchProto::ScaleOffsetRecord& record) {
  TapList taps(options.threads);
  struct LayerTaps {
    int input;
    int hidden = -1;  // RNN: h_0, y_1 .. y_{T-1}
  };
  std::vector<LayerTaps> of_layer;
  for (const ConfiguredLayer& layer : layers) {
    const std::string& name = graph.item(layer.node).name;
    const ActivationConfig& config = layer.config->activation;
    LayerTaps own{.input = taps.Add({{graph.NameOf(graph.InputOf(layer.node, 0)), false}}, config, name)};
    if (layer.rule->is_rnn()) {
      const std::string initial = graph.NameOf(graph.InputOf(layer.node, layer.rule->initial_h));
      own.hidden = taps.Add({{initial, false}, {NameY(graph, layer.node), true}}, config, name);
    }
    of_layer.push_back(own);
  }

  MP_ASSIGN_OR_RETURN(const Model model, graph.ToModel());
  MP_ASSIGN_OR_RETURN(
      const std::unique_ptr<ModelRunner> runner,
      ModelRunner::Create(model,
                          {.tensors = taps.tensors(), .threads = options.threads, .scratch_folder = options.scratch_folder}));
  CollectOptions collect;
  collect.scratch_folder = options.scratch_folder;
  collect.progress = options.progress;
  collect.threads = options.threads;
  collect.checkpoint = options.checkpoint;
  const std::vector<ActivationConsumer*> consumers = taps.consumers();
  ActivationStepResult result;
  MP_ASSIGN_OR_RETURN(result.summary, CollectActivations(*runner, data, taps.taps(), consumers, collect));

  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string& name = graph.item(layers[i].node).name;
    auto factors = [&](int tap) -> absl::StatusOr<ActivationFactors> {
      absl::StatusOr<ActivationFactors> found = taps.estimator(tap).Factors();
      MP_RETURN_IF_ERROR(AtPlace(found.status(), {.layer = name}));
      if (options.force_fp16_quant) {
        found->scale = Float16Scale(found->scale);
      }
      return found;
    };
    AMCTPytorchProto::SingleLayerRecord& entry = RecordEntry(record, name);
    MP_ASSIGN_OR_RETURN(const ActivationFactors input, factors(of_layer[i].input));
    entry.set_scale_d(input.scale);
    entry.set_offset_d(input.offset);
    entry.set_act_type(IntegerTypeName(layers[i].config->activation.bits));
    if (of_layer[i].hidden >= 0) {
      MP_ASSIGN_OR_RETURN(const ActivationFactors hidden, factors(of_layer[i].hidden));
      entry.set_scale_h(hidden.scale);
      entry.set_offset_h(hidden.offset);
    }
    if (options.force_fp16_quant && !options.omits_precision_mode) {
      entry.set_fakequant_precision_mode("FORCE_FP16_QUANT");
    }
    result.statistics[name] = taps.estimator(of_layer[i].input).Statistics();
  }
  return result;
}

}  // namespace modelpress::engine
