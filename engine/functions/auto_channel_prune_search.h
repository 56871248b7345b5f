// auto_channel_prune_search(model, config, input_data, output_cfg, sensitivity, search_alg) (docs/spec/prune.md section 13).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_AUTO_CHANNEL_PRUNE_SEARCH_H_
#define MODELPRESS_ENGINE_FUNCTIONS_AUTO_CHANNEL_PRUNE_SEARCH_H_

#include <string>

#include "absl/status/statusor.h"
#include "engine/functions/create_quant_config.h"
#include "engine/functions/functions.h"

namespace modelpress::engine {

struct AutoChannelPruneSearchCall {
  std::string model;
  std::string config;
  std::string output_cfg;     // to write
  std::string sensitivities;  // safetensors: layer -> float32 [Cout]
  std::string module_manifest;
  std::string override_prune_cfg;  // what override_prune_cfg of `config` names, whatever the path there; empty: not given
};

// `config_file` of the result is the written output_cfg.
absl::StatusOr<SavedConfig> AutoChannelPruneSearch(const CallContext& context, const AutoChannelPruneSearchCall& call);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_AUTO_CHANNEL_PRUNE_SEARCH_H_
