#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine/base/status.h"
#include "engine/prune/channels.h"
#include "engine/prune/rank.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/prune/prune_entries.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneRecord;
using testing::ElementsAre;
using testing::HasSubstr;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The examples of prune.md section 6.
TEST(ChannelsToKeepTest, RoundsHalvesToEvenAndUpToSixteen) {
  EXPECT_EQ(ChannelsToKeep(5, 0.5, false, 1), 3);
  EXPECT_EQ(ChannelsToKeep(7, 0.5, false, 1), 3);
  EXPECT_EQ(ChannelsToKeep(3, 0.99, false, 1), 1);
  EXPECT_EQ(ChannelsToKeep(2, 0.99, false, 1), 1);
  EXPECT_EQ(ChannelsToKeep(1, 0.99, false, 1), 1);
  EXPECT_EQ(ChannelsToKeep(24, 0.5, true, 1), 16);
  EXPECT_EQ(ChannelsToKeep(40, 0.6, true, 1), 16);
  EXPECT_EQ(ChannelsToKeep(16, 0.99, true, 1), 16);
  EXPECT_EQ(ChannelsToKeep(12, 0.5, false, 4), 4);
  EXPECT_EQ(ChannelsToKeep(12, 0.9, false, 4), 4);
}

// Section 6 step 2, one element after the other.
float SumOfSquares(const std::vector<float>& row) {
  const size_t whole = row.size() / 8 * 8;
  float lanes[8] = {};
  for (size_t i = 0; i < whole; ++i) {
    lanes[i % 8] += row[i] * row[i];
  }
  float sum = lanes[0];
  for (int j = 1; j < 8; ++j) {
    sum += lanes[j];
  }
  for (size_t i = whole; i < row.size(); ++i) {
    sum = i < whole + (row.size() - whole) / 4 * 4 ? sum + row[i] * row[i] : std::fma(row[i], row[i], sum);
  }
  return sum;
}

std::vector<float> Scores(const std::vector<std::vector<float>>& rows) {
  std::vector<float> scores;
  scores.reserve(rows.size());
  for (const std::vector<float>& row : rows) {
    scores.push_back(std::sqrt(SumOfSquares(row)) / static_cast<float>(row.size()));
  }
  const float low = *std::min_element(scores.begin(), scores.end());
  const float range = *std::max_element(scores.begin(), scores.end()) - low;
  for (float& score : scores) {
    score = (score - low) / range;
  }
  return scores;
}

RankedWeight Weight(const std::vector<std::vector<float>>& rows, bool transposed) {
  const size_t length = rows[0].size();
  std::vector<float> values(rows.size() * length);
  for (size_t o = 0; o < rows.size(); ++o) {
    for (size_t i = 0; i < length; ++i) {
      values[transposed ? i * rows.size() + o : o * length + i] = rows[o][i];
    }
  }
  onnx::TensorProto proto;
  proto.set_data_type(onnx::TensorProto::FLOAT);
  proto.add_dims(static_cast<int64_t>(values.size()));
  proto.mutable_float_data()->Assign(values.begin(), values.end());
  return {.tensor = FromProto(std::move(proto)),
          .layer = "layer",
          .channels = static_cast<int64_t>(rows.size()),
          .row = static_cast<int64_t>(length),
          .transposed = transposed};
}

TEST(ScoreChannelsTest, BitExactHoweverTheWeightIsStoredAndRead) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  // Rows longer than a piece, more columns than a block, and every length of the tail.
  std::vector<std::pair<int, int>> shapes = {{3, 300'003}, {5000, 13}, {4097, 65}, {70'000, 5}};
  for (int length = 1; length <= 24; ++length) {
    shapes.emplace_back(9, length);
  }
  for (const auto& [channels, length] : shapes) {
    std::vector<std::vector<float>> rows(channels, std::vector<float>(length));
    for (std::vector<float>& row : rows) {
      std::generate(row.begin(), row.end(), [&] { return normal(random); });
    }
    const std::vector<float> expected = Scores(rows);
    for (const int threads : {1, 3}) {
      const absl::StatusOr<std::vector<std::vector<float>>> scores =
          ScoreChannels({Weight(rows, false), Weight(rows, true)}, threads);
      ASSERT_TRUE(scores.ok()) << scores.status();
      EXPECT_EQ((*scores)[0], expected) << channels << "x" << length;
      EXPECT_EQ((*scores)[1], expected) << channels << "x" << length;
    }
  }
}

TEST(ScoreChannelsTest, EqualOrBrokenChannelsHaveNoScore) {
  for (const std::vector<std::vector<float>>& rows :
       {std::vector<std::vector<float>>{{1, 2}, {2, 1}}, std::vector<std::vector<float>>{{1, kNan}, {2, 1}}}) {
    const std::vector<std::vector<float>> scores = *ScoreChannels({Weight(rows, false)}, 1);
    EXPECT_TRUE(std::isnan(scores[0][0]) && std::isnan(scores[0][1]));
  }
}

TEST(LeastChannelsTest, StableWithinBlocks) {
  EXPECT_THAT(LeastChannels({0.5F, 0, 0.5F, 1}, 2, 1), ElementsAre(0, 1));
  EXPECT_THAT(LeastChannels({kNan, kNan, kNan}, 2, 1), ElementsAre(0, 1));
  EXPECT_THAT(LeastChannels({kNan, 1, 0}, 2, 1), ElementsAre(1, 2));
  EXPECT_THAT(LeastChannels({3, 4, 1, 2}, 2, 2), ElementsAre(0, 2));
  EXPECT_THAT(LeastChannels({3, 4, 1, 2, 9}, 3, 2), ElementsAre(0, 2, 4));  // what is behind the last block goes
}

class ChooseChannelsTest : public testing::Test {
 protected:
  // Rows of growing weight; of layer b the other way round.
  ChooseChannelsTest() {
    ModelBuilder builder;
    builder.Input("x", {1, 1, 3, 3}).Initializer("a.weight", {6, 1, 1, 1}, {1, 2, 3, 4, 5, 6});
    builder.Initializer("b.weight", {6, 1, 1, 1}, {9, 8, 4, 3, 2, 1});
    builder.Node("Conv", "a", {"x", "a.weight"}, {"a.out"});
    builder.Node("Conv", "b", {"x", "b.weight"}, {"b.out"});
    builder.Node("Add", "add", {"a.out", "b.out"}, {"y"});
    builder.Output("y");
    graph_ = *Graph::Create(builder.Build(), {});
  }

  absl::Status Choose(std::vector<PruneRecord>& records, double ratio, bool all_producers = false,
                      const ReferenceDefects& defects = {}) const {
    const FilterPruneConfig config = {.ratio = ratio, .ascend_optimized = false};
    return ChooseChannels(*graph_, {{"a", config}, {"b", config}}, {.rank_by_all_producers = all_producers}, defects, 2, records);
  }

  static std::vector<int64_t> Indices(const AMCTPytorchProto::PruneNode& entry) {
    const AMCTProto::AttrProto* attribute = FindRecordAttribute(entry, kPruneIndexAttribute);
    return attribute == nullptr ? std::vector<int64_t>()
                                : std::vector<int64_t>(attribute->ints().begin(), attribute->ints().end());
  }

  std::optional<Graph> graph_;
};

TEST_F(ChooseChannelsTest, ByTheFirstProducerOrAll) {
  for (const bool all : {false, true}) {
    std::vector<PruneRecord> records = {MakeRecord({Entry("a", "Conv", 0, 6), Entry("b", "Conv", 0, 6)}, {})};
    ASSERT_TRUE(Choose(records, 0.34, all).ok());
    // Scores (i - 1) / 5 and (b - 1) / 8 add up to 1, 1.075, 0.775, 0.85, 0.925, 1.
    EXPECT_EQ(Indices(records[0].producer(1)), all ? (std::vector<int64_t>{2, 3}) : (std::vector<int64_t>{0, 1}));
  }
}

TEST_F(ChooseChannelsTest, IndicesInTheCoordinatesOfTheEntry) {
  std::vector<PruneRecord> records = {
      MakeRecord({Entry("a", "Conv", 0, 6)}, {Entry("c", "Conv", 10, 16), Entry("flat", "Gemm", 4, 16)})};
  ASSERT_TRUE(Choose(records, 0.34).ok());
  EXPECT_THAT(Indices(records[0].producer(0)), ElementsAre(0, 1));
  EXPECT_THAT(Indices(records[0].consumer(0)), ElementsAre(10, 11));
  EXPECT_THAT(Indices(records[0].consumer(1)), ElementsAre(4, 5, 6, 7));  // two positions per channel
}

TEST_F(ChooseChannelsTest, NothingToCutLeavesTheRecord) {
  std::vector<PruneRecord> records = {MakeRecord({Entry("a", "Conv", 0, 6)}, {})};
  ASSERT_TRUE(Choose(records, 0.01).ok());
  EXPECT_EQ(records[0].DebugString(), MakeRecord({Entry("a", "Conv", 0, 6)}, {}).DebugString());
}

// P-9: the maximum of 2 and 3 groups takes the first channel of three pairs: none evenly from the halves.
TEST_F(ChooseChannelsTest, UnevenGroupsAreChosenAgain) {
  AMCTPytorchProto::PruneNode producer = Entry("a", "Conv", 0, 6);
  AddRecordInt(producer, kPruneGroupAttribute, 3);
  AMCTPytorchProto::PruneNode halves = Entry("c", "Conv", 0, 6);
  AddRecordInt(halves, kGroupAttribute, 2);
  AMCTPytorchProto::PruneNode thirds = Entry("d", "Conv", 0, 6);
  AddRecordInt(thirds, kGroupAttribute, 3);
  std::vector<PruneRecord> records = {MakeRecord({producer}, {halves, thirds})};
  ReferenceDefects defects;
  defects.merges_groups_by_maximum = true;
  ASSERT_TRUE(Choose(records, 0.5, false, defects).ok());
  EXPECT_THAT(Indices(records[0].producer(0)), ElementsAre(0, 2, 4));
  records = {MakeRecord({producer}, {halves, thirds})};
  ASSERT_TRUE(Choose(records, 0.5).ok());
  EXPECT_THAT(Indices(records[0].producer(0)), ElementsAre());  // six groups of one channel
  EXPECT_EQ(FindRecordInt(records[0].producer(0), kPruneGroupAttribute), 6);
}

TEST_F(ChooseChannelsTest, RefusesWhatCannotBeRanked) {
  AMCTPytorchProto::PruneNode grouped = Entry("a", "Conv", 0, 6);
  AddRecordInt(grouped, kPruneGroupAttribute, 4);
  const std::vector<std::pair<PruneRecord, std::string>> cases = {
      {MakeRecord({Entry("none", "Conv", 0, 6)}, {}), "no prune_ratio"},
      {MakeRecord({grouped}, {}), "4 equal groups"},
  };
  for (const auto& [record, text] : cases) {
    std::vector<PruneRecord> records = {record};
    const absl::Status status = Choose(records, 0.5);
    EXPECT_EQ(ReasonOf(status), v1::PRUNE_FAILED);
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

}  // namespace
}  // namespace modelpress::engine
