#include "engine/prune/search.h"

#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/prune/prune_entries.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneRecord;

constexpr double kBits = 1024;

Graph Network(const std::vector<int64_t>& input) {
  ModelBuilder builder;
  builder.Input("x", input);
  builder.Initializer("c.weight", {6, 2, 3, 3}, std::vector<float>(108)).Initializer("c.bias", {6}, std::vector<float>(6));
  builder.Initializer("f.w", {6, 5}, std::vector<float>(30));
  onnx::NodeProto& conv = builder.Node("Conv", "c", {"x", "c.weight", "c.bias"}, {"c.out"});
  AddInt(conv, "group", 2);
  onnx::AttributeProto& strides = *conv.add_attribute();
  strides.set_name("strides");
  strides.set_type(onnx::AttributeProto::INTS);
  strides.add_ints(2);
  strides.add_ints(1);
  builder.Node("GlobalAveragePool", "pool", {"c.out"}, {"pool.out"});
  builder.Node("Flatten", "flatten", {"pool.out"}, {"flat"});
  builder.Node("MatMul", "f", {"flat", "f.w"}, {"y"});
  return *Graph::Create(builder.Output("y").Build(), {});
}

TEST(CostTableTest, CountsOperationsOfOneSample) {
  const Graph graph = Network({7, 4, 9, 12});
  const Layers layers = *FindLayers(graph, nullptr, {});
  const absl::StatusOr<std::vector<LayerCost>> costs = CostTable(graph, layers, {});
  ASSERT_TRUE(costs.ok()) << costs.status();
  ASSERT_EQ(costs->size(), 2);
  EXPECT_EQ((*costs)[0].in_channels, 4);
  EXPECT_EQ((*costs)[0].bitops, (2 * 2 * 9 - 1 + 1) * (4 * 10) * 6 * kBits);  // 4 x 10 positions
  EXPECT_EQ((*costs)[1].in_channels, 6);
  EXPECT_EQ((*costs)[1].bitops, (2 * 6 - 1) * 5 * kBits);
  // The reference takes the kernel for the feature map, and all input channels for those of a group.
  const std::vector<LayerCost> reference = *CostTable(graph, layers, ReferenceDefects::All());
  EXPECT_EQ(reference[0].bitops, (2 * 4 * 9 - 1 + 1) * 1 * 6 * 6 * kBits);
  EXPECT_EQ(reference[1].bitops, (2 * 6 - 1) * 5 * 5 * kBits);
}

TEST(CostTableTest, NeedsTheSizeOfTheMap) {
  const Graph graph = Network({7, 4, -1, 12});
  Graph unknown = graph;
  unknown.mutable_shell()
      .mutable_graph()
      ->mutable_input(0)
      ->mutable_type()
      ->mutable_tensor_type()
      ->mutable_shape()
      ->mutable_dim(2)
      ->set_dim_param("h");
  const absl::Status status = CostTable(unknown, *FindLayers(unknown, nullptr, {}), {}).status();
  EXPECT_EQ(ReasonOf(status), v1::PRUNE_FAILED);
  EXPECT_EQ(PlaceOf(status).layer, "c");
}

// Two layers in a row; channels of `a` matter little, those of `b` much.
class GreedySearchTest : public testing::Test {
 protected:
  absl::StatusOr<SearchResult> Search(double target, float max_ratio = 1, bool ascend = false) const {
    AutoChannelPruneSettings settings;
    settings.compress_ratio = target;
    settings.max_prune_ratio = max_ratio;
    settings.ascend_optimized = ascend;
    return GreedySearch(settings, costs_, records_, sensitivities_, {});
  }

  const std::vector<LayerCost> costs_ = {{"a", 3, 40, 4000}, {"b", 40, 20, 8000}, {"c", 20, 10, 2000}};
  const std::vector<PruneRecord> records_ = {MakeRecord({Entry("a", "Conv", 0, 40)}, {Entry("b", "Conv", 0, 40)}),
                                             MakeRecord({Entry("b", "Conv", 0, 20)}, {Entry("c", "Conv", 0, 20)})};
  std::map<std::string, std::vector<float>> sensitivities_ = {{"a", std::vector<float>(40, 0.01F)},
                                                              {"b", std::vector<float>(20, 1)}};
};

TEST_F(GreedySearchTest, StopsWhereTheTargetIsReached) {
  const absl::StatusOr<SearchResult> result = Search(1.5);
  ASSERT_TRUE(result.ok()) << result.status();
  // A channel of `a` is 1/40 of 12000 operations; 14000 / 1.5 remain after 16.
  EXPECT_EQ(result->kept.at("a"), 24);
  EXPECT_EQ(result->kept.at("b"), 20);
  EXPECT_GE(result->compress_ratio, 1.5);
  EXPECT_LT(result->compress_ratio, 1.6);
  EXPECT_TRUE(result->warnings.empty());
}

TEST_F(GreedySearchTest, KeepsToTheLimitAndSaysSo) {
  const absl::StatusOr<SearchResult> result = Search(5, 0.25F);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->kept.at("a"), 30);
  EXPECT_EQ(result->kept.at("b"), 15);
  EXPECT_EQ(result->warnings.size(), 1);
}

TEST_F(GreedySearchTest, TakesTheStepOfTheRecordThatItCuts) {
  const absl::StatusOr<SearchResult> result = Search(1.2, 1, true);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->kept.at("a"), 32);  // 40 = 2 * 16 + 8; the reference would take the 4 of b's 20
  EXPECT_EQ(result->kept.at("b"), 20);
}

TEST_F(GreedySearchTest, RefusesSensitivitiesThatDoNotFit) {
  const auto good = sensitivities_;
  sensitivities_.erase("b");
  EXPECT_EQ(ReasonOf(Search(2).status()), v1::PRUNE_FAILED);
  sensitivities_ = good;
  sensitivities_["a"][3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(ReasonOf(Search(2).status()), v1::PRUNE_FAILED);
  sensitivities_ = good;
  const std::vector<PruneRecord> together = {MakeRecord({Entry("a", "Conv", 0, 40), Entry("b", "Conv", 0, 20)}, {})};
  EXPECT_EQ(ReasonOf(GreedySearch({.compress_ratio = 2}, costs_, together, sensitivities_, {}).status()), v1::PRUNE_FAILED);
}

}  // namespace
}  // namespace modelpress::engine
