// What running the calibration module of quantize_model does in the reference: completes the record file (docs/spec/ptq.md
// section 4.4).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_CALIBRATE_H_
#define MODELPRESS_ENGINE_FUNCTIONS_CALIBRATE_H_

#include <string>

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"
#include "engine/functions/quantize_preprocess.h"

namespace modelpress::engine {

struct CalibrateCall {
  std::string modified_onnx_file;  // empty for key-value caches
  std::string record_file;         // read and replaced
  std::string config_file;         // of create_quant_config; one for key-value caches is known by its content
  std::string model;               // for the float weights of RNN layers, and for key-value caches
  CalibrationInput data;
  std::string module_manifest;
};

absl::StatusOr<SavedRecord> Calibrate(const CallContext& context, const CalibrateCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_CALIBRATE_H_
