#include "engine/formats/kv_cache_config.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "amct/kv_cache_config.pb.h"
#include "engine/base/status.h"
#include "engine/formats/config_common.h"
#include "engine/formats/json_text.h"
#include "engine/formats/text_format.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

using AMCTPytorchQuantCaliProto::AMCTQuantCaliConfig;
using AMCTPytorchQuantCaliProto::CalibrationConfig;
using nlohmann::ordered_json;

constexpr char kSection[] = "kv_data_quant_config";
constexpr char kGranularity[] = "quant_granularity";

// Why the output of that layer cannot be quantized; empty: it can.
std::string WhyNot(const LayerCatalog& catalog, const std::string& name) {
  const ConfigLayer* layer = FindLayer(catalog, name);
  if (layer == nullptr) {
    return HasModule(catalog, name) ? "only Linear layers can have a quantized cache" : "the model has no layer of this name";
  }
  if (layer->type != "Linear") {
    return absl::StrCat("it is a ", layer->type, "; only Linear layers can have a quantized cache");
  }
  return layer->why_not.empty() ? "" : absl::StrCat("it cannot be quantized: ", layer->why_not);
}

// What is written of a layer: without `asymmetric` where nobody gave it.
struct WrittenLayer {
  std::string name;
  ActivationConfig activation;
  std::optional<bool> asymmetric;
  bool per_channel = false;
};

std::string Print(int64_t batch_num, bool activation_offset, const std::vector<WrittenLayer>& layers) {
  ordered_json json;
  json["batch_num"] = batch_num;
  json["activation_offset"] = activation_offset;
  for (const WrittenLayer& layer : layers) {
    ordered_json section;
    if (layer.activation.algorithm == ActivationConfig::Algorithm::kIfmr) {
      section["act_algo"] = "ifmr";
      section["max_percentile"] = layer.activation.max_percentile;
      section["min_percentile"] = layer.activation.min_percentile;
      section["search_range"] = {layer.activation.search_start, layer.activation.search_end};
      section["search_step"] = layer.activation.search_step;
    } else {
      section["act_algo"] = "hfmg";
      section["num_of_bins"] = layer.activation.bins;
    }
    if (layer.asymmetric.has_value()) {
      section["asymmetric"] = *layer.asymmetric;
    }
    section[kGranularity] = layer.per_channel ? 1 : 0;
    json[layer.name][kSection] = std::move(section);
  }
  return PrintPythonJson(json);
}

class CfgReader {
 public:
  CfgReader(const LayerCatalog& catalog, absl::string_view text, const std::string& file)
      : catalog_(catalog), text_(text), file_(file) {}

  absl::StatusOr<QuantConfigText> Create(const ReferenceDefects& defects) {
    MP_RETURN_IF_ERROR(ParseTextFormat(text_, v1::CONFIG_SYNTAX, file_, cfg_).status());
    for (int i = 0; i < cfg_.override_layers_configs_size() && !defects.accepts_missing_required; ++i) {
      const auto& item = cfg_.override_layers_configs(i);
      if (!item.has_layer_name() || !item.has_kv_data_quant_config()) {
        const char* missing = item.has_layer_name() ? kSection : "layer_name";
        return Error(v1::CONFIG_VALUE, {{"override_layers_configs", i}, {missing}}, item.layer_name(),
                     absl::StrCat(missing, " is missing"));
      }
    }
    if (cfg_.batch_num() == 0) {
      return Error(v1::CONFIG_VALUE, {{"batch_num"}}, "", "batch_num must be greater than 0");
    }
    const auto& common = cfg_.kv_cache_quant_config();
    if (const int i = FirstRepeated(common.quant_layers()); i >= 0) {
      return Error(v1::CONFIG_VALUE, {{"kv_cache_quant_config"}, {"quant_layers", i}}, common.quant_layers(i),
                   "it is given twice in quant_layers");
    }
    for (int i = 0; i < common.quant_layers_size(); ++i) {
      MP_RETURN_IF_ERROR(Add(common.quant_layers(i), common.calibration_config(),
                             {{"kv_cache_quant_config"}, {"quant_layers", i}},
                             {{"kv_cache_quant_config"}, {"calibration_config"}}));
    }
    std::set<std::string> overridden;
    for (int i = 0; i < cfg_.override_layers_configs_size(); ++i) {
      const auto& item = cfg_.override_layers_configs(i);
      const std::vector<TextStep> name_path = {{"override_layers_configs", i}, {"layer_name"}};
      if (!overridden.insert(item.layer_name()).second) {
        return Error(v1::CONFIG_VALUE, name_path, item.layer_name(), "it is given twice in override_layers_configs");
      }
      MP_RETURN_IF_ERROR(
          Add(item.layer_name(), item.kv_data_quant_config(), name_path, {{"override_layers_configs", i}, {kSection}}));
    }
    if (layers_.empty()) {
      return WithMetadata(MakeError(v1::CONFIG_EMPTY, "no layer is given; name some in quant_layers", {.file = file_}), "key",
                          "quant_layers");
    }
    return QuantConfigText{.json = Print(cfg_.batch_num(), cfg_.activation_offset(), layers_)};
  }

 private:
  absl::Status Error(v1::Reason reason, const std::vector<TextStep>& path, const std::string& layer,
                     absl::string_view message) const {
    return CfgError(reason, text_, file_, path, layer, message);
  }

  absl::Status Add(const std::string& name, const CalibrationConfig& config, const std::vector<TextStep>& name_path,
                   std::vector<TextStep> config_path) {
    if (const std::string why_not = WhyNot(catalog_, name); !why_not.empty()) {
      return Error(v1::CONFIG_UNKNOWN_LAYER, name_path, name, why_not);
    }
    WrittenLayer layer = {.name = name};
    const bool hfmg = config.has_hfmg_quantize();
    layer.asymmetric =
        hfmg ? TakeHfmg(config.hfmg_quantize(), layer.activation) : TakeIfmr(config.ifmr_quantize(), layer.activation);
    layer.per_channel = (hfmg ? config.hfmg_quantize().quant_granularity() : config.ifmr_quantize().quant_granularity()) ==
                        CalibrationConfig::per_channel;
    if (std::optional<ConfigProblem> problem = CheckActivation(layer.activation); problem.has_value()) {
      config_path.push_back({hfmg ? "hfmg_quantize" : "ifmr_quantize"});
      config_path.push_back({problem->key == "search_range" ? "search_range_start" : problem->key});
      return Error(v1::CONFIG_VALUE, config_path, name, problem->message);
    }
    auto it = std::find_if(layers_.begin(), layers_.end(), [&](const WrittenLayer& other) { return other.name == name; });
    (it == layers_.end() ? layers_.emplace_back() : *it) = std::move(layer);
    return absl::OkStatus();
  }

  const LayerCatalog& catalog_;
  const absl::string_view text_;
  const std::string& file_;
  AMCTQuantCaliConfig cfg_;
  std::vector<WrittenLayer> layers_;
};

class JsonReader : private ConfigJsonReader {
 public:
  JsonReader(const LayerCatalog& catalog, const std::string& file) : ConfigJsonReader(file), catalog_(catalog) {}

  absl::StatusOr<KvCacheConfig> Read(const JsonValue& root) {
    MP_RETURN_IF_ERROR(Expect("", root, JsonValue::Kind::kObject));
    KvCacheConfig config;
    if (const JsonValue* batch_num = root.Find("batch_num"); batch_num != nullptr) {
      MP_RETURN_IF_ERROR(ReadBatchNum(*batch_num, config.batch_num));
    }
    if (const JsonValue* offset = root.Find("activation_offset"); offset != nullptr) {
      MP_RETURN_IF_ERROR(Expect("activation_offset", *offset, JsonValue::Kind::kBool));
      config.activation_offset = offset->boolean;
    }
    for (const auto& [key, value] : root.members) {
      if (key == "batch_num" || key == "activation_offset") {
        continue;
      }
      layer_ = key;
      if (const std::string why_not = WhyNot(catalog_, key); !why_not.empty()) {
        return Error(v1::CONFIG_UNKNOWN_LAYER, key, value, why_not);
      }
      MP_RETURN_IF_ERROR(Expect(key, value, JsonValue::Kind::kObject));
      KvCacheLayer& layer = config.layers.emplace_back(KvCacheLayer{.name = key});
      layer.activation.asymmetric = config.activation_offset;
      for (const auto& [name, section] : value.members) {
        if (name != kSection) {
          return Unknown(name, section, "a layer");
        }
        MP_RETURN_IF_ERROR(
            ReadActivation(name, section, layer.activation, [&](const std::string& other, const JsonValue& granularity) {
              if (other != kGranularity) {
                return Unknown(other, granularity, kSection);
              }
              MP_RETURN_IF_ERROR(Expect(other, granularity, JsonValue::Kind::kInteger));
              layer.per_channel = granularity.integer == 1;
              return granularity.integer == 0 || granularity.integer == 1
                         ? absl::OkStatus()
                         : Error(v1::CONFIG_VALUE, other, granularity,
                                 "quant_granularity must be 0 (per tensor) or 1 (per channel)");
            }));
        if (std::optional<ConfigProblem> problem = CheckActivation(layer.activation); problem.has_value()) {
          const JsonValue* at = section.Find(problem->key);
          return Error(v1::CONFIG_VALUE, problem->key, at == nullptr ? section : *at, problem->message);
        }
      }
    }
    layer_.clear();
    if (config.layers.empty()) {
      return Error(v1::CONFIG_EMPTY, kSection, root, "no layer is configured");
    }
    return config;
  }

 private:
  const LayerCatalog& catalog_;
};

}  // namespace

absl::StatusOr<QuantConfigText> CreateKvCacheConfigText(const LayerCatalog& catalog, const std::vector<std::string>& layers) {
  auto error = [](v1::Reason reason, const std::string& layer, absl::string_view message) {
    return WithMetadata(MakeError(reason, message, {.field = "kv_cache_layers", .layer = layer}), "key", "kv_cache_layers");
  };
  if (layers.empty()) {
    return error(v1::CONFIG_EMPTY, "", "no layer is given");
  }
  if (const int i = FirstRepeated(layers); i >= 0) {
    return error(v1::CONFIG_VALUE, layers[i], "it is given twice");
  }
  std::vector<WrittenLayer> written;
  for (const std::string& name : layers) {
    if (const std::string why_not = WhyNot(catalog, name); !why_not.empty()) {
      return error(v1::CONFIG_UNKNOWN_LAYER, name, why_not);
    }
    written.push_back({.name = name});
  }
  return QuantConfigText{.json = Print(1, true, written)};
}

absl::StatusOr<QuantConfigText> CreateKvCacheConfigText(const LayerCatalog& catalog, absl::string_view cfg,
                                                        const std::string& file, const ReferenceDefects& defects) {
  return CfgReader(catalog, cfg, file).Create(defects);
}

absl::StatusOr<KvCacheConfig> ReadKvCacheConfig(const LayerCatalog& catalog, absl::string_view json, const std::string& file) {
  MP_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(json, file));
  return JsonReader(catalog, file).Read(root);
}

absl::StatusOr<bool> IsKvCacheConfig(absl::string_view json, const std::string& file) {
  MP_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(json, file));
  return std::any_of(root.members.begin(), root.members.end(),
                     [](const auto& member) { return member.value.Find(kSection) != nullptr; });
}

}  // namespace modelpress::engine
