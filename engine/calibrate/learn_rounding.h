// Runs AdaRound over the layers of a model, one after the other (docs/spec/ptq.md section 10).
#ifndef MODELPRESS_ENGINE_CALIBRATE_LEARN_ROUNDING_H_
#define MODELPRESS_ENGINE_CALIBRATE_LEARN_ROUNDING_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/checkpoints.h"
#include "engine/calibrate/layer_weights.h"
#include "engine/graph/graph.h"
#include "engine/runtime/calibration_data.h"

namespace modelpress::engine {

struct LearnRoundingOptions {
  bool soft_weights = false;  // ReferenceDefects::leaves_soft_weights
  int threads = 1;
  std::string scratch_folder;
  std::function<void(uint64_t done, uint64_t total)> progress = {};  // iterations over all layers
  StageCheckpoint checkpoint = {};                                   // every layer that was learnt, in a part of its own
};

// Learns the weights of step.adaround_layers and puts them into `graph`, in graph order: each layer's input comes from the model
// with all weights learnt so far, its target from the model with float weights in these layers. Both run on the first batch of
// `sample` (unused, and may be null, where no layer iterates). Batch norms keep their statistics: the reference trains them on
// the sample.
absl::Status LearnRounding(Graph& graph, const std::vector<ConfiguredLayer>& layers, const WeightStep& step,
                           CalibrationData* sample, const LearnRoundingOptions& options);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_LEARN_ROUNDING_H_
