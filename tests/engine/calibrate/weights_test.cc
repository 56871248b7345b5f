#include "engine/calibrate/weights.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/kernels/calibrate.h"
#include "engine/kernels/calibrate_scalar.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Tensor MakeTensor(const std::vector<float>& values) {
  onnx::TensorProto proto;
  proto.set_name("w");
  proto.set_data_type(onnx::TensorProto::FLOAT);
  proto.add_dims(static_cast<int64_t>(values.size()));
  proto.mutable_float_data()->Add(values.begin(), values.end());
  return FromProto(std::move(proto));
}

Tensor MakeHalfTensor(const std::vector<float>& values) {
  std::vector<uint16_t> halfs(values.size());
  FloatToHalf(values, halfs.data());
  onnx::TensorProto proto;
  proto.set_name("w");
  proto.set_data_type(onnx::TensorProto::FLOAT16);
  proto.add_dims(static_cast<int64_t>(values.size()));
  proto.set_raw_data(reinterpret_cast<const char*>(halfs.data()), halfs.size() * 2);
  return FromProto(std::move(proto));
}

std::vector<float> Normal(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

std::vector<float> Read(const Tensor& tensor) {
  std::vector<float> values(tensor.ElementCount());
  const absl::Status status = ReadFloats(tensor, 0, absl::MakeSpan(values));
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

// The layouts of channels.h, small and beyond one piece.
std::vector<ChannelMap> Maps() {
  return {
      {.run = 27, .period = 16, .block = 432, .elements = 432},           // Conv, output channels
      {.run = 9, .period = 3, .block = 108, .elements = 432},             // grouped Conv, input channels
      {.run = 4, .period = 6, .block = 48, .elements = 144},              // ConvTranspose, output channels
      {.run = 24, .period = 6, .block = 144, .elements = 144},            // ConvTranspose, input channels
      {.run = 1, .period = 50, .block = 100000, .elements = 100000},      // MatMul, output channels
      {.run = 50, .period = 200, .block = 10000, .elements = 10000},      // MatMul, input channels
      {.run = 1, .period = 1, .block = 100000, .elements = 100000},       // the whole tensor
      {.run = 100000, .period = 2, .block = 200000, .elements = 200000},  // long runs
      {.run = 33, .period = 7, .block = 231, .elements = 69300},          // short blocks
  };
}

TEST(WeightsTest, MaxAbsOfEveryLayout) {
  for (const ChannelMap& map : Maps()) {
    const std::vector<float> values = Normal(map.elements, 3);
    std::vector<float> expected(map.channels());
    for (uint64_t i = 0; i < map.elements; ++i) {
      float& greatest = expected[map.ChannelOf(i)];
      greatest = std::max(greatest, std::fabs(values[i]));
    }
    for (const int threads : {1, 2, 3}) {
      const absl::StatusOr<std::vector<float>> greatest = MaxAbs(MakeTensor(values), map, threads);
      ASSERT_TRUE(greatest.ok()) << greatest.status();
      EXPECT_EQ(*greatest, expected) << map.run << " " << map.period;
    }
  }
}

TEST(WeightsTest, ArqScalesFollowTheGreaterSide) {
  const ChannelMap map = {.run = 2, .period = 4, .block = 8, .elements = 8};
  const absl::StatusOr<std::vector<float>> scales = ArqScales(MakeTensor({1, -2, 2, -1, 0, -0.0f, 1e-6f, 1e-7f}), map, 8, 1);
  ASSERT_TRUE(scales.ok());
  EXPECT_THAT(*scales, ElementsAre(2.0f / 128, 2.0f / 127, 1, 1));
  EXPECT_THAT(*ArqScales(MakeTensor({3, -1}), {.run = 1, .period = 1, .block = 2, .elements = 2}, 4, 1), ElementsAre(3.0f / 7));
}

TEST(WeightsTest, ScalesDoNotDependOnThreads) {
  for (const ChannelMap& map : Maps()) {
    if (map.channels() > 1000) {
      continue;  // takes long
    }
    const Tensor weight = MakeTensor(Normal(map.elements, 5));
    const absl::StatusOr<std::vector<float>> arq = ArqScales(weight, map, 8, 1);
    const absl::StatusOr<std::vector<float>> kl = KlScales(weight, map, 1);
    ASSERT_TRUE(arq.ok() && kl.ok());
    for (const int threads : {2, 3}) {
      EXPECT_EQ(*ArqScales(weight, map, 8, threads), *arq);
      EXPECT_EQ(*KlScales(weight, map, threads), *kl);
    }
    for (size_t c = 0; c < kl->size(); ++c) {
      EXPECT_GT((*kl)[c], 0.9f * (*arq)[c]);
    }
  }
}

TEST(WeightsTest, BadWeightsAreNamed) {
  const ChannelMap map = {.run = 100000, .period = 2, .block = 200000, .elements = 200000};
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const size_t at : {0, 17, 65536, 199999}) {
      std::vector<float> values(200000, 1.0f);
      values[at] = values.back() = bad;
      const Tensor weight = MakeTensor(values);
      for (const int threads : {1, 3}) {
        for (const absl::Status& status : {ArqScales(weight, map, 8, threads).status(), KlScales(weight, map, threads).status(),
                                           MaxAbs(weight, map, threads).status()}) {
          EXPECT_EQ(ReasonOf(status), v1::CALIBRATION_FAILED);
          EXPECT_THAT(status.message(), HasSubstr(absl::StrCat("a weight is not finite (element ", at, ")")));
        }
      }
    }
  }
  EXPECT_THAT(ArqScales(MakeTensor({}), {.run = 1, .period = 1, .block = 0, .elements = 0}, 8, 1).status().message(),
              HasSubstr("empty"));
  EXPECT_THAT(KlScales(MakeTensor({3e38f}), {.run = 1, .period = 1, .block = 1, .elements = 1}, 1).status().message(),
              HasSubstr("too great"));
  EXPECT_EQ(ReasonOf(MaxAbs(MakeTensor({1, 2}), {.run = 1, .period = 3, .block = 3, .elements = 3}, 1).status()),
            v1::INTERNAL_ERROR);
}

TEST(WeightsTest, KlOfExtremeWeights) {
  const ChannelMap map = {.run = 4, .period = 4, .block = 16, .elements = 16};
  const absl::StatusOr<std::vector<float>> scales =
      KlScales(MakeTensor({0, 0, 0, -0.0f, 1e-45f, 0, 0, 0, 1e30f, 1, 2, 3, 1, 1, 1, 1}), map, 1);
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_EQ((*scales)[0], 1);
  EXPECT_EQ((*scales)[1], 1);
  for (const float scale : *scales) {
    EXPECT_TRUE(std::isfinite(scale) && scale > 0);
  }
}

TEST(BalanceFactorsTest, BalancesInputsAgainstWeights) {
  // The fourth has neither, the third no input, the second no weights.
  const absl::StatusOr<std::vector<float>> factors = BalanceFactors({4, 8, 0, 0}, {1, 0, 4, 0}, 0.5);
  ASSERT_TRUE(factors.ok()) << factors.status();
  EXPECT_THAT(*factors, ElementsAre(2, 4, 0.5, 1));
  EXPECT_THAT(*BalanceFactors({0, 1e-8f}, {1, 2}, 0.5), ElementsAre(1, 1));
  EXPECT_THAT(*BalanceFactors({1, 2}, {0, 0}, 0.5), ElementsAre(1, 1));
  EXPECT_THAT(*BalanceFactors({16}, {1}, 0.75), ElementsAre(8));
}

TEST(BalanceFactorsTest, RefusesWhatCannotBeBalanced) {
  const absl::Status status = BalanceFactors({1e30f, 1}, {1e-6f, 1}, 0.5).status();
  EXPECT_EQ(ReasonOf(status), v1::CALIBRATION_FAILED);
  EXPECT_THAT(status.message(), HasSubstr("channel 0"));
  EXPECT_EQ(ReasonOf(BalanceFactors({1, 2}, {1}, 0.5).status()), v1::CALIBRATION_FAILED);
  // No channel has both: there is nothing to balance against.
  EXPECT_THAT(*BalanceFactors({1, 0}, {0, 1}, 0.5), ElementsAre(1, 1));
}

TEST(TransformedTest, FakeQuantizesEveryLayout) {
  for (const ChannelMap& map : Maps()) {
    const std::vector<float> values = Normal(map.elements, 7);
    const std::vector<float> scales = *ArqScales(MakeTensor(values), map, 8, 1);
    const Tensor fake = FakeQuantized(MakeTensor(values), map, scales, 8);
    EXPECT_EQ(fake.name(), "w");
    EXPECT_EQ(fake.field, DataField::kFloat);
    const std::vector<float> actual = Read(fake);
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]),
                std::bit_cast<uint32_t>(scalar::FakeQuantize(values[i], scales[map.ChannelOf(i)], 8)))
          << i;
    }
  }
}

TEST(TransformedTest, RangesMayBeCutAnywhere) {
  const ChannelMap map = {.run = 3, .period = 5, .block = 30, .elements = 300};
  const std::vector<float> values = Normal(300, 9);
  const std::vector<float> factors = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  std::vector<float> all_factors;
  all_factors.reserve(map.channels());
  for (uint64_t c = 0; c < map.channels(); ++c) {
    all_factors.push_back(factors[c % factors.size()]);
  }
  for (const bool is_half : {false, true}) {
    const Tensor source = is_half ? MakeHalfTensor(values) : MakeTensor(values);
    const std::vector<float> source_values = Read(source);
    const Tensor product = Multiplied(source, map, all_factors);
    EXPECT_EQ(product.field, is_half ? DataField::kRaw : DataField::kFloat);
    EXPECT_EQ(product.header.data_type(), source.header.data_type());
    ASSERT_EQ(product.payload->size(), is_half ? 600 : 1200);
    std::vector<uint8_t> whole(product.payload->size());
    ASSERT_TRUE(product.payload->Read(0, absl::MakeSpan(whole)).ok());
    for (size_t i = 0; i < 300; ++i) {
      const float expected = source_values[i] * all_factors[map.ChannelOf(i)];
      if (is_half) {
        uint16_t half = 0;
        FloatToHalf({&expected, 1}, &half);
        EXPECT_EQ(std::memcmp(whole.data() + 2 * i, &half, 2), 0) << i;
      } else {
        float got = 0;
        std::memcpy(&got, whole.data() + 4 * i, 4);
        EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected)) << i;
      }
    }
    for (size_t begin = 0; begin < 40; ++begin) {
      for (const size_t size : {0, 1, 2, 3, 7, 64}) {
        std::vector<uint8_t> part(size);
        ASSERT_TRUE(product.payload->Read(begin, absl::MakeSpan(part)).ok());
        EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(begin)));
      }
    }
  }
}

TEST(TransformedTest, OtherTypesAreAnError) {
  onnx::TensorProto proto;
  proto.set_name("w");
  proto.set_data_type(onnx::TensorProto::INT32);
  proto.add_dims(1);
  proto.add_int32_data(5);
  const Tensor tensor = FakeQuantized(FromProto(std::move(proto)), {.elements = 1}, {1}, 8);
  std::vector<uint8_t> out(tensor.payload->size());
  EXPECT_EQ(ReasonOf(tensor.payload->Read(0, absl::MakeSpan(out))), v1::TENSOR_INVALID);
}

TEST(TransformedTest, ErrorsOfTheTransformComeOut) {
  const Tensor tensor =
      Transformed(MakeTensor({1, 2}), [](uint64_t, absl::Span<float>) { return MakeError(v1::CALIBRATION_FAILED, "no"); });
  float value = 0;
  EXPECT_EQ(ReasonOf(ReadFloats(tensor, 0, {&value, 1})), v1::CALIBRATION_FAILED);
}

}  // namespace
}  // namespace modelpress::engine
