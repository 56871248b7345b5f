// The configuration of key-value cache quantization: the outputs of Linear layers that are kept as integers (docs/spec/formats.md
// section 11).
#ifndef MODELPRESS_ENGINE_FORMATS_KV_CACHE_CONFIG_H_
#define MODELPRESS_ENGINE_FORMATS_KV_CACHE_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/formats/calibration_config.h"

namespace modelpress::engine {

struct KvCacheLayer {
  std::string name;
  ActivationConfig activation;  // of the layer's output; always 8 bits
  bool per_channel = false;     // factors for each index of the last axis
};

struct KvCacheConfig {
  int64_t batch_num = 1;
  bool activation_offset = true;
  std::vector<KvCacheLayer> layers;  // in the file's order
};

// From the names of the layers. CONFIG_VALUE, CONFIG_UNKNOWN_LAYER (not there, not Linear), CONFIG_EMPTY, with field
// "kv_cache_layers".
absl::StatusOr<QuantConfigText> CreateKvCacheConfigText(const LayerCatalog& catalog, const std::vector<std::string>& layers);

// From the text of a .cfg (AMCTQuantCaliConfig). Errors as of CreateQuantConfigText. min_percentile is checked like
// max_percentile (the reference: not at all); an override of a layer that quant_layers lists as well replaces its settings.
absl::StatusOr<QuantConfigText> CreateKvCacheConfigText(const LayerCatalog& catalog, absl::string_view cfg,
                                                        const std::string& file, const ReferenceDefects& defects);

// Reads the JSON. Errors as of ReadQuantConfig.
absl::StatusOr<KvCacheConfig> ReadKvCacheConfig(const LayerCatalog& catalog, absl::string_view json, const std::string& file);

// True if a JSON configuration is one for key-value caches: some layer in it has kv_data_quant_config. CONFIG_SYNTAX.
absl::StatusOr<bool> IsKvCacheConfig(absl::string_view json, const std::string& file);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_KV_CACHE_CONFIG_H_
