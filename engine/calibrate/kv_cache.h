// Calibrates key-value caches: the outputs of Linear layers (docs/spec/formats.md section 11).
#ifndef MODELPRESS_ENGINE_CALIBRATE_KV_CACHE_H_
#define MODELPRESS_ENGINE_CALIBRATE_KV_CACHE_H_

#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/calibrate/layer_activations.h"
#include "engine/formats/kv_cache_config.h"
#include "engine/graph/graph.h"
#include "engine/runtime/calibration_data.h"

namespace modelpress::engine {

// Runs `graph`, as it is, on `data` and writes kv_cache_value into the layers' entries of `record`: one factor, or one per index
// of the last axis. The layers are nodes of `graph` by their names.
absl::StatusOr<CollectSummary> CalibrateKvCache(const Graph& graph, const KvCacheConfig& config, CalibrationData& data,
                                                const ActivationStepOptions& options,
                                                AMCTPytorchProto::ScaleOffsetRecord& record);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_KV_CACHE_H_
