// The configuration of post-training quantization: the simple .cfg that people write, the JSON that create_quant_config makes of
// it, and what quantize_model reads out of that (docs/spec/formats.md sections 4 and 5).
#ifndef MODELPRESS_ENGINE_FORMATS_CALIBRATION_CONFIG_H_
#define MODELPRESS_ENGINE_FORMATS_CALIBRATION_CONFIG_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/reference_defects.h"

namespace modelpress::engine {

// A layer as far as configurations care. Of a quantizable type (formats.md section 1), whether it can be quantized or not.
struct ConfigLayer {
  std::string name;
  std::string type;       // torch class name: "Conv2d", "Linear", "LSTM", ...
  std::string why_not;    // empty: it can be quantized; else why not, e.g. "it is used more than once" (ptq.md section 3.1)
  bool has_bias = false;  // Linear: decides INT16
  int64_t groups = 1;     // convolutions
  std::vector<int64_t>
      packed_sizes;  // lengths of the axes along which INT4 weights are packed (RNN: of W and R); all must be even
};

// What configurations are checked against.
struct LayerCatalog {
  std::vector<ConfigLayer> layers;      // in module order (manifest) or graph order
  std::set<std::string> other_modules;  // names of modules of other types: they may be named in an override, to no effect
};

// Arguments of create_quant_config where no .cfg is given (formats.md section 5.3).
struct QuantConfigArguments {
  std::vector<std::string> skip_layers;
  int64_t batch_num = 1;
  bool activation_offset = true;
};

struct ActivationConfig {
  enum class Algorithm { kIfmr, kHfmg };
  Algorithm algorithm = Algorithm::kIfmr;
  int bits = 8;            // 4, 8, 16
  bool asymmetric = true;  // "with_offset"
  double max_percentile = 0.999999;
  double min_percentile = 0.999999;
  double search_start = 0.7;
  double search_end = 1.3;
  double search_step = 0.01;
  int64_t bins = 4096;  // HFMG
};

struct WeightConfig {
  enum class Algorithm { kArq, kAda };
  Algorithm algorithm = Algorithm::kArq;
  int bits = 8;  // 4, 6, 7, 8
  bool channel_wise = true;
  // AdaRound (ptq.md section 10)
  int64_t num_iteration = 10000;
  double reg_param = 0.01;
  double warm_start = 0.2;
  double beta_start = 20;
  double beta_end = 2;
};

// An enabled layer.
struct LayerConfig {
  std::string name;
  ActivationConfig activation;
  WeightConfig weight;
  std::optional<double> migration_strength;  // DMQ
};

struct QuantConfig {
  int64_t batch_num = 1;
  bool activation_offset = true;
  bool do_fusion = true;
  bool force_fp16_quant = false;  // fakequant_precision_mode FORCE_FP16_QUANT
  std::set<std::string> skip_fusion_layers;
  std::vector<LayerConfig> layers;  // enabled ones, in the catalog's order
};

struct QuantConfigText {
  std::string json;  // byte for byte what the reference writes
  std::vector<std::string> warnings;
  std::vector<std::string> deviations;  // from the reference, in words for the report
};

// A parameter that is out of its range or not possible for the layer (formats.md sections 1 and 4).
struct ConfigProblem {
  std::string key;      // as in the JSON configuration: "search_range", ...
  std::string section;  // the object that it is in: "activation_quant_params", "weight_quant_params" or ""
  std::string message;
};
// nullopt: all is well.
std::optional<ConfigProblem> CheckActivation(const ActivationConfig& config);
std::optional<ConfigProblem> CheckLayerConfig(const ConfigLayer& layer, const LayerConfig& config);

// From arguments. CONFIG_VALUE, CONFIG_UNKNOWN_LAYER, CONFIG_EMPTY, each with the argument as field and key.
absl::StatusOr<QuantConfigText> CreateQuantConfigText(const LayerCatalog& catalog, const QuantConfigArguments& arguments);

// From the text of a .cfg. `file` names it in errors, which also have line, column, layer and the key (metadata "key", the name
// of the field): CONFIG_SYNTAX, CONFIG_VALUE, CONFIG_UNKNOWN_LAYER, CONFIG_EMPTY.
// `default_batch_num`: where the .cfg has none.
absl::StatusOr<QuantConfigText> CreateQuantConfigText(const LayerCatalog& catalog, absl::string_view cfg, const std::string& file,
                                                      const ReferenceDefects& defects, int64_t default_batch_num = 1);

// Reads the JSON (formats.md section 5.5). Errors have file, line, column, layer and key as far as they apply: CONFIG_SYNTAX,
// CONFIG_TYPE, CONFIG_VALUE, CONFIG_UNKNOWN_LAYER, CONFIG_EMPTY. A layer without activation_quant_params gets the defaults (the
// reference: AttributeError).
absl::StatusOr<QuantConfig> ReadQuantConfig(const LayerCatalog& catalog, absl::string_view json, const std::string& file,
                                            const ReferenceDefects& defects);

// For configurations of other kinds, which share rules and words.

// The layer of that name, or null.
const ConfigLayer* FindLayer(const LayerCatalog& catalog, absl::string_view name);
// Whether a module of that name exists, quantizable or not.
bool HasModule(const LayerCatalog& catalog, absl::string_view name);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_CALIBRATION_CONFIG_H_
