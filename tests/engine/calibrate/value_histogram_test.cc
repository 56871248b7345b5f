#include "engine/calibrate/value_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

std::vector<float> RandomBits(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    do {
      value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    } while (!std::isfinite(value));
  }
  return values;
}

TEST(ValueHistogramTest, KeysAreOrderedAsTheValues) {
  std::vector<float> values = RandomBits(2000, 1);
  values.insert(values.end(), {0.0f, 1.0f, -1.0f, std::numeric_limits<float>::max(), -std::numeric_limits<float>::denorm_min()});
  std::sort(values.begin(), values.end());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(ValueHistogram::ValueOf(ValueHistogram::KeyOf(values[i])), values[i]);
    if (i > 0 && values[i - 1] < values[i]) {
      EXPECT_LT(ValueHistogram::KeyOf(values[i - 1]), ValueHistogram::KeyOf(values[i]));
    }
  }
}

TEST(ValueHistogramTest, BucketsHaveCountAndSumOfTheirValues) {
  std::vector<float> values = RandomBits(3000, 2);
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 1);
  for (int i = 0; i < 20000; ++i) {
    values.push_back(normal(random));
  }
  ValueHistogram first;
  ValueHistogram second;
  first.Add(absl::MakeConstSpan(values).subspan(0, 5000));
  second.Add(absl::MakeConstSpan(values).subspan(5000));
  std::map<uint32_t, std::pair<uint64_t, long double>> expected;
  for (const float value : values) {
    auto& [count, sum] = expected[ValueHistogram::BucketOf(value)];
    ++count;
    sum += value;
  }
  const ValueHistogram* const others[] = {&second};
  const std::vector<ValueHistogram::Bucket> buckets = first.Buckets(others);
  ASSERT_EQ(buckets.size(), expected.size());
  auto it = expected.begin();
  for (size_t i = 0; i < buckets.size(); ++i, ++it) {
    EXPECT_EQ(buckets[i].id, it->first);
    EXPECT_EQ(buckets[i].count, it->second.first);
    EXPECT_NEAR(static_cast<double>(buckets[i].sum), static_cast<double>(it->second.second),
                1e-15 * std::fabs(static_cast<double>(it->second.second)));
    EXPECT_EQ(ValueHistogram::BucketOf(buckets[i].first), buckets[i].id);
    EXPECT_EQ(ValueHistogram::BucketOf(buckets[i].last), buckets[i].id);
    EXPECT_NE(ValueHistogram::BucketOf(std::nextafter(buckets[i].last, std::numeric_limits<float>::infinity())), buckets[i].id);
    if (i > 0) {
      EXPECT_LT(buckets[i - 1].last, buckets[i].first);
    }
  }
}

// More values than the pending numbers hold.
TEST(ValueHistogramTest, CountsBeyondAllNarrowNumbers) {
  const float value =
      std::nextafter(ValueHistogram::ValueOf((ValueHistogram::BucketOf(1.5f) + 1) << ValueHistogram::kLowBits), 0.0f);
  const std::vector<float> values(1 << 20, value);  // the last of a bucket
  ValueHistogram histogram;
  for (int i = 0; i < 70; ++i) {
    histogram.Add(values);
  }
  const std::vector<ValueHistogram::Bucket> buckets = histogram.Buckets();
  ASSERT_EQ(buckets.size(), 1);
  EXPECT_EQ(buckets[0].count, uint64_t{70} << 20);
  EXPECT_EQ(buckets[0].sum, static_cast<long double>(value) * (uint64_t{70} << 20));
  EXPECT_EQ(buckets[0].last, value);
}

TEST(ValueHistogramTest, BucketsMakeTheSameHistogram) {
  const std::vector<float> values = RandomBits(5000, 4);
  ValueHistogram all;
  all.Add(values);
  ValueHistogram part;
  part.Add(absl::MakeConstSpan(values).subspan(0, 2000));
  ValueHistogram joined;
  joined.Add(part.Buckets());
  joined.Add(absl::MakeConstSpan(values).subspan(2000));
  const std::vector<ValueHistogram::Bucket> expected = all.Buckets();
  const std::vector<ValueHistogram::Bucket> buckets = joined.Buckets();
  ASSERT_EQ(buckets.size(), expected.size());
  for (size_t i = 0; i < buckets.size(); ++i) {
    EXPECT_EQ(buckets[i].id, expected[i].id);
    EXPECT_EQ(buckets[i].count, expected[i].count);
    EXPECT_EQ(buckets[i].sum, expected[i].sum);
  }
}

TEST(ValueHistogramTest, NothingHasNoBuckets) { EXPECT_TRUE(ValueHistogram().Buckets().empty()); }

}  // namespace
}  // namespace modelpress::engine
