// create_quant_config(config_file, model, ...): the JSON configuration of post-training quantization (docs/spec/formats.md
// section 5).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_CREATE_QUANT_CONFIG_H_
#define MODELPRESS_ENGINE_FUNCTIONS_CREATE_QUANT_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/calibration_config.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

struct CreateQuantConfigCall {
  std::string config_file;  // to write
  std::string model;
  QuantConfigArguments arguments;
  std::string config_definition;  // a .cfg; replaces `arguments`
  std::string module_manifest;    // empty: none
  bool kv_cache = false;          // configure key-value caches instead
  std::vector<std::string> kv_cache_layers;
};

struct SavedConfig {
  WrittenFile config_file;  // name empty with validate_only
  std::vector<std::string> warnings;
};

absl::StatusOr<SavedConfig> CreateQuantConfig(const CallContext& context, const CreateQuantConfigCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_CREATE_QUANT_CONFIG_H_
