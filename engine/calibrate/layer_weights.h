// The weight step of quantize_model: every enabled layer's weights are calibrated and replaced, and its record entry is begun
// (docs/spec/ptq.md sections 4.3, 6, 7).
#ifndef MODELPRESS_ENGINE_CALIBRATE_LAYER_WEIGHTS_H_
#define MODELPRESS_ENGINE_CALIBRATE_LAYER_WEIGHTS_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/calibrate/channels.h"
#include "engine/formats/calibration_config.h"
#include "engine/graph/graph.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {

// A layer of the graph with its configuration.
struct ConfiguredLayer {
  ItemId node = -1;
  const OpRule* rule = nullptr;
  const LayerConfig* config = nullptr;
};

// The enabled layers of `config`, in its order, found by the names of their nodes. NODE_UNSUPPORTED where a layer is wired in a
// way that cannot be quantized (RNN without initial states, ...). `config` must outlive the result.
absl::StatusOr<std::vector<ConfiguredLayer>> FindConfiguredLayers(const Graph& graph, const QuantConfig& config);

// Balance factors are applied to these: configured for DMQ, and neither pooling nor RNN (the reference fails there).
bool IsBalanced(const ConfiguredLayer& layer);

// Which output channel an element of the weight belongs to; one for the whole tensor unless `channel_wise` (RNN: one per gate).
// `dims` as stored; `transposed`: a Transpose lies between tensor and layer.
ChannelMap OutputChannelMap(const Item& layer, const OpRule& rule, const std::vector<int64_t>& dims, bool channel_wise);
// Which input channel.
ChannelMap InputChannelMap(const Item& layer, const OpRule& rule, const std::vector<int64_t>& dims, bool transposed);

// Layer name -> balance factors, one per input channel.
using BalanceByLayer = std::map<std::string, std::vector<float>>;

struct WeightStep {
  AMCTPytorchProto::ScaleOffsetRecord record;  // in: entries there before (balance factors); out: one per enabled layer
  BalanceByLayer balance;
  // RNN layer -> its float W and R. The modified model holds the quantized ones, calibration runs with these.
  std::map<std::string, std::pair<Tensor, Tensor>> rnn_weights;
  // Layers whose weights AdaRound has to learn yet: their weights are still float (balanced), their record entries complete.
  std::vector<std::string> adaround_layers;
  int threads = 1;
  std::function<void(uint64_t done, uint64_t total)> progress = {};
};

// Balances, calibrates and replaces the weights. CALIBRATION_FAILED with the layer.
absl::Status QuantizeWeights(Graph& graph, const std::vector<ConfiguredLayer>& layers, WeightStep& step);

// The record entry of a layer; added at the end if there is none.
AMCTPytorchProto::SingleLayerRecord& RecordEntry(AMCTPytorchProto::ScaleOffsetRecord& record, const std::string& layer);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_LAYER_WEIGHTS_H_
