// quantize_model(config_file, modfied_onnx_file, record_file, model, ...), and on request the calibration and save_model that
// follow it (docs/spec/ptq.md section 4.3).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_QUANTIZE_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_QUANTIZE_MODEL_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/calibration_config.h"
#include "engine/functions/functions.h"
#include "engine/functions/quantize_preprocess.h"

namespace modelpress::engine {

// Without `saves` all three files have their names; with it, empty ones are never handed over either, but for config_file: a
// configuration that the call makes becomes <save_path>_config.json.
struct QuantizeModelCall {
  std::string config_file;         // read; empty (only with `saves`): made from the model by the next two
  QuantConfigArguments arguments;  // batch_num 0: as many batches as the data has
  std::string config_definition;
  std::string modified_onnx_file;  // written
  std::string record_file;         // written; read before if layers are balanced and it is there
  std::string model;
  std::vector<std::string> input_names;
  std::vector<std::string> output_names;
  std::map<std::string, std::map<int, std::string>> dynamic_axes;
  std::string module_manifest;
  CalibrationInput data;    // empty: weights only
  CalibrationInput sample;  // one batch for AdaRound's optimisation; empty: the first batch of `data`
  bool saves = false;       // write the two models and the report as well
  std::string save_path;
};

struct QuantizedModel {
  WrittenFile config_file;         // if the call made one
  WrittenFile modified_onnx_file;  // all names are empty with validate_only
  WrittenFile record_file;
  std::vector<WrittenFile> external_data;  // of all models
  WrittenFile deploy_model;                // from here on: if call.saves
  WrittenFile fake_quant_model;
  WrittenFile report;
  WrittenFile report_html;
  std::vector<std::string> warnings;
};

absl::StatusOr<QuantizedModel> QuantizeModel(const CallContext& context, const QuantizeModelCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_QUANTIZE_MODEL_H_
