#include "engine/formats/calibration_config.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "amct/calibration_config.pb.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/formats/config_common.h"
#include "engine/formats/json_text.h"
#include "engine/formats/text_format.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::AMCTConfig;
using AMCTPytorchProto::CalibrationConfig;
using Kind = JsonValue::Kind;
using nlohmann::ordered_json;

// ---- capabilities (formats.md section 1) -------------------------------------------------------------------------------------

struct TypeRule {
  absl::string_view type;
  bool channel_wise;  // weights may have a scale per channel, and have by default
  bool int16;         // activations (Linear: with bias)
  bool ada;
  bool few_bits;  // weights of 6 and 7 bits
  bool dmq;
  bool fusion;  // with a BatchNorm behind it
};

constexpr std::array<TypeRule, 9> kTypes = {{
    // type              channel int16  ada    6/7    dmq    fusion
    {"Conv2d", true, true, true, true, true, true},
    {"Conv3d", true, false, false, false, true, true},
    {"Linear", false, true, true, false, true, false},
    {"ConvTranspose2d", true, true, true, false, true, false},
    {"AvgPool2d", false, false, false, false, false, false},
    {"Conv1d", true, true, false, false, true, true},
    {"ConvTranspose1d", true, true, false, false, true, false},
    {"GRU", true, true, false, false, false, false},
    {"LSTM", true, true, false, false, false, false},
}};

// Null: not quantizable.
const TypeRule* FindType(absl::string_view type) {
  auto it = std::find_if(kTypes.begin(), kTypes.end(), [type](const TypeRule& rule) { return rule.type == type; });
  return it == kTypes.end() ? nullptr : &*it;
}

bool SupportsInt16(const ConfigLayer& layer) { return FindType(layer.type)->int16 && (layer.type != "Linear" || layer.has_bias); }

// For one layer the reference forgets LSTM and GRU.
bool SupportsDmq(const ConfigLayer& layer, const ReferenceDefects& defects) {
  return FindType(layer.type)->dmq || (defects.balances_rnn && (layer.type == "LSTM" || layer.type == "GRU"));
}

bool CanBeQuantized(const ConfigLayer& layer) { return layer.why_not.empty(); }

constexpr std::array<absl::string_view, 6> kGlobalKeys = {
    "version", "batch_num", "activation_offset", "do_fusion", "fakequant_precision_mode", "skip_fusion_layers"};

bool IsGlobalKey(absl::string_view key) { return std::find(kGlobalKeys.begin(), kGlobalKeys.end(), key) != kGlobalKeys.end(); }

constexpr char kActivationSection[] = "activation_quant_params";
constexpr char kWeightSection[] = "weight_quant_params";
constexpr char kDmqKey[] = "dmq_balancer_param";

// step <= end - start, as decimal numbers: 0.6 fits into [0.7, 1.3]. The shortest decimals of doubles have at most 17 digits;
// long double keeps 19, and what it loses is below the tolerance.
bool StepFits(double start, double end, double step) {
  auto decimal = [](double value) { return std::strtold(PythonRepr(value).c_str(), nullptr); };
  return decimal(step) <= (decimal(end) - decimal(start)) * (1 + 1e-17L) + decimal(end) * 1e-18L;
}

// ---- what is checked before anything is made
// -----------------------------------------------------------------------------------

// Says what is wrong with an element of the configuration; made by each front end, which knows the place.
struct Blame {
  v1::Reason reason;
  std::string layer;
  std::string message;
};

std::optional<Blame> CheckSkippedLayer(const LayerCatalog& catalog, const std::string& name) {
  if (FindLayer(catalog, name) != nullptr) {
    return std::nullopt;
  }
  return Blame{v1::CONFIG_UNKNOWN_LAYER, name,
               HasModule(catalog, name) ? "it is of a type that cannot be quantized anyway; take it off the list"
                                        : "the model has no layer of this name"};
}

// No layer to quantize, or one whose name would be taken for a parameter.
absl::Status CheckCatalog(const LayerCatalog& catalog) {
  std::vector<std::string> why_not;
  bool any = false;
  for (const ConfigLayer& layer : catalog.layers) {
    if (!CanBeQuantized(layer)) {
      why_not.push_back(absl::StrCat(layer.name, ": ", layer.why_not));
      continue;
    }
    any = true;
    if (IsGlobalKey(layer.name)) {
      return MakeError(v1::CONFIG_VALUE, "a layer cannot have the name of a configuration parameter; rename the module",
                       {.layer = layer.name});
    }
  }
  return any ? absl::OkStatus() : NoLayerError("quantized", std::move(why_not));
}

// ---- writing
// -------------------------------------------------------------------------------------------------------------------

struct Globals {
  int64_t batch_num = 1;
  bool activation_offset = true;
  bool do_fusion = true;
  bool force_fp16_quant = false;
  std::vector<std::string> skip_fusion_layers;
};

struct WrittenLayer {
  bool enabled = true;
  bool has_weights = true;  // else weight_quant_params is left out
  LayerConfig config;
};

ordered_json ActivationJson(const ActivationConfig& config) {
  ordered_json json;
  json["num_bits"] = config.bits;
  const bool ifmr = config.algorithm == ActivationConfig::Algorithm::kIfmr;
  if (ifmr) {
    json["max_percentile"] = config.max_percentile;
    json["min_percentile"] = config.min_percentile;
    json["search_range"] = {config.search_start, config.search_end};
    json["search_step"] = config.search_step;
  }
  json["act_algo"] = ifmr ? "ifmr" : "hfmg";
  json["asymmetric"] = config.asymmetric;
  if (!ifmr) {
    json["num_of_bins"] = config.bins;
  }
  return json;
}

ordered_json WeightJson(const WeightConfig& config) {
  ordered_json json;
  json["num_bits"] = config.bits;
  const bool ada = config.algorithm == WeightConfig::Algorithm::kAda;
  if (ada) {
    json["reg_param"] = config.reg_param;
    json["warm_start"] = config.warm_start;
    json["num_iteration"] = config.num_iteration;
    json["beta_range"] = {config.beta_start, config.beta_end};
  }
  json["channel_wise"] = config.channel_wise;
  json["wts_algo"] = ada ? "ada_quantize" : "arq_quantize";
  return json;
}

std::string Print(const Globals& globals, const std::map<std::string, WrittenLayer>& layers) {
  ordered_json json;
  json["version"] = 1;
  json["batch_num"] = globals.batch_num;
  json["activation_offset"] = globals.activation_offset;
  json["do_fusion"] = globals.do_fusion;
  if (globals.force_fp16_quant) {
    json["fakequant_precision_mode"] = kForceFp16;
  }
  json["skip_fusion_layers"] = globals.skip_fusion_layers;
  for (const auto& [name, layer] : layers) {  // sorted by code point
    ordered_json entry;
    entry["quant_enable"] = layer.enabled;
    if (layer.config.migration_strength.has_value()) {
      entry[kDmqKey] = *layer.config.migration_strength;
    }
    entry[kActivationSection] = ActivationJson(layer.config.activation);
    if (layer.has_weights) {
      entry[kWeightSection] = WeightJson(layer.config.weight);
    }
    json[name] = std::move(entry);
  }
  return PrintPythonJson(json);
}

LayerConfig DefaultConfig(const ConfigLayer& layer, bool activation_offset) {
  LayerConfig config = {.name = layer.name};
  config.activation.asymmetric = activation_offset && layer.type != "Conv3d";
  config.weight.channel_wise = FindType(layer.type)->channel_wise;
  return config;
}

// ---- from a .cfg (formats.md section 5.4)
// ----------------------------------------------------------------------------------------

// Where a CalibrationConfig lies in the text.
struct Source {
  const CalibrationConfig* config = nullptr;  // null: nowhere, everything has its default
  std::vector<TextStep> path;
};

class CfgReader {
 public:
  CfgReader(const LayerCatalog& catalog, absl::string_view text, const std::string& file, const ReferenceDefects& defects)
      : catalog_(catalog), text_(text), file_(file), defects_(defects) {}

  absl::StatusOr<QuantConfigText> Create(int64_t default_batch_num) {
    MP_RETURN_IF_ERROR(ParseTextFormat(text_, v1::CONFIG_SYNTAX, file_, cfg_).status());
    if (!cfg_.has_batch_num()) {
      cfg_.set_batch_num(static_cast<uint32_t>(default_batch_num));
    }
    MP_RETURN_IF_ERROR(CheckRequired());
    MP_RETURN_IF_ERROR(CheckRepeated("skip_layers", cfg_.skip_layers(), true));
    MP_RETURN_IF_ERROR(CheckRepeated("skip_layer_types", cfg_.skip_layer_types(), false));
    MP_RETURN_IF_ERROR(CheckRepeated("skip_fusion_layers", cfg_.skip_fusion_layers(), true));
    MP_RETURN_IF_ERROR(CheckOverriddenLayers());
    MP_RETURN_IF_ERROR(CheckOverriddenTypes());
    MP_RETURN_IF_ERROR(CheckSkipped());
    MP_RETURN_IF_ERROR(CheckCatalog(catalog_));
    for (const ConfigLayer& layer : catalog_.layers) {
      if (CanBeQuantized(layer)) {
        MP_RETURN_IF_ERROR(AddLayer(layer));
      }
    }
    MP_RETURN_IF_ERROR(CheckGlobals());
    DropImpossibleAda();
    return Finish();
  }

 private:
  absl::Status Error(v1::Reason reason, const std::vector<TextStep>& path, const std::string& layer,
                     absl::string_view message) const {
    return CfgError(reason, text_, file_, path, layer, message);
  }

  // Step 1. The parser lets required fields be absent.
  absl::Status CheckRequired() const {
    if (defects_.accepts_missing_required) {
      return absl::OkStatus();
    }
    for (int i = 0; i < cfg_.override_layer_configs_size(); ++i) {
      const auto& item = cfg_.override_layer_configs(i);
      if (!item.has_layer_name() || !item.has_calibration_config()) {
        return Error(v1::CONFIG_VALUE,
                     {{"override_layer_configs", i}, {item.has_layer_name() ? "calibration_config" : "layer_name"}},
                     item.layer_name(), absl::StrCat(item.has_layer_name() ? "calibration_config" : "layer_name", " is missing"));
      }
    }
    for (int i = 0; i < cfg_.override_layer_types_size(); ++i) {
      const auto& item = cfg_.override_layer_types(i);
      if (!item.has_layer_type() || !item.has_calibration_config()) {
        return Error(v1::CONFIG_VALUE,
                     {{"override_layer_types", i}, {item.has_layer_type() ? "calibration_config" : "layer_type"}}, "",
                     absl::StrCat(item.has_layer_type() ? "calibration_config" : "layer_type", " is missing"));
      }
    }
    return absl::OkStatus();
  }

  // Step 2.
  template <typename Names>
  absl::Status CheckRepeated(const char* field, const Names& names, bool are_layers) const {
    if (const int i = FirstRepeated(names); i >= 0) {
      return Error(v1::CONFIG_VALUE, {{field, i}}, are_layers ? names[i] : "",
                   absl::StrCat("'", names[i], "' is given twice in ", field));
    }
    return absl::OkStatus();
  }

  // Where the activation settings of `source` lie; the path ends with the message that holds them.
  static std::vector<TextStep> ActivationPath(const Source& source) {
    std::vector<TextStep> path = source.path;
    path.push_back({source.config != nullptr && source.config->has_hfmg_quantize() ? "hfmg_quantize" : "ifmr_quantize"});
    return path;
  }
  static std::vector<TextStep> WeightPath(const Source& source) {
    std::vector<TextStep> path = source.path;
    path.push_back({source.config != nullptr && source.config->has_ada_quantize() ? "ada_quantize" : "arq_quantize"});
    return path;
  }
  static std::vector<TextStep> Inside(std::vector<TextStep> path, const char* field) {
    path.push_back({field});
    return path;
  }

  static bool AsksForAsymmetric(const CalibrationConfig& config) {
    return config.ifmr_quantize().asymmetric() || config.hfmg_quantize().asymmetric();
  }
  static bool AsksForInt16(const CalibrationConfig& config) {
    return config.ifmr_quantize().dst_type() == CalibrationConfig::INT16 ||
           config.hfmg_quantize().dst_type() == CalibrationConfig::INT16;
  }

  // Steps 3 and 4: what the layer or type cannot do.
  absl::Status CheckPossible(const Source& source, const std::string& layer, const TypeRule& rule, bool int16, bool dmq) const {
    const CalibrationConfig& config = *source.config;
    auto error = [&](const std::vector<TextStep>& path, absl::string_view message) {
      return Error(v1::CONFIG_VALUE, path, layer, absl::StrCat(rule.type, " ", message));
    };
    if (rule.type == "Conv3d" && AsksForAsymmetric(config)) {
      return error(Inside(ActivationPath(source), "asymmetric"), "has symmetric activations only; set asymmetric to false");
    }
    if (config.arq_quantize().channel_wise() && !rule.channel_wise) {
      return error(Inside(WeightPath(source), "channel_wise"), "has no channel-wise weights; set channel_wise to false");
    }
    if (config.has_dmq_balancer() && !dmq) {
      return error(Inside(source.path, "dmq_balancer"), "cannot be balanced; remove dmq_balancer");
    }
    if (AsksForInt16(config) && !int16) {
      return error(Inside(ActivationPath(source), "dst_type"),
                   rule.int16 ? "without bias has no INT16 activations; use INT8" : "has no INT16 activations; use INT8");
    }
    if (config.has_ada_quantize() && !rule.ada) {
      return error(Inside(source.path, "ada_quantize"), "has no AdaRound; use arq_quantize");
    }
    if (const uint32_t bits = config.arq_quantize().quant_bits(); (bits == 6 || bits == 7) && !rule.few_bits) {
      return error(Inside(WeightPath(source), "quant_bits"),
                   absl::StrCat("has no weights of ", bits, " bits, only Conv2d has; use 8"));
    }
    return absl::OkStatus();
  }

  // Step 3.
  absl::Status CheckOverriddenLayers() {
    for (int i = 0; i < cfg_.override_layer_configs_size(); ++i) {
      const auto& item = cfg_.override_layer_configs(i);
      const std::vector<TextStep> name_path = {{"override_layer_configs", i}, {"layer_name"}};
      const Source source = {&item.calibration_config(), {{"override_layer_configs", i}, {"calibration_config"}}};
      if (!by_layer_.emplace(item.layer_name(), source).second) {
        return Error(v1::CONFIG_VALUE, name_path, item.layer_name(), "it is given twice in override_layer_configs");
      }
      const ConfigLayer* layer = FindLayer(catalog_, item.layer_name());
      if (layer == nullptr && !HasModule(catalog_, item.layer_name())) {
        return Error(v1::CONFIG_UNKNOWN_LAYER, name_path, item.layer_name(), "the model has no layer of this name");
      }
      if (layer == nullptr || !CanBeQuantized(*layer)) {
        warnings_.push_back(absl::StrCat("override_layer_configs has no effect on layer '", item.layer_name(),
                                         "': ", layer == nullptr ? "its type cannot be quantized" : layer->why_not));
      }
      if (layer != nullptr) {
        MP_RETURN_IF_ERROR(
            CheckPossible(source, layer->name, *FindType(layer->type), SupportsInt16(*layer), SupportsDmq(*layer, defects_)));
      }
    }
    return absl::OkStatus();
  }

  // Step 4.
  absl::Status CheckOverriddenTypes() {
    for (int i = 0; i < cfg_.override_layer_types_size(); ++i) {
      const auto& item = cfg_.override_layer_types(i);
      const std::vector<TextStep> name_path = {{"override_layer_types", i}, {"layer_type"}};
      const Source source = {&item.calibration_config(), {{"override_layer_types", i}, {"calibration_config"}}};
      if (!by_type_.emplace(item.layer_type(), source).second) {
        return Error(v1::CONFIG_VALUE, name_path, "",
                     absl::StrCat("type '", item.layer_type(), "' is given twice in override_layer_types"));
      }
      const TypeRule* rule = FindType(item.layer_type());
      if (rule == nullptr) {
        return UnknownType(name_path, item.layer_type());
      }
      MP_RETURN_IF_ERROR(CheckPossible(source, "", *rule, rule->int16, rule->dmq));
    }
    return absl::OkStatus();
  }

  absl::Status UnknownType(const std::vector<TextStep>& path, const std::string& type) const {
    return Error(v1::CONFIG_UNKNOWN_LAYER, path, "",
                 absl::StrCat("'", type, "' is no type that can be quantized; those are ",
                              absl::StrJoin(kTypes, ", ",
                                            [](std::string* out, const TypeRule& rule) { absl::StrAppend(out, rule.type); })));
  }

  // Step 5.
  absl::Status CheckSkipped() {
    for (int i = 0; i < cfg_.skip_layers_size(); ++i) {
      if (std::optional<Blame> blame = CheckSkippedLayer(catalog_, cfg_.skip_layers(i)); blame.has_value()) {
        return Error(blame->reason, {{"skip_layers", i}}, blame->layer, blame->message);
      }
    }
    const std::set<std::string> layers(cfg_.skip_layers().begin(), cfg_.skip_layers().end());
    const std::set<std::string> types(cfg_.skip_layer_types().begin(), cfg_.skip_layer_types().end());
    for (int i = 0; i < cfg_.skip_layer_types_size(); ++i) {
      if (FindType(cfg_.skip_layer_types(i)) == nullptr) {
        return UnknownType({{"skip_layer_types", i}}, cfg_.skip_layer_types(i));
      }
    }
    bool some_left = false;
    bool some_skipped = false;
    for (const ConfigLayer& layer : catalog_.layers) {
      const bool skipped = layers.contains(layer.name) || types.contains(layer.type);
      if (CanBeQuantized(layer)) {
        some_left |= !skipped;
        some_skipped |= skipped;
        if (skipped) {
          skipped_.insert(layer.name);
        }
      }
    }
    if (types.size() == kTypes.size() || (some_skipped && !some_left)) {
      return Error(v1::CONFIG_EMPTY, {{types.empty() ? "skip_layers" : "skip_layer_types", 0}}, "",
                   "every layer that can be quantized is skipped; leave at least one");
    }
    return absl::OkStatus();
  }

  // Steps 6 to 10 for one layer.
  absl::Status AddLayer(const ConfigLayer& layer) {
    Source source;
    if (auto it = by_layer_.find(layer.name); it != by_layer_.end()) {
      source = it->second;
    } else if (auto type = by_type_.find(layer.type); type != by_type_.end()) {
      source = type->second;
    } else if (cfg_.has_common_config()) {
      source = {&cfg_.common_config(), {{"common_config"}}};
    }
    WrittenLayer written;
    written.enabled = !skipped_.contains(layer.name);
    written.config = DefaultConfig(layer, cfg_.activation_offset());
    LayerConfig& config = written.config;
    std::optional<bool> asymmetric;
    if (source.config != nullptr) {
      asymmetric = TakeActivation(*source.config, config.activation);
      TakeWeight(*source.config, config.weight);
      if (source.config->has_dmq_balancer()) {
        config.migration_strength = DecimalDouble(source.config->dmq_balancer().migration_strength());
      }
    }
    Adjust(layer, config);
    if (!asymmetric.has_value()) {
      ActivationConfig common;
      const CalibrationConfig& common_config = cfg_.common_config();
      std::optional<bool> common_asymmetric = TakeActivation(common_config, common);
      if (common_config.activations_case() != CalibrationConfig::ACTIVATIONS_NOT_SET &&
          common.algorithm == config.activation.algorithm) {
        asymmetric = common_asymmetric;
      }
    }
    config.activation.asymmetric = layer.type != "Conv3d" && asymmetric.value_or(cfg_.activation_offset());
    if (std::optional<ConfigProblem> problem = CheckLayerConfig(layer, config); problem.has_value()) {
      // What has its default cannot be wrong.
      return Error(v1::CONFIG_VALUE, PathOf(source, *problem), layer.name, problem->message);
    }
    layers_[layer.name] = std::move(written);
    return absl::OkStatus();
  }

  // The field of the .cfg that a parameter of the JSON comes from.
  static std::vector<TextStep> PathOf(const Source& source, const ConfigProblem& problem) {
    if (problem.key == kDmqKey) {
      return Inside(Inside(source.path, "dmq_balancer"), "migration_strength");
    }
    const bool weight = problem.section == kWeightSection;
    std::vector<TextStep> path = weight ? WeightPath(source) : ActivationPath(source);
    path.push_back({problem.key == "search_range" ? "search_range_start"
                    : problem.key == "beta_range" ? "beta_range_start"
                    : problem.key == "num_bits"   ? (weight ? "quant_bits" : "dst_type")
                                                  : problem.key});
    return path;
  }

  // Returns what the configuration says about `asymmetric`.
  static std::optional<bool> TakeActivation(const CalibrationConfig& config, ActivationConfig& activation) {
    const bool ifmr = config.has_ifmr_quantize();
    if (!ifmr && !config.has_hfmg_quantize()) {
      return std::nullopt;
    }
    activation.bits = AsksForInt16(config) ? 16 : 8;
    return ifmr ? TakeIfmr(config.ifmr_quantize(), activation) : TakeHfmg(config.hfmg_quantize(), activation);
  }

  static void TakeWeight(const CalibrationConfig& config, WeightConfig& weight) {
    if (config.has_arq_quantize()) {
      const auto& arq = config.arq_quantize();
      weight.channel_wise = arq.has_channel_wise() ? arq.channel_wise() : weight.channel_wise;
      if (arq.has_quant_bits()) {
        weight.bits = static_cast<int>(std::min<uint32_t>(arq.quant_bits(), std::numeric_limits<int>::max()));
      }
    } else if (config.has_ada_quantize()) {
      const auto& ada = config.ada_quantize();
      weight.algorithm = WeightConfig::Algorithm::kAda;
      weight.num_iteration = ada.num_iteration();
      weight.reg_param = DecimalDouble(ada.reg_param());
      weight.warm_start = DecimalDouble(ada.warm_start());
      weight.beta_start = DecimalDouble(ada.beta_range_start());
      weight.beta_end = DecimalDouble(ada.beta_range_end());
      weight.channel_wise = ada.has_channel_wise() ? ada.channel_wise() : weight.channel_wise;
    }
  }

  // Step 8: lowers what the layer cannot do and no check has refused, because it was asked of many layers at once.
  void Adjust(const ConfigLayer& layer, LayerConfig& config) {
    if (config.migration_strength.has_value() && !SupportsDmq(layer, defects_)) {
      config.migration_strength.reset();
      lowered_["not balanced, since their type cannot be"].push_back(layer.name);
      if (layer.type == "LSTM" || layer.type == "GRU") {
        deviations_.insert("LSTM and GRU are not balanced (formats.md 5.4 b)");
      }
    }
    if (config.activation.bits == 16 && !SupportsInt16(layer)) {
      const bool common = AsksForInt16(cfg_.common_config());
      if (common || !defects_.keeps_int16_by_type) {
        config.activation.bits = 8;
        lowered_["activations have 8 bits, since these layers have no INT16"].push_back(layer.name);
      }
      if (!common) {
        deviations_.insert("INT16 by type is lowered for Linear without bias (formats.md 5.4 a)");
      }
    }
    int& bits = config.weight.bits;
    if ((bits == 6 || bits == 7) && !FindType(layer.type)->few_bits) {
      bits = 8;
      lowered_["weights have 8 bits, since only Conv2d can have 6 or 7"].push_back(layer.name);
    }
    if (bits == 4 && !SupportsInt4(layer.groups, layer.packed_sizes)) {
      bits = 8;
      lowered_["weights have 8 bits, since INT4 needs one group and an even number of input channels"].push_back(layer.name);
    }
  }

  // Step 10.
  absl::Status CheckGlobals() const {
    if (cfg_.batch_num() == 0) {
      return Error(v1::CONFIG_VALUE, {{"batch_num"}}, "", "batch_num must be greater than 0");
    }
    for (int i = 0; i < cfg_.skip_fusion_layers_size(); ++i) {
      const std::string& name = cfg_.skip_fusion_layers(i);
      const ConfigLayer* layer = FindLayer(catalog_, name);
      if (layer == nullptr && !HasModule(catalog_, name)) {
        return Error(v1::CONFIG_UNKNOWN_LAYER, {{"skip_fusion_layers", i}}, name, "the model has no layer of this name");
      }
      if (layer == nullptr || !FindType(layer->type)->fusion) {
        return Error(v1::CONFIG_VALUE, {{"skip_fusion_layers", i}}, name, "only Conv1d, Conv2d and Conv3d are ever fused");
      }
    }
    return absl::OkStatus();
  }

  // Step 11.
  void DropImpossibleAda() {
    if (!cfg_.common_config().has_ada_quantize()) {
      return;
    }
    for (const ConfigLayer& layer : catalog_.layers) {
      auto it = layers_.find(layer.name);
      if (it != layers_.end() && it->second.config.weight.algorithm == WeightConfig::Algorithm::kAda &&
          !FindType(layer.type)->ada) {
        it->second.has_weights = false;
        lowered_["weights are quantized with ARQ, since these types have no AdaRound"].push_back(layer.name);
      }
    }
  }

  QuantConfigText Finish() {
    Globals globals = {.batch_num = cfg_.batch_num(),
                       .activation_offset = cfg_.activation_offset(),
                       .do_fusion = cfg_.do_fusion(),
                       .force_fp16_quant = cfg_.has_fakequant_precision_mode(),
                       .skip_fusion_layers = {cfg_.skip_fusion_layers().begin(), cfg_.skip_fusion_layers().end()}};
    for (const auto& [what, names] : lowered_) {
      warnings_.push_back(absl::StrCat(what, ": ", absl::StrJoin(names, ", ")));
    }
    return {.json = Print(globals, layers_),
            .warnings = std::move(warnings_),
            .deviations = {deviations_.begin(), deviations_.end()}};
  }

  const LayerCatalog& catalog_;
  const absl::string_view text_;
  const std::string& file_;
  const ReferenceDefects& defects_;
  AMCTConfig cfg_;
  std::map<std::string, Source> by_layer_;
  std::map<std::string, Source> by_type_;
  std::set<std::string> skipped_;
  std::map<std::string, WrittenLayer> layers_;
  std::map<std::string, std::vector<std::string>> lowered_;  // what was changed -> layers
  std::vector<std::string> warnings_;
  std::set<std::string> deviations_;
};

// ---- reading the JSON (formats.md section 5.5)
// -------------------------------------------------------------------------------------

class JsonReader : private ConfigJsonReader {
 public:
  JsonReader(const LayerCatalog& catalog, const std::string& file, const ReferenceDefects& defects)
      : ConfigJsonReader(file), catalog_(catalog), defects_(defects) {}

  absl::StatusOr<QuantConfig> Read(const JsonValue& root) {
    layer_.clear();
    MP_RETURN_IF_ERROR(Expect("", root, Kind::kObject));
    std::map<std::string, LayerConfig> enabled;
    // Globals first: layers may refer to them.
    for (const auto& [key, value] : root.members) {
      if (IsGlobalKey(key)) {
        MP_RETURN_IF_ERROR(ReadGlobal(key, value));
      }
    }
    for (const auto& [key, value] : root.members) {
      if (IsGlobalKey(key)) {
        continue;
      }
      layer_ = key;
      MP_RETURN_IF_ERROR(Expect(key, value, Kind::kObject));
      const ConfigLayer* layer = FindLayer(catalog_, key);
      if (layer == nullptr || !CanBeQuantized(*layer)) {
        return Error(v1::CONFIG_UNKNOWN_LAYER, key, value,
                     layer != nullptr           ? absl::StrCat("this layer cannot be quantized: ", layer->why_not)
                     : HasModule(catalog_, key) ? "this layer is of a type that cannot be quantized"
                                                : "this is neither a parameter nor a layer of the model");
      }
      MP_ASSIGN_OR_RETURN(const bool is_enabled, ReadLayer(*layer, value));
      if (is_enabled) {
        enabled[key] = std::move(current_);
      }
    }
    layer_.clear();
    if (enabled.empty()) {
      return Error(v1::CONFIG_EMPTY, "quant_enable", root, "no layer has quant_enable true: there is nothing to quantize");
    }
    for (const ConfigLayer& layer : catalog_.layers) {
      if (auto it = enabled.find(layer.name); it != enabled.end()) {
        config_.layers.push_back(std::move(it->second));
      }
    }
    return std::move(config_);
  }

 private:
  absl::Status ReadGlobal(const std::string& key, const JsonValue& value) {
    if (key == "version") {
      return ReadVersion(value);
    }
    if (key == "batch_num") {
      return ReadBatchNum(value, config_.batch_num);
    }
    if (key == "activation_offset" || key == "do_fusion") {
      MP_RETURN_IF_ERROR(Expect(key, value, Kind::kBool));
      (key == "do_fusion" ? config_.do_fusion : config_.activation_offset) = value.boolean;
      return absl::OkStatus();
    }
    if (key == "fakequant_precision_mode") {
      return ReadPrecisionMode(key, value, config_.force_fp16_quant);
    }
    MP_RETURN_IF_ERROR(Expect(key, value, Kind::kArray));
    for (const JsonValue& item : value.items) {
      MP_RETURN_IF_ERROR(Expect(key, item, Kind::kString));
      layer_ = item.string;
      const ConfigLayer* layer = FindLayer(catalog_, item.string);
      if (layer == nullptr && !HasModule(catalog_, item.string)) {
        return Error(v1::CONFIG_UNKNOWN_LAYER, key, item, "the model has no layer of this name");
      }
      if (layer == nullptr || !FindType(layer->type)->fusion) {
        return Error(v1::CONFIG_VALUE, key, item, "only Conv1d, Conv2d and Conv3d are ever fused");
      }
      if (!config_.skip_fusion_layers.insert(item.string).second) {
        return Error(v1::CONFIG_VALUE, key, item, "it is given twice in skip_fusion_layers");
      }
    }
    layer_.clear();
    return absl::OkStatus();
  }

  // Fills current_; true: the layer is enabled.
  absl::StatusOr<bool> ReadLayer(const ConfigLayer& layer, const JsonValue& value) {
    current_ = DefaultConfig(layer, config_.activation_offset);
    bool enabled = false;
    const JsonValue* activation = nullptr;
    const JsonValue* weight = nullptr;
    for (const auto& [key, member] : value.members) {
      if (key == "quant_enable") {
        MP_RETURN_IF_ERROR(Expect(key, member, Kind::kBool));
        enabled = member.boolean;
      } else if (key == kDmqKey) {
        MP_RETURN_IF_ERROR(Expect(key, member, Kind::kFloat));
        current_.migration_strength = member.number;
      } else if (key == kActivationSection) {
        activation = &member;
        MP_RETURN_IF_ERROR(ReadActivation(key, member, current_.activation, [&](const std::string& name, const JsonValue& bits) {
          return name == "num_bits" ? ReadBits(name, bits, current_.activation.bits) : Unknown(name, bits, key);
        }));
      } else if (key == kWeightSection) {
        MP_RETURN_IF_ERROR(Expect(key, member, Kind::kObject));
        weight = &member;
        MP_RETURN_IF_ERROR(ReadWeight(member));
      } else {
        return Unknown(key, member, "a layer");
      }
    }
    auto at = [&](const std::string& section, const std::string& key) -> const JsonValue& {
      const JsonValue* in = section == kActivationSection ? activation : section == kWeightSection ? weight : &value;
      const JsonValue* found = in == nullptr ? nullptr : in->Find(key);
      return found == nullptr ? value : *found;
    };
    if (current_.activation.bits == 16 && !SupportsInt16(layer)) {
      return Error(v1::CONFIG_VALUE, "num_bits", at(kActivationSection, "num_bits"),
                   absl::StrCat(layer.type, layer.type == "Linear" ? " without bias" : "", " has no 16-bit activations; use 8"));
    }
    if (enabled && layer.type == "Conv3d" && current_.activation.asymmetric) {
      return Error(v1::CONFIG_VALUE, "asymmetric", at(kActivationSection, "asymmetric"),
                   "Conv3d has symmetric activations only; set asymmetric to false");
    }
    if (std::optional<ConfigProblem> problem = CheckLayerConfig(layer, current_); problem.has_value()) {
      return Error(v1::CONFIG_VALUE, problem->key, at(problem->section, problem->key), problem->message);
    }
    if (!SupportsDmq(layer, defects_)) {
      current_.migration_strength.reset();
    }
    return enabled;
  }

  absl::Status ReadWeight(const JsonValue& section) {
    WeightConfig& weight = current_.weight;
    const JsonValue* algorithm = section.Find("wts_algo");
    if (algorithm != nullptr) {
      MP_RETURN_IF_ERROR(Expect("wts_algo", *algorithm, Kind::kString));
      if (algorithm->string != "arq_quantize" && algorithm->string != "ada_quantize") {
        return Error(v1::CONFIG_TYPE, "wts_algo", *algorithm, "wts_algo must be arq_quantize or ada_quantize");
      }
      weight.algorithm = algorithm->string == "ada_quantize" ? WeightConfig::Algorithm::kAda : WeightConfig::Algorithm::kArq;
    }
    for (const auto& [key, value] : section.members) {
      bool ada = true;
      if (key == "num_bits") {
        ada = false;
        MP_RETURN_IF_ERROR(ReadBits(key, value, weight.bits));
      } else if (key == "channel_wise") {
        ada = false;
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kBool));
        weight.channel_wise = value.boolean;
      } else if (key == "wts_algo") {
        ada = false;
      } else if (key == "num_iteration") {
        MP_RETURN_IF_ERROR(Expect(key, value, Kind::kInteger));
        weight.num_iteration = value.integer;
      } else if (key == "reg_param" || key == "warm_start") {
        MP_RETURN_IF_ERROR(ReadNumber(key, value, key == "reg_param" ? weight.reg_param : weight.warm_start));
      } else if (key == "beta_range") {
        MP_RETURN_IF_ERROR(ReadPair(key, value, weight.beta_start, weight.beta_end));
      } else {
        return Unknown(key, value, kWeightSection);
      }
      if (ada && weight.algorithm != WeightConfig::Algorithm::kAda) {
        return Error(v1::CONFIG_VALUE, key, value,
                     absl::StrCat("'", key, "' belongs to ada_quantize; remove it or set wts_algo"));
      }
    }
    return absl::OkStatus();
  }

  const LayerCatalog& catalog_;
  const ReferenceDefects& defects_;
  QuantConfig config_;
  LayerConfig current_;
};

}  // namespace

const ConfigLayer* FindLayer(const LayerCatalog& catalog, absl::string_view name) {
  auto it =
      std::find_if(catalog.layers.begin(), catalog.layers.end(), [name](const ConfigLayer& layer) { return layer.name == name; });
  return it == catalog.layers.end() ? nullptr : &*it;
}

bool HasModule(const LayerCatalog& catalog, absl::string_view name) {
  return FindLayer(catalog, name) != nullptr || catalog.other_modules.contains(std::string(name));
}

std::optional<ConfigProblem> CheckActivation(const ActivationConfig& config) {
  auto problem = [](const char* key, std::string message) { return ConfigProblem{key, kActivationSection, std::move(message)}; };
  if (config.bits != 4 && config.bits != 8 && config.bits != 16) {
    return problem("num_bits", "num_bits of activations must be 4, 8 or 16");
  }
  if (config.algorithm == ActivationConfig::Algorithm::kHfmg) {
    if (config.bins != 1024 && config.bins != 2048 && config.bins != 4096 && config.bins != 8192) {
      return problem("num_of_bins", absl::StrCat("num_of_bins is ", config.bins, "; it must be 1024, 2048, 4096 or 8192"));
    }
    return std::nullopt;
  }
  for (const auto& [key, value] :
       {std::pair("max_percentile", config.max_percentile), {"min_percentile", config.min_percentile}}) {
    if (!(value > 0.5 && value <= 1)) {
      return problem(key, absl::StrCat(key, " is ", PythonRepr(value), "; it must be greater than 0.5 and at most 1"));
    }
  }
  if (!(config.search_start > 0 && config.search_start < config.search_end &&
        config.search_end <= std::numeric_limits<double>::max())) {
    return problem("search_range", absl::StrCat("the search range is [", PythonRepr(config.search_start), ", ",
                                                PythonRepr(config.search_end), "]; it must be 0 < start < end"));
  }
  if (!(config.search_step > 0 && StepFits(config.search_start, config.search_end, config.search_step))) {
    return problem("search_step", absl::StrCat("search_step is ", PythonRepr(config.search_step),
                                               "; it must be greater than 0 and no more than the search range is wide"));
  }
  if ((config.search_end - config.search_start) / config.search_step > kMaxSearchSteps) {
    return problem("search_step", absl::StrCat("search_step is ", PythonRepr(config.search_step), ", which makes more than ",
                                               kMaxSearchSteps, " steps of the search range"));
  }
  return std::nullopt;
}

std::optional<ConfigProblem> CheckLayerConfig(const ConfigLayer& layer, const LayerConfig& config) {
  if (config.migration_strength.has_value() && !(*config.migration_strength >= 0.2 && *config.migration_strength <= 0.8)) {
    return ConfigProblem{
        kDmqKey, "",
        absl::StrCat("the migration strength is ", PythonRepr(*config.migration_strength), "; it must be in [0.2, 0.8]")};
  }
  if (std::optional<ConfigProblem> problem = CheckActivation(config.activation); problem.has_value()) {
    return problem;
  }
  const WeightConfig& weight = config.weight;
  auto problem = [](const char* key, std::string message) { return ConfigProblem{key, kWeightSection, std::move(message)}; };
  if (weight.bits != 4 && weight.bits != 6 && weight.bits != 7 && weight.bits != 8) {
    return problem("num_bits", "weights must have 4, 6, 7 or 8 bits");
  }
  if (weight.channel_wise && !FindType(layer.type)->channel_wise) {
    return problem("channel_wise", absl::StrCat(layer.type, " has no channel-wise weights; channel_wise must be false"));
  }
  if (weight.algorithm == WeightConfig::Algorithm::kArq) {
    return std::nullopt;
  }
  if (weight.num_iteration < 0 || weight.num_iteration > std::numeric_limits<uint32_t>::max()) {
    return problem("num_iteration", "num_iteration must be in [0, 4294967295]");
  }
  for (const auto& [key, value] : {std::pair("reg_param", weight.reg_param), {"warm_start", weight.warm_start}}) {
    if (!(value > 0 && value < 1)) {
      return problem(key, absl::StrCat(key, " is ", PythonRepr(value), "; it must be greater than 0 and less than 1"));
    }
  }
  if (!(weight.beta_end > 0 && weight.beta_start > weight.beta_end && weight.beta_start <= std::numeric_limits<double>::max())) {
    return problem("beta_range", absl::StrCat("the beta range is [", PythonRepr(weight.beta_start), ", ",
                                              PythonRepr(weight.beta_end), "]; it must be start > end > 0"));
  }
  return std::nullopt;
}

absl::StatusOr<QuantConfigText> CreateQuantConfigText(const LayerCatalog& catalog, const QuantConfigArguments& arguments) {
  auto error = [](v1::Reason reason, const char* field, const std::string& layer, absl::string_view message) {
    return WithMetadata(MakeError(reason, message, {.field = field, .layer = layer}), "key", field);
  };
  if (const int i = FirstRepeated(arguments.skip_layers); i >= 0) {
    return error(v1::CONFIG_VALUE, "skip_layers", arguments.skip_layers[i], "it is given twice in skip_layers");
  }
  for (const std::string& name : arguments.skip_layers) {
    if (std::optional<Blame> blame = CheckSkippedLayer(catalog, name); blame.has_value()) {
      return error(blame->reason, "skip_layers", blame->layer, blame->message);
    }
  }
  MP_RETURN_IF_ERROR(CheckCatalog(catalog));
  if (arguments.batch_num <= 0) {
    return error(v1::CONFIG_VALUE, "batch_num", "", "batch_num must be greater than 0");
  }
  const std::set<std::string> skipped(arguments.skip_layers.begin(), arguments.skip_layers.end());
  std::map<std::string, WrittenLayer> layers;
  bool some_left = false;
  for (const ConfigLayer& layer : catalog.layers) {
    if (CanBeQuantized(layer)) {
      const bool enabled = !skipped.contains(layer.name);
      some_left |= enabled;
      layers[layer.name] = {.enabled = enabled, .config = DefaultConfig(layer, arguments.activation_offset)};
    }
  }
  if (!some_left) {
    return error(v1::CONFIG_EMPTY, "skip_layers", "", "every layer that can be quantized is skipped; leave at least one");
  }
  return QuantConfigText{.json =
                             Print({.batch_num = arguments.batch_num, .activation_offset = arguments.activation_offset}, layers)};
}

absl::StatusOr<QuantConfigText> CreateQuantConfigText(const LayerCatalog& catalog, absl::string_view cfg, const std::string& file,
                                                      const ReferenceDefects& defects, int64_t default_batch_num) {
  return CfgReader(catalog, cfg, file, defects).Create(default_batch_num);
}

absl::StatusOr<QuantConfig> ReadQuantConfig(const LayerCatalog& catalog, absl::string_view json, const std::string& file,
                                            const ReferenceDefects& defects) {
  MP_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(json, file));
  return JsonReader(catalog, file, defects).Read(root);
}

}  // namespace modelpress::engine
