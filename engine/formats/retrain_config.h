// The configuration of retraining: the simple .cfg that people write for quantization-aware training (QAT), pruning or both, and
// the JSON that create_quant_retrain_config makes of it (docs/spec/formats.md sections 6 to 8, qat.md section 4, prune.md
// section 2).
#ifndef MODELPRESS_ENGINE_FORMATS_RETRAIN_CONFIG_H_
#define MODELPRESS_ENGINE_FORMATS_RETRAIN_CONFIG_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/calibration_config.h"

namespace AMCTPytorchProto {
class AMCTRetrainConfig;
}
namespace modelpress::v1 {
class RewritePlan;
}

namespace modelpress::engine {

// A type that can be retrained (formats.md section 1).
struct RetrainType {
  absl::string_view name;  // torch class name
  bool channel_wise;       // weights may have a scale per channel, and have by default
  bool filter;             // its channels can be pruned
  bool selective;          // it can be made 2:4 sparse
};
// Null: modules of that type are never retrained or pruned.
const RetrainType* FindRetrainType(absl::string_view name);

// A module of a type that can be retrained or pruned, as far as configurations care. Empty reasons: it can.
struct RetrainCatalogLayer {
  std::string name;
  std::string type;               // torch class name
  std::string why_not_quant;      // why it is no layer of QAT (qat.md section 3)
  std::string why_not_filter;     // why its channels cannot be pruned (prune.md section 2, 2)
  std::string why_not_selective;  // why it cannot be made 2:4 sparse (the same)
  int64_t groups = 1;
  std::vector<int64_t> packed_sizes;  // as in ConfigLayer
};

// What configurations are checked against.
struct RetrainCatalog {
  std::vector<RetrainCatalogLayer> layers;  // in module order (manifest) or graph order
  std::set<std::string> other_modules;
};

struct ActivationRetrainConfig {
  int bits = 8;                                   // 4, 8, 16
  std::optional<std::pair<double, double>> clip;  // (clip_max, clip_min); none: initialised by IFMR
  std::optional<bool> fixed_min;                  // none: derived from the producer
};

struct WeightRetrainConfig {
  enum class Algorithm { kArq, kUlq };
  Algorithm algorithm = Algorithm::kArq;
  int bits = 8;  // 4, 8
  bool channel_wise = true;
};

struct FilterPruneConfig {
  double ratio = 0;  // in (0, 1)
  bool ascend_optimized = true;
};

struct SelectivePruneConfig {
  uint32_t update_freq = 0;  // n_out_of_m_type is M4N2, the only one
};

using LayerPruneConfig = std::variant<std::monostate, FilterPruneConfig, SelectivePruneConfig>;

struct LayerRetrainConfig {
  std::string name;
  bool quantizes = false;  // retrain_enable; the next two are what the layer has also if it is false
  ActivationRetrainConfig activation;
  WeightRetrainConfig weight;
  LayerPruneConfig prune;  // monostate: not pruned (regular_prune_enable false)
};

struct RetrainConfig {
  int64_t batch_num = 1;
  bool force_fp16_quant = false;
  bool quantizes = false;  // which of the abilities the configuration asks for (prune.md section 2, qat.md section 13)
  bool prunes = false;
  std::vector<LayerRetrainConfig> layers;  // one per layer of the catalog that can take part in them, in its order
  // The complete configuration as JSON: what the reference writes for QAT, and golden/config's effective.json with pruning.
  // RewritePlan.config.
  std::string json;
  std::vector<std::string> warnings;
  std::vector<std::string> deviations;  // from the reference, in words for the report
};

enum class RetrainAbilities {
  kQuant,          // the quant_retrain functions: prune fields are refused
  kPrune,          // the prune_retrain functions: quant fields are accepted and ignored
  kQuantAndPrune,  // the compressed functions: at least one is needed
};

// The JSON that create_quant_retrain_config writes, byte for byte, from a .cfg or (nullopt) without. Errors have file, line,
// column, layer and key (metadata "key") as far as they apply: CONFIG_SYNTAX, CONFIG_VALUE, CONFIG_UNKNOWN_LAYER, CONFIG_EMPTY.
absl::StatusOr<QuantConfigText> CreateRetrainConfigText(const RetrainCatalog& catalog, std::optional<absl::string_view> cfg,
                                                        const std::string& file, const ReferenceDefects& defects);

// Reads that JSON (formats.md section 7.2). version and batch_num are always mandatory (qat.md section 4.3). Also CONFIG_TYPE.
// The result's json has the layers in the file's order and those that it does not list, disabled, behind them.
absl::StatusOr<RetrainConfig> ReadRetrainConfig(const RetrainCatalog& catalog, absl::string_view json, const std::string& file);

// Reads a .cfg for functions that prune. A field of an ability that the .cfg does not ask for (quant_skip_layers without anything
// to quantize) is refused. With kPrune, a .cfg that only quantizes gives a configuration that does nothing, and a warning.
absl::StatusOr<RetrainConfig> ReadRetrainDefinition(const RetrainCatalog& catalog, absl::string_view cfg, const std::string& file,
                                                    RetrainAbilities abilities, const ReferenceDefects& defects);

// Whether `saved` is the configuration that a model was created with, whose rewrite plan is `created` (qat.md section 12).
// CONFIG_CHANGED with the layer and (metadata "key") the first key that differs. A fixed_min that only `saved` has may be the one
// that the plan has found.
absl::Status CheckSameRetrainConfig(const RetrainConfig& saved, const v1::RewritePlan& created);

// For configurations that contain one of retraining.

// Checks `cfg`, parsed out of `text`, as ReadRetrainDefinition does; what is wrong with fields that `text` does not have lies at
// the beginning of the message that they would be in.
absl::StatusOr<RetrainConfig> CheckRetrainDefinition(const RetrainCatalog& catalog,
                                                     const AMCTPytorchProto::AMCTRetrainConfig& cfg, absl::string_view text,
                                                     const std::string& file, RetrainAbilities abilities,
                                                     const ReferenceDefects& defects);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_RETRAIN_CONFIG_H_
