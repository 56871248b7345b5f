#include "engine/kernels/calibrate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/calibrate_scalar.h"
#include "engine/kernels/quantize_scalar.h"
#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace modelpress::engine {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Every test runs once with each instruction set that this build has and this machine can run.
class CalibrateKernelsTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

INSTANTIATE_TEST_SUITE_P(Targets, CalibrateKernelsTest, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

std::vector<size_t> Lengths() {
  std::vector<size_t> lengths(67);
  for (size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] = i;
  }
  lengths.insert(lengths.end(), {127, 128, 129, 1000, 4099});
  return lengths;
}

// Normally distributed, a third of them zeros of both signs.
std::vector<float> Values(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> values(count);
  for (float& value : values) {
    const uint32_t kind = random() % 6;
    value = kind == 0 ? 0.0f : kind == 1 ? -0.0f : normal(random);
  }
  return values;
}

TEST_P(CalibrateKernelsTest, WidensTheRange) {
  for (const size_t length : Lengths()) {
    const std::vector<float> values = Values(length, static_cast<uint32_t>(length));
    float low = 0.5f;
    float high = 0.75f;
    ASSERT_EQ(WidenRange(values, &low, &high), length);
    float expected_low = 0.5f;
    float expected_high = 0.75f;
    for (const float value : values) {
      expected_low = std::min(expected_low, value);
      expected_high = std::max(expected_high, value);
    }
    EXPECT_EQ(low, expected_low) << length;
    EXPECT_EQ(high, expected_high) << length;
  }
  float low = kInfinity;
  float high = -kInfinity;
  const std::vector<float> extremes = {kMax, -kMax, kDenormal};
  EXPECT_EQ(WidenRange(extremes, &low, &high), 3);
  EXPECT_EQ(low, -kMax);
  EXPECT_EQ(high, kMax);
}

TEST_P(CalibrateKernelsTest, TellsTheFirstValueThatIsNotFinite) {
  for (const size_t length : {1, 7, 63, 64, 65, 300}) {
    for (size_t bad = 0; bad < length; ++bad) {
      for (const float value : {kInfinity, -kInfinity, std::nanf("")}) {
        std::vector<float> values(length, 1.0f);
        values[bad] = value;
        values.back() = std::isfinite(values.back()) ? kInfinity : values.back();  // only the first counts
        float low = 0;
        float high = 0;
        ASSERT_EQ(WidenRange(values, &low, &high), bad) << length;
      }
    }
  }
}

TEST_P(CalibrateKernelsTest, CopiesWhatIsChosen) {
  for (const size_t length : Lengths()) {
    const std::vector<float> values = Values(length, static_cast<uint32_t>(length));
    std::vector<float> nonzero(length + kCalibrateLanes);
    nonzero.resize(CopyNonzero(values, nonzero.data()));
    std::vector<float> expected;
    std::copy_if(values.begin(), values.end(), std::back_inserter(expected), [](float x) { return x != 0; });
    EXPECT_EQ(nonzero, expected);
    std::vector<float> outside(length + kCalibrateLanes);
    outside.resize(CopyOutside(values, -2, 1.5, outside.data()));
    expected.clear();
    std::copy_if(values.begin(), values.end(), std::back_inserter(expected), [](float x) { return x < -2 || x > 1.5f; });
    EXPECT_EQ(outside, expected);
  }
}

TEST_P(CalibrateKernelsTest, SquaredErrorsHaveTheBitsOfTheScalarReference) {
  std::vector<ClipCandidate> candidates = {
      {-1, 3, 0.1f}, {-7, 7, 7 / 127.0f}, {0, 2.5f, 2.5f / 255}, {-3, 0, 3 / 65535.0f}, {0, 0, 1}};
  for (const size_t length : {0, 16, 32, 48, 4096}) {
    const std::vector<float> values = Values(length, static_cast<uint32_t>(length));
    std::vector<double> sums(candidates.size());
    SumSquaredErrors(values, candidates, sums.data());
    for (size_t c = 0; c < candidates.size(); ++c) {
      EXPECT_EQ(sums[c], scalar::SumSquaredErrors(values, candidates[c])) << c << ", " << length;
    }
  }
  std::vector<float> extremes = {kMax, -kMax, kDenormal, -kDenormal, 1e20f, -1e20f, 1e-20f, 0x1p-126f};
  extremes.resize(16);
  double sum = 0;
  SumSquaredErrors(extremes, {{-kMax / 2, kMax / 2, kMax / 256}}, &sum);
  EXPECT_EQ(sum, scalar::SumSquaredErrors(extremes, {-kMax / 2, kMax / 2, kMax / 256}));
  EXPECT_EQ(sum, static_cast<double>(kInfinity));  // the square of an error overflows
}

TEST_P(CalibrateKernelsTest, FindsBins) {
  for (const size_t length : Lengths()) {
    std::vector<float> values = Values(length, static_cast<uint32_t>(length));
    for (const auto& [low, high] : {std::pair{-20.0f, 20.0f}, {-17.25f, 31.1f}, {-1e30f, 1e30f}}) {
      for (const int count : {2, 512, 4096}) {
        if (length > 1) {
          values[0] = low;
          values[1] = high;
        }
        std::vector<int32_t> bins(length + 1, 77);
        FindBins(values, low, high, count, bins.data());
        for (size_t i = 0; i < length; ++i) {
          ASSERT_EQ(bins[i], scalar::FindBin(values[i], low, high, count)) << values[i];
          ASSERT_LT(bins[i], count);
          ASSERT_GE(bins[i], 0);
        }
        ASSERT_EQ(bins.back(), 77);
      }
    }
  }
}

TEST_P(CalibrateKernelsTest, HistogramLossHasTheTermsOfTheScalarReference) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    const int bins = 1024;
    const float step = std::exp2(static_cast<float>(random() % 2000) / 100 - 14);
    std::vector<float> positions(bins);
    std::vector<float> densities(bins);
    for (int i = 0; i < bins; ++i) {
      positions[i] = static_cast<float>(i);
      densities[i] = static_cast<float>(random() % 1000) / step;
    }
    const int first = static_cast<int>(random() % 500);
    // Levels that divide the bins evenly, so that edges meet, and any others.
    const int last =
        round % 3 == 0 ? std::min(first + 511, bins - 1) : first + 256 + static_cast<int>(random() % (bins - first - 256));
    const int levels = round % 4 == 0 ? 65536 : 256;
    const float width = (step * static_cast<float>(last - first + 1)) / static_cast<float>(levels);
    const double loss = HistogramLoss(positions, densities, static_cast<float>(first), step, levels, width);
    const double expected = scalar::HistogramLoss(positions, densities, static_cast<float>(first), step, levels, width);
    // The same float32 terms; those of one bin are added up in another order.
    EXPECT_NEAR(loss, expected, 1e-12 * expected) << step << " " << first << " " << last << " " << levels;
  }
}

TEST_P(CalibrateKernelsTest, FakeQuantizesWithTheSignsOfZeros) {
  for (const size_t length : Lengths()) {
    for (const int bits : {4, 6, 7, 8}) {
      std::vector<float> values = Values(length, static_cast<uint32_t>(length));
      std::vector<float> scales(length);
      for (size_t i = 0; i < length; ++i) {
        scales[i] = 0.01f * static_cast<float>(i % 31 + 1);
      }
      std::vector<float> common = values;
      std::vector<float> by_element = values;
      FakeQuantizeInPlace(absl::MakeSpan(common), 0.07f, bits);
      FakeQuantizeInPlaceByElement(absl::MakeSpan(by_element), scales.data(), bits);
      for (size_t i = 0; i < length; ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(common[i]), std::bit_cast<uint32_t>(scalar::FakeQuantize(values[i], 0.07f, bits)))
            << values[i];
        ASSERT_EQ(std::bit_cast<uint32_t>(by_element[i]),
                  std::bit_cast<uint32_t>(scalar::FakeQuantize(values[i], scales[i], bits)));
      }
    }
  }
  std::vector<float> zeros = {0.0f, -0.0f, -0.001f, 0.001f};
  FakeQuantizeInPlace(absl::MakeSpan(zeros), 1, 8);
  EXPECT_FALSE(std::signbit(zeros[0]) || std::signbit(zeros[1]) || std::signbit(zeros[3]));
  EXPECT_TRUE(std::signbit(zeros[2]));
}

TEST(FloatToHalfTest, RoundsToTheNearestHalf) {
  // Every half stays itself, and what lies between two goes to the nearer one, in the middle to the even one.
  for (uint32_t half = 0; half < 0x7C00; ++half) {
    const float value = scalar::HalfToFloat(static_cast<uint16_t>(half));
    const float next = half == 0x7BFF ? 65536.0f : scalar::HalfToFloat(static_cast<uint16_t>(half + 1));
    const float middle = (value + next) / 2;
    const std::vector<float> values = {value, -value, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, kMax)};
    std::vector<uint16_t> out(values.size());
    FloatToHalf(values, out.data());
    ASSERT_EQ(out[0], half);
    ASSERT_EQ(out[1], half | 0x8000);
    ASSERT_EQ(out[2], half);
    ASSERT_EQ(out[3], half + half % 2);
    ASSERT_EQ(out[4], half + 1);
  }
}

}  // namespace
}  // namespace modelpress::engine
