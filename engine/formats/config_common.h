// What the configurations of post-training quantization, key-value caches and retraining share; for their implementations only.
#ifndef MODELPRESS_ENGINE_FORMATS_CONFIG_COMMON_H_
#define MODELPRESS_ENGINE_FORMATS_CONFIG_COMMON_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/formats/calibration_config.h"
#include "engine/formats/json_text.h"
#include "engine/formats/text_format.h"

namespace modelpress::engine {

// The first element that is given twice, or -1.
template <typename Names>
int FirstRepeated(const Names& names) {
  std::set<std::string> seen;
  for (int i = 0; i < static_cast<int>(names.size()); ++i) {
    if (!seen.insert(names[i]).second) {
      return i;
    }
  }
  return -1;
}

// Takes every field of an FMRQuantize or HFMGQuantize, of which there are two kinds, but dst_type and quant_granularity. Returns
// what it says about `asymmetric`.
template <typename Ifmr>
std::optional<bool> TakeIfmr(const Ifmr& ifmr, ActivationConfig& activation) {
  activation.algorithm = ActivationConfig::Algorithm::kIfmr;
  activation.search_start = DecimalDouble(ifmr.search_range_start());
  activation.search_end = DecimalDouble(ifmr.search_range_end());
  activation.search_step = DecimalDouble(ifmr.search_step());
  activation.max_percentile = DecimalDouble(ifmr.max_percentile());
  activation.min_percentile = DecimalDouble(ifmr.min_percentile());
  return ifmr.has_asymmetric() ? std::optional(ifmr.asymmetric()) : std::nullopt;
}
template <typename Hfmg>
std::optional<bool> TakeHfmg(const Hfmg& hfmg, ActivationConfig& activation) {
  activation.algorithm = ActivationConfig::Algorithm::kHfmg;
  activation.bins = hfmg.num_of_bins();
  return hfmg.has_asymmetric() ? std::optional(hfmg.asymmetric()) : std::nullopt;
}

// Whether INT4 weights can be packed two by two along the input channels (arguments as in ConfigLayer).
bool SupportsInt4(int64_t groups, const std::vector<int64_t>& packed_sizes);

// CONFIG_EMPTY: no layer can be `done` ("quantized"). `why_not`: some of those that cannot, and why.
absl::Status NoLayerError(absl::string_view done, std::vector<std::string> why_not);

inline constexpr char kForceFp16[] = "FORCE_FP16_QUANT";  // of fakequant_precision_mode

// An error in a .cfg at `path`, whose last field is the key.
absl::Status CfgError(v1::Reason reason, absl::string_view text, const std::string& file, const std::vector<TextStep>& path,
                      const std::string& layer, absl::string_view message);

// Takes values out of JSON; every error says where.
class ConfigJsonReader {
 protected:
  explicit ConfigJsonReader(const std::string& file) : file_(file) {}

  absl::Status Error(v1::Reason reason, const std::string& key, const JsonValue& at, absl::string_view message) const;
  absl::Status Expect(const std::string& key, const JsonValue& value, JsonValue::Kind kind) const;
  absl::Status Unknown(const std::string& key, const JsonValue& value, absl::string_view where) const;
  // A whole number or one with a fraction.
  absl::Status ReadNumber(const std::string& key, const JsonValue& value, double& out) const;
  // A list of two numbers.
  absl::Status ReadPair(const std::string& key, const JsonValue& value, double& first, double& second) const;
  // A number of bits, checked later.
  absl::Status ReadBits(const std::string& key, const JsonValue& value, int& out) const;
  absl::Status ReadBatchNum(const JsonValue& value, int64_t& out) const;
  absl::Status ReadVersion(const JsonValue& value) const;
  absl::Status ReadPrecisionMode(const std::string& key, const JsonValue& value, bool& force_fp16_quant) const;
  // What IFMR and HFMG have in common with each other and with key-value caches; `other` takes the keys that it does not know.
  absl::Status ReadActivation(const std::string& section, const JsonValue& value, ActivationConfig& activation,
                              const std::function<absl::Status(const std::string& key, const JsonValue& value)>& other) const;

  const std::string& file_;
  std::string layer_;  // that errors name
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_CONFIG_COMMON_H_
