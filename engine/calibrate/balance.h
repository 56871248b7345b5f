// The balance factors of DMQ, measured on the first batch (docs/spec/ptq.md section 9).
#ifndef MODELPRESS_ENGINE_CALIBRATE_BALANCE_H_
#define MODELPRESS_ENGINE_CALIBRATE_BALANCE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/calibrate/layer_weights.h"
#include "engine/graph/graph.h"
#include "engine/runtime/calibration_data.h"

namespace modelpress::engine {

struct BalanceOptions {
  int threads = 1;
  std::string scratch_folder;
};

// Runs `graph` (batch norms folded, weights float) on the first batch of `data`. CALIBRATION_FAILED with the layer.
absl::StatusOr<BalanceByLayer> MeasureBalance(const Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                              CalibrationData& data, const BalanceOptions& options);

// Puts a division by the factors in front of every balanced layer: what its weights were multiplied with.
absl::Status DivideInputs(Graph& graph, const std::vector<ConfiguredLayer>& layers, const BalanceByLayer& balance);

// A record file with these factors, as quantize_preprocess leaves it.
AMCTPytorchProto::ScaleOffsetRecord BalanceRecord(const Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                                  const BalanceByLayer& balance);

// The factors in a record, for every balanced layer. RECORD_INCOMPLETE where a layer has none.
absl::StatusOr<BalanceByLayer> BalanceInRecord(const AMCTPytorchProto::ScaleOffsetRecord& record, const Graph& graph,
                                               const std::vector<ConfiguredLayer>& layers);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_BALANCE_H_
