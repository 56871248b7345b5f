// AdaRound: learns for every weight whether to round it up or down, so that the layer's output stays close to the float layer's
// (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020; docs/spec/ptq.md section 10).
#ifndef MODELPRESS_ENGINE_CALIBRATE_ADAROUND_H_
#define MODELPRESS_ENGINE_CALIBRATE_ADAROUND_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/calibrate/channels.h"
#include "engine/calibrate/layer_error.h"
#include "engine/formats/calibration_config.h"

namespace modelpress::engine {

struct AdaRoundInput {
  LinearOperator op;
  LayerActivation activation;
  absl::Span<const float> weight;  // as in op.weight_dims
  ChannelMap channels;             // of the scales
  std::vector<float> scales;       // KlScales
  // What flows into the layer, other AdaRound layers with their new weights, and activation(layer output) of the float model.
  // Not looked at where num_iteration is 0.
  LayerSamples samples;
  uint64_t seed = 0;  // of the draws of samples
  int threads = 1;
  std::function<void(int64_t done, int64_t total)> progress = {};  // after every iteration
};

// The new weights, dequantized. `config`: num_iteration, reg_param, warm_start, beta. 8 bit. soft_weights: as the reference
// leaves them, h between 0 and 1 (the defect leaves_soft_weights); else h is forced to 0 or 1, so that every weight is an integer
// times its scale. The same input gives the same bytes on any number of threads.
//
// Draws up to 32 samples per iteration, without replacement. Memory: input and target are the caller's; besides them five
// arrays of the weight's size, and of one draw the output and, if the operator pads, the padded input. An im2col matrix never
// exists.
//
// CALIBRATION_FAILED: a weight, scale, input or target is not finite, or the error is not. INTERNAL_ERROR: shapes that contradict
// each other.
absl::StatusOr<std::vector<float>> AdaRound(const AdaRoundInput& input, const WeightConfig& config, bool soft_weights);

// Which weights AdaRound has rounded up, from what it returned without soft weights: a bit each, the first one in the lowest bit.
std::string RoundedUp(const AdaRoundInput& input, absl::Span<const float> rounded);
// What AdaRound returned, from that. There are input.weight.size() bits.
std::vector<float> RoundedWeights(const AdaRoundInput& input, const std::string& rounded_up);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_ADAROUND_H_
