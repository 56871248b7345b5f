#include "engine/kernels/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/quantize_scalar.h"
#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace modelpress::engine {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Every test runs once with each instruction set that this build has and this machine can run.
class QuantizeTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

std::vector<int64_t> Targets() { return hwy::SupportedAndGeneratedTargets(); }

INSTANTIATE_TEST_SUITE_P(Targets, QuantizeTest, testing::ValuesIn(Targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

// Lengths around every vector size, odd ones and an empty one.
std::vector<size_t> Lengths() {
  std::vector<size_t> lengths(67);
  for (size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] = i;
  }
  lengths.insert(lengths.end(), {127, 128, 129, 1000, 4099});
  return lengths;
}

// Finite floats of every magnitude, random bits.
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

// Weights as they are: normally distributed around 0, with multiples of half a scale in between.
std::vector<float> Weights(size_t count, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 60 * scale);
  std::vector<float> values(count);
  for (float& value : values) {
    const float w = normal(random);
    value = random() % 4 == 0 ? std::nearbyint(w / scale * 2) * 0.5f * scale : w;
  }
  return values;
}

// Quantizes `w` in all four ways, from and to unaligned memory, and compares with the scalar reference.
void ExpectLikeScalar(const std::vector<float>& w, float scale, int bits) {
  std::vector<int8_t> expected(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    expected[i] = scalar::QuantizeWeight(w[i], scale, bits);
  }
  for (const size_t shift : {0, 1, 3}) {
    std::vector<float> storage(shift, -1);
    storage.insert(storage.end(), w.begin(), w.end());
    const absl::Span<const float> in = absl::MakeConstSpan(storage).subspan(shift);
    std::vector<float> scales(shift + w.size(), scale);
    // One element more than needed on each side: nothing else may be written.
    for (const bool by_element : {false, true}) {
      std::vector<int8_t> q(shift + w.size() + 1, 77);
      std::vector<float> fake(shift + w.size() + 1, 77);
      if (by_element) {
        ASSERT_EQ(QuantizeWeightsByElement(in, scales.data() + shift, bits, q.data() + shift), w.size());
        ASSERT_EQ(FakeQuantizeWeightsByElement(in, scales.data() + shift, bits, fake.data() + shift), w.size());
      } else {
        ASSERT_EQ(QuantizeWeights(in, scale, bits, q.data() + shift), w.size());
        ASSERT_EQ(FakeQuantizeWeights(in, scale, bits, fake.data() + shift), w.size());
      }
      for (size_t i = 0; i < w.size(); ++i) {
        ASSERT_EQ(q[shift + i], expected[i])
            << w[i] << " / " << scale << ", " << bits << " bits, element " << i << " of " << w.size();
        const float as_float = expected[i];
        ASSERT_EQ(std::bit_cast<uint32_t>(fake[shift + i]), std::bit_cast<uint32_t>(as_float)) << w[i] << " / " << scale;
      }
      EXPECT_TRUE(std::all_of(q.begin(), q.begin() + shift, [](int8_t v) { return v == 77; }));
      EXPECT_EQ(q.back(), 77);
      EXPECT_TRUE(std::all_of(fake.begin(), fake.begin() + shift, [](float v) { return v == 77; }));
      EXPECT_EQ(fake.back(), 77);
    }
  }
}

TEST_P(QuantizeTest, RoundsTiesToEvenAndClamps) {
  const std::vector<float> w = {0.5f,   1.5f,  2.5f,    -0.5f,   -1.5f,  -2.5f,       126.5f,
                                127.5f, 128.f, -127.5f, -128.5f, -129.f, 0.49999997f, -0.f};
  const std::vector<int8_t> expected = {0, 2, 2, 0, -2, -2, 126, 127, 127, -128, -128, -128, 0, 0};
  std::vector<int8_t> q(w.size());
  ASSERT_EQ(QuantizeWeights(w, 1.0f, 8, q.data()), w.size());
  EXPECT_EQ(q, expected);
  const std::vector<int8_t> expected_4 = {0, 2, 2, 0, -2, -2, 7, 7, 7, -8, -8, -8, 0, 0};
  ASSERT_EQ(QuantizeWeights(w, 1.0f, 4, q.data()), w.size());
  EXPECT_EQ(q, expected_4);
}

TEST_P(QuantizeTest, WeightsOfEveryLengthAreAsTheScalarReferenceHasThem) {
  uint32_t seed = 0;
  for (const size_t length : Lengths()) {
    for (const int bits : {2, 4, 6, 7, 8}) {
      const float scale = std::exp2(-static_cast<float>(seed % 20)) * 1.1f;
      ExpectLikeScalar(Weights(length, scale, seed), scale, bits);
      ++seed;
    }
  }
}

TEST_P(QuantizeTest, ExtremesSaturate) {
  std::vector<float> w = {0,      -0.f,      1,     -1,     kMax,          -kMax,         kDenormal,     -kDenormal,
                          1e-38f, -1e-38f,   127,   128,    2147483648.f,  -2147483648.f, 2147483520.f,  1e10f,
                          -1e10f, 0x1p-126f, 1e30f, -1e30f, 3 * kDenormal, 5 * kDenormal, -3 * kDenormal};
  const std::vector<float> random = RandomBits(1000, 7);
  w.insert(w.end(), random.begin(), random.end());
  // With a denormal scale, w / scale is infinite for ordinary weights.
  for (const float scale : {1.0f, kDenormal, 2 * kDenormal, 1e-40f, 0x1p-126f, 1e-10f, 0.1f, 1e10f, kMax, 0x1p127f}) {
    ExpectLikeScalar(w, scale, 8);
    ExpectLikeScalar(w, scale, 4);
  }
}

TEST_P(QuantizeTest, RandomBitsByRandomScales) {
  const std::vector<float> scales = RandomBits(200, 11);
  for (const float scale : scales) {
    if (scale != 0) {
      ExpectLikeScalar(RandomBits(131, std::bit_cast<uint32_t>(scale)), std::abs(scale), 8);
    }
  }
}

TEST_P(QuantizeTest, EveryElementHasItsOwnScale) {
  for (const size_t length : Lengths()) {
    const std::vector<float> w = Weights(length, 0.02f, static_cast<uint32_t>(length));
    std::vector<float> scales(length);
    for (size_t i = 0; i < length; ++i) {
      scales[i] = 0.001f * static_cast<float>(i % 97 + 1);
    }
    std::vector<int8_t> q(length);
    std::vector<float> fake(length);
    ASSERT_EQ(QuantizeWeightsByElement(w, scales.data(), 6, q.data()), length);
    ASSERT_EQ(FakeQuantizeWeightsByElement(w, scales.data(), 6, fake.data()), length);
    for (size_t i = 0; i < length; ++i) {
      ASSERT_EQ(q[i], scalar::QuantizeWeight(w[i], scales[i], 6));
      ASSERT_EQ(fake[i], static_cast<float>(q[i]));
    }
  }
}

TEST_P(QuantizeTest, TellsTheFirstWeightThatIsNotFinite) {
  for (const size_t length : {1, 7, 8, 63, 64, 65, 200}) {
    for (size_t bad = 0; bad < length; ++bad) {
      for (const float value : {kInfinity, -kInfinity, std::nanf(""), std::bit_cast<float>(0x7F800001u)}) {
        std::vector<float> w(length, 1.0f);
        w[bad] = value;
        w[length - 1] = std::isfinite(w[length - 1]) ? kInfinity : w[length - 1];  // only the first counts
        const std::vector<float> scales(length, 0.5f);
        std::vector<int8_t> q(length);
        std::vector<float> fake(length);
        ASSERT_EQ(QuantizeWeights(w, 0.5f, 8, q.data()), bad);
        ASSERT_EQ(FakeQuantizeWeights(w, 0.5f, 8, fake.data()), bad);
        ASSERT_EQ(QuantizeWeightsByElement(w, scales.data(), 8, q.data()), bad);
        ASSERT_EQ(FakeQuantizeWeightsByElement(w, scales.data(), 8, fake.data()), bad);
      }
    }
  }
}

TEST_P(QuantizeTest, AllHalfsAndBfloatsWidenExactly) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<uint16_t>(i);
  }
  std::vector<float> half(all.size());
  std::vector<float> bfloat(all.size());
  HalfToFloat(all, half.data());
  BfloatToFloat(all, bfloat.data());
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(half[i]), std::bit_cast<uint32_t>(scalar::HalfToFloat(all[i]))) << i;
    ASSERT_EQ(std::bit_cast<uint32_t>(bfloat[i]), std::bit_cast<uint32_t>(scalar::BfloatToFloat(all[i]))) << i;
  }
  for (const size_t length : Lengths()) {
    std::vector<float> part(length + 1, 77);
    HalfToFloat(absl::MakeConstSpan(all).subspan(0x3C01, length), part.data());
    ASSERT_TRUE(std::equal(part.begin(), part.end() - 1, half.begin() + 0x3C01));
    ASSERT_EQ(part.back(), 77);
    BfloatToFloat(absl::MakeConstSpan(all).subspan(0x3C01, length), part.data());
    ASSERT_TRUE(std::equal(part.begin(), part.end() - 1, bfloat.begin() + 0x3C01));
    ASSERT_EQ(part.back(), 77);
  }
}

TEST_P(QuantizeTest, PacksNibbles) {
  std::mt19937 random(5);
  for (const size_t length : Lengths()) {
    std::vector<int8_t> q(length);
    std::vector<int8_t> odd(length);
    for (size_t i = 0; i < length; ++i) {
      q[i] = static_cast<int8_t>(random() % 16) - 8;
      odd[i] = static_cast<int8_t>(random() % 16) - 8;
    }
    std::vector<uint8_t> packed((length + 1) / 2 + 1, 77);
    PackNibbles(q, packed.data());
    for (size_t k = 0; 2 * k < length; ++k) {
      const int8_t high = 2 * k + 1 < length ? q[2 * k + 1] : int8_t{0};
      ASSERT_EQ(packed[k], scalar::PackNibbles(q[2 * k], high)) << k << " of " << length;
    }
    ASSERT_EQ(packed.back(), 77);
    std::vector<uint8_t> rows(length + 1, 77);
    PackNibbleRows(q, odd, rows.data());
    for (size_t i = 0; i < length; ++i) {
      ASSERT_EQ(rows[i], scalar::PackNibbles(q[i], odd[i]));
    }
    ASSERT_EQ(rows.back(), 77);
  }
}

TEST(QuantizeScalarTest, IsWhatTheSpecificationSays) {
  EXPECT_EQ(scalar::QuantizeWeight(2.5f, 1, 8), 2);
  EXPECT_EQ(scalar::QuantizeWeight(-3.5f, 1, 8), -4);
  EXPECT_EQ(scalar::QuantizeWeight(1e30f, kDenormal, 4), 7);
  EXPECT_EQ(scalar::QuantizeWeight(-1e30f, kDenormal, 4), -8);
  EXPECT_EQ(scalar::HalfToFloat(0x3C00), 1.0f);
  EXPECT_EQ(scalar::HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(scalar::HalfToFloat(0xFBFF), -65504.0f);
  EXPECT_EQ(scalar::HalfToFloat(0x7C00), kInfinity);
  EXPECT_EQ(scalar::BfloatToFloat(0xBF80), -1.0f);
  EXPECT_EQ(scalar::PackNibbles(-1, 7), 0x7F);
}

}  // namespace
}  // namespace modelpress::engine
