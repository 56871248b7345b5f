// The configuration of auto_channel_prune_search (docs/spec/formats.md section 9).
#ifndef MODELPRESS_ENGINE_FORMATS_AUTO_CHANNEL_PRUNE_CONFIG_H_
#define MODELPRESS_ENGINE_FORMATS_AUTO_CHANNEL_PRUNE_CONFIG_H_

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "amct/retrain_config.pb.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/retrain_config.h"

namespace modelpress::engine {

struct AutoChannelPruneSettings {
  double compress_ratio = 1;  // > 1
  bool ascend_optimized = true;
  float max_prune_ratio = 1;                      // in (0, 1]
  int64_t test_iteration = 1;                     // > 0
  AMCTPytorchProto::AMCTRetrainConfig overrides;  // content of override_prune_cfg; empty without
  std::set<std::string> searched;                 // layers to find a ratio for
  std::vector<std::string> warnings;
};

// Reads the .cfg. `read_file` gives the text of override_prune_cfg by its name in the .cfg; what it fails with is passed on, with
// the place that names the file where it has none. Errors have file (the .cfg or the one it names), line, column, layer and key
// as far as they apply: CONFIG_SYNTAX, CONFIG_VALUE, CONFIG_UNKNOWN_LAYER, CONFIG_EMPTY.
absl::StatusOr<AutoChannelPruneSettings> ReadAutoChannelPruneConfig(
    const RetrainCatalog& catalog, absl::string_view cfg, const std::string& file,
    const std::function<absl::StatusOr<std::string>(const std::string& name)>& read_file, const ReferenceDefects& defects);

// The .cfg that the search writes (prune.md section 13, 6). `kept` and `total` are output channels by layer, in record order.
struct FoundRatio {
  std::string layer;
  int64_t kept = 0;
  int64_t total = 0;
};
std::string PrintFoundRatios(const AutoChannelPruneSettings& settings, const std::vector<FoundRatio>& ratios);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_AUTO_CHANNEL_PRUNE_CONFIG_H_
