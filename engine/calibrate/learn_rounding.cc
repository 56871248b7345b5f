#include "engine/calibrate/learn_rounding.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/checkpoint.pb.h"
#include "engine/base/status.h"
#include "engine/calibrate/adaround.h"
#include "engine/calibrate/balance.h"
#include "engine/calibrate/layer_activation.h"
#include "engine/calibrate/weights.h"
#include "engine/quantize/operands.h"
#include "engine/runtime/floats.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {
namespace {

// A tensor of one run, kept.
struct Values {
  std::vector<int64_t> dims;
  std::vector<float> values;
};

class RoundingLearner {
 public:
  RoundingLearner(Graph& graph, const std::vector<ConfiguredLayer>& layers, const WeightStep& step, CalibrationData* sample,
                  const LearnRoundingOptions& options)
      : graph_(graph), layers_(layers), step_(step), sample_(sample), options_(options), float_graph_(graph) {}

  absl::Status Run() {
    const std::set<std::string> names(step_.adaround_layers.begin(), step_.adaround_layers.end());
    std::map<ItemId, const ConfiguredLayer*> learnt;
    for (const ConfiguredLayer& layer : layers_) {
      if (names.contains(graph_.item(layer.node).name)) {
        learnt[layer.node] = &layer;
        total_ += layer.config->weight.num_iteration;
      }
    }
    if (total_ > 0) {
      if (sample_ == nullptr) {
        return MakeError(v1::REQUEST_INVALID,
                         "AdaRound learns on a sample of the model's inputs: give sample_data or calibration_data",
                         {.field = "sample_data"});
      }
      MP_RETURN_IF_ERROR(sample_->Rewind());
      MP_ASSIGN_OR_RETURN(batch_, sample_->Next());
    }
    layer_count_ = learnt.size();
    for (ItemId id : graph_.Order()) {
      if (auto layer = learnt.find(id); layer != learnt.end()) {
        MP_RETURN_IF_ERROR(AtPlace(Learn(*layer->second), {.layer = graph_.item(id).name}));
        ++layer_;
      }
    }
    ReportResumed();
    return absl::OkStatus();
  }

 private:
  absl::Status Learn(const ConfiguredLayer& layer) {
    const std::string name = graph_.item(layer.node).name;
    const WeightConfig& config = layer.config->weight;
    MP_ASSIGN_OR_RETURN(const ConstantOperand operand, OwnOperand(graph_, layer.node, layer.node, layer.rule->weight, "weight"));
    const Tensor weight = graph_.item(operand.holder).tensor;
    std::vector<float> values(weight.ElementCount());
    MP_RETURN_IF_ERROR(ReadFloats(weight, 0, absl::MakeSpan(values)));
    const std::vector<int64_t> dims(weight.header.dims().begin(), weight.header.dims().end());

    AdaRoundInput input;
    input.weight = values;
    input.channels = OutputChannelMap(graph_.item(layer.node), *layer.rule, dims, config.channel_wise);
    const auto entry = std::find_if(step_.record.record().begin(), step_.record.record().end(),
                                    [&](const auto& candidate) { return candidate.key() == name; });
    input.scales.assign(entry->value().scale_w().begin(), entry->value().scale_w().end());
    input.op.weight_dims = dims;
    std::optional<std::vector<float>> rounded = Load(name, input);
    if (rounded.has_value()) {
      ++loaded_;
    } else {
      ReportResumed();
      MP_ASSIGN_OR_RETURN(rounded, Compute(layer, std::move(input)));
    }
    done_ += config.num_iteration;
    Report(0);
    const auto shared = std::make_shared<const std::vector<float>>(*std::move(rounded));
    SetTensor(graph_, operand, Transformed(weight, [shared](uint64_t first, absl::Span<float> out) {
                std::copy_n(shared->begin() + static_cast<int64_t>(first), out.size(), out.begin());
                return absl::OkStatus();
              }));
    return absl::OkStatus();
  }

  // `input`: complete but for the operator and the samples.
  absl::StatusOr<std::vector<float>> Compute(const ConfiguredLayer& layer, AdaRoundInput input) {
    const WeightConfig& config = layer.config->weight;
    Values layer_input;
    Values target;
    if (config.num_iteration > 0) {
      const std::vector<int64_t> weight_dims = std::move(input.op.weight_dims);
      MP_ASSIGN_OR_RETURN(const ActivatedLayer activated, FindLayerActivation(float_graph_, layer.node));
      MP_ASSIGN_OR_RETURN(target, Show(float_graph_, activated.activated));
      MP_ASSIGN_OR_RETURN(layer_input, Show(graph_, graph_.InputOf(layer.node, 0), layer.node));
      MP_ASSIGN_OR_RETURN(input.op, LinearOperatorOf(graph_, layer.node, layer_input.dims));
      input.op.weight_dims = weight_dims;
      input.activation = activated.activation;
      input.samples = {layer_input.dims, layer_input.values, target.dims, target.values};
    }
    input.threads = options_.threads;
    input.progress = [this](int64_t done, int64_t) { Report(done); };
    MP_ASSIGN_OR_RETURN(std::vector<float> rounded, AdaRound(input, config, options_.soft_weights));
    if (config.num_iteration > 0) {
      Save(graph_.item(layer.node).name, input, rounded);
    }
    return rounded;
  }

  // `done`: iterations of the present layer.
  void Report(int64_t done) {
    if (options_.progress) {
      options_.progress(static_cast<uint64_t>(done_ + done), static_cast<uint64_t>(total_));
    }
  }

  void Save(const std::string& layer, const AdaRoundInput& input, const std::vector<float>& rounded) const {
    if (!options_.checkpoint.is_kept()) {
      return;
    }
    state::RoundedLayer state;
    state.set_layer(layer);
    state.set_weights(rounded.size());
    if (options_.soft_weights) {
      state.mutable_soft_weights()->Assign(rounded.begin(), rounded.end());
    } else {
      state.set_rounds_up(RoundedUp(input, rounded));
    }
    options_.checkpoint.Part(layer_).Save(state);
  }

  std::optional<std::vector<float>> Load(const std::string& layer, const AdaRoundInput& input) const {
    const StageCheckpoint checkpoint = options_.checkpoint.Part(layer_);
    const auto state = checkpoint.Load<state::RoundedLayer>();
    if (!state.has_value()) {
      return std::nullopt;
    }
    const size_t weights = input.weight.size();
    if (state->layer() != layer || state->weights() != weights ||
        (options_.soft_weights ? state->soft_weights_size() != static_cast<int>(weights)
                               : state->rounds_up().size() != (weights + 7) / 8)) {
      checkpoint.Ignore();
      return std::nullopt;
    }
    return options_.soft_weights ? std::vector<float>(state->soft_weights().begin(), state->soft_weights().end())
                                 : RoundedWeights(input, state->rounds_up());
  }

  // Once, when the layers that an earlier attempt has learnt are through.
  void ReportResumed() {
    if (loaded_ > 0) {
      options_.checkpoint.log(absl::StrCat("resumed ", options_.checkpoint.key, " after layer ", loaded_, " of ", layer_count_,
                                           " from an earlier attempt's checkpoints"));
      loaded_ = 0;
    }
  }

  // The tensor `value` of `graph` on the sample, inputs of balanced layers divided. `reader`: show what this item reads in place
  // of `value`, where a division was put in between.
  absl::StatusOr<Values> Show(Graph graph, Value value, ItemId reader = -1) {
    MP_RETURN_IF_ERROR(DivideInputs(graph, layers_, step_.balance));
    const std::string tensor = graph.NameOf(reader >= 0 ? graph.InputOf(reader, 0) : value);
    MP_ASSIGN_OR_RETURN(const Model model, graph.ToModel());
    MP_ASSIGN_OR_RETURN(
        const std::unique_ptr<ModelRunner> runner,
        ModelRunner::Create(model,
                            {.tensors = {tensor}, .threads = options_.threads, .scratch_folder = options_.scratch_folder}));
    MP_ASSIGN_OR_RETURN(const RunResult run, runner->Run(batch_));
    Values shown{.dims = run.tensors[0].dims};
    MP_ASSIGN_OR_RETURN(shown.values, FloatsOf(run.tensors[0]));
    return shown;
  }

  Graph& graph_;
  const std::vector<ConfiguredLayer>& layers_;
  const WeightStep& step_;
  CalibrationData* sample_;
  const LearnRoundingOptions& options_;
  const Graph float_graph_;  // weights of the layers to learn still float
  Batch batch_;
  int64_t done_ = 0;  // iterations of the layers before
  int64_t total_ = 0;
  int layer_ = 0;  // number of the present one
  size_t layer_count_ = 0;
  size_t loaded_ = 0;  // layers that came from checkpoints
};

}  // namespace

absl::Status LearnRounding(Graph& graph, const std::vector<ConfiguredLayer>& layers, const WeightStep& step,
                           CalibrationData* sample, const LearnRoundingOptions& options) {
  return RoundingLearner(graph, layers, step, sample, options).Run();
}

}  // namespace modelpress::engine
