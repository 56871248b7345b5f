// create_quant_retrain_config(config_file, model, input_data, config_defination): the JSON configuration of quantization-aware
// training (docs/spec/qat.md section 4).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_CREATE_QUANT_RETRAIN_CONFIG_H_
#define MODELPRESS_ENGINE_FUNCTIONS_CREATE_QUANT_RETRAIN_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "engine/functions/create_quant_config.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

struct CreateQuantRetrainConfigCall {
  std::string config_file;  // to write
  std::string model;
  std::string config_definition;  // a .cfg; empty: every layer, by default
  std::string module_manifest;    // empty: none
};

absl::StatusOr<SavedConfig> CreateQuantRetrainConfig(const CallContext& context, const CreateQuantRetrainConfigCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_CREATE_QUANT_RETRAIN_CONFIG_H_
