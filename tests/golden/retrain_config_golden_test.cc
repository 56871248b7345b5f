// Every case of golden/config about retraining and pruning, and the configurations of golden/prune: the JSON byte by byte, and
// for rejected input who is to blame and where.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "amct/retrain_config.pb.h"
#include "engine/base/status.h"
#include "engine/formats/auto_channel_prune_config.h"
#include "engine/formats/record.h"
#include "engine/formats/retrain_config.h"
#include "engine/formats/text_format.h"
#include "engine/functions/ptq_model.h"
#include "engine/retrain/retrain_layers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden/config_cases.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Where the reference is wrong and modelpress, unless asked otherwise, does something else.
const std::set<std::string> kDefectCases = {"rt_prune_override_type", "bad_rt_a4"};

RetrainCatalog CatalogOf(const fs::path& model_path, const ReferenceDefects& defects) {
  const FileSet files({{"model.onnx", model_path.string()}});
  CallContext context;
  context.files = &files;
  context.defects = defects;
  absl::StatusOr<NamedModel> model = ReadNamedModel(context, "model.onnx", "model", "");
  EXPECT_TRUE(model.ok()) << model.status();
  return FindRetrainLayers(model->layers, defects).catalog;
}

const std::map<std::string, std::string>& ExpectedBlames();

void ExpectBlame(const std::string& name, const json& expected, const absl::Status& status) {
  ASSERT_FALSE(status.ok()) << "it must be rejected: " << expected;
  EXPECT_EQ(ReasonOf(status) == v1::FILE_NOT_FOUND ? absl::StatusCode::kNotFound : absl::StatusCode::kInvalidArgument,
            status.code())
      << status;
  const std::string category = expected.value("category", expected.value("python_type", ""));
  if (!category.empty()) {  // the reference does reject it
    EXPECT_EQ(category == "TypeError", ReasonOf(status) == v1::CONFIG_TYPE) << category << ": " << status;
    EXPECT_EQ(category == "ParseError", ReasonOf(status) == v1::CONFIG_SYNTAX) << category << ": " << status;
  }
  auto it = ExpectedBlames().find(name);
  EXPECT_EQ(it == ExpectedBlames().end() ? "" : it->second, Blame(status)) << status;
}

// The part of RetrainConfig that functions go by, as the JSON says it.
void ExpectLayersAsInJson(const RetrainConfig& config) {
  const json effective = json::parse(config.json);
  std::set<std::string> names;
  for (const LayerRetrainConfig& layer : config.layers) {
    names.insert(layer.name);
    ASSERT_TRUE(effective.contains(layer.name)) << layer.name;
    const json& entry = effective[layer.name];
    EXPECT_EQ(entry.value("retrain_enable", false), layer.quantizes) << layer.name;
    EXPECT_EQ(entry.value("regular_prune_enable", false), !std::holds_alternative<std::monostate>(layer.prune)) << layer.name;
    if (entry.contains("retrain_data_config")) {
      const json& data = entry["retrain_data_config"];
      EXPECT_EQ(data["dst_type"], absl::StrCat("INT", layer.activation.bits));
      EXPECT_EQ(data.contains("clip_max"), layer.activation.clip.has_value());
      EXPECT_EQ(data.contains("fixed_min"), layer.activation.fixed_min.has_value());
      const json& weight = entry["retrain_weight_config"];
      EXPECT_EQ(weight["dst_type"], absl::StrCat("INT", layer.weight.bits));
      EXPECT_EQ(weight["channel_wise"], layer.weight.channel_wise);
      EXPECT_EQ(weight["algo"] == "ulq_retrain", layer.weight.algorithm == WeightRetrainConfig::Algorithm::kUlq);
    }
    if (const auto* filter = std::get_if<FilterPruneConfig>(&layer.prune)) {
      EXPECT_EQ(entry["regular_prune_config"]["prune_ratio"], filter->ratio);
      EXPECT_EQ(entry["regular_prune_config"]["ascend_optimized"], filter->ascend_optimized);
    } else if (const auto* selective = std::get_if<SelectivePruneConfig>(&layer.prune)) {
      EXPECT_EQ(entry["regular_prune_config"]["update_freq"], selective->update_freq);
    }
  }
  for (const auto& [name, entry] : effective.items()) {
    EXPECT_EQ(entry.is_object(), names.contains(name)) << name;
  }
}

class ConfigTest : public testing::TestWithParam<ConfigCase> {
 protected:
  absl::StatusOr<std::string> Json(const ReferenceDefects& defects) {
    const ConfigCase& golden = GetParam();
    const RetrainCatalog catalog = CatalogOf(golden.model(), defects);
    const std::optional<std::string> cfg =
        golden.has("in.cfg") ? std::optional(ReadFile(golden.folder() / "in.cfg")) : std::nullopt;
    if (golden.kind() == "retrain") {
      MP_ASSIGN_OR_RETURN(QuantConfigText text, CreateRetrainConfigText(catalog, cfg, "in.cfg", defects));
      const absl::StatusOr<RetrainConfig> config = ReadRetrainConfig(catalog, text.json, "config.json");
      EXPECT_TRUE(config.ok()) << config.status();
      EXPECT_EQ(text.json, config->json) << "what is written is read differently";
      ExpectLayersAsInJson(*config);
      return std::move(text.json);
    }
    absl::StatusOr<RetrainConfig> config =
        golden.kind() == "retrain-json"
            ? ReadRetrainConfig(catalog, ReadFile(golden.folder() / "config.json"), "config.json")
            : ReadRetrainDefinition(catalog, *cfg, "in.cfg",
                                    golden.kind() == "prune" ? RetrainAbilities::kPrune : RetrainAbilities::kQuantAndPrune,
                                    defects);
    MP_RETURN_IF_ERROR(config.status());
    ExpectLayersAsInJson(*config);
    return std::move(config->json);
  }

  // What the reference has written, without what is of use inside of it only.
  std::string Expected() const {
    const ConfigCase& golden = GetParam();
    const std::string text = ReadFile(golden.folder() / (golden.kind() == "retrain" ? "config.json" : "effective.json"));
    const size_t internal = text.find(",\n    \"support_types\":");
    return internal == std::string::npos ? text : text.substr(0, internal) + "\n}";
  }
};

TEST_P(ConfigTest, GivesTheReferencesBytes) {
  const ConfigCase& golden = GetParam();
  for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
    const absl::StatusOr<std::string> written = Json(defects);
    const bool differs = kDefectCases.contains(golden.name) && !defects.any();
    if (differs == golden.succeeds()) {
      ExpectBlame(golden.name, golden.info.value("error", json::object()), written.status());
    } else {
      ASSERT_TRUE(written.ok()) << written.status();
      if (!differs) {
        EXPECT_EQ(Expected(), *written);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, ConfigTest, testing::ValuesIn(ConfigCasesOf({"retrain", "retrain-json", "prune", "compress"})),
                         NameOf);

// ---- golden/qat --------------------------------------------------------------------------------------------------------------

const fs::path kTrainingCases = fs::path(MODELPRESS_TEST_DATA) / "golden" / "qat";

// Here torch has exported the RNN's weights as nodes that compute them, which makes no layer of it.
const std::set<std::string> kComputedWeights = {"q13_gru", "q16_lstm"};

// What training runs of the reference were configured with, written from a .cfg or read.
TEST(TrainingConfigTest, IsTheReferences) {
  int created = 0;
  int read = 0;
  for (const auto& folder : fs::directory_iterator(kTrainingCases)) {
    if (!fs::exists(folder.path() / "config.json") || kComputedWeights.contains(folder.path().filename().string())) {
      continue;
    }
    const std::string json_text = ReadFile(folder.path() / "config.json");
    for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
      const RetrainCatalog catalog = CatalogOf(folder.path() / "model.onnx", defects);
      if (fs::exists(folder.path() / "quant.cfg")) {
        ++created;
        const absl::StatusOr<QuantConfigText> text =
            CreateRetrainConfigText(catalog, ReadFile(folder.path() / "quant.cfg"), "quant.cfg", defects);
        ASSERT_TRUE(text.ok()) << folder.path() << text.status();
        EXPECT_EQ(json_text, text->json) << folder.path();
      }
      ++read;
      const absl::StatusOr<RetrainConfig> config = ReadRetrainConfig(catalog, json_text, "config.json");
      ASSERT_TRUE(config.ok()) << folder.path() << config.status();
      ExpectLayersAsInJson(*config);
      json effective = json::parse(config->json);
      effective.merge_patch(json::parse(json_text));
      EXPECT_EQ(effective, json::parse(config->json)) << folder.path() << ": something that is given is not as given";
    }
  }
  EXPECT_EQ(8, created);
  EXPECT_EQ(28, read);
}

// The same for combined calls, which write no configuration: what their rewrite plans say.
TEST(TrainingConfigTest, OfCombinedCallsIsTheReferences) {
  int cases = 0;
  for (const auto& folder : fs::directory_iterator(kTrainingCases)) {
    if (!fs::exists(folder.path() / "plan.json") || fs::exists(folder.path() / "config.json")) {
      continue;
    }
    ++cases;
    for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
      const absl::StatusOr<RetrainConfig> config =
          ReadRetrainDefinition(CatalogOf(folder.path() / "model.onnx", defects), ReadFile(folder.path() / "quant.cfg"),
                                "quant.cfg", RetrainAbilities::kQuantAndPrune, defects);
      ASSERT_TRUE(config.ok()) << folder.path() << config.status();
      std::set<std::string> quantized;
      std::set<std::string> selective;
      const json plan = json::parse(ReadFile(folder.path() / "plan.json"));
      for (const json& layer : plan["layers"]) {
        if (!layer["act"].is_null()) {
          quantized.insert(layer["module"]);
        }
        if (layer.contains("selective") && !layer["selective"].is_null()) {
          selective.insert(layer["module"]);
        }
      }
      for (const LayerRetrainConfig& layer : config->layers) {
        EXPECT_EQ(quantized.contains(layer.name), layer.quantizes) << folder.path() << layer.name;
        EXPECT_EQ(selective.contains(layer.name), std::holds_alternative<SelectivePruneConfig>(layer.prune))
            << folder.path() << layer.name;
      }
    }
  }
  EXPECT_EQ(5, cases);
}

// ---- automatic channel pruning ------------------------------------------------------------------------------------------------

absl::StatusOr<AutoChannelPruneSettings> ReadSearch(const fs::path& folder, const fs::path& model, const std::string& cfg,
                                                    const ReferenceDefects& defects) {
  return ReadAutoChannelPruneConfig(
      CatalogOf(model, defects), ReadFile(folder / cfg), cfg,
      [&folder](const std::string& name) -> absl::StatusOr<std::string> {
        if (!fs::exists(folder / name)) {
          return MakeError(v1::FILE_NOT_FOUND, "there is no such file", {.file = name});
        }
        return ReadFile(folder / name);
      },
      defects);
}

class SearchConfigTest : public testing::TestWithParam<ConfigCase> {};

TEST_P(SearchConfigTest, SearchesTheReferencesLayers) {
  const ConfigCase& golden = GetParam();
  for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
    const absl::StatusOr<AutoChannelPruneSettings> settings = ReadSearch(golden.folder(), golden.model(), "in.cfg", defects);
    if (!golden.succeeds()) {
      ExpectBlame(golden.name, golden.info["error"], settings.status());
      continue;
    }
    ASSERT_TRUE(settings.ok()) << settings.status();
    std::set<std::string> searched;
    const json expected = json::parse(ReadFile(golden.folder() / "effective.json"));
    for (const auto& [layer, entry] : expected.items()) {
      searched.insert(layer);
      EXPECT_EQ(entry["regular_prune_config"]["ascend_optimized"], settings->ascend_optimized);
    }
    EXPECT_EQ(searched, settings->searched);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, SearchConfigTest, testing::ValuesIn(ConfigCasesOf({"auto_channel_prune"})), NameOf);

// ---- golden/prune ------------------------------------------------------------------------------------------------------------

const fs::path kPruneCases = fs::path(MODELPRESS_TEST_DATA) / "golden" / "prune";

// Errors that come later than the configuration.
const std::set<std::string> kOtherErrors = {
    "error_functional_matmul",  "error_functional_matmul_add", "error_shared_conv",          "error_train_forward_fails",
    "error_restore_bad_record", "error_restore_missing_key",   "error_restore_unknown_node", "error_restore_unpruned_checkpoint"};

// Names of configuration files of golden/prune with their case: "chain/prune.cfg".
std::vector<std::string> PruneConfigs() {
  std::vector<std::string> configs;
  for (const auto& folder : fs::directory_iterator(kPruneCases)) {
    for (const char* name : {"prune.cfg", "prune_reversed.cfg", "compress.cfg"}) {
      if (fs::exists(folder.path() / name)) {
        configs.push_back(absl::StrCat(folder.path().filename().string(), "/", name));
      }
    }
  }
  std::sort(configs.begin(), configs.end());
  return configs;
}

class PruneConfigTest : public testing::TestWithParam<std::string> {};

TEST_P(PruneConfigTest, IsReadOrRejected) {
  const fs::path file = kPruneCases / GetParam();
  const std::string name = file.parent_path().filename().string();
  const json info = json::parse(ReadFile(file.parent_path() / "case.json"));
  for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
    const RetrainCatalog catalog = CatalogOf(file.parent_path() / "model.onnx", defects);
    const bool compress = file.filename() == "compress.cfg";
    const absl::StatusOr<RetrainConfig> config =
        ReadRetrainDefinition(catalog, ReadFile(file), file.filename().string(),
                              compress ? RetrainAbilities::kQuantAndPrune : RetrainAbilities::kPrune, defects);
    if (info.value("expect", "") == "error" && !kOtherErrors.contains(name)) {
      ExpectBlame(name, info["error"], config.status());
      if (info["error"].contains("reported_layer")) {
        EXPECT_EQ(info["error"]["reported_layer"], PlaceOf(config.status()).layer);
      }
      continue;
    }
    ASSERT_TRUE(config.ok()) << config.status();
    ExpectLayersAsInJson(*config);
    const fs::path record_file =
        file.parent_path() / (file.filename() == "prune_reversed.cfg"                 ? "record_reversed.txt"
                              : fs::exists(file.parent_path() / "record_created.txt") ? "record_created.txt"
                                                                                      : "record.txt");
    if (!fs::exists(record_file)) {
      continue;
    }
    // The layers that the reference has pruned are pruned in the way in which it has done it.
    std::set<std::string> filter;
    std::set<std::string> selective;
    for (const LayerRetrainConfig& layer : config->layers) {
      if (std::holds_alternative<FilterPruneConfig>(layer.prune)) {
        filter.insert(layer.name);
      } else if (std::holds_alternative<SelectivePruneConfig>(layer.prune)) {
        selective.insert(layer.name);
      }
    }
    const absl::StatusOr<ParsedRecord> record = ParseRecord(ReadFile(record_file), "record.txt");
    ASSERT_TRUE(record.ok()) << record.status();
    std::set<std::string> recorded;
    for (const auto& prune : record->record.prune_record()) {
      for (const auto& producer : prune.producer()) {
        EXPECT_TRUE(filter.contains(producer.name())) << producer.name();
      }
      if (prune.has_selective_prune()) {
        recorded.insert(prune.selective_prune().name());
      }
    }
    EXPECT_EQ(recorded, selective);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, PruneConfigTest, testing::ValuesIn(PruneConfigs()),
                         [](const testing::TestParamInfo<std::string>& info) {
                           return absl::StrReplaceAll(info.param, {{"/", "_"}, {".cfg", ""}});
                         });

// Numbers of channels that give the ratios of the reference's result give its bytes.
TEST(FoundRatiosTest, GiveTheReferencesBytes) {
  int cases = 0;
  for (const auto& folder : fs::directory_iterator(kPruneCases)) {
    if (!fs::exists(folder.path() / "output.cfg")) {
      continue;
    }
    ++cases;
    const std::string expected = ReadFile(folder.path() / "output.cfg");
    const absl::StatusOr<AutoChannelPruneSettings> settings =
        ReadSearch(folder.path(), folder.path() / "model.onnx", "amc.cfg", {});
    ASSERT_TRUE(settings.ok()) << settings.status();
    AMCTPytorchProto::AMCTRetrainConfig output;
    ASSERT_TRUE(ParseTextFormat(expected, v1::CONFIG_SYNTAX, "output.cfg", output).ok());
    const json layers = json::parse(ReadFile(folder.path() / "search_state.json"))["layers"];
    std::vector<FoundRatio> ratios;
    for (const auto& item : output.override_layer_configs()) {
      if (settings->searched.contains(item.layer_name())) {
        const int64_t total = layers[item.layer_name()]["ori_cout"];
        const float ratio = item.prune_config().filter_pruner().balanced_l2_norm_filter_prune().prune_ratio();
        ratios.push_back({item.layer_name(), total - std::lround(ratio * static_cast<float>(total)), total});
      }
    }
    EXPECT_FALSE(ratios.empty());
    const std::string printed = PrintFoundRatios(*settings, ratios);
    EXPECT_EQ(expected, printed) << folder.path();
    const absl::StatusOr<RetrainConfig> config =
        ReadRetrainDefinition(CatalogOf(folder.path() / "model.onnx", {}), printed, "output.cfg", RetrainAbilities::kPrune, {});
    EXPECT_TRUE(config.ok()) << config.status();
  }
  EXPECT_EQ(5, cases);
}

const std::map<std::string, std::string>& ExpectedBlames() {
  static const auto& blames = *new std::map<std::string, std::string>{
      {"bad_amc_all", "CONFIG_EMPTY key=skip_layer_types o.cfg:1:1"},
      {"bad_amc_empty", "CONFIG_VALUE key=compress_ratio in.cfg"},
      {"bad_amc_iter", "CONFIG_VALUE key=test_iteration in.cfg:1:19"},
      {"bad_amc_max0", "CONFIG_VALUE key=max_prune_ratio in.cfg:1:19"},
      {"bad_amc_nofile", "FILE_NOT_FOUND key=override_prune_cfg nope.cfg"},
      {"bad_amc_override_field", "CONFIG_VALUE key=batch_num o.cfg:1:1"},
      {"bad_amc_ratio", "CONFIG_VALUE key=compress_ratio in.cfg:1:1"},
      {"bad_compress_empty", "CONFIG_EMPTY key=prune_config in.cfg"},
      {"bad_prune_empty", "CONFIG_EMPTY key=prune_config in.cfg"},
      {"bad_prune_noalgo", "CONFIG_VALUE key=filter_pruner in.cfg:1:16"},
      {"bad_prune_noratio", "CONFIG_VALUE key=prune_ratio in.cfg:1:32"},
      {"bad_prune_override", "CONFIG_UNKNOWN_LAYER key=layer_name in.cfg:2:26 layer=deconv"},
      {"bad_prune_quant_field", "CONFIG_VALUE key=quant_skip_layers in.cfg:2:1"},
      {"bad_prune_ratio0", "CONFIG_VALUE key=prune_ratio in.cfg:1:64 layer=conv1"},
      {"bad_prune_ratio1", "CONFIG_VALUE key=prune_ratio in.cfg:1:64 layer=conv1"},
      {"bad_prune_skip", "CONFIG_UNKNOWN_LAYER key=regular_prune_skip_layers in.cfg:2:1 layer=dw"},
      {"bad_rt_a16w4", "CONFIG_VALUE key=dst_type in.cfg:1:44 layer=conv1"},
      {"bad_rt_a4", "CONFIG_VALUE key=dst_type in.cfg:1:44 layer=conv1"},
      {"bad_rt_all_skipped", "CONFIG_EMPTY key=skip_layer_types in.cfg:1:1"},
      {"bad_rt_batch", "CONFIG_VALUE key=batch_num in.cfg:1:1"},
      {"bad_rt_clip_half", "CONFIG_VALUE key=clip_min in.cfg:1:44 layer=conv1"},
      {"bad_rt_clip_max", "CONFIG_VALUE key=clip_max in.cfg:1:59 layer=conv1"},
      {"bad_rt_clip_min", "CONFIG_VALUE key=clip_min in.cfg:1:71 layer=conv1"},
      {"bad_rt_override", "CONFIG_UNKNOWN_LAYER key=layer_name in.cfg:1:26 layer=pool"},
      {"bad_rt_override_repeat", "CONFIG_VALUE key=layer_name in.cfg:1:71 layer=grp"},
      {"bad_rt_override_type", "CONFIG_UNKNOWN_LAYER key=layer_type in.cfg:1:24"},
      {"bad_rt_prune_field", "CONFIG_VALUE key=prune_config in.cfg:1:1"},
      {"bad_rt_prune_override_layer", "CONFIG_VALUE key=prune_config in.cfg:1:44 layer=grp"},
      {"bad_rt_quant_skip", "CONFIG_UNKNOWN_LAYER key=quant_skip_layers in.cfg:1:1 layer=zz"},
      {"bad_rt_quant_skip_type", "CONFIG_UNKNOWN_LAYER key=quant_skip_types in.cfg:1:1"},
      {"bad_rt_skip_layer", "CONFIG_UNKNOWN_LAYER key=skip_layers in.cfg:1:1 layer=pool"},
      {"bad_rt_skip_type", "CONFIG_UNKNOWN_LAYER key=skip_layer_types in.cfg:1:1"},
      {"bad_rt_w16", "CONFIG_VALUE key=dst_type in.cfg:1:45 layer=conv1"},
      {"bad_rtjson_algo", "CONFIG_VALUE key=algo config.json:67:13 layer=fc"},
      {"bad_rtjson_batch", "CONFIG_VALUE key=batch_num config.json:1:1"},
      {"bad_rtjson_clip", "CONFIG_TYPE key=clip_max config.json:33:13 layer=grp"},
      {"bad_rtjson_clip_one", "CONFIG_VALUE key=clip_max config.json:33:13 layer=grp"},
      {"bad_rtjson_cw", "CONFIG_VALUE key=channel_wise config.json:72:13 layer=fc"},
      {"bad_rtjson_dtype", "CONFIG_VALUE key=dst_type config.json:68:13 layer=fc"},
      {"bad_rtjson_key", "CONFIG_VALUE key=foo config.json:33:13 layer=grp"},
      {"bad_rtjson_layer", "CONFIG_UNKNOWN_LAYER key=zz config.json:88:5 layer=zz"},
      {"bad_rtjson_none", "CONFIG_EMPTY key=retrain_enable config.json:1:1"},
      {"bad_rtjson_pair", "CONFIG_VALUE key=dst_type config.json:68:13 layer=fc"},
      {"bad_rtjson_prune", "CONFIG_VALUE key=regular_prune_enable config.json:39:9 layer=grp"},
      {"bad_rtjson_version", "CONFIG_VALUE key=version config.json:1:1"},
      {"bad_rtjson_wkey", "CONFIG_VALUE key=foo config.json:38:13 layer=grp"},
      {"error_all_skipped", "CONFIG_EMPTY key=regular_prune_skip_types prune.cfg:2:1"},
      {"error_empty_cfg", "CONFIG_EMPTY key=prune_config prune.cfg"},
      {"error_empty_filter_pruner", "CONFIG_VALUE key=filter_pruner prune.cfg:1:16"},
      {"error_empty_n_out_of_m", "CONFIG_VALUE key=n_out_of_m_pruner prune.cfg:1:16"},
      {"error_empty_prune_config", "CONFIG_VALUE key=prune_config prune.cfg:1:1"},
      {"error_global_skip_unknown", "CONFIG_UNKNOWN_LAYER key=skip_layers prune.cfg:2:1 layer=nope"},
      {"error_negative_update_freq", "CONFIG_SYNTAX key=update_freq prune.cfg:1:70"},
      {"error_no_prunable_layer", "CONFIG_EMPTY"},
      {"error_override_bn_selective", "CONFIG_UNKNOWN_LAYER key=layer_name prune.cfg:2:26 layer=b"},
      {"error_override_ratio_one", "CONFIG_VALUE key=prune_ratio prune.cfg:2:106 layer=c1"},
      {"error_override_repeated", "CONFIG_VALUE key=layer_name prune.cfg:3:26 layer=c1"},
      {"error_override_type_unsupported", "CONFIG_UNKNOWN_LAYER key=layer_type prune.cfg:2:24"},
      {"error_override_unknown_layer", "CONFIG_UNKNOWN_LAYER key=layer_name prune.cfg:2:26 layer=nope"},
      {"error_ratio_missing", "CONFIG_VALUE key=prune_ratio prune.cfg:1:32"},
      {"error_ratio_negative", "CONFIG_VALUE key=prune_ratio prune.cfg:1:64 layer=c0"},
      {"error_ratio_not_number", "CONFIG_SYNTAX key=prune_ratio prune.cfg:1:77"},
      {"error_ratio_one", "CONFIG_VALUE key=prune_ratio prune.cfg:1:64 layer=c0"},
      {"error_ratio_zero", "CONFIG_VALUE key=prune_ratio prune.cfg:1:64 layer=c0"},
      {"error_skip_depthwise_layer", "CONFIG_UNKNOWN_LAYER key=regular_prune_skip_layers prune.cfg:2:1 layer=dw"},
      {"error_skip_type_convtranspose", "CONFIG_UNKNOWN_LAYER key=regular_prune_skip_types prune.cfg:2:1"},
      {"error_skip_type_unsupported", "CONFIG_UNKNOWN_LAYER key=regular_prune_skip_types prune.cfg:2:1"},
      {"error_skip_unknown_layer", "CONFIG_UNKNOWN_LAYER key=regular_prune_skip_layers prune.cfg:2:1 layer=nope"},
      {"error_skip_with_override_only", "CONFIG_VALUE key=regular_prune_skip_layers prune.cfg:2:1"},
      {"error_syntax", "CONFIG_SYNTAX key=filter_pruner prune.cfg:2:1"},
      {"error_unknown_enum", "CONFIG_SYNTAX key=n_out_of_m_type prune.cfg:1:74"},
      {"error_unknown_field", "CONFIG_SYNTAX key=foo prune.cfg:1:1"},
      {"rt_cw_true", "CONFIG_VALUE key=channel_wise in.cfg:1:45 layer=fc"},
      {"rt_prune_override_type", "CONFIG_VALUE key=prune_config in.cfg:1:45"},
  };
  return blames;
}

}  // namespace
}  // namespace modelpress::engine
