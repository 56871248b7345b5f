#include "engine/prune/selective.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine/base/status.h"
#include "engine/prune/record_attributes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::ScaleOffsetRecord;
using Dims = std::vector<int64_t>;
using testing::HasSubstr;

// The library whose nth_element the reference's ties come from is the one that this is built with.
TEST(SmallestTwoOfFourTest, TiesAsNthElementBreaksThem) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::array<float, 5> values = {0, 0.25F, 0.5F, 0.75F, kNan};
  for (int pattern = 0; pattern < 625; ++pattern) {
    const std::array<float, 4> x = {values[pattern % 5], values[pattern / 5 % 5], values[pattern / 25 % 5],
                                    values[pattern / 125]};
    std::array<int, 4> order = {0, 1, 2, 3};
    std::nth_element(order.begin(), order.begin() + 1, order.end(),
                     [&](int a, int b) { return x[a] < x[b] || (std::isnan(x[b]) && !std::isnan(x[a])); });
    std::array<int, 2> expected = {order[0], order[1]};
    std::array<int, 2> actual = SmallestTwoOfFour(x);
    std::sort(expected.begin(), expected.end());
    std::sort(actual.begin(), actual.end());
    EXPECT_EQ(actual, expected) << pattern;
  }
}

std::vector<float> Noise(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

std::vector<float> WeightOf(const Graph& graph, const std::string& name) {
  const Tensor& tensor = graph.item(graph.Find(name)).tensor;
  std::vector<float> values(tensor.ElementCount());
  EXPECT_TRUE(ReadFloats(tensor, 0, absl::MakeSpan(values)).ok());
  return values;
}

// One Linear stored both ways: [out, in] for a Gemm, [in, out] for a MatMul; large enough to be read in pieces.
class LinearTest : public testing::Test {
 protected:
  static constexpr int64_t kOut = 700;
  static constexpr int64_t kIn = 1001;

  LinearTest() {
    std::mt19937 random(5);
    const std::vector<float> weight = Noise(size_t{kOut} * kIn, random);
    std::vector<float> transposed(weight.size());
    for (int64_t o = 0; o < kOut; ++o) {
      for (int64_t i = 0; i < kIn; ++i) {
        transposed[i * kOut + o] = weight[o * kIn + i];
      }
    }
    ModelBuilder builder;
    builder.Input("x", {1, kIn}).Initializer("a.weight", {kOut, kIn}, weight).Initializer("b.w", {kIn, kOut}, transposed);
    AddInt(builder.Node("Gemm", "a", {"x", "a.weight"}, {"y"}), "transB", 1);
    builder.Node("MatMul", "b", {"x", "b.w"}, {"z"});
    graph_ = Graph::Create(builder.Output("y").Output("z").Build(), {});
  }

  absl::StatusOr<Graph> graph_ = absl::UnknownError("");
};

TEST_F(LinearTest, MasksDoNotDependOnStorageOrThreads) {
  const Layers layers = *FindLayers(*graph_, nullptr, {});
  const auto one = *MakeSelectiveMasks(*graph_, layers, {{"a", {}}, {"b", {}}}, 1);
  const auto three = *MakeSelectiveMasks(*graph_, layers, {{"a", {}}, {"b", {}}}, 3);
  EXPECT_EQ(one.at("a").shape, (Dims{kOut, kIn}));
  EXPECT_EQ(one.at("a").packed, one.at("b").packed);
  EXPECT_EQ(one.at("a").packed, three.at("a").packed);
  EXPECT_EQ(one.at("a").packed, three.at("b").packed);

  std::mt19937 random(5);
  const std::vector<float> before = Noise(size_t{kOut} * kIn, random);
  ScaleOffsetRecord record;
  for (const char* name : {"a", "b"}) {
    ASSERT_TRUE(ApplySelectiveMask(*graph_, name, one.at(name)).ok());
    *record.add_prune_record() = SelectiveRecord(name, one.at(name), true);
  }
  EXPECT_TRUE(CheckSelectiveSparsity(*graph_, record, 3).ok());
  const std::vector<float> a = WeightOf(*graph_, "a.weight");
  const std::vector<float> b = WeightOf(*graph_, "b.w");
  int64_t zeros = 0;
  for (int64_t o = 0; o < kOut; ++o) {
    for (int64_t i = 0; i < kIn; ++i) {
      const float value = a[o * kIn + i];
      ASSERT_EQ(value, b[i * kOut + o]);
      ASSERT_TRUE(value == before[o * kIn + i] || value == 0);
      ASSERT_EQ(std::signbit(value), std::signbit(before[o * kIn + i]));
      zeros += value == 0 ? 1 : 0;
    }
  }
  EXPECT_EQ(zeros, kOut * (kIn / 4 * 2));  // of the last group of one channel none
}

TEST_F(LinearTest, FindsTheFirstGroupThatIsDense) {
  const Layers layers = *FindLayers(*graph_, nullptr, {});
  const auto masks = *MakeSelectiveMasks(*graph_, layers, {{"a", {}}, {"b", {}}}, 1);
  ASSERT_TRUE(ApplySelectiveMask(*graph_, "a", masks.at("a")).ok());
  ScaleOffsetRecord record;
  *record.add_prune_record() = SelectiveRecord("a", masks.at("a"), true);
  *record.add_prune_record() = SelectiveRecord("b", masks.at("b"), true);
  const absl::Status status = CheckSelectiveSparsity(*graph_, record, 2);
  EXPECT_EQ(ReasonOf(status), v1::NOT_SPARSE);
  EXPECT_EQ(PlaceOf(status).layer, "b");
  EXPECT_THAT(std::string(status.message()), HasSubstr("from [0, 0] on"));
}

TEST_F(LinearTest, RefusesWhatDoesNotFit) {
  const Layers layers = *FindLayers(*graph_, nullptr, {});
  const SelectiveMask mask = MakeSelectiveMasks(*graph_, layers, {{"a", {}}}, 1)->at("a");
  SelectiveMask other = mask;
  other.shape = {kIn, kOut};
  SelectiveMask shorter = mask;
  shorter.packed.pop_back();
  EXPECT_EQ(ReasonOf(ApplySelectiveMask(*graph_, "a", other)), v1::PRUNE_FAILED);
  EXPECT_EQ(ReasonOf(ApplySelectiveMask(*graph_, "a", shorter)), v1::PRUNE_FAILED);
  EXPECT_EQ(ReasonOf(ApplySelectiveMask(*graph_, "none", mask)), v1::PRUNE_FAILED);
  for (const AMCTPytorchProto::PruneRecord& bad :
       {SelectiveRecord("none", mask, true), SelectiveRecord("a", other, true), SelectiveRecord("a", {}, false)}) {
    ScaleOffsetRecord record;
    *record.add_prune_record() = bad;
    EXPECT_EQ(ReasonOf(CheckSelectiveSparsity(*graph_, record, 1)), v1::PRUNE_FAILED);
  }
  EXPECT_EQ(ReasonOf(MakeSelectiveMask(graph_->item(graph_->Find("a.weight")).tensor, {3, 3}, 1, 1).status()), v1::PRUNE_FAILED);
}

}  // namespace
}  // namespace modelpress::engine
