// The activation step: shows the calibration data to one range estimator per layer input and completes the record file
// (docs/spec/ptq.md section 4.4).
#ifndef MODELPRESS_ENGINE_CALIBRATE_LAYER_ACTIVATIONS_H_
#define MODELPRESS_ENGINE_CALIBRATE_LAYER_ACTIVATIONS_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/checkpoints.h"
#include "engine/calibrate/layer_weights.h"
#include "engine/calibrate/range_estimator.h"
#include "engine/graph/graph.h"
#include "engine/runtime/activations.h"
#include "engine/runtime/calibration_data.h"

namespace modelpress::engine {

struct ActivationStepOptions {
  bool force_fp16_quant = false;
  bool omits_precision_mode = false;  // ReferenceDefects
  int threads = 1;
  std::string scratch_folder;
  std::function<void(uint64_t done, uint64_t total)> progress = {};
  StageCheckpoint checkpoint = {};
};

struct ActivationStepResult {
  std::map<std::string, ActivationStatistics> statistics;  // of the layers' inputs
  CollectSummary summary;
};

// Runs `graph` (the calibration model: as modified, RNN weights float, balanced inputs divided) on `data` and writes scale_d,
// offset_d, act_type, scale_h and offset_h into the entries of `record`. Layers that read one tensor with one configuration share
// an estimator.
absl::StatusOr<ActivationStepResult> CalibrateActivations(Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                                          CalibrationData& data, const ActivationStepOptions& options,
                                                          AMCTPytorchProto::ScaleOffsetRecord& record);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_LAYER_ACTIVATIONS_H_
