#include "engine/formats/retrain_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "amct/retrain_config.pb.h"
#include "engine/base/status.h"
#include "engine/formats/config_common.h"
#include "engine/formats/json_text.h"
#include "engine/formats/text_format.h"
#include "modelpress/v1/rewrite_plan.pb.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::AMCTRetrainConfig;
using AMCTPytorchProto::PruneConfig;
using AMCTPytorchProto::RetrainDataQuantConfig;
using AMCTPytorchProto::RetrainWeightQuantConfig;
using Kind = JsonValue::Kind;
using nlohmann::ordered_json;

constexpr std::array<RetrainType, 8> kTypes = {{
    // type              channel filter selective
    {"Conv1d", true, false, false},
    {"Conv2d", true, true, true},
    {"Conv3d", true, false, false},
    {"Linear", false, true, true},
    {"ConvTranspose1d", true, false, false},
    {"ConvTranspose2d", true, false, true},
    {"LSTM", true, false, false},
    {"GRU", true, false, false},
}};

constexpr char kDataSection[] = "retrain_data_config";
constexpr char kWeightSection[] = "retrain_weight_config";
constexpr char kEnableKey[] = "retrain_enable";
constexpr char kPruneEnableKey[] = "regular_prune_enable";
constexpr char kPruneSection[] = "regular_prune_config";
constexpr char kModeKey[] = "fakequant_precision_mode";

constexpr std::array<absl::string_view, 3> kGlobalKeys = {"version", "batch_num", kModeKey};

bool IsGlobalKey(absl::string_view key) { return std::find(kGlobalKeys.begin(), kGlobalKeys.end(), key) != kGlobalKeys.end(); }

// Null: the catalog has no such layer.
const RetrainCatalogLayer* FindLayer(const RetrainCatalog& catalog, absl::string_view name) {
  auto it = std::find_if(catalog.layers.begin(), catalog.layers.end(),
                         [name](const RetrainCatalogLayer& layer) { return layer.name == name; });
  return it == catalog.layers.end() ? nullptr : &*it;
}

// What can be done with a layer.
enum class Use { kNone, kQuant, kFilter, kSelective };

const std::string& WhyNot(const RetrainCatalogLayer& layer, Use use) {
  return use == Use::kQuant ? layer.why_not_quant : use == Use::kFilter ? layer.why_not_filter : layer.why_not_selective;
}

bool Allows(const RetrainType& type, Use use) {
  return use == Use::kQuant || (use == Use::kFilter ? type.filter : use == Use::kSelective && type.selective);
}

// "can be ..."
absl::string_view NameOf(Use use) {
  return use == Use::kQuant    ? "quantized in training"
         : use == Use::kFilter ? "pruned by channels (filter_pruner)"
                               : "made 2:4 sparse (n_out_of_m_pruner)";
}

// The layers that can be used so; none is an error.
absl::StatusOr<std::vector<const RetrainCatalogLayer*>> LayersFor(const RetrainCatalog& catalog, Use use) {
  std::vector<const RetrainCatalogLayer*> layers;
  std::vector<std::string> why_not;
  for (const RetrainCatalogLayer& layer : catalog.layers) {
    if (!WhyNot(layer, use).empty()) {
      why_not.push_back(absl::StrCat(layer.name, ": ", WhyNot(layer, use)));
      continue;
    }
    layers.push_back(&layer);
    if (IsGlobalKey(layer.name)) {
      return MakeError(v1::CONFIG_VALUE, "a layer cannot have the name of a configuration parameter; rename the module",
                       {.layer = layer.name});
    }
  }
  if (layers.empty()) {
    return NoLayerError(NameOf(use), std::move(why_not));
  }
  return layers;
}

// Why the model has nothing to be used so under that name.
std::string WhyNotThere(const RetrainCatalog& catalog, const std::string& name, Use use) {
  if (const RetrainCatalogLayer* layer = FindLayer(catalog, name); layer != nullptr) {
    return absl::StrCat("this layer cannot be ", NameOf(use), ": ", WhyNot(*layer, use));
  }
  return catalog.other_modules.contains(name) ? absl::StrCat("this layer is of a type that cannot be ", NameOf(use))
                                              : "the model has no layer of this name";
}

// ---- values of both forms ----------------------------------------------------------------------------------------------------

std::string DstType(int bits) { return absl::StrCat("INT", bits); }

// A parameter that is out of its range or not possible for the layer.
struct Problem {
  const char* key;  // as in the JSON configuration
  bool of_weight;   // in retrain_weight_config
  std::string message;
};

std::optional<Problem> CheckPair(const LayerRetrainConfig& config) {
  const std::pair<int, int> pair = {config.activation.bits, config.weight.bits};
  for (const auto& allowed : {std::pair(8, 8), {4, 4}, {16, 8}, {8, 4}}) {
    if (pair == allowed) {
      return std::nullopt;
    }
  }
  return Problem{"dst_type", pair.second == 16,
                 absl::StrCat(DstType(pair.first), " activations cannot go with ", DstType(pair.second),
                              " weights; possible are INT8 with INT8, INT4 with INT4, INT16 with INT8 and INT8 with INT4")};
}

std::optional<Problem> CheckRanges(const RetrainCatalogLayer& layer, const LayerRetrainConfig& config) {
  if (config.activation.clip.has_value()) {
    const auto [max, min] = *config.activation.clip;
    if (!(max > 0 && std::isfinite(max))) {
      return Problem{"clip_max", false, absl::StrCat("clip_max is ", PythonRepr(max), "; it must be greater than 0")};
    }
    if (!(min < 0 && std::isfinite(min))) {
      return Problem{"clip_min", false, absl::StrCat("clip_min is ", PythonRepr(min), "; it must be less than 0")};
    }
  }
  if (config.weight.channel_wise && !FindRetrainType(layer.type)->channel_wise) {
    return Problem{"channel_wise", true, absl::StrCat(layer.type, " has no channel-wise weights; set channel_wise to false")};
  }
  return std::nullopt;
}

LayerRetrainConfig DefaultConfig(const RetrainCatalogLayer& layer) {
  LayerRetrainConfig config = {.name = layer.name};
  config.weight.channel_wise = FindRetrainType(layer.type)->channel_wise;
  return config;
}

// ---- writing ----------------------------------------------------------------------------------------------------------------

// A layer of the configuration, with what only its JSON tells.
struct WrittenLayer {
  LayerRetrainConfig config;
  bool can_quantize = false;       // it has the keys of quantization
  LayerPruneConfig prune_setting;  // it has the keys of pruning unless monostate; config.prune if it is enabled
};

ordered_json PruneJson(const LayerPruneConfig& prune) {
  ordered_json json;
  if (const auto* filter = std::get_if<FilterPruneConfig>(&prune)) {
    json["prune_type"] = "filter_prune";
    json["algo"] = "balanced_l2_norm_filter_prune";
    json["prune_ratio"] = filter->ratio;
    json["ascend_optimized"] = filter->ascend_optimized;
  } else {
    json["prune_type"] = "selective_prune";
    json["algo"] = "l1_selective_prune";
    json["n_out_of_m_type"] = "M4N2";
    json["update_freq"] = std::get<SelectivePruneConfig>(prune).update_freq;
  }
  return json;
}

ordered_json LayerJson(const WrittenLayer& layer) {
  ordered_json json;
  if (layer.can_quantize) {
    const auto& [name, enabled, activation, weight, prune] = layer.config;
    json[kEnableKey] = enabled;
    ordered_json& data = json[kDataSection];
    data["algo"] = "ulq_quantize";
    if (activation.clip.has_value()) {
      data["clip_max"] = activation.clip->first;
      data["clip_min"] = activation.clip->second;
    }
    if (activation.fixed_min.has_value()) {
      data["fixed_min"] = *activation.fixed_min;
    }
    data["dst_type"] = DstType(activation.bits);
    ordered_json& weights = json[kWeightSection];
    const bool arq = weight.algorithm == WeightRetrainConfig::Algorithm::kArq;
    weights["algo"] = arq ? "arq_retrain" : "ulq_retrain";
    if (arq) {
      weights["channel_wise"] = weight.channel_wise;
    }
    weights["dst_type"] = DstType(weight.bits);
    if (!arq) {
      weights["channel_wise"] = weight.channel_wise;
    }
  }
  if (!std::holds_alternative<std::monostate>(layer.prune_setting)) {
    json[kPruneEnableKey] = !std::holds_alternative<std::monostate>(layer.config.prune);
    json[kPruneSection] = PruneJson(layer.prune_setting);
  }
  return json;
}

// Fills in `layers`, in the catalog's order, and `json`, in the order of `layers`.
void Finish(const RetrainCatalog& catalog, const std::vector<WrittenLayer>& layers, RetrainConfig& config) {
  ordered_json json;
  json["version"] = 1;
  if (config.quantizes) {
    if (config.force_fp16_quant) {
      json[kModeKey] = kForceFp16;
    }
    json["batch_num"] = config.batch_num;
  }
  std::map<std::string, const WrittenLayer*> by_name;
  for (const WrittenLayer& layer : layers) {
    json[layer.config.name] = LayerJson(layer);
    by_name[layer.config.name] = &layer;
  }
  config.json = PrintPythonJson(json);
  for (const RetrainCatalogLayer& layer : catalog.layers) {
    if (auto it = by_name.find(layer.name); it != by_name.end()) {
      config.layers.push_back(it->second->config);
    }
  }
}

// ---- from a .cfg (formats.md sections 6 to 8, qat.md section 4.2, prune.md section 2) ---------------------------------------

// What a message says about a layer: the outermost one for all of them, an override for one or for a type.
struct Settings {
  const RetrainDataQuantConfig* data = nullptr;      // null: not there
  const RetrainWeightQuantConfig* weight = nullptr;  // the same
  const PruneConfig* prune = nullptr;                // the same
  std::vector<TextStep> path;                        // where the message lies

  bool quantizes() const { return data != nullptr || weight != nullptr; }
  // How layers are pruned; kNone: it does not say.
  Use strategy() const {
    return prune == nullptr                 ? Use::kNone
           : prune->has_filter_pruner()     ? Use::kFilter
           : prune->has_n_out_of_m_pruner() ? Use::kSelective
                                            : Use::kNone;
  }
  std::vector<TextStep> Inside(std::initializer_list<const char*> fields) const {
    std::vector<TextStep> inside = path;
    for (const char* field : fields) {
      inside.push_back({field});
    }
    return inside;
  }
};

template <typename Message>
Settings SettingsOf(const Message& message, std::vector<TextStep> path) {
  Settings settings = {.path = std::move(path)};
  if (message.has_retrain_data_quant_config()) {
    settings.data = &message.retrain_data_quant_config();
  }
  if (message.has_retrain_weight_quant_config()) {
    settings.weight = &message.retrain_weight_quant_config();
  }
  if (message.has_prune_config()) {
    settings.prune = &message.prune_config();
  }
  return settings;
}

struct Override {
  Settings settings;
  std::string name;  // of a layer or a type
  bool is_layer = false;

  // For errors.
  std::string layer() const { return is_layer ? name : ""; }
};

int BitsOf(AMCTPytorchProto::DataType type) {
  return type == AMCTPytorchProto::INT4 ? 4 : type == AMCTPytorchProto::INT16 ? 16 : 8;
}

class DefinitionReader {
 public:
  DefinitionReader(const RetrainCatalog& catalog, const AMCTRetrainConfig& cfg, absl::string_view text, const std::string& file,
                   RetrainAbilities abilities, const ReferenceDefects& defects)
      : catalog_(catalog), cfg_(cfg), text_(text), file_(file), abilities_(abilities), defects_(defects) {}

  absl::StatusOr<RetrainConfig> Read() {
    MP_RETURN_IF_ERROR(CollectOverrides());
    MP_RETURN_IF_ERROR(DecideAbilities());
    if (cfg_.batch_num() == 0) {
      return Error(v1::CONFIG_VALUE, {{"batch_num"}}, "", "batch_num must be greater than 0");
    }
    for (const auto& [field, names] : {std::pair("skip_layers", &cfg_.skip_layers()),
                                       {"skip_layer_types", &cfg_.skip_layer_types()},
                                       {"quant_skip_layers", &cfg_.quant_skip_layers()},
                                       {"quant_skip_types", &cfg_.quant_skip_types()},
                                       {"regular_prune_skip_layers", &cfg_.regular_prune_skip_layers()},
                                       {"regular_prune_skip_types", &cfg_.regular_prune_skip_types()}}) {
      if (const int i = FirstRepeated(*names); i >= 0) {
        config_.warnings.push_back(absl::StrCat("'", names->Get(i), "' is given twice in ", field));
      }
    }
    for (const Override& item : overrides_) {
      if (!item.settings.quantizes() && item.settings.prune == nullptr) {
        config_.warnings.push_back(absl::StrCat("the override of '", item.name, "' sets nothing"));
      }
    }
    if (config_.quantizes) {
      MP_RETURN_IF_ERROR(Quantize());
    }
    if (config_.prunes) {
      MP_RETURN_IF_ERROR(Prune());
    }
    config_.batch_num = cfg_.batch_num();
    config_.force_fp16_quant = config_.quantizes && cfg_.has_fakequant_precision_mode();
    for (const auto& [what, names] : lowered_) {
      config_.warnings.push_back(absl::StrCat(what, ": ", absl::StrJoin(names, ", ")));
    }
    config_.deviations.assign(deviations_.begin(), deviations_.end());
    Finish(catalog_, layers_, config_);
    return std::move(config_);
  }

 private:
  absl::Status Error(v1::Reason reason, const std::vector<TextStep>& path, const std::string& layer,
                     absl::string_view message) const {
    return CfgError(reason, text_, file_, path, layer, message);
  }

  // The parser lets required fields be absent.
  absl::Status CollectOverrides() {
    overrides_.reserve(cfg_.override_layer_configs_size() + cfg_.override_layer_types_size());
    auto collect = [this](const auto& item, const char* field, int i, bool has_name, const std::string& name, bool is_layer) {
      const char* key = is_layer ? "layer_name" : "layer_type";
      if (!has_name && !defects_.accepts_missing_required) {
        return Error(v1::CONFIG_VALUE, {{field, i}, {key}}, "", absl::StrCat(key, " is missing"));
      }
      const Override& added = overrides_.emplace_back(Override{SettingsOf(item, {{field, i}}), name, is_layer});
      if (!(is_layer ? by_layer_ : by_type_).emplace(name, &added.settings).second) {
        return Error(v1::CONFIG_VALUE, {{field, i}, {key}}, added.layer(),
                     absl::StrCat(is_layer ? "it" : absl::StrCat("type '", name, "'"), " is given twice in ", field));
      }
      return absl::OkStatus();
    };
    for (int i = 0; i < cfg_.override_layer_configs_size(); ++i) {
      const auto& item = cfg_.override_layer_configs(i);
      MP_RETURN_IF_ERROR(collect(item, "override_layer_configs", i, item.has_layer_name(), item.layer_name(), true));
    }
    for (int i = 0; i < cfg_.override_layer_types_size(); ++i) {
      const auto& item = cfg_.override_layer_types(i);
      MP_RETURN_IF_ERROR(collect(item, "override_layer_types", i, item.has_layer_type(), item.layer_type(), false));
    }
    return absl::OkStatus();
  }

  // Which abilities the configuration asks for, and that it has nothing to say about others.
  absl::Status DecideAbilities() {
    bool quantizes = all_.quantizes();
    bool prunes = all_.prune != nullptr;
    for (const Override& item : overrides_) {
      quantizes |= item.settings.quantizes();
      prunes |= item.settings.prune != nullptr;
    }
    constexpr char kOnlyQuant[] = "this function does not prune; remove it, or use create_compressed_retrain_model";
    if (abilities_ == RetrainAbilities::kQuant) {
      if (all_.prune != nullptr) {
        return Error(v1::CONFIG_VALUE, {{"prune_config"}}, "", kOnlyQuant);
      }
      for (const Override& item : overrides_) {
        if (item.settings.prune != nullptr && (item.is_layer || !defects_.ignores_prune_type_override)) {
          return Error(v1::CONFIG_VALUE, item.settings.Inside({"prune_config"}), item.layer(), kOnlyQuant);
        }
      }
      config_.quantizes = true;
      return RefuseSkips("regular_prune_skip_layers", "regular_prune_skip_types", cfg_.regular_prune_skip_layers_size(),
                         cfg_.regular_prune_skip_types_size(), kOnlyQuant);
    }
    if (!quantizes && !prunes) {
      const bool prune_only = abilities_ == RetrainAbilities::kPrune;
      return Error(v1::CONFIG_EMPTY, {{"prune_config"}}, "",
                   prune_only ? "it asks for no pruning; add a prune_config"
                              : "it asks for neither quantization nor pruning; add a retrain_data_quant_config, a "
                                "retrain_weight_quant_config or a prune_config");
    }
    if (!quantizes) {
      MP_RETURN_IF_ERROR(RefuseSkips("quant_skip_layers", "quant_skip_types", cfg_.quant_skip_layers_size(),
                                     cfg_.quant_skip_types_size(), "nothing is quantized by this configuration; remove it"));
    }
    if (!prunes) {
      MP_RETURN_IF_ERROR(RefuseSkips("regular_prune_skip_layers", "regular_prune_skip_types",
                                     cfg_.regular_prune_skip_layers_size(), cfg_.regular_prune_skip_types_size(),
                                     "nothing is pruned by this configuration; remove it"));
    }
    config_.quantizes = quantizes && abilities_ == RetrainAbilities::kQuantAndPrune;
    config_.prunes = prunes;
    if (quantizes && !config_.quantizes) {
      config_.warnings.push_back(absl::StrCat("this function does not quantize: settings of quantization have no effect",
                                              prunes ? "" : ", and without a prune_config nothing is pruned"));
    }
    return absl::OkStatus();
  }

  absl::Status RefuseSkips(const char* layers, const char* types, int number_of_layers, int number_of_types,
                           absl::string_view message) const {
    if (number_of_layers > 0) {
      return Error(v1::CONFIG_VALUE, {{layers, 0}}, "", message);
    }
    return number_of_types > 0 ? Error(v1::CONFIG_VALUE, {{types, 0}}, "", message) : absl::OkStatus();
  }

  // Every name must be one of a layer or type that can be used so; adds them to `skipped`.
  template <typename Names>
  absl::Status SkipLayers(const char* field, const Names& names, Use use, std::set<std::string>& skipped) const {
    for (int i = 0; i < names.size(); ++i) {
      MP_RETURN_IF_ERROR(CheckSkipsAnything(field, i, use));
      MP_RETURN_IF_ERROR(CheckLayer({{field, i}}, names[i], use));
      skipped.insert(names[i]);
    }
    return absl::OkStatus();
  }
  template <typename Names>
  absl::Status SkipTypes(const char* field, const Names& names, Use use, std::set<std::string>& skipped) const {
    for (int i = 0; i < names.size(); ++i) {
      MP_RETURN_IF_ERROR(CheckSkipsAnything(field, i, use));
      MP_RETURN_IF_ERROR(CheckType({{field, i}}, names[i], use));
      skipped.insert(names[i]);
    }
    return absl::OkStatus();
  }

  // Without a strategy for all layers, only the overridden ones are pruned.
  absl::Status CheckSkipsAnything(const char* field, int i, Use use) const {
    return use != Use::kNone
               ? absl::OkStatus()
               : Error(v1::CONFIG_VALUE, {{field, i}}, "",
                       absl::StrCat(field,
                                    " needs a prune_config for all layers: only those with an override of "
                                    "their own are pruned here",
                                    config_.quantizes ? "; to keep others from being quantized use quant_skip_layers "
                                                        "or quant_skip_types"
                                                      : ""));
  }

  absl::Status CheckLayer(const std::vector<TextStep>& path, const std::string& name, Use use) const {
    const RetrainCatalogLayer* layer = FindLayer(catalog_, name);
    return layer != nullptr && WhyNot(*layer, use).empty()
               ? absl::OkStatus()
               : Error(v1::CONFIG_UNKNOWN_LAYER, path, name, WhyNotThere(catalog_, name, use));
  }

  absl::Status CheckType(const std::vector<TextStep>& path, const std::string& name, Use use) const {
    const RetrainType* type = FindRetrainType(name);
    if (type != nullptr && Allows(*type, use)) {
      return absl::OkStatus();
    }
    std::vector<absl::string_view> possible;
    for (const RetrainType& candidate : kTypes) {
      if (Allows(candidate, use)) {
        possible.push_back(candidate.name);
      }
    }
    return Error(
        v1::CONFIG_UNKNOWN_LAYER, path, "",
        absl::StrCat("'", name, "' is no type that can be ", NameOf(use), "; those are ", absl::StrJoin(possible, ", ")));
  }

  absl::Status CheckOverrideName(const Override& item, Use use) const {
    return item.is_layer ? CheckLayer(item.settings.Inside({"layer_name"}), item.name, use)
                         : CheckType(item.settings.Inside({"layer_type"}), item.name, use);
  }

  // The override that counts for the layer, or null.
  template <typename Counts>
  const Settings* OverrideOf(const RetrainCatalogLayer& layer, Counts counts) const {
    if (auto it = by_layer_.find(layer.name); it != by_layer_.end() && counts(*it->second)) {
      return it->second;
    }
    auto it = by_type_.find(layer.type);
    return it != by_type_.end() && counts(*it->second) ? it->second : nullptr;
  }

  // The first of these fields that the configuration has: what leaves no layer.
  absl::Status NothingLeft(std::initializer_list<std::pair<const char*, int>> fields, absl::string_view message) const {
    for (const auto& [field, size] : fields) {
      if (size > 0) {
        return Error(v1::CONFIG_EMPTY, {{field, 0}}, "", message);
      }
    }
    return Error(v1::CONFIG_EMPTY, {{"prune_config"}}, "", message);
  }

  // ---- quantization (qat.md section 4.2)

  absl::Status Quantize() {
    std::set<std::string> names;
    std::set<std::string> types;
    MP_RETURN_IF_ERROR(SkipLayers("skip_layers", cfg_.skip_layers(), Use::kQuant, names));
    MP_RETURN_IF_ERROR(SkipLayers("quant_skip_layers", cfg_.quant_skip_layers(), Use::kQuant, names));
    MP_RETURN_IF_ERROR(SkipTypes("skip_layer_types", cfg_.skip_layer_types(), Use::kQuant, types));
    MP_RETURN_IF_ERROR(SkipTypes("quant_skip_types", cfg_.quant_skip_types(), Use::kQuant, types));
    for (const Override& item : overrides_) {
      if (item.settings.quantizes()) {
        MP_RETURN_IF_ERROR(CheckOverrideName(item, Use::kQuant));
      }
    }
    MP_ASSIGN_OR_RETURN(const std::vector<const RetrainCatalogLayer*> layers, LayersFor(catalog_, Use::kQuant));
    // Functions that may do without quantization quantize the rest only if asked to.
    const bool all = abilities_ == RetrainAbilities::kQuant || all_.quantizes();
    bool some_left = false;
    layers_.reserve(catalog_.layers.size());
    for (const RetrainCatalogLayer* layer : layers) {
      const bool enabled = all && !names.contains(layer->name) && !types.contains(layer->type);
      MP_RETURN_IF_ERROR(AddQuantizedLayer(*layer, enabled));
      some_left |= layers_.back().config.quantizes;
    }
    return some_left ? absl::OkStatus()
                     : NothingLeft({{"skip_layers", cfg_.skip_layers_size()},
                                    {"skip_layer_types", cfg_.skip_layer_types_size()},
                                    {"quant_skip_layers", cfg_.quant_skip_layers_size()},
                                    {"quant_skip_types", cfg_.quant_skip_types_size()},
                                    {"override_layer_configs", cfg_.override_layer_configs_size()},
                                    {"override_layer_types", cfg_.override_layer_types_size()}},
                                   "no layer is left to be quantized; leave at least one");
  }

  // `enabled`: as far as the settings for all layers go.
  absl::Status AddQuantizedLayer(const RetrainCatalogLayer& layer, bool enabled) {
    const Settings* source = OverrideOf(layer, [](const Settings& settings) { return settings.quantizes(); });
    const Settings* any = OverrideOf(layer, [](const Settings&) { return true; });
    if (any != nullptr && any != source) {
      if (defects_.prune_override_enables_quantization) {
        source = any;
      } else if ((source == nullptr && !enabled) || (source == nullptr ? all_ : *source).quantizes()) {
        deviations_.insert("an override without settings of quantization leaves that of the layer as it is (qat.md D-12)");
      }
    }
    WrittenLayer written = {.config = DefaultConfig(layer), .can_quantize = true};
    LayerRetrainConfig& config = written.config;
    config.quantizes = enabled || source != nullptr;
    const Settings& settings = source == nullptr ? all_ : *source;
    MP_RETURN_IF_ERROR(TakeQuantization(settings, config));
    std::optional<Problem> problem = CheckPair(config);
    if (defects_.refuses_int4_activations && config.activation.bits == 4) {
      problem = Problem{"dst_type", false, "activations of quantization-aware training cannot be INT4"};
    }
    if (!problem.has_value()) {
      problem = CheckRanges(layer, config);
    }
    if (problem.has_value()) {
      return Error(v1::CONFIG_VALUE, PathOf(settings, *problem), layer.name, problem->message);
    }
    Lower(layer, config);
    layers_.push_back(std::move(written));
    return absl::OkStatus();
  }

  absl::Status TakeQuantization(const Settings& settings, LayerRetrainConfig& config) const {
    if (settings.data != nullptr && settings.data->has_ulq_quantize()) {
      const auto& ulq = settings.data->ulq_quantize();
      config.activation.bits = BitsOf(ulq.dst_type());
      if (ulq.has_fixed_min()) {
        config.activation.fixed_min = ulq.fixed_min();
      }
      if (ulq.has_clip_max_min()) {
        const auto& clip = ulq.clip_max_min();
        if (!clip.has_clip_max() || !clip.has_clip_min()) {
          return Error(v1::CONFIG_VALUE,
                       settings.Inside({"retrain_data_quant_config", "ulq_quantize", "clip_max_min",
                                        clip.has_clip_max() ? "clip_min" : "clip_max"}),
                       config.name, "clip_max and clip_min must both be given");
        }
        config.activation.clip = {clip.clip_max(), clip.clip_min()};
      }
    }
    if (settings.weight != nullptr) {
      const bool ulq = settings.weight->has_ulq_retrain();
      config.weight.algorithm = ulq ? WeightRetrainConfig::Algorithm::kUlq : WeightRetrainConfig::Algorithm::kArq;
      auto take = [&](const auto& weight) {
        config.weight.bits = BitsOf(weight.dst_type());
        if (weight.has_channel_wise()) {
          config.weight.channel_wise = weight.channel_wise();
        }
      };
      ulq ? take(settings.weight->ulq_retrain()) : take(settings.weight->arq_retrain());
    }
    return absl::OkStatus();
  }

  // The field of the .cfg that a parameter of the JSON comes from.
  static std::vector<TextStep> PathOf(const Settings& settings, const Problem& problem) {
    if (problem.of_weight) {
      const bool ulq = settings.weight != nullptr && settings.weight->has_ulq_retrain();
      return settings.Inside({"retrain_weight_quant_config", ulq ? "ulq_retrain" : "arq_retrain", problem.key});
    }
    const absl::string_view key = problem.key;
    return key == "clip_max" || key == "clip_min"
               ? settings.Inside({"retrain_data_quant_config", "ulq_quantize", "clip_max_min", problem.key})
               : settings.Inside({"retrain_data_quant_config", "ulq_quantize", problem.key});
  }

  // INT4 weights that cannot be packed get 8 bits, and INT4 activations, which go with nothing else, with them.
  void Lower(const RetrainCatalogLayer& layer, LayerRetrainConfig& config) {
    if (config.activation.bits == 4) {
      deviations_.insert("INT4 activations are accepted in a .cfg as they are in a JSON configuration (qat.md D-13)");
    }
    if (config.weight.bits == 4 && !SupportsInt4(layer.groups, layer.packed_sizes)) {
      const bool both = config.activation.bits == 4;
      config.weight.bits = 8;
      config.activation.bits = both ? 8 : config.activation.bits;
      lowered_[absl::StrCat(both ? "activations and weights" : "weights",
                            " have 8 bits, since INT4 needs one group and an even number of input channels")]
          .push_back(layer.name);
    }
  }

  // ---- pruning (prune.md section 2)

  absl::Status Prune() {
    if (all_.prune != nullptr && all_.strategy() == Use::kNone) {
      return Error(v1::CONFIG_VALUE, {{"prune_config"}}, "",
                   "prune_config has no strategy; add a filter_pruner or an n_out_of_m_pruner");
    }
    MP_RETURN_IF_ERROR(CheckAlgorithm(all_, ""));
    for (const Override& item : overrides_) {
      if (item.settings.strategy() != Use::kNone) {
        MP_RETURN_IF_ERROR(CheckAlgorithm(item.settings, item.layer()));
        MP_RETURN_IF_ERROR(CheckOverrideName(item, item.settings.strategy()));
      }
    }
    const Use strategy = all_.strategy();
    std::set<std::string> names;
    std::set<std::string> types;
    MP_RETURN_IF_ERROR(SkipLayers("skip_layers", cfg_.skip_layers(), strategy, names));
    MP_RETURN_IF_ERROR(SkipLayers("regular_prune_skip_layers", cfg_.regular_prune_skip_layers(), strategy, names));
    MP_RETURN_IF_ERROR(SkipTypes("skip_layer_types", cfg_.skip_layer_types(), strategy, types));
    MP_RETURN_IF_ERROR(SkipTypes("regular_prune_skip_types", cfg_.regular_prune_skip_types(), strategy, types));
    if (strategy != Use::kNone) {
      MP_RETURN_IF_ERROR(LayersFor(catalog_, strategy).status());
    }
    std::vector<std::pair<const RetrainCatalogLayer*, LayerPruneConfig>> pruned;
    for (const RetrainCatalogLayer& layer : catalog_.layers) {
      const Settings* settings = OverrideOf(layer, [](const Settings&) { return true; });
      settings = settings != nullptr && settings->strategy() != Use::kNone ? settings : &all_;
      const Use use = settings->strategy();
      if (use != Use::kNone && WhyNot(layer, use).empty()) {
        MP_ASSIGN_OR_RETURN(LayerPruneConfig prune, TakePruning(*settings, layer));
        pruned.emplace_back(&layer, prune);
      }
    }
    // In the JSON those that are listed already keep their place; of the others those whose channels can be pruned come first.
    std::stable_partition(pruned.begin(), pruned.end(), [](const auto& item) { return item.first->why_not_filter.empty(); });
    bool some_left = false;
    for (const auto& [layer, prune] : pruned) {
      auto it = std::find_if(layers_.begin(), layers_.end(),
                             [layer](const WrittenLayer& written) { return written.config.name == layer->name; });
      WrittenLayer& written = it != layers_.end() ? *it : layers_.emplace_back(WrittenLayer{.config = DefaultConfig(*layer)});
      written.prune_setting = prune;
      if (!names.contains(layer->name) && !types.contains(layer->type)) {
        written.config.prune = prune;
        some_left = true;
      }
    }
    return some_left ? absl::OkStatus()
                     : NothingLeft({{"skip_layers", cfg_.skip_layers_size()},
                                    {"skip_layer_types", cfg_.skip_layer_types_size()},
                                    {"regular_prune_skip_layers", cfg_.regular_prune_skip_layers_size()},
                                    {"regular_prune_skip_types", cfg_.regular_prune_skip_types_size()},
                                    {"override_layer_configs", cfg_.override_layer_configs_size()},
                                    {"override_layer_types", cfg_.override_layer_types_size()}},
                                   "no layer is left to be pruned; leave at least one");
  }

  // That a strategy has its algorithm, and the algorithm what it needs.
  absl::Status CheckAlgorithm(const Settings& settings, const std::string& layer) const {
    auto error = [&](std::initializer_list<const char*> fields, absl::string_view message) {
      return Error(v1::CONFIG_VALUE, settings.Inside(fields), layer, message);
    };
    if (settings.strategy() == Use::kFilter) {
      const auto& filter = settings.prune->filter_pruner();
      if (!filter.has_balanced_l2_norm_filter_prune()) {
        return error({"prune_config", "filter_pruner"}, "filter_pruner has no algorithm; add a balanced_l2_norm_filter_prune");
      }
      if (!filter.balanced_l2_norm_filter_prune().has_prune_ratio()) {
        return error({"prune_config", "filter_pruner", "balanced_l2_norm_filter_prune", "prune_ratio"}, "prune_ratio is missing");
      }
    }
    if (settings.strategy() == Use::kSelective && !settings.prune->n_out_of_m_pruner().has_l1_selective_prune()) {
      return error({"prune_config", "n_out_of_m_pruner"}, "n_out_of_m_pruner has no algorithm; add an l1_selective_prune");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<LayerPruneConfig> TakePruning(const Settings& settings, const RetrainCatalogLayer& layer) const {
    if (settings.strategy() == Use::kSelective) {
      return SelectivePruneConfig{.update_freq = settings.prune->n_out_of_m_pruner().l1_selective_prune().update_freq()};
    }
    const auto& filter = settings.prune->filter_pruner().balanced_l2_norm_filter_prune();
    const FilterPruneConfig config = {.ratio = DecimalDouble(filter.prune_ratio()),
                                      .ascend_optimized = filter.ascend_optimized()};
    if (!(config.ratio > 0 && config.ratio < 1)) {
      return Error(v1::CONFIG_VALUE,
                   settings.Inside({"prune_config", "filter_pruner", "balanced_l2_norm_filter_prune", "prune_ratio"}), layer.name,
                   absl::StrCat("prune_ratio is ", PythonRepr(config.ratio), "; it must be greater than 0 and less than 1"));
    }
    return config;
  }

  const RetrainCatalog& catalog_;
  const AMCTRetrainConfig& cfg_;
  const absl::string_view text_;
  const std::string& file_;
  const RetrainAbilities abilities_;
  const ReferenceDefects& defects_;
  const Settings all_ = SettingsOf(cfg_, {});
  std::vector<Override> overrides_;  // of layers, then of types, as in the text
  std::map<std::string, const Settings*> by_layer_;
  std::map<std::string, const Settings*> by_type_;
  std::vector<WrittenLayer> layers_;
  RetrainConfig config_;
  std::map<std::string, std::vector<std::string>> lowered_;  // what was changed -> layers
  std::set<std::string> deviations_;
};

// ---- reading the JSON (formats.md section 7.2) ------------------------------------------------------------------------------

class RetrainJsonReader : private ConfigJsonReader {
 public:
  RetrainJsonReader(const RetrainCatalog& catalog, const std::string& file) : ConfigJsonReader(file), catalog_(catalog) {}

  absl::StatusOr<RetrainConfig> Read(const JsonValue& root) {
    layer_.clear();
    MP_RETURN_IF_ERROR(Expect("", root, Kind::kObject));
    for (const char* key : {"version", "batch_num"}) {
      if (root.Find(key) == nullptr) {
        return Error(v1::CONFIG_VALUE, key, root, absl::StrCat(key, " is missing"));
      }
    }
    config_.quantizes = true;
    std::vector<WrittenLayer> layers;
    std::set<std::string> listed;
    for (const auto& [key, value] : root.members) {
      if (IsGlobalKey(key)) {
        layer_.clear();
        MP_RETURN_IF_ERROR(ReadGlobal(key, value));
        continue;
      }
      layer_ = key;
      const RetrainCatalogLayer* layer = FindLayer(catalog_, key);
      if (layer == nullptr || !layer->why_not_quant.empty()) {
        return Error(v1::CONFIG_UNKNOWN_LAYER, key, value,
                     layer == nullptr && !catalog_.other_modules.contains(key)
                         ? "this is neither a parameter nor a layer of the model"
                         : WhyNotThere(catalog_, key, Use::kQuant));
      }
      if (!value.is(Kind::kObject)) {
        return Error(v1::CONFIG_VALUE, key, value, "the settings of a layer must be an object");
      }
      current_ = DefaultConfig(*layer);
      MP_RETURN_IF_ERROR(ReadLayer(*layer, value));
      layers.push_back({.config = current_, .can_quantize = true});
      listed.insert(key);
    }
    layer_.clear();
    if (std::none_of(layers.begin(), layers.end(), [](const WrittenLayer& layer) { return layer.config.quantizes; })) {
      return Error(v1::CONFIG_EMPTY, kEnableKey, root, "no layer has retrain_enable true: there is nothing to quantize");
    }
    for (const RetrainCatalogLayer& layer : catalog_.layers) {
      if (layer.why_not_quant.empty() && !listed.contains(layer.name)) {
        layers.push_back({.config = DefaultConfig(layer), .can_quantize = true});
      }
    }
    Finish(catalog_, layers, config_);
    return std::move(config_);
  }

 private:
  absl::Status ReadGlobal(const std::string& key, const JsonValue& value) {
    if (key == kModeKey) {
      return ReadPrecisionMode(key, value, config_.force_fp16_quant);
    }
    JsonValue number = value;
    if (number.is(Kind::kBool)) {  // in Python an int
      number.kind = Kind::kInteger;
      number.integer = number.boolean ? 1 : 0;
    }
    return key == "version" ? ReadVersion(number) : ReadBatchNum(number, config_.batch_num);
  }

  // Fills current_.
  absl::Status ReadLayer(const RetrainCatalogLayer& layer, const JsonValue& value) {
    std::vector<std::string> ignored;
    for (const auto& [key, member] : value.members) {
      if (key == kEnableKey) {
        MP_RETURN_IF_ERROR(Expect(key, member, Kind::kBool));
        current_.quantizes = member.boolean;
      } else if (key == kDataSection) {
        MP_RETURN_IF_ERROR(ReadData(member));
      } else if (key == kWeightSection) {
        MP_RETURN_IF_ERROR(ReadWeight(member));
      } else if (key == kPruneEnableKey || key == kPruneSection) {
        return Error(v1::CONFIG_VALUE, key, member, absl::StrCat(key, " does not belong here: this function does not prune"));
      } else {
        ignored.push_back(key);
      }
    }
    if (!ignored.empty()) {
      config_.warnings.push_back(
          absl::StrCat("layer '", layer.name, "': unknown keys have no effect: ", absl::StrJoin(ignored, ", ")));
    }
    if (value.Find(kEnableKey) == nullptr) {
      config_.warnings.push_back(absl::StrCat("layer '", layer.name, "' has no retrain_enable and is not quantized"));
    }
    if (current_.quantizes && current_.weight.bits == 4 && !SupportsInt4(layer.groups, layer.packed_sizes)) {
      config_.warnings.push_back(
          absl::StrCat("layer '", layer.name,
                       "' cannot be saved: INT4 weights need one group and an even number of input channels; use INT8"));
    }
    std::optional<Problem> problem = CheckPair(current_);
    if (!problem.has_value()) {
      problem = CheckRanges(layer, current_);
    }
    if (!problem.has_value()) {
      return absl::OkStatus();
    }
    const JsonValue* section = value.Find(problem->of_weight ? kWeightSection : kDataSection);
    const JsonValue* found = section == nullptr ? nullptr : section->Find(problem->key);
    return Error(v1::CONFIG_VALUE, problem->key, found == nullptr ? value : *found, problem->message);
  }

  absl::Status ReadData(const JsonValue& section) {
    MP_RETURN_IF_ERROR(Expect(kDataSection, section, Kind::kObject));
    const JsonValue* max = section.Find("clip_max");
    const JsonValue* min = section.Find("clip_min");
    if ((max == nullptr) != (min == nullptr)) {
      return Error(v1::CONFIG_VALUE, max != nullptr ? "clip_max" : "clip_min", *(max != nullptr ? max : min),
                   "clip_max and clip_min must both be given");
    }
    ActivationRetrainConfig& activation = current_.activation;
    for (const auto& [key, value] : section.members) {
      if (key == "algo") {
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kString));
        if (value.string != "ulq_quantize") {
          return Error(v1::CONFIG_VALUE, key, value, "algo must be ulq_quantize");
        }
      } else if (key == "clip_max" || key == "clip_min") {
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kFloat));
        activation.clip = {max->number, min->number};
      } else if (key == "fixed_min") {
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kBool));
        activation.fixed_min = value.boolean;
      } else if (key == "dst_type") {
        MP_RETURN_IF_ERROR(ReadDstType(value, activation.bits));
      } else {
        return Unknown(key, value, kDataSection);
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadWeight(const JsonValue& section) {
    MP_RETURN_IF_ERROR(Expect(kWeightSection, section, Kind::kObject));
    WeightRetrainConfig& weight = current_.weight;
    for (const auto& [key, value] : section.members) {
      if (key == "algo") {
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kString));
        if (value.string != "arq_retrain" && value.string != "ulq_retrain") {
          return Error(v1::CONFIG_VALUE, key, value, "algo must be arq_retrain or ulq_retrain");
        }
        weight.algorithm =
            value.string == "ulq_retrain" ? WeightRetrainConfig::Algorithm::kUlq : WeightRetrainConfig::Algorithm::kArq;
      } else if (key == "channel_wise") {
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kBool));
        weight.channel_wise = value.boolean;
      } else if (key == "dst_type") {
        MP_RETURN_IF_ERROR(ReadDstType(value, weight.bits));
      } else {
        return Unknown(key, value, kWeightSection);
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadDstType(const JsonValue& value, int& bits) const {
    MP_RETURN_IF_ERROR(Expect("dst_type", value, Kind::kString));
    for (const int possible : {4, 8, 16}) {
      if (value.string == DstType(possible)) {
        bits = possible;
        return absl::OkStatus();
      }
    }
    return Error(v1::CONFIG_VALUE, "dst_type", value, "dst_type must be INT4, INT8 or INT16");
  }

  const RetrainCatalog& catalog_;
  RetrainConfig config_;
  LayerRetrainConfig current_;
};

// ---- comparing ---------------------------------------------------------------------------------------------------------------

bool SameValue(const JsonValue& a, const JsonValue& b) {
  return a.kind == b.kind && a.boolean == b.boolean && a.integer == b.integer && a.number == b.number && a.string == b.string;
}

// The keys that lead to the first difference, outermost first; empty: none. `explains`: whether a value that only `saved` has is
// what `created` means without it.
std::vector<std::string> FindDifference(
    const JsonValue& saved, const JsonValue& created, const std::vector<std::string>& path,
    const std::function<bool(const std::vector<std::string>& path, const JsonValue& value)>& explains) {
  for (const auto& [key, value] : saved.members) {
    std::vector<std::string> inner = path;
    inner.push_back(key);
    const JsonValue* other = created.Find(key);
    if (other == nullptr ? !explains(inner, value) : !SameValue(value, *other)) {
      return inner;
    }
    if (other != nullptr) {
      if (std::vector<std::string> found = FindDifference(value, *other, inner, explains); !found.empty()) {
        return found;
      }
    }
  }
  for (const auto& [key, value] : created.members) {
    if (saved.Find(key) == nullptr) {
      std::vector<std::string> inner = path;
      inner.push_back(key);
      return inner;
    }
  }
  return {};
}

}  // namespace

const RetrainType* FindRetrainType(absl::string_view name) {
  auto it = std::find_if(kTypes.begin(), kTypes.end(), [name](const RetrainType& type) { return type.name == name; });
  return it == kTypes.end() ? nullptr : &*it;
}

absl::StatusOr<QuantConfigText> CreateRetrainConfigText(const RetrainCatalog& catalog, std::optional<absl::string_view> cfg,
                                                        const std::string& file, const ReferenceDefects& defects) {
  MP_ASSIGN_OR_RETURN(RetrainConfig config,
                      ReadRetrainDefinition(catalog, cfg.value_or(""), file, RetrainAbilities::kQuant, defects));
  return QuantConfigText{
      .json = std::move(config.json), .warnings = std::move(config.warnings), .deviations = std::move(config.deviations)};
}

absl::StatusOr<RetrainConfig> ReadRetrainConfig(const RetrainCatalog& catalog, absl::string_view json, const std::string& file) {
  MP_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(json, file));
  return RetrainJsonReader(catalog, file).Read(root);
}

absl::StatusOr<RetrainConfig> ReadRetrainDefinition(const RetrainCatalog& catalog, absl::string_view cfg, const std::string& file,
                                                    RetrainAbilities abilities, const ReferenceDefects& defects) {
  AMCTRetrainConfig message;
  MP_RETURN_IF_ERROR(ParseTextFormat(cfg, v1::CONFIG_SYNTAX, file, message).status());
  return CheckRetrainDefinition(catalog, message, cfg, file, abilities, defects);
}

absl::StatusOr<RetrainConfig> CheckRetrainDefinition(const RetrainCatalog& catalog, const AMCTRetrainConfig& cfg,
                                                     absl::string_view text, const std::string& file, RetrainAbilities abilities,
                                                     const ReferenceDefects& defects) {
  return DefinitionReader(catalog, cfg, text, file, abilities, defects).Read();
}

absl::Status CheckSameRetrainConfig(const RetrainConfig& saved, const v1::RewritePlan& created) {
  MP_ASSIGN_OR_RETURN(const JsonValue saved_json, ParseJson(saved.json, ""));
  MP_ASSIGN_OR_RETURN(const JsonValue created_json, ParseJson(created.config(), ""));
  auto explains = [&created](const std::vector<std::string>& path, const JsonValue& value) {
    return path.size() == 3 && path[2] == "fixed_min" &&
           std::any_of(created.layers().begin(), created.layers().end(), [&](const v1::WrappedLayer& layer) {
             return layer.module() == path[0] && layer.has_act() && layer.act().fixed_min() == value.boolean;
           });
  };
  const std::vector<std::string> path = FindDifference(saved_json, created_json, {}, explains);
  if (path.empty()) {
    return absl::OkStatus();
  }
  return WithMetadata(
      MakeError(v1::CONFIG_CHANGED,
                absl::StrCat(path.back(),
                             " is not as it was when the model was created; use the same configuration, or create the "
                             "model again"),
                {.layer = IsGlobalKey(path[0]) ? "" : path[0]}),
      "key", path.back());
}

}  // namespace modelpress::engine
