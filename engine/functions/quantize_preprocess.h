// quantize_preprocess(config_file, record_file, model, input_data): DMQ balance factors (docs/spec/ptq.md sections 4.2 and 9).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_QUANTIZE_PREPROCESS_H_
#define MODELPRESS_ENGINE_FUNCTIONS_QUANTIZE_PREPROCESS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

// Where calibration data lies and how it is cut (docs/calibration_data.md).
struct CalibrationInput {
  std::string path;        // file or folder; empty: none
  int64_t batch_size = 0;  // 0: by model and configuration
};

struct QuantizePreprocessCall {
  std::string config_file;
  std::string record_file;  // written
  std::string model;
  CalibrationInput data;  // its first batch is used
  std::string module_manifest;
};

// The record file that a call has written.
struct SavedRecord {
  WrittenFile record_file;  // name empty with validate_only
  std::vector<std::string> warnings;
};

absl::StatusOr<SavedRecord> QuantizePreprocess(const CallContext& context, const QuantizePreprocessCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_QUANTIZE_PREPROCESS_H_
