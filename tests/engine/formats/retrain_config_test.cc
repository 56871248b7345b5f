#include "engine/formats/retrain_config.h"

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "modelpress/v1/rewrite_plan.pb.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kNoFilter[] = "its channels cannot be pruned";
constexpr char kNoSelective[] = "it cannot be sparse";

RetrainCatalog Catalog() {
  RetrainCatalog catalog;
  catalog.layers = {
      {.name = "conv", .type = "Conv2d", .packed_sizes = {4}},
      {.name = "odd", .type = "Conv2d", .packed_sizes = {3}},
      {.name = "dw", .type = "Conv2d", .why_not_filter = "it is depthwise", .groups = 4, .packed_sizes = {1}},
      {.name = "up", .type = "ConvTranspose2d", .why_not_filter = kNoFilter, .packed_sizes = {4}},
      {.name = "rnn", .type = "LSTM", .why_not_filter = kNoFilter, .why_not_selective = kNoSelective, .packed_sizes = {4, 4}},
      {.name = "fc", .type = "Linear", .packed_sizes = {8}},
      {.name = "twice",
       .type = "Linear",
       .why_not_quant = "it is used twice",
       .why_not_filter = "it is used twice",
       .why_not_selective = "it is used twice"},
  };
  catalog.other_modules = {"bn"};
  return catalog;
}

absl::StatusOr<QuantConfigText> Create(const std::string& cfg, const ReferenceDefects& defects = {}) {
  return CreateRetrainConfigText(Catalog(), cfg, "in.cfg", defects);
}
absl::StatusOr<RetrainConfig> Read(const std::string& json) { return ReadRetrainConfig(Catalog(), json, "c.json"); }
absl::StatusOr<RetrainConfig> Prune(const std::string& cfg) {
  return ReadRetrainDefinition(Catalog(), cfg, "in.cfg", RetrainAbilities::kPrune, {});
}
absl::StatusOr<RetrainConfig> Compress(const std::string& cfg, const ReferenceDefects& defects = {}) {
  return ReadRetrainDefinition(Catalog(), cfg, "in.cfg", RetrainAbilities::kQuantAndPrune, defects);
}

std::string Filter(const std::string& ratio) {
  return absl::StrCat("prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: ", ratio, " } } } ");
}
const std::string& Selective() {
  static const auto& cfg = *new std::string("prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: 3 } } } ");
  return cfg;
}
std::string Override(const std::string& layer, const std::string& content) {
  return absl::StrCat("override_layer_configs { layer_name: '", layer, "' ", content, " } ");
}
std::string OverrideType(const std::string& type, const std::string& content) {
  return absl::StrCat("override_layer_types { layer_type: '", type, "' ", content, " } ");
}
std::string Weights(const std::string& settings) {
  return absl::StrCat("retrain_weight_quant_config { arq_retrain { ", settings, " } } ");
}
std::string Activations(const std::string& settings) {
  return absl::StrCat("retrain_data_quant_config { ulq_quantize { ", settings, " } } ");
}

const LayerRetrainConfig& Get(const RetrainConfig& config, const std::string& name) {
  for (const LayerRetrainConfig& layer : config.layers) {
    if (layer.name == name) {
      return layer;
    }
  }
  static const LayerRetrainConfig kNone;
  ADD_FAILURE() << "no layer " << name;
  return kNone;
}

// What is done with each layer: "conv Q8/8", "up 2:4", "fc 0.5", "rnn -".
std::vector<std::string> Summary(const RetrainConfig& config) {
  std::vector<std::string> summary;
  for (const LayerRetrainConfig& layer : config.layers) {
    std::string text = layer.name;
    if (layer.quantizes) {
      absl::StrAppend(&text, " Q", layer.activation.bits, "/", layer.weight.bits);
    }
    if (const auto* filter = std::get_if<FilterPruneConfig>(&layer.prune)) {
      absl::StrAppend(&text, " ", filter->ratio);
    } else if (std::holds_alternative<SelectivePruneConfig>(layer.prune)) {
      text += " 2:4";
    }
    summary.push_back(text == layer.name ? text + " -" : text);
  }
  return summary;
}

// "REASON key line:column layer".
std::string Blame(const absl::Status& status) {
  const ErrorPlace place = PlaceOf(status);
  return absl::StrCat(v1::Reason_Name(ReasonOf(status)), " ", MetadataOf(status)["key"], " ", place.line, ":", place.column, " ",
                      place.layer);
}

// ---- writing

TEST(CreateRetrainConfigTest, WithoutDefinitionEveryLayerHasItsDefaults) {
  const absl::StatusOr<QuantConfigText> text = CreateRetrainConfigText(Catalog(), std::nullopt, "", {});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->json, Create("")->json);
  EXPECT_THAT(text->warnings, IsEmpty());
  EXPECT_THAT(text->deviations, IsEmpty());
  const RetrainConfig config = *Read(text->json);
  EXPECT_THAT(Summary(config), ElementsAre("conv Q8/8", "odd Q8/8", "dw Q8/8", "up Q8/8", "rnn Q8/8", "fc Q8/8"));
  EXPECT_TRUE(Get(config, "rnn").weight.channel_wise);
  EXPECT_FALSE(Get(config, "fc").weight.channel_wise);
  EXPECT_EQ(1, config.batch_num);
  EXPECT_TRUE(config.quantizes);
  EXPECT_FALSE(config.prunes);
}

TEST(CreateRetrainConfigTest, Int4WeightsThatCannotBePackedAreLoweredWithAWarning) {
  const absl::StatusOr<QuantConfigText> text = Create(Weights("dst_type: INT4"));
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->warnings, ElementsAre(HasSubstr("even number of input channels: odd, dw")));
  EXPECT_THAT(Summary(*Read(text->json)), ElementsAre("conv Q8/4", "odd Q8/8", "dw Q8/8", "up Q8/4", "rnn Q8/4", "fc Q8/4"));
}

TEST(CreateRetrainConfigTest, Int4ActivationsAreAcceptedAsInJson) {
  const std::string cfg = Activations("dst_type: INT4") + Weights("dst_type: INT4");
  const absl::StatusOr<QuantConfigText> text = Create(cfg);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->deviations, ElementsAre(HasSubstr("D-13")));
  EXPECT_THAT(text->warnings, ElementsAre(HasSubstr("activations and weights have 8 bits")));
  // INT4 activations with INT8 weights is no possible pair.
  EXPECT_THAT(Summary(*Read(text->json)), ElementsAre("conv Q4/4", "odd Q8/8", "dw Q8/8", "up Q4/4", "rnn Q4/4", "fc Q4/4"));
  EXPECT_EQ("CONFIG_VALUE dst_type 1:44 conv", Blame(Create(cfg, {.refuses_int4_activations = true}).status()));
  EXPECT_EQ("CONFIG_VALUE dst_type 1:44 conv", Blame(Create(Activations("dst_type: INT4")).status())) << "with INT8 weights";
}

TEST(CreateRetrainConfigTest, AnOverrideReplacesBothPartsAndEnablesTheLayer) {
  const absl::StatusOr<QuantConfigText> text =
      Create("skip_layers: 'conv' quant_skip_types: 'Linear' " + Activations("dst_type: INT16") +
             Override("conv", Weights("dst_type: INT4")) + OverrideType("Linear", Activations("fixed_min: true")));
  ASSERT_TRUE(text.ok()) << text.status();
  const RetrainConfig config = *Read(text->json);
  EXPECT_THAT(Summary(config), ElementsAre("conv Q8/4", "odd Q16/8", "dw Q16/8", "up Q16/8", "rnn Q16/8", "fc Q8/8"));
  EXPECT_EQ(true, Get(config, "fc").activation.fixed_min);
  EXPECT_EQ(std::nullopt, Get(config, "conv").activation.fixed_min);
}

TEST(CreateRetrainConfigTest, ClipValuesAreExactAndCheckedPerLayer) {
  const std::string clip = "clip_max_min { clip_max: 6.1 clip_min: -0.1 }";
  const RetrainConfig config = *Read(Create(Activations(clip))->json);
  EXPECT_EQ(std::pair(static_cast<double>(6.1F), static_cast<double>(-0.1F)), Get(config, "up").activation.clip);
  EXPECT_THAT(config.json, HasSubstr("\"clip_max\":6.099999904632568"));
  for (const char* bad : {"nan", "inf", "0", "-1"}) {
    EXPECT_EQ("CONFIG_VALUE clip_max 1:59 conv",
              Blame(Create(Activations(absl::StrCat("clip_max_min { clip_max: ", bad, " clip_min: -1 }"))).status()));
  }
  for (const char* bad : {"nan", "-inf", "0", "1"}) {
    EXPECT_EQ("CONFIG_VALUE clip_min 1:71 conv",
              Blame(Create(Activations(absl::StrCat("clip_max_min { clip_max: 1 clip_min: ", bad, " }"))).status()));
  }
  EXPECT_EQ("CONFIG_VALUE clip_max 1:44 conv", Blame(Create(Activations("clip_max_min { clip_min: -1 }")).status()));
}

TEST(CreateRetrainConfigTest, RequiredNamesAreAskedForUnlessTheReferenceIsFollowed) {
  EXPECT_EQ("CONFIG_VALUE layer_name 1:1 ", Blame(Create("override_layer_configs { }").status()));
  EXPECT_EQ("CONFIG_VALUE layer_type 1:1 ", Blame(Create("override_layer_types { }").status()));
  EXPECT_TRUE(Create("override_layer_configs { }", {.accepts_missing_required = true}).ok());
}

TEST(CreateRetrainConfigTest, PruningIsRefused) {
  EXPECT_EQ("CONFIG_VALUE prune_config 1:1 ", Blame(Create(Filter("0.5")).status()));
  EXPECT_EQ("CONFIG_VALUE prune_config 1:45 ", Blame(Create(OverrideType("Conv2d", Filter("0.5"))).status()));
  EXPECT_TRUE(Create(OverrideType("Conv2d", Filter("0.5")), {.ignores_prune_type_override = true}).ok());
  EXPECT_EQ("CONFIG_VALUE prune_config 1:45 conv",
            Blame(Create(Override("conv", Filter("0.5")), {.ignores_prune_type_override = true}).status()));
  EXPECT_EQ("CONFIG_VALUE regular_prune_skip_types 1:1 ", Blame(Create("regular_prune_skip_types: 'Conv2d'").status()));
}

TEST(CreateRetrainConfigTest, LayersThatCannotBeRetrainedAreNamedWithTheReason) {
  const absl::Status status = Create("skip_layers: 'twice'").status();
  EXPECT_EQ("CONFIG_UNKNOWN_LAYER skip_layers 1:1 twice", Blame(status));
  EXPECT_THAT(status.message(), HasSubstr("it is used twice"));
  EXPECT_THAT(Create("skip_layers: 'bn'").status().message(), HasSubstr("of a type that cannot be quantized"));
  EXPECT_THAT(Create("skip_layers: 'x'").status().message(), HasSubstr("no layer of this name"));
}

TEST(CreateRetrainConfigTest, AModelWithoutLayersSaysWhy) {
  RetrainCatalog catalog;
  catalog.layers = {Catalog().layers.back()};
  const absl::Status status = CreateRetrainConfigText(catalog, std::nullopt, "", {}).status();
  EXPECT_EQ(v1::CONFIG_EMPTY, ReasonOf(status));
  EXPECT_THAT(status.message(), HasSubstr("twice: it is used twice"));
  catalog.layers = {{.name = "batch_num", .type = "Conv2d"}};
  EXPECT_EQ("CONFIG_VALUE  0:0 batch_num", Blame(CreateRetrainConfigText(catalog, std::nullopt, "", {}).status()));
}

TEST(CreateRetrainConfigTest, HarmlessOdditiesAreWarnedOf) {
  const absl::StatusOr<QuantConfigText> text = Create("skip_layers: ['fc', 'fc'] override_layer_configs { layer_name: 'x' }");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->warnings, ElementsAre("'fc' is given twice in skip_layers", "the override of 'x' sets nothing"));
}

// ---- pruning

TEST(ReadRetrainDefinitionTest, TheGlobalStrategySelectsTheLayersAndOverridesReplaceIt) {
  EXPECT_THAT(Summary(*Prune(Filter("0.5"))), ElementsAre("conv 0.5", "odd 0.5", "fc 0.5"));
  EXPECT_THAT(Summary(*Prune(Selective())), ElementsAre("conv 2:4", "odd 2:4", "dw 2:4", "up 2:4", "fc 2:4"));
  EXPECT_THAT(Summary(*Prune(Filter("0.5") + Override("up", Selective()) + Override("conv", Filter("0.25")) +
                             OverrideType("Conv2d", Selective()))),
              ElementsAre("conv 0.25", "odd 2:4", "dw 2:4", "up 2:4", "fc 0.5"));
  EXPECT_THAT(Summary(*Prune(Override("conv", Filter("0.5")))), ElementsAre("conv 0.5"));
  EXPECT_THAT(Summary(*Prune(Selective() + OverrideType("Conv2d", Filter("0.5")))),
              ElementsAre("conv 0.5", "odd 0.5", "up 2:4", "fc 2:4"))
      << "a depthwise layer cannot do what its type is to do";
}

TEST(ReadRetrainDefinitionTest, AnOverrideThatSaysNothingAboutPruningLeavesTheGlobalStrategy) {
  EXPECT_THAT(Summary(*Prune(Filter("0.5") + Override("conv", "prune_config { }") + Override("fc", ""))),
              ElementsAre("conv 0.5", "odd 0.5", "fc 0.5"));
}

TEST(ReadRetrainDefinitionTest, SkipsBeatOverrides) {
  const absl::StatusOr<RetrainConfig> config =
      Prune("regular_prune_skip_layers: 'conv' skip_layer_types: 'Linear' " + Filter("0.5") + Override("conv", Filter("0.25")));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Summary(*config), ElementsAre("conv -", "odd 0.5", "fc -"));
  EXPECT_THAT(config->json, HasSubstr("\"prune_ratio\":0.25")) << "the setting is shown all the same";
}

TEST(ReadRetrainDefinitionTest, ARatioThatLeavesNothingOrEverythingIsRefused) {
  for (const char* bad : {"0", "1", "-0.5", "inf", "nan", "0.99999999999"}) {
    EXPECT_EQ("CONFIG_VALUE prune_ratio 1:64 conv", Blame(Prune(Filter(bad)).status())) << bad;
  }
}

TEST(ReadRetrainDefinitionTest, QuantizationIsIgnoredWhereOnlyPruningIsDone) {
  const absl::StatusOr<RetrainConfig> config =
      Prune("quant_skip_layers: 'nope' " + Filter("0.5") + Activations("dst_type: INT4") + Override("x", Weights("")));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->quantizes);
  EXPECT_THAT(Summary(*config), ElementsAre("conv 0.5", "odd 0.5", "fc 0.5"));
  EXPECT_THAT(config->warnings, ElementsAre(HasSubstr("does not quantize")));
  EXPECT_THAT(config->json, Not(HasSubstr("retrain_enable")));

  const absl::StatusOr<RetrainConfig> nothing = Prune(Weights(""));
  ASSERT_TRUE(nothing.ok()) << nothing.status();
  EXPECT_FALSE(nothing->prunes);
  EXPECT_THAT(nothing->layers, IsEmpty());
  EXPECT_EQ("{\n    \"version\":1\n}", nothing->json);
  EXPECT_THAT(nothing->warnings, ElementsAre(HasSubstr("nothing is pruned")));
}

TEST(ReadRetrainDefinitionTest, BothAbilitiesAtOnce) {
  const absl::StatusOr<RetrainConfig> config = Compress(
      "batch_num: 4 fakequant_precision_mode: FORCE_FP16_QUANT quant_skip_layers: 'fc' regular_prune_skip_types: "
      "'Conv2d' " +
      Filter("0.5") + Weights("dst_type: INT4"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Summary(*config), ElementsAre("conv Q8/4", "odd Q8/8", "dw Q8/8", "up Q8/4", "rnn Q8/4", "fc 0.5"));
  EXPECT_EQ(4, config->batch_num);
  EXPECT_TRUE(config->force_fp16_quant);
}

TEST(ReadRetrainDefinitionTest, FieldsOfAnAbilityThatIsNotAskedForAreRefused) {
  EXPECT_EQ("CONFIG_VALUE quant_skip_layers 1:87 ", Blame(Compress(Filter("0.5") + "quant_skip_layers: 'fc'").status()));
  EXPECT_EQ("CONFIG_VALUE quant_skip_types 1:87 ", Blame(Prune(Filter("0.5") + "quant_skip_types: 'Linear'").status()));
  EXPECT_EQ("CONFIG_VALUE regular_prune_skip_layers 1:50 ",
            Blame(Compress(Weights("") + "regular_prune_skip_layers: 'fc'").status()));
  const absl::Status status = Compress(Weights("") + Override("fc", Filter("0.5")) + "skip_layers: 'conv'").status();
  EXPECT_EQ(v1::CONFIG_VALUE, ReasonOf(status));
  EXPECT_THAT(status.message(), HasSubstr("use quant_skip_layers"));
  EXPECT_EQ("CONFIG_EMPTY prune_config 0:0 ", Blame(Compress("batch_num: 3").status()));
}

TEST(ReadRetrainDefinitionTest, EachAbilityNeedsALayer) {
  EXPECT_EQ("CONFIG_EMPTY regular_prune_skip_types 1:114 ",
            Blame(Prune(Filter("0.5") + "regular_prune_skip_types: ['Conv2d', 'Linear']").status()));
  EXPECT_EQ("CONFIG_EMPTY override_layer_types 1:1 ", Blame(Prune(OverrideType("Conv2d", "prune_config { }")).status()));
  EXPECT_EQ("CONFIG_EMPTY override_layer_types 1:87 ",
            Blame(Compress(Filter("0.5") + OverrideType("Conv3d", Weights(""))).status()));
}

// qat.md D-12
TEST(ReadRetrainDefinitionTest, AnOverrideOfPruningLeavesQuantizationAlone) {
  const std::string cfg =
      Weights("dst_type: INT4") + "quant_skip_layers: 'conv' " + Override("conv", Filter("0.5")) + Override("fc", Filter("0.5"));
  const absl::StatusOr<RetrainConfig> config = Compress(cfg);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Summary(*config), ElementsAre("conv 0.5", "odd Q8/8", "dw Q8/8", "up Q8/4", "rnn Q8/4", "fc Q8/4 0.5"));
  EXPECT_THAT(config->deviations, ElementsAre(HasSubstr("D-12")));
  const absl::StatusOr<RetrainConfig> reference = Compress(cfg, {.prune_override_enables_quantization = true});
  ASSERT_TRUE(reference.ok()) << reference.status();
  EXPECT_THAT(Summary(*reference), ElementsAre("conv Q8/8 0.5", "odd Q8/8", "dw Q8/8", "up Q8/4", "rnn Q8/4", "fc Q8/8 0.5"));
  EXPECT_THAT(reference->deviations, IsEmpty());
}

// ---- reading

std::string Json(const std::string& layers) { return absl::StrCat(R"({"version":1,"batch_num":2)", layers, "}"); }

TEST(ReadRetrainConfigTest, WhatIsNotListedIsDisabled) {
  const absl::StatusOr<RetrainConfig> config = Read(Json(
      R"(,"fc":{"retrain_enable":true,"more":1},"conv":{"retrain_weight_config":{"algo":"ulq_retrain","dst_type":"INT4"}})"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Summary(*config), ElementsAre("conv -", "odd -", "dw -", "up -", "rnn -", "fc Q8/8"));
  EXPECT_EQ(WeightRetrainConfig::Algorithm::kUlq, Get(*config, "conv").weight.algorithm);
  EXPECT_THAT(config->warnings, ElementsAre(HasSubstr("no effect: more"), HasSubstr("'conv' has no retrain_enable")));
  EXPECT_LT(config->json.find("\"fc\""), config->json.find("\"conv\"")) << "in the order of the file";
  EXPECT_LT(config->json.find("\"conv\""), config->json.find("\"odd\""));
}

TEST(ReadRetrainConfigTest, ErrorsSayWhere) {
  const std::string enabled = R"("retrain_enable":true)";
  auto layer = [&](const std::string& content) { return Json(absl::StrCat(R"(,"fc":{)", enabled, ",", content, "}")); };
  auto data = [&](const std::string& content) { return layer(absl::StrCat(R"("retrain_data_config":{)", content, "}")); };
  auto weight = [&](const std::string& content) { return layer(absl::StrCat(R"("retrain_weight_config":{)", content, "}")); };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[1]", "CONFIG_TYPE  1:1 "},
      {R"({"version":1})", "CONFIG_VALUE batch_num 1:1 "},
      {R"({"version":"1","batch_num":1})", "CONFIG_TYPE version 1:2 "},
      {R"({"version":2,"batch_num":1})", "CONFIG_VALUE version 1:2 "},
      {R"({"version":1,"batch_num":0})", "CONFIG_VALUE batch_num 1:14 "},
      {R"({"version":1,"batch_num":1.0})", "CONFIG_TYPE batch_num 1:14 "},
      {Json(R"(,"fakequant_precision_mode":"X")"), "CONFIG_VALUE fakequant_precision_mode 1:28 "},
      {Json(""), "CONFIG_EMPTY retrain_enable 1:1 "},
      {Json(R"(,"fc":1)"), "CONFIG_VALUE fc 1:28 fc"},
      {Json(R"(,"":5)"), "CONFIG_UNKNOWN_LAYER  1:28 "},
      {Json(R"(,"bn":{})"), "CONFIG_UNKNOWN_LAYER bn 1:28 bn"},
      {Json(R"(,"twice":{})"), "CONFIG_UNKNOWN_LAYER twice 1:28 twice"},
      {Json(R"(,"fc":{"retrain_enable":1})"), "CONFIG_TYPE retrain_enable 1:34 fc"},
      {layer(R"("retrain_data_config":[])"), "CONFIG_TYPE retrain_data_config 1:56 fc"},
      {data(R"("algo":"arq_retrain")"), "CONFIG_VALUE algo 1:79 fc"},
      {data(R"("clip_min":-1.0)"), "CONFIG_VALUE clip_min 1:79 fc"},
      {data(R"("clip_min":-1.0,"clip_max":null)"), "CONFIG_TYPE clip_max 1:95 fc"},
      {data(R"("clip_min":1.0,"clip_max":1.0)"), "CONFIG_VALUE clip_min 1:79 fc"},
      {data(R"("fixed_min":"no")"), "CONFIG_TYPE fixed_min 1:79 fc"},
      {data(R"("dst_type":4)"), "CONFIG_TYPE dst_type 1:79 fc"},
      {data(R"("dst_type":"INT4")"), "CONFIG_VALUE dst_type 1:79 fc"},
      {weight(R"("algo":"x")"), "CONFIG_VALUE algo 1:81 fc"},
      {weight(R"("channel_wise":true)"), "CONFIG_VALUE channel_wise 1:81 fc"},
      {weight(R"("dst_type":"INT16")"), "CONFIG_VALUE dst_type 1:81 fc"},
      {layer(R"("regular_prune_config":{})"), "CONFIG_VALUE regular_prune_config 1:56 fc"},
  };
  for (const auto& [json, blame] : cases) {
    const absl::Status status = Read(json).status();
    EXPECT_EQ(blame, Blame(status)) << json << ": " << status;
    EXPECT_EQ("c.json", PlaceOf(status).file);
  }
}

TEST(ReadRetrainConfigTest, Int4WeightsThatCannotBePackedAreWarnedOf) {
  const absl::StatusOr<RetrainConfig> config = Read(Json(
      R"(,"odd":{"retrain_enable":true,"retrain_weight_config":{"dst_type":"INT4"}},"fc":{"retrain_enable":true,"retrain_weight_config":{"dst_type":"INT4"}})"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(4, Get(*config, "odd").weight.bits);
  EXPECT_THAT(config->warnings, ElementsAre(HasSubstr("layer 'odd' cannot be saved")));
}

TEST(ReadRetrainConfigTest, TrueIsOneAsInPython) {
  const absl::StatusOr<RetrainConfig> config = Read(R"({"version":true,"batch_num":true,"fc":{"retrain_enable":true}})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->json, HasSubstr("\"batch_num\":1,"));
}

TEST(ReadRetrainConfigTest, ThePrecisionModeIsKept) {
  EXPECT_TRUE(Read(Create("fakequant_precision_mode: FORCE_FP16_QUANT")->json)->force_fp16_quant);
  const absl::StatusOr<RetrainConfig> config =
      Read(Json(R"(,"fakequant_precision_mode":"DEFAULT","fc":{"retrain_enable":true})"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->force_fp16_quant);
  EXPECT_THAT(config->json, Not(HasSubstr("fakequant_precision_mode")));
}

// ---- comparing

// "KEY LAYER" of the difference, or "".
std::string Difference(const std::string& saved, const v1::RewritePlan& created) {
  const absl::Status status = CheckSameRetrainConfig(*Read(saved), created);
  EXPECT_TRUE(status.ok() || ReasonOf(status) == v1::CONFIG_CHANGED) << status;
  return status.ok() ? "" : absl::StrCat(MetadataOf(status)["key"], " ", PlaceOf(status).layer);
}

TEST(CheckSameRetrainConfigTest, FindsWhatHasChanged) {
  const std::string json = Create(Activations("clip_max_min { clip_max: 1 clip_min: -1 }"))->json;
  v1::RewritePlan plan;
  plan.set_config(Read(json)->json);
  EXPECT_EQ("", Difference(json, plan));
  auto changed = [&json](const std::string& from, const std::string& to) { return absl::StrReplaceAll(json, {{from, to}}); };
  EXPECT_EQ("batch_num ", Difference(changed("\"batch_num\":1", "\"batch_num\":2"), plan));
  EXPECT_EQ("algo conv", Difference(changed("arq_retrain", "ulq_retrain"), plan));
  EXPECT_EQ("clip_max conv", Difference(changed("\"clip_max\":1.0", "\"clip_max\":1.5"), plan));
  plan.set_config(Create("")->json);
  EXPECT_EQ("clip_max conv", Difference(json, plan)) << "only the new one has clip values";
  plan.set_config(json);
  EXPECT_EQ("clip_max conv", Difference(Create("")->json, plan)) << "only the old one has them";
}

TEST(CheckSameRetrainConfigTest, ALayerOrTheModeThatIsGoneIsAChange) {
  v1::RewritePlan plan;
  plan.set_config(Create("fakequant_precision_mode: FORCE_FP16_QUANT")->json);
  EXPECT_EQ("fakequant_precision_mode ", Difference(Create("")->json, plan));
  plan.set_config(Create("batch_num: 2")->json);
  EXPECT_EQ("retrain_enable conv", Difference(Json(R"(,"odd":{"retrain_enable":true},"conv":{})"), plan))
      << "a layer that does not say is disabled";
  EXPECT_EQ("retrain_enable conv", Difference(Json(R"(,"odd":{"retrain_enable":true})"), plan));
}

TEST(CheckSameRetrainConfigTest, AFixedMinMayBeTheOneThatWasDerived) {
  v1::RewritePlan plan;
  plan.set_config(Create("")->json);
  v1::WrappedLayer& layer = *plan.add_layers();
  layer.set_module("up");
  layer.mutable_act()->set_fixed_min(true);
  auto with = [](const std::string& layer, const std::string& value) {
    return Create(Override(layer, Activations(absl::StrCat("fixed_min: ", value))))->json;
  };
  EXPECT_EQ("", Difference(with("up", "true"), plan));
  EXPECT_EQ("fixed_min up", Difference(with("up", "false"), plan));
  EXPECT_EQ("fixed_min fc", Difference(with("fc", "true"), plan)) << "the plan has no such layer";
}

TEST(CheckSameRetrainConfigTest, APlanWithoutConfigurationIsAnError) {
  EXPECT_EQ(v1::CONFIG_SYNTAX, ReasonOf(CheckSameRetrainConfig(*Read(Create("")->json), {})));
}

}  // namespace
}  // namespace modelpress::engine
