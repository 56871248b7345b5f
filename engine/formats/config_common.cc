#include "engine/formats/config_common.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace modelpress::engine {

using Kind = JsonValue::Kind;

bool SupportsInt4(int64_t groups, const std::vector<int64_t>& packed_sizes) {
  return groups == 1 && std::all_of(packed_sizes.begin(), packed_sizes.end(), [](int64_t size) { return size % 2 == 0; });
}

absl::Status NoLayerError(absl::string_view done, std::vector<std::string> why_not) {
  why_not.resize(std::min<size_t>(why_not.size(), 3));
  return MakeError(v1::CONFIG_EMPTY, absl::StrCat("the model has no layer that can be ", done, why_not.empty() ? "" : " (",
                                                  absl::StrJoin(why_not, "; "), why_not.empty() ? "" : ")"));
}

absl::Status CfgError(v1::Reason reason, absl::string_view text, const std::string& file, const std::vector<TextStep>& path,
                      const std::string& layer, absl::string_view message) {
  const TextPosition position = LocateField(text, path);
  return WithMetadata(
      MakeError(reason, message, {.file = file, .line = position.line, .column = position.column, .layer = layer}), "key",
      path.back().field);
}

absl::Status ConfigJsonReader::Error(v1::Reason reason, const std::string& key, const JsonValue& at,
                                     absl::string_view message) const {
  const absl::Status status =
      MakeError(reason, message, {.file = file_, .line = at.position.line, .column = at.position.column, .layer = layer_});
  return key.empty() ? status : WithMetadata(status, "key", key);
}

absl::Status ConfigJsonReader::Expect(const std::string& key, const JsonValue& value, Kind kind) const {
  return value.is(kind) ? absl::OkStatus()
                        : Error(v1::CONFIG_TYPE, key, value,
                                absl::StrCat(key.empty() ? "the file" : key, " must be ", NameOfKind(kind), ", not ",
                                             NameOfKind(value.kind)));
}

absl::Status ConfigJsonReader::Unknown(const std::string& key, const JsonValue& value, absl::string_view where) const {
  return Error(v1::CONFIG_VALUE, key, value, absl::StrCat("'", key, "' is no parameter of ", where));
}

absl::Status ConfigJsonReader::ReadNumber(const std::string& key, const JsonValue& value, double& out) const {
  if (!value.is_number()) {
    return Error(v1::CONFIG_TYPE, key, value, absl::StrCat(key, " must be a number, not ", NameOfKind(value.kind)));
  }
  out = value.number;
  return absl::OkStatus();
}

absl::Status ConfigJsonReader::ReadPair(const std::string& key, const JsonValue& value, double& first, double& second) const {
  MP_RETURN_IF_ERROR(Expect(key, value, Kind::kArray));
  if (value.items.size() != 2) {
    return Error(v1::CONFIG_VALUE, key, value, absl::StrCat(key, " must have two numbers, start and end"));
  }
  MP_RETURN_IF_ERROR(ReadNumber(key, value.items[0], first));
  return ReadNumber(key, value.items[1], second);
}

absl::Status ConfigJsonReader::ReadBits(const std::string& key, const JsonValue& value, int& out) const {
  MP_RETURN_IF_ERROR(Expect(key, value, Kind::kInteger));
  out = static_cast<int>(std::clamp<int64_t>(value.integer, 0, 1000));
  return absl::OkStatus();
}

absl::Status ConfigJsonReader::ReadBatchNum(const JsonValue& value, int64_t& out) const {
  MP_RETURN_IF_ERROR(Expect("batch_num", value, Kind::kInteger));
  out = value.integer;
  return out > 0 ? absl::OkStatus() : Error(v1::CONFIG_VALUE, "batch_num", value, "batch_num must be greater than 0");
}

absl::Status ConfigJsonReader::ReadVersion(const JsonValue& value) const {
  MP_RETURN_IF_ERROR(Expect("version", value, Kind::kInteger));
  return value.integer == 1 ? absl::OkStatus() : Error(v1::CONFIG_VALUE, "version", value, "version must be 1");
}

absl::Status ConfigJsonReader::ReadPrecisionMode(const std::string& key, const JsonValue& value, bool& force_fp16_quant) const {
  MP_RETURN_IF_ERROR(Expect(key, value, Kind::kString));
  force_fp16_quant = value.string == kForceFp16;
  return force_fp16_quant || value.string == "DEFAULT"
             ? absl::OkStatus()
             : Error(v1::CONFIG_VALUE, key, value, absl::StrCat(key, " must be DEFAULT or ", kForceFp16));
}

absl::Status ConfigJsonReader::ReadActivation(
    const std::string& section, const JsonValue& value, ActivationConfig& activation,
    const std::function<absl::Status(const std::string& key, const JsonValue& value)>& other) const {
  MP_RETURN_IF_ERROR(Expect(section, value, Kind::kObject));
  std::string ifmr_key;
  std::string hfmg_key;
  for (const auto& [key, member] : value.members) {
    bool ifmr = false;
    bool hfmg = false;
    if (key == "asymmetric") {
      MP_RETURN_IF_ERROR(Expect(key, member, Kind::kBool));
      activation.asymmetric = member.boolean;
    } else if (key == "act_algo") {
      MP_RETURN_IF_ERROR(Expect(key, member, Kind::kString));
      ifmr = member.string == "ifmr";
      hfmg = member.string == "hfmg";
      if (!ifmr && !hfmg) {
        return Error(v1::CONFIG_VALUE, key, member, "act_algo must be ifmr or hfmg");
      }
    } else if (key == "max_percentile" || key == "min_percentile" || key == "search_step") {
      ifmr = true;
      MP_RETURN_IF_ERROR(ReadNumber(key, member,
                                    key == "max_percentile"   ? activation.max_percentile
                                    : key == "min_percentile" ? activation.min_percentile
                                                              : activation.search_step));
    } else if (key == "search_range") {
      ifmr = true;
      MP_RETURN_IF_ERROR(ReadPair(key, member, activation.search_start, activation.search_end));
    } else if (key == "num_of_bins") {
      hfmg = true;
      MP_RETURN_IF_ERROR(Expect(key, member, Kind::kInteger));
      activation.bins = member.integer;
    } else {
      MP_RETURN_IF_ERROR(other(key, member));
    }
    if (ifmr || hfmg) {
      (ifmr ? ifmr_key : hfmg_key) = key;
    }
    if (!ifmr_key.empty() && !hfmg_key.empty()) {
      return Error(v1::CONFIG_VALUE, key, member,
                   absl::StrCat("'", ifmr_key, "' belongs to IFMR and '", hfmg_key, "' to HFMG; remove one of them"));
    }
  }
  activation.algorithm = hfmg_key.empty() ? ActivationConfig::Algorithm::kIfmr : ActivationConfig::Algorithm::kHfmg;
  return absl::OkStatus();
}

}  // namespace modelpress::engine
