#include "engine/retrain/retrain_layers.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

// A graph and what FindLayers says of it.
struct Found {
  Graph graph;
  Layers layers;
};

Found Find(const ModelBuilder& builder, const v1::ModuleManifest* manifest = nullptr) {
  absl::StatusOr<Graph> graph = Graph::Create(builder.Build(), {});
  EXPECT_TRUE(graph.ok()) << graph.status();
  absl::StatusOr<Layers> layers = FindLayers(*graph, manifest, {});
  EXPECT_TRUE(layers.ok()) << layers.status();
  return {*std::move(graph), *std::move(layers)};
}

const RetrainCatalogLayer& Get(const RetrainLayers& layers, const std::string& name) {
  for (const RetrainCatalogLayer& layer : layers.catalog.layers) {
    if (layer.name == name) {
      return layer;
    }
  }
  static const RetrainCatalogLayer kNone;
  ADD_FAILURE() << "no layer " << name;
  return kNone;
}

ModelBuilder& AddConv(ModelBuilder& builder, const std::string& name, const std::string& input, const std::string& output,
                      const std::vector<int64_t>& weight, int64_t group = 1) {
  int64_t size = 1;
  for (int64_t dim : weight) {
    size *= dim;
  }
  builder.Initializer(name + ".weight", weight, std::vector<float>(size, 0.5F));
  onnx::NodeProto& node = builder.Node("Conv", "/" + name + "/Conv", {input, name + ".weight"}, {output});
  AddInt(node, "group", group);
  return builder;
}

TEST(FindRetrainLayersTest, TellsWhatEachTypeCanDo) {
  ModelBuilder builder;
  builder.Input("x", {1, 4, 8, 8}).Output("y");
  AddConv(builder, "conv", "x", "a", {4, 4, 3, 3});
  AddConv(builder, "depthwise", "a", "b", {4, 1, 3, 3}, 4);
  builder.Initializer("up.weight", {4, 2, 2, 2}, std::vector<float>(32, 1.0F));
  builder.Node("ConvTranspose", "/up/ConvTranspose", {"b", "up.weight"}, {"c"});
  onnx::AttributeProto& kernel = *builder.Node("AveragePool", "/pool/AveragePool", {"c"}, {"y"}).add_attribute();
  kernel.set_name("kernel_shape");
  kernel.set_type(onnx::AttributeProto::INTS);
  kernel.add_ints(2);
  kernel.add_ints(2);

  const Found found = Find(builder);
  const RetrainLayers layers = FindRetrainLayers(found.layers, {});
  ASSERT_EQ(layers.catalog.layers.size(), 3U);
  EXPECT_THAT(Get(layers, "conv").why_not_quant, IsEmpty());
  EXPECT_THAT(Get(layers, "conv").why_not_filter, IsEmpty());
  EXPECT_THAT(Get(layers, "conv").why_not_selective, IsEmpty());
  EXPECT_THAT(Get(layers, "depthwise").why_not_filter, HasSubstr("depthwise"));
  EXPECT_THAT(Get(layers, "depthwise").why_not_selective, IsEmpty());
  EXPECT_THAT(Get(layers, "up").why_not_filter, HasSubstr("ConvTranspose2d"));
  EXPECT_THAT(Get(layers, "up").why_not_selective, IsEmpty());
  EXPECT_THAT(layers.catalog.other_modules, Contains("pool"));
  for (size_t i = 0; i < layers.nodes.size(); ++i) {
    EXPECT_EQ(found.graph.NameOf(found.graph.InputOf(layers.nodes[i], 1)), layers.catalog.layers[i].name + ".weight");
  }
}

// The reference takes a convolution with one input channel for depthwise (prune.md P-6).
TEST(FindRetrainLayersTest, OneInputChannelIsPrunableOnlyWhenExtended) {
  ModelBuilder builder;
  builder.Input("x", {1, 1, 8, 8}).Output("y");
  AddConv(builder, "conv", "x", "y", {4, 1, 3, 3});
  const Found found = Find(builder);
  EXPECT_EQ(Get(FindRetrainLayers(found.layers, {}), "conv").why_not_filter, "it has one input channel");
  EXPECT_EQ(Get(FindRetrainLayers(found.layers, {}, true), "conv").why_not_filter, "");
}

// Padding other than with zeros keeps a layer from quantization only (golden/prune circular_padding).
TEST(FindRetrainLayersTest, CircularPaddingCanBePruned) {
  ModelBuilder builder;
  builder.Input("x", {1, 4, 8, 8}).Output("y");
  AddConv(builder, "conv", "x", "y", {4, 4, 3, 3});
  v1::ModuleManifest manifest;
  v1::Module& module = *manifest.add_modules();
  module.set_name("conv");
  module.set_type("Conv2d");
  module.set_padding_mode("circular");
  const Found found = Find(builder, &manifest);
  const RetrainLayers layers = FindRetrainLayers(found.layers, {});
  EXPECT_THAT(Get(layers, "conv").why_not_quant, HasSubstr("circular"));
  EXPECT_THAT(Get(layers, "conv").why_not_filter, IsEmpty());
  EXPECT_THAT(Get(layers, "conv").why_not_selective, IsEmpty());
}

TEST(FindRetrainLayersTest, SharedAndUnusedLayersAreLeftOutEverywhere) {
  ModelBuilder builder;
  builder.Input("x", {1, 4, 8, 8}).Output("y");
  AddConv(builder, "conv", "x", "a", {4, 4, 3, 3});
  builder.Node("Conv", "/conv_1/Conv", {"a", "conv.weight"}, {"y"});
  v1::ModuleManifest manifest;
  for (const char* name : {"conv", "spare"}) {
    v1::Module& module = *manifest.add_modules();
    module.set_name(name);
    module.set_type("Conv2d");
  }
  const Found by_graph = Find(builder);
  EXPECT_THAT(Get(FindRetrainLayers(by_graph.layers, {}), "conv").why_not_filter, HasSubstr("used by 2 nodes"));
  const Found by_manifest = Find(builder, &manifest);
  const RetrainLayers layers = FindRetrainLayers(by_manifest.layers, {});
  for (const char* name : {"conv", "spare"}) {
    const RetrainCatalogLayer& layer = Get(layers, name);
    EXPECT_FALSE(layer.why_not_quant.empty() || layer.why_not_filter.empty() || layer.why_not_selective.empty()) << name;
  }
  EXPECT_EQ(layers.nodes[1], -1);
}

// qat.md D-17: without an initial state the layer could be trained, but not saved.
TEST(FindRetrainLayersTest, RnnThatCannotBeSavedIsTrainedOnlyAsTheReferenceDoes) {
  ModelBuilder builder;
  builder.Input("x", {2, 1, 3}).Output("y");
  builder.Initializer("W", {1, 12, 3}, std::vector<float>(36, 0.1F)).Initializer("R", {1, 12, 4}, std::vector<float>(48, 0.1F));
  AddInt(builder.Node("GRU", "rnn", {"x", "W", "R"}, {"y"}), "hidden_size", 4);
  const Found found = Find(builder);
  EXPECT_THAT(Get(FindRetrainLayers(found.layers, {}), "rnn").why_not_quant, HasSubstr("initial_h"));
  EXPECT_THAT(Get(FindRetrainLayers(found.layers, ReferenceDefects::All()), "rnn").why_not_quant, IsEmpty());
}

}  // namespace
}  // namespace modelpress::engine
