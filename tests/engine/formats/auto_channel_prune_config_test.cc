#include "engine/formats/auto_channel_prune_config.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

RetrainCatalog Catalog() {
  RetrainCatalog catalog;
  catalog.layers = {{.name = "conv", .type = "Conv2d"},
                    {.name = "conv2", .type = "Conv2d"},
                    {.name = "dw", .type = "Conv2d", .why_not_filter = "it is depthwise"},
                    {.name = "up", .type = "ConvTranspose2d", .why_not_filter = "its channels cannot be pruned"},
                    {.name = "fc", .type = "Linear"}};
  return catalog;
}

// `overrides`: content of the file "o.cfg".
absl::StatusOr<AutoChannelPruneSettings> Read(const std::string& cfg, const std::string& overrides = "") {
  return ReadAutoChannelPruneConfig(Catalog(), cfg, "in.cfg",
                                    [&](const std::string& name) -> absl::StatusOr<std::string> {
                                      if (name != "o.cfg") {
                                        return MakeError(v1::FILE_NOT_FOUND, "no such file");
                                      }
                                      return overrides;
                                    },
                                    {});
}
absl::StatusOr<AutoChannelPruneSettings> ReadOverrides(const std::string& overrides) {
  return Read("compress_ratio: 2 override_prune_cfg: 'o.cfg'", overrides);
}

// "REASON key file:line:column layer".
std::string Blame(const absl::Status& status) {
  const ErrorPlace place = PlaceOf(status);
  return absl::StrCat(v1::Reason_Name(ReasonOf(status)), " ", MetadataOf(status)["key"], " ", place.file, ":", place.line, ":",
                      place.column, " ", place.layer);
}

constexpr char kFilter[] = "prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.5 } } } ";

TEST(ReadAutoChannelPruneConfigTest, Defaults) {
  const absl::StatusOr<AutoChannelPruneSettings> settings = Read("compress_ratio: 1.3");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(static_cast<double>(1.3F), settings->compress_ratio);
  EXPECT_TRUE(settings->ascend_optimized);
  EXPECT_EQ(1, settings->max_prune_ratio);
  EXPECT_EQ(1, settings->test_iteration);
  EXPECT_THAT(settings->searched, ElementsAre("conv", "conv2", "fc"));
  EXPECT_THAT(settings->warnings, IsEmpty());
}

TEST(ReadAutoChannelPruneConfigTest, OverriddenAndSkippedLayersAreNotSearched) {
  EXPECT_THAT(ReadOverrides(absl::StrCat("override_layer_configs { layer_name: 'conv' ", kFilter, "}"))->searched,
              ElementsAre("conv2", "fc"));
  EXPECT_THAT(ReadOverrides(absl::StrCat("override_layer_types { layer_type: 'Conv2d' ", kFilter, "}"))->searched,
              ElementsAre("fc"));
  EXPECT_THAT(ReadOverrides("skip_layers: 'conv' regular_prune_skip_types: 'Linear'")->searched, ElementsAre("conv2"));
  EXPECT_THAT(ReadOverrides("skip_layers: ['conv', 'conv']")->warnings, ElementsAre(HasSubstr("given twice")));
}

TEST(ReadAutoChannelPruneConfigTest, ErrorsSayWhere) {
  const std::vector<std::pair<std::string, std::string>> in_cfg = {
      {"", "CONFIG_VALUE compress_ratio in.cfg:0:0 "},
      {"compress_ratio: x", "CONFIG_SYNTAX compress_ratio in.cfg:1:17 "},
      {"compress_ratio: 1", "CONFIG_VALUE compress_ratio in.cfg:1:1 "},
      {"compress_ratio: nan", "CONFIG_VALUE compress_ratio in.cfg:1:1 "},
      {"compress_ratio: 2 max_prune_ratio: 1.01", "CONFIG_VALUE max_prune_ratio in.cfg:1:19 "},
      {"compress_ratio: 2 max_prune_ratio: nan", "CONFIG_VALUE max_prune_ratio in.cfg:1:19 "},
      {"compress_ratio: 2 test_iteration: -1", "CONFIG_VALUE test_iteration in.cfg:1:19 "},
      {"compress_ratio: 2 override_prune_cfg: 'x'", "FILE_NOT_FOUND override_prune_cfg in.cfg:1:19 "},
  };
  for (const auto& [cfg, blame] : in_cfg) {
    EXPECT_EQ(blame, Blame(Read(cfg).status())) << cfg;
  }
  const std::vector<std::pair<std::string, std::string>> in_overrides = {
      {"skip_layers: 1", "CONFIG_SYNTAX skip_layers o.cfg:1:14 "},
      {"quant_skip_layers: 'fc'", "CONFIG_VALUE quant_skip_layers o.cfg:1:1 "},
      {kFilter, "CONFIG_VALUE prune_config o.cfg:1:1 "},
      {"override_layer_configs { layer_name: 'fc' }", "CONFIG_VALUE prune_config o.cfg:1:1 fc"},
      {"override_layer_configs { layer_name: 'fc' prune_config { n_out_of_m_pruner { l1_selective_prune { } } } }",
       "CONFIG_VALUE prune_config o.cfg:1:43 fc"},
      {absl::StrCat("override_layer_types { layer_type: 'Linear' retrain_data_quant_config { } ", kFilter, "}"),
       "CONFIG_VALUE retrain_data_quant_config o.cfg:1:45 "},
      {absl::StrCat("override_layer_configs { layer_name: 'up' ", kFilter, "}"), "CONFIG_UNKNOWN_LAYER layer_name o.cfg:1:26 up"},
      {"skip_layers: 'dw'", "CONFIG_UNKNOWN_LAYER skip_layers o.cfg:1:1 dw"},
      {"regular_prune_skip_layers: ['conv', 'conv2', 'fc']", "CONFIG_EMPTY regular_prune_skip_layers o.cfg:1:29 "},
      {absl::StrCat("skip_layer_types: 'Linear' override_layer_types { layer_type: 'Conv2d' ", kFilter, "}"),
       "CONFIG_EMPTY override_layer_types o.cfg:1:28 "},
  };
  for (const auto& [overrides, blame] : in_overrides) {
    EXPECT_EQ(blame, Blame(ReadOverrides(overrides).status())) << overrides;
  }
}

TEST(ReadAutoChannelPruneConfigTest, AModelWithoutCandidatesSaysWhy) {
  RetrainCatalog catalog;
  catalog.layers = {Catalog().layers[2]};
  const absl::Status status = ReadAutoChannelPruneConfig(catalog, "compress_ratio: 2", "in.cfg", nullptr, {}).status();
  EXPECT_EQ(v1::CONFIG_EMPTY, ReasonOf(status));
  EXPECT_THAT(status.message(), HasSubstr("dw: it is depthwise"));
}

TEST(PrintFoundRatiosTest, AddsToTheOverrides) {
  const absl::StatusOr<AutoChannelPruneSettings> settings =
      Read("compress_ratio: 2 ascend_optimized: false override_prune_cfg: 'o.cfg'", "skip_layers: 'fc'");
  ASSERT_TRUE(settings.ok()) << settings.status();
  const std::string text = PrintFoundRatios(*settings, {{"conv", 8, 8}, {"conv2", 2, 3}});
  EXPECT_EQ(R"(skip_layers: "fc"
override_layer_configs {
  layer_name: "conv2"
  prune_config {
    filter_pruner {
      balanced_l2_norm_filter_prune {
        prune_ratio: 0.33333334
        ascend_optimized: false
      }
    }
  }
}
prune_config {
  filter_pruner {
    balanced_l2_norm_filter_prune {
      prune_ratio: 0.3
      ascend_optimized: false
    }
  }
}
regular_prune_skip_layers: "conv"
)",
            text);
  const absl::StatusOr<RetrainConfig> read = ReadRetrainDefinition(Catalog(), text, "out.cfg", RetrainAbilities::kPrune, {});
  EXPECT_TRUE(read.ok()) << read.status();
}

}  // namespace
}  // namespace modelpress::engine
