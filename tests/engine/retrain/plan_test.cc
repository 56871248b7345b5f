#include "engine/retrain/plan.h"

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/retrain/plan_json.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

// A model and the configuration of its layers.
class PlanTest : public testing::Test {
 protected:
  PlanTest() { builder_.Input("x", {1, 4, 8, 8}); }

  void AddConv(const std::string& name, const std::string& input, const std::string& output) {
    builder_.Initializer(name + ".weight", {4, 4, 1, 1}, std::vector<float>(16, 0.5F));
    builder_.Node("Conv", "/" + name + "/Conv", {input, name + ".weight"}, {output});
  }

  void AddBatchNorm(const std::string& name, const std::string& input, const std::string& output) {
    for (const char* parameter : {".weight", ".bias", ".running_mean", ".running_var"}) {
      if (!have_.insert(name + parameter).second) {
        continue;
      }
      builder_.Initializer(name + parameter, {4}, {1, 1, 1, 1});
    }
    builder_.Node("BatchNormalization", "/" + output + "/BatchNormalization",
                  {input, name + ".weight", name + ".bias", name + ".running_mean", name + ".running_var"}, {output});
  }

  LayerRetrainConfig& Configure(const std::string& name) {
    LayerRetrainConfig layer;
    layer.name = name;
    layer.quantizes = true;
    config_.layers.push_back(layer);
    return config_.layers.back();
  }

  // The wrapped layers of the plan, by name.
  std::map<std::string, v1::WrappedLayer> Plan(const std::map<std::string, SelectiveMask>& masks = {}) {
    absl::StatusOr<Graph> graph = Graph::Create(builder_.Build(), {});
    EXPECT_TRUE(graph.ok()) << graph.status();
    absl::StatusOr<Layers> layers = FindLayers(*graph, nullptr, {});
    EXPECT_TRUE(layers.ok()) << layers.status();
    NameLayerNodes(*graph, *layers);
    plan_ = MakeWrapPlan(*graph, FindRetrainLayers(*layers, {}), *layers, config_, masks);
    std::map<std::string, v1::WrappedLayer> wrapped;
    for (const v1::WrappedLayer& layer : plan_.layers()) {
      wrapped[layer.module()] = layer;
    }
    return wrapped;
  }

  ModelBuilder builder_;
  RetrainConfig config_;
  v1::RewritePlan plan_;
  std::set<std::string> have_;
};

TEST_F(PlanTest, LayersOfOneTensorShareWhereTheirSettingsAreEqual) {
  builder_.Output("a").Output("b").Output("c").Output("d").Output("e");
  for (const char* name : {"a", "b", "c", "d", "e"}) {
    AddConv(std::string("conv_") + name, "x", name);
  }
  Configure("conv_b");  // the first in this order owns the quantizer
  Configure("conv_a");
  Configure("conv_c").weight.bits = 4;
  Configure("conv_d").activation.fixed_min = false;  // given, although it equals what would be derived
  Configure("conv_e").quantizes = false;
  const auto layers = Plan();
  EXPECT_EQ(layers.size(), 4U);
  EXPECT_FALSE(layers.at("conv_b").has_share_main());
  EXPECT_EQ(layers.at("conv_a").share_main(), "conv_b");
  EXPECT_FALSE(layers.at("conv_c").has_share_main());
  EXPECT_FALSE(layers.at("conv_d").has_share_main());
}

TEST_F(PlanTest, SparseLayersDoNotShare) {
  builder_.Output("a").Output("b");
  AddConv("conv_a", "x", "a");
  AddConv("conv_b", "x", "b");
  Configure("conv_a").prune = SelectivePruneConfig{.update_freq = 3};
  LayerRetrainConfig& only_sparse = Configure("conv_b");
  only_sparse.prune = SelectivePruneConfig{};
  only_sparse.quantizes = false;
  const SelectiveMask mask = {.shape = {4, 4, 1, 1}, .axis = 1, .packed = {42}};
  const auto layers = Plan({{"conv_a", mask}, {"conv_b", mask}});
  EXPECT_EQ(layers.at("conv_a").selective().update_freq(), 3U);
  EXPECT_EQ(layers.at("conv_a").selective().mask(0), 42);
  EXPECT_FALSE(layers.at("conv_a").has_share_main());
  EXPECT_FALSE(layers.at("conv_b").has_act());
  EXPECT_EQ(layers.at("conv_b").num_scales(), 1);
}

// A batch norm goes into the wrapper of the convolution that only it reads, and only if no other place uses it.
TEST_F(PlanTest, AbsorbsBatchNormsThatCanBeMoved) {
  builder_.Output("y1").Output("y2").Output("y3").Output("b");
  AddConv("moved", "x", "a");
  AddBatchNorm("bn_moved", "a", "y1");
  AddConv("output", "x", "b");  // its output is one of the model too
  AddBatchNorm("bn_output", "b", "y2");
  AddConv("twice", "x", "c");
  AddBatchNorm("bn_twice", "c", "d");
  AddBatchNorm("bn_twice", "d", "y3");
  for (const char* name : {"moved", "output", "twice"}) {
    Configure(name);
  }
  const auto layers = Plan();
  EXPECT_EQ(layers.at("moved").bn(), "bn_moved");
  EXPECT_FALSE(layers.at("output").has_bn());
  EXPECT_FALSE(layers.at("twice").has_bn());
}

TEST_F(PlanTest, TheRangeIsTheConfigurationsOrFoundInTraining) {
  builder_.Output("y1").Output("y2");
  builder_.Node("Relu", "relu", {"x"}, {"a"});
  AddConv("found", "a", "y1");
  AddConv("given", "x", "y2");
  Configure("found");
  ActivationRetrainConfig& given = Configure("given").activation;
  given.clip = {2.5, -1.5};
  given.fixed_min = true;
  given.bits = 16;
  config_.layers[1].weight = {.algorithm = WeightRetrainConfig::Algorithm::kUlq, .bits = 8, .channel_wise = false};
  const auto layers = Plan();
  EXPECT_TRUE(layers.at("found").act().ifmr_init());
  EXPECT_TRUE(layers.at("found").act().fixed_min());
  EXPECT_FALSE(layers.at("found").act().has_clip_max());
  EXPECT_EQ(layers.at("found").num_scales(), 4);
  const v1::WrappedLayer& layer = layers.at("given");
  EXPECT_FALSE(layer.act().ifmr_init());
  EXPECT_EQ(layer.act().clip_max(), 2.5);
  EXPECT_EQ(layer.act().clip_min(), -1.5);
  EXPECT_EQ(layer.act().dst_type(), "INT16");
  EXPECT_TRUE(layer.act().fixed_min());
  EXPECT_TRUE(layer.act().h_fixed_min());
  EXPECT_EQ(layer.weight().algo(), "ulq_retrain");
  EXPECT_EQ(layer.num_scales(), 1);
}

TEST_F(PlanTest, TravelsAsJson) {
  builder_.Output("y");
  AddConv("conv", "x", "y");
  Configure("conv");
  config_.json = "{}";
  Plan();
  v1::ModuleCut& cut = *plan_.add_cuts();
  for (const char* attribute : {"out_channels", "in_channels", "groups", "num_features"}) {
    (*cut.mutable_attributes())[attribute] = 8;
  }
  const absl::StatusOr<std::string> json = PrintRewritePlan(plan_);
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_NE(json->find("\"batch_num\""), std::string::npos);
  EXPECT_EQ(*json, *PrintRewritePlan(plan_));
  const absl::StatusOr<v1::RewritePlan> read = ParseRewritePlan(*json, "plan.json");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*json, *PrintRewritePlan(*read));
  for (const char* bad : {"", "[]", "{}", "{\"config\": 1}", "{\"config\": \"{}\", \"layers\": 3}"}) {
    EXPECT_EQ(ReasonOf(ParseRewritePlan(bad, "plan.json").status()), v1::REQUEST_INVALID) << bad;
  }
}

}  // namespace
}  // namespace modelpress::engine
