#include "engine/formats/auto_channel_prune_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "amct/auto_channel_prune_config.pb.h"
#include "engine/base/status.h"
#include "engine/formats/config_common.h"
#include "engine/formats/text_format.h"

namespace modelpress::engine {
namespace {

using AMCTProto::AutoChannelPruneConfig;
using AMCTPytorchProto::AMCTRetrainConfig;
using AMCTPytorchProto::PruneConfig;

// The ratio of all layers that no override names; the search itself leaves none that it would matter for.
constexpr float kGlobalRatio = 0.3F;

constexpr std::array<absl::string_view, 6> kOverrideFields = {
    "skip_layers",          "skip_layer_types",          "override_layer_configs",
    "override_layer_types", "regular_prune_skip_layers", "regular_prune_skip_types"};

void SetFilter(float ratio, bool ascend_optimized, PruneConfig& prune) {
  auto& filter = *prune.mutable_filter_pruner()->mutable_balanced_l2_norm_filter_prune();
  filter.set_prune_ratio(ratio);
  filter.set_ascend_optimized(ascend_optimized);
}

absl::Status CheckValues(const AutoChannelPruneConfig& cfg, absl::string_view text, const std::string& file) {
  auto error = [&](const char* field, absl::string_view message) {
    return CfgError(v1::CONFIG_VALUE, text, file, {{field}}, "", message);
  };
  if (!cfg.has_compress_ratio()) {
    return error("compress_ratio", "compress_ratio is missing; it says how many times fewer operations the model is to have");
  }
  if (!(cfg.compress_ratio() > 1 && std::isfinite(cfg.compress_ratio()))) {
    return error("compress_ratio", absl::StrCat("compress_ratio is ", PythonRepr(DecimalDouble(cfg.compress_ratio())),
                                                "; it must be greater than 1 and finite"));
  }
  if (!(cfg.max_prune_ratio() > 0 && cfg.max_prune_ratio() <= 1)) {
    return error("max_prune_ratio", absl::StrCat("max_prune_ratio is ", PythonRepr(DecimalDouble(cfg.max_prune_ratio())),
                                                 "; it must be greater than 0 and at most 1"));
  }
  if (cfg.test_iteration() < 1) {
    return error("test_iteration", absl::StrCat("test_iteration is ", cfg.test_iteration(), "; it must be at least 1"));
  }
  return absl::OkStatus();
}

// That the file has nothing but skips and overrides, and overrides nothing but filter pruning.
absl::Status CheckOverrides(const AMCTRetrainConfig& overrides, absl::string_view text, const std::string& file) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  overrides.GetReflection()->ListFields(overrides, &fields);
  for (const auto* field : fields) {
    if (std::find(kOverrideFields.begin(), kOverrideFields.end(), absl::string_view(field->name())) == kOverrideFields.end()) {
      return CfgError(
          v1::CONFIG_VALUE, text, file, {{field->name(), field->is_repeated() ? 0 : -1}}, "",
          absl::StrCat(field->name(), " does not belong into override_prune_cfg, only ", absl::StrJoin(kOverrideFields, ", ")));
    }
  }
  auto check = [&](const char* field, int i, const auto& item, const std::string& layer) {
    for (const auto& [present, key] : {std::pair(item.has_retrain_data_quant_config(), "retrain_data_quant_config"),
                                       {item.has_retrain_weight_quant_config(), "retrain_weight_quant_config"}}) {
      if (present) {
        return CfgError(v1::CONFIG_VALUE, text, file, {{field, i}, {key}}, layer,
                        absl::StrCat(key, " does not belong into override_prune_cfg: the search is for pruning only"));
      }
    }
    return item.prune_config().has_filter_pruner()
               ? absl::OkStatus()
               : CfgError(v1::CONFIG_VALUE, text, file, {{field, i}, {"prune_config"}}, layer,
                          "an override of the search must have a prune_config with a filter_pruner");
  };
  for (int i = 0; i < overrides.override_layer_configs_size(); ++i) {
    const auto& item = overrides.override_layer_configs(i);
    MP_RETURN_IF_ERROR(check("override_layer_configs", i, item, item.layer_name()));
  }
  for (int i = 0; i < overrides.override_layer_types_size(); ++i) {
    MP_RETURN_IF_ERROR(check("override_layer_types", i, overrides.override_layer_types(i), ""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AutoChannelPruneSettings> ReadAutoChannelPruneConfig(
    const RetrainCatalog& catalog, absl::string_view cfg, const std::string& file,
    const std::function<absl::StatusOr<std::string>(const std::string& name)>& read_file, const ReferenceDefects& defects) {
  AutoChannelPruneConfig message;
  MP_RETURN_IF_ERROR(ParseTextFormat(cfg, v1::CONFIG_SYNTAX, file, message).status());
  MP_RETURN_IF_ERROR(CheckValues(message, cfg, file));
  AutoChannelPruneSettings settings = {.compress_ratio = message.compress_ratio(),
                                       .ascend_optimized = message.ascend_optimized(),
                                       .max_prune_ratio = message.max_prune_ratio(),
                                       .test_iteration = message.test_iteration()};
  std::string overrides_text;
  std::string overrides_file = file;
  if (message.has_override_prune_cfg()) {
    overrides_file = message.override_prune_cfg();
    absl::StatusOr<std::string> text = read_file(overrides_file);
    if (!text.ok()) {
      const TextPosition position = LocateField(cfg, {{"override_prune_cfg"}});
      const bool placed = !PlaceOf(text.status()).file.empty();
      return WithMetadata(
          placed ? text.status() : AtPlace(text.status(), {.file = file, .line = position.line, .column = position.column}),
          "key", "override_prune_cfg");
    }
    overrides_text = *std::move(text);
    MP_RETURN_IF_ERROR(ParseTextFormat(overrides_text, v1::CONFIG_SYNTAX, overrides_file, settings.overrides).status());
    MP_RETURN_IF_ERROR(CheckOverrides(settings.overrides, overrides_text, overrides_file));
  }

  AMCTRetrainConfig definition = settings.overrides;
  SetFilter(kGlobalRatio, settings.ascend_optimized, *definition.mutable_prune_config());
  MP_ASSIGN_OR_RETURN(RetrainConfig config, CheckRetrainDefinition(catalog, definition, overrides_text, overrides_file,
                                                                   RetrainAbilities::kPrune, defects));
  settings.warnings = std::move(config.warnings);
  std::set<std::string> overridden;
  std::set<std::string> overridden_types;
  for (const auto& item : settings.overrides.override_layer_configs()) {
    overridden.insert(item.layer_name());
  }
  for (const auto& item : settings.overrides.override_layer_types()) {
    overridden_types.insert(item.layer_type());
  }
  for (const RetrainCatalogLayer& layer : catalog.layers) {
    if (overridden_types.contains(layer.type)) {
      overridden.insert(layer.name);
    }
  }
  for (const LayerRetrainConfig& layer : config.layers) {
    if (!std::holds_alternative<std::monostate>(layer.prune) && !overridden.contains(layer.name)) {
      settings.searched.insert(layer.name);
    }
  }
  if (settings.searched.empty()) {
    const char* field = settings.overrides.override_layer_configs_size() > 0 ? "override_layer_configs" : "override_layer_types";
    return CfgError(v1::CONFIG_EMPTY, overrides_text, overrides_file, {{field, 0}}, "",
                    "every layer is overridden or skipped; leave at least one to search a ratio for");
  }
  return settings;
}

std::string PrintFoundRatios(const AutoChannelPruneSettings& settings, const std::vector<FoundRatio>& ratios) {
  AMCTRetrainConfig config = settings.overrides;
  for (const FoundRatio& found : ratios) {
    if (found.kept == found.total) {
      config.add_regular_prune_skip_layers(found.layer);
      continue;
    }
    auto& item = *config.add_override_layer_configs();
    item.set_layer_name(found.layer);
    SetFilter(static_cast<float>(1 - static_cast<double>(found.kept) / static_cast<double>(found.total)),
              settings.ascend_optimized, *item.mutable_prune_config());
  }
  SetFilter(kGlobalRatio, settings.ascend_optimized, *config.mutable_prune_config());
  return PrintTextFormat(config);
}

}  // namespace modelpress::engine
