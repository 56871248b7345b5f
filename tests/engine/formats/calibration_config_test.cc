#include "engine/formats/calibration_config.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/formats/kv_cache_config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

LayerCatalog Catalog() {
  LayerCatalog catalog;
  catalog.layers = {{.name = "conv", .type = "Conv2d", .packed_sizes = {4}},
                    {.name = "odd", .type = "Conv2d", .packed_sizes = {3}},
                    {.name = "shared", .type = "Conv2d", .why_not = "its weight 'w' is used by 2 nodes"},
                    {.name = "fc", .type = "Linear", .has_bias = true, .packed_sizes = {8}},
                    {.name = "free", .type = "Linear", .packed_sizes = {8}},
                    {.name = "rnn", .type = "LSTM", .packed_sizes = {4, 4}}};
  catalog.other_modules = {"bn", "relu"};
  return catalog;
}

absl::StatusOr<QuantConfigText> Create(const std::string& cfg, const ReferenceDefects& defects = {}) {
  return CreateQuantConfigText(Catalog(), cfg, "in.cfg", defects);
}

absl::StatusOr<QuantConfig> Read(const std::string& json, const ReferenceDefects& defects = {}) {
  return ReadQuantConfig(Catalog(), json, "c.json", defects);
}

QuantConfig RoundTrip(const std::string& cfg) {
  absl::StatusOr<QuantConfigText> text = Create(cfg);
  EXPECT_TRUE(text.ok()) << text.status();
  absl::StatusOr<QuantConfig> config = Read(text->json);
  EXPECT_TRUE(config.ok()) << config.status();
  return *std::move(config);
}

const LayerConfig& Get(const QuantConfig& config, const std::string& name) {
  for (const LayerConfig& layer : config.layers) {
    if (layer.name == name) {
      return layer;
    }
  }
  static const LayerConfig kNone;
  ADD_FAILURE() << name;
  return kNone;
}

TEST(CreateTest, LayersComeBackInTheOrderOfTheCatalog) {
  std::vector<std::string> names;
  for (const LayerConfig& layer : RoundTrip("skip_layers: 'odd'").layers) {
    names.push_back(layer.name);
  }
  EXPECT_THAT(names, ElementsAre("conv", "fc", "free", "rnn"));
}

TEST(CreateTest, AskedOfManyLayersItIsLoweredWithAWarning) {
  const absl::StatusOr<QuantConfigText> text =
      Create("common_config { arq_quantize { quant_bits: 4 } ifmr_quantize { dst_type: INT16 } dmq_balancer { } }");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->warnings, ElementsAre(HasSubstr("no INT16: free"), HasSubstr("not balanced, since their type cannot be: rnn"),
                                          HasSubstr("even number of input channels: odd")));
  const QuantConfig config = *Read(text->json);
  EXPECT_EQ(16, Get(config, "fc").activation.bits);
  EXPECT_EQ(8, Get(config, "free").activation.bits);
  EXPECT_EQ(4, Get(config, "conv").weight.bits);
  EXPECT_EQ(8, Get(config, "odd").weight.bits);
  EXPECT_EQ(0.5, Get(config, "conv").migration_strength);
  EXPECT_EQ(std::nullopt, Get(config, "rnn").migration_strength);
}

TEST(CreateTest, DeviationsAreSaidAndCanBeTurnedOff) {
  const std::string int16 =
      "override_layer_types { layer_type: 'Linear' calibration_config { ifmr_quantize { dst_type: INT16 } } }";
  EXPECT_THAT(Create(int16)->deviations, ElementsAre(HasSubstr("INT16")));
  EXPECT_TRUE(Read(Create(int16)->json).ok());
  EXPECT_THAT(Create(int16, {.keeps_int16_by_type = true})->json, HasSubstr("\"num_bits\":16"));
  EXPECT_EQ(v1::CONFIG_VALUE, ReasonOf(Read(Create(int16, {.keeps_int16_by_type = true})->json).status()));

  const std::string dmq = "override_layer_configs { layer_name: 'rnn' calibration_config { dmq_balancer { } } }";
  EXPECT_EQ(v1::CONFIG_VALUE, ReasonOf(Create(dmq).status()));
  const absl::StatusOr<QuantConfigText> kept = Create(dmq, {.balances_rnn = true});
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(0.5, Get(*Read(kept->json, {.balances_rnn = true}), "rnn").migration_strength);
  EXPECT_EQ(std::nullopt, Get(*Read(kept->json), "rnn").migration_strength) << "it cannot be executed";

  const std::string missing = "override_layer_configs { layer_name: 'fc' }";
  EXPECT_EQ("calibration_config", MetadataOf(Create(missing).status())["key"]);
  EXPECT_TRUE(Create(missing, {.accepts_missing_required = true}).ok());
}

TEST(CreateTest, OverridesOfLayersThatCannotBeQuantizedAreWarnedOf) {
  const absl::StatusOr<QuantConfigText> text = Create(
      "override_layer_configs { layer_name: 'bn' calibration_config { } } "
      "override_layer_configs { layer_name: 'shared' calibration_config { } }");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->warnings, ElementsAre(HasSubstr("layer 'bn'"), HasSubstr("is used by 2 nodes")));
  EXPECT_THAT(text->json, Not(HasSubstr("shared")));
}

TEST(CreateTest, ALayerThatFailsTheConditionsMayBeSkipped) { EXPECT_TRUE(Create("skip_layers: 'shared'").ok()); }

TEST(CreateTest, TheLastStepFitsIntoTheRangeByDecimals) {
  EXPECT_TRUE(Create("common_config { ifmr_quantize { search_step: 0.6 } }").ok()) << "1.3 - 0.7 is less than 0.6 in binary";
  EXPECT_FALSE(Create("common_config { ifmr_quantize { search_step: 0.60001 } }").ok());
  EXPECT_TRUE(Create("common_config { ifmr_quantize { search_step: 0.0001 } }").ok());
  for (const char* bad : {"nan", "inf", "-1", "1e-38"}) {  // the last one would be a search without end
    EXPECT_FALSE(Create(absl::StrCat("common_config { ifmr_quantize { search_step: ", bad, " } }")).ok()) << bad;
  }
  for (const char* bad : {"nan", "inf", "-1"}) {
    EXPECT_FALSE(Create(absl::StrCat("common_config { ifmr_quantize { search_range_end: ", bad, " } }")).ok()) << bad;
    EXPECT_FALSE(Create(absl::StrCat("common_config { ada_quantize { beta_range_start: ", bad, " } }")).ok()) << bad;
    EXPECT_FALSE(Create(absl::StrCat("common_config { dmq_balancer { migration_strength: ", bad, " } }")).ok()) << bad;
  }
}

TEST(CreateTest, AModelWithoutLayersSaysWhy) {
  LayerCatalog catalog;
  EXPECT_EQ(v1::CONFIG_EMPTY, ReasonOf(CreateQuantConfigText(catalog, QuantConfigArguments()).status()));
  catalog.layers = {{.name = "shared", .type = "Conv2d", .why_not = "its weight 'w' is used by 2 nodes"}};
  EXPECT_THAT(std::string(CreateQuantConfigText(catalog, QuantConfigArguments()).status().message()),
              HasSubstr("used by 2 nodes"));
  catalog.layers = {{.name = "batch_num", .type = "Conv2d"}};
  EXPECT_EQ("batch_num", PlaceOf(CreateQuantConfigText(catalog, QuantConfigArguments()).status()).layer);
}

TEST(CreateTest, OddNamesAndLargeNumbers) {
  LayerCatalog catalog;
  catalog.layers = {{.name = "\xE4\xB8\xAD\"\\", .type = "Conv2d"}, {.name = "a/b", .type = "Conv2d"}};
  const absl::StatusOr<QuantConfigText> text = CreateQuantConfigText(catalog, {.batch_num = 4294967295});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->json, HasSubstr("\"\\u4e2d\\\"\\\\\":{"));
  EXPECT_EQ(2, ReadQuantConfig(catalog, text->json, "c", {})->layers.size());
}

TEST(ReadTest, StrictTypesWithPlace) {
  struct Case {
    const char* json;
    v1::Reason reason;
    const char* key;
    int column;
  };
  for (const Case& c : std::vector<Case>{
           {"[]", v1::CONFIG_TYPE, "", 1},
           {"{\"version\": true, \"fc\": {}}", v1::CONFIG_TYPE, "version", 2},
           {"{\"batch_num\": 1.0, \"fc\": {}}", v1::CONFIG_TYPE, "batch_num", 2},
           {"{\"batch_num\": 0, \"fc\": {}}", v1::CONFIG_VALUE, "batch_num", 2},
           {"{\"do_fusion\": 1}", v1::CONFIG_TYPE, "do_fusion", 2},
           {"{\"fakequant_precision_mode\": \"X\"}", v1::CONFIG_VALUE, "fakequant_precision_mode", 2},
           {"{\"skip_fusion_layers\": \"conv\"}", v1::CONFIG_TYPE, "skip_fusion_layers", 2},
           {"{\"skip_fusion_layers\": [\"conv\", \"zz\"]}", v1::CONFIG_UNKNOWN_LAYER, "skip_fusion_layers", 33},
           {"{\"skip_fusion_layers\": [\"fc\"]}", v1::CONFIG_VALUE, "skip_fusion_layers", 25},
           {"{\"fc\": []}", v1::CONFIG_TYPE, "fc", 2},
           {"{\"shared\": {}}", v1::CONFIG_UNKNOWN_LAYER, "shared", 2},
           {"{\"fc\": {\"activation_quant_params\": 1}}", v1::CONFIG_TYPE, "activation_quant_params", 9},
           {"{\"fc\": {\"activation_quant_params\": {\"asymmetric\": 0}}}", v1::CONFIG_TYPE, "asymmetric", 37},
           {"{\"fc\": {\"activation_quant_params\": {\"num_bits\": 8.0}}}", v1::CONFIG_TYPE, "num_bits", 37},
           {"{\"fc\": {\"activation_quant_params\": {\"num_bits\": 99999999999999999999}}}", v1::CONFIG_VALUE, "num_bits", 37},
           {"{\"fc\": {\"activation_quant_params\": {\"max_percentile\": \"1\"}}}", v1::CONFIG_TYPE, "max_percentile", 37},
           {"{\"fc\": {\"activation_quant_params\": {\"search_range\": [1, \"2\"]}}}", v1::CONFIG_TYPE, "search_range", 57},
           {"{\"fc\": {\"weight_quant_params\": {\"channel_wise\": true}}}", v1::CONFIG_VALUE, "channel_wise", 33},
           {"{\"fc\": {\"weight_quant_params\": {\"wts_algo\": \"ada_quantize\", \"reg_param\": 1}}}", v1::CONFIG_VALUE,
            "reg_param", 61},
           {"{\"fc\": {\"quant_enable\": true, \"dmq_balancer_param\": 0.9}}", v1::CONFIG_VALUE, "dmq_balancer_param", 31},
           {"{\"fc\": {\"quant_enable\": false}}", v1::CONFIG_EMPTY, "quant_enable", 1},
           {"{}", v1::CONFIG_EMPTY, "quant_enable", 1},
       }) {
    const absl::Status status = Read(c.json).status();
    EXPECT_EQ(c.reason, ReasonOf(status)) << c.json << status;
    EXPECT_EQ(c.key, MetadataOf(status)["key"]) << c.json;
    EXPECT_EQ(1, PlaceOf(status).line) << c.json;
    EXPECT_EQ(c.column, PlaceOf(status).column) << c.json;
  }
}

TEST(ReadTest, FillsInDefaults) {
  const absl::StatusOr<QuantConfig> config = Read(
      "{\"activation_offset\": false, \"conv\": {\"quant_enable\": true, \"weight_quant_params\": {\"wts_algo\": "
      "\"ada_quantize\"}}}");
  ASSERT_TRUE(config.ok()) << config.status();
  const LayerConfig& conv = Get(*config, "conv");
  EXPECT_FALSE(conv.activation.asymmetric);
  EXPECT_TRUE(conv.weight.channel_wise);
  EXPECT_EQ(WeightConfig::Algorithm::kAda, conv.weight.algorithm);
  EXPECT_EQ(10000, conv.weight.num_iteration);
  EXPECT_EQ(20, conv.weight.beta_start);
}

TEST(KvCacheTest, CommonLayersThenOverrides) {
  const absl::StatusOr<QuantConfigText> text = CreateKvCacheConfigText(
      Catalog(),
      "kv_cache_quant_config { quant_layers: ['free', 'fc'] } "
      "override_layers_configs { layer_name: 'free' kv_data_quant_config { hfmg_quantize { quant_granularity: per_channel } } }",
      "kv.cfg", {});
  ASSERT_TRUE(text.ok()) << text.status();
  const absl::StatusOr<KvCacheConfig> config = ReadKvCacheConfig(Catalog(), text->json, "kv.json");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(2, config->layers.size());
  EXPECT_EQ("free", config->layers[0].name);
  EXPECT_TRUE(config->layers[0].per_channel);
  EXPECT_EQ(ActivationConfig::Algorithm::kHfmg, config->layers[0].activation.algorithm);
  EXPECT_TRUE(config->layers[1].activation.asymmetric);
}

TEST(KvCacheTest, RejectedCfgs) {
  struct Case {
    const char* cfg;
    v1::Reason reason;
    const char* key;
    const char* layer;
    int column;
  };
  for (const Case& c : std::vector<Case>{
           {"", v1::CONFIG_EMPTY, "quant_layers", "", 0},
           {"batch_num: 0", v1::CONFIG_VALUE, "batch_num", "", 1},
           {"kv_cache_quant_config { quant_layers: ['fc', 'fc'] }", v1::CONFIG_VALUE, "quant_layers", "fc", 46},
           {"kv_cache_quant_config { quant_layers: ['fc', 'conv'] }", v1::CONFIG_UNKNOWN_LAYER, "quant_layers", "conv", 46},
           {"override_layers_configs { layer_name: 'relu' kv_data_quant_config { } }", v1::CONFIG_UNKNOWN_LAYER, "layer_name",
            "relu", 27},
           {"override_layers_configs { layer_name: 'fc' }", v1::CONFIG_VALUE, "kv_data_quant_config", "fc", 1},
           {"override_layers_configs { layer_name: 'fc' kv_data_quant_config { hfmg_quantize { num_of_bins: 5 } } }",
            v1::CONFIG_VALUE, "num_of_bins", "fc", 83},
       }) {
    const absl::Status status = CreateKvCacheConfigText(Catalog(), c.cfg, "kv.cfg", {}).status();
    EXPECT_EQ(c.reason, ReasonOf(status)) << c.cfg << status;
    EXPECT_EQ(c.key, MetadataOf(status)["key"]) << c.cfg;
    EXPECT_EQ(c.layer, PlaceOf(status).layer) << c.cfg;
    EXPECT_EQ(c.column, PlaceOf(status).column) << c.cfg;
    EXPECT_EQ("kv.cfg", PlaceOf(status).file);
  }
}

TEST(KvCacheTest, RejectedJson) {
  for (const auto& [json, key] : std::vector<std::pair<std::string, std::string>>{
           {"{}", "kv_data_quant_config"},
           {"{\"version\": 1}", "version"},
           {"{\"fc\": {\"x\": 1}}", "x"},
           {"{\"fc\": {\"kv_data_quant_config\": {\"num_bits\": 8}}}", "num_bits"},
           {"{\"fc\": {\"kv_data_quant_config\": {\"quant_granularity\": 2}}}", "quant_granularity"},
           {"{\"fc\": {\"kv_data_quant_config\": {\"search_step\": 0}}}", "search_step"}}) {
    const absl::Status status = ReadKvCacheConfig(Catalog(), json, "kv.json").status();
    EXPECT_EQ(absl::StatusCode::kInvalidArgument, status.code()) << json;
    EXPECT_EQ(key, MetadataOf(status)["key"]) << json;
    EXPECT_EQ(1, PlaceOf(status).line) << json;
  }
  EXPECT_FALSE(*IsKvCacheConfig("{\"batch_num\": 1, \"fc\": {\"quant_enable\": true}}", "c"));
}

}  // namespace
}  // namespace modelpress::engine
