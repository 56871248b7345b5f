// The last check of a deploy model: no runtime here can load it, so its structure is compared with what docs/spec/save.md
// promises the device's converter.
#ifndef MODELPRESS_ENGINE_QUANTIZE_DEPLOY_CHECK_H_
#define MODELPRESS_ENGINE_QUANTIZE_DEPLOY_CHECK_H_

#include "absl/status/status.h"
#include "engine/model/model.h"
#include "engine/quantize/layer_factors.h"

namespace modelpress::engine {

// Checks `model`, as read back from the written file: nodes in topological order, every layer of `factors` quantized (integer
// weight and bias, AscendQuant in front, AscendDequant with as many parameters as scales behind, or the device's RNN operator),
// no attribute or mark of the modified model left. `defects` that were asked for are no fault. OUTPUT_INVALID.
absl::Status CheckDeployModel(const Model& model, const FactorsByLayer& factors, const ReferenceDefects& defects = {});

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_DEPLOY_CHECK_H_
