#include "engine/quantize/weights.h"

#include <cmath>
#include <cstring>
#include <random>

#include "engine/base/status.h"
#include "engine/quantize/pass.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

Tensor FloatTensorOf(const std::vector<float>& values, const std::vector<int64_t>& dims) {
  Tensor tensor;
  tensor.header.set_name("w");
  tensor.header.mutable_dims()->Assign(dims.begin(), dims.end());
  SetData(tensor, onnx::TensorProto::FLOAT, DataField::kFloat, FloatPayload(values));
  return tensor;
}

std::vector<float> RandomValues(size_t count) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

std::vector<uint8_t> ReadAll(const Payload& payload) {
  std::vector<uint8_t> bytes(payload.size());
  EXPECT_TRUE(payload.Read(0, absl::MakeSpan(bytes)).ok());
  return bytes;
}

// The bytes must not depend on how the ranges are cut, aligned or not.
void ExpectSameInPieces(const Payload& payload) {
  const std::vector<uint8_t> whole = ReadAll(payload);
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    const size_t offset = random() % whole.size();
    const size_t size = 1 + random() % (whole.size() - offset);
    std::vector<uint8_t> piece(size + 1);
    ASSERT_TRUE(payload.Read(offset, absl::MakeSpan(piece).subspan(1)).ok());
    ASSERT_EQ(0, std::memcmp(piece.data() + 1, whole.data() + offset, size)) << offset << " + " << size;
  }
}

int Reference(float w, float scale, int bits) {
  const float limit = static_cast<float>(1 << (bits - 1));
  return static_cast<int>(std::fmin(std::fmax(std::nearbyint(w / scale), -limit), limit - 1));
}

struct WeightCase {
  uint64_t run_length;
  int scales;
};

class WeightTest : public testing::TestWithParam<WeightCase> {};

TEST_P(WeightTest, EveryFormHoldsTheSameIntegers) {
  const auto [run_length, scale_count] = GetParam();
  const uint64_t count = run_length * scale_count;
  const std::vector<float> values = RandomValues(count);
  ScaleRuns runs;
  for (int i = 0; i < scale_count; ++i) {
    runs.scales.push_back(0.01F + 0.001F * static_cast<float>(i % 97));
  }
  runs.run_length = run_length;
  auto weight = std::make_shared<IntegerWeight>(FloatTensorOf(values, {static_cast<int64_t>(count)}), runs, 8, "layer");

  const std::vector<uint8_t> integers = ReadAll(*AsInt8(weight));
  std::vector<float> as_float(count);
  std::memcpy(as_float.data(), ReadAll(*AsFloatIntegers(weight)).data(), count * sizeof(float));
  std::vector<float> dequantized(count);
  std::memcpy(dequantized.data(), ReadAll(*AsDequantized(weight)).data(), count * sizeof(float));
  for (uint64_t i = 0; i < count; ++i) {
    const float scale = runs.scales[i / run_length];
    const int q = Reference(values[i], scale, 8);
    ASSERT_EQ(static_cast<int8_t>(integers[i]), q) << i;
    ASSERT_EQ(as_float[i], static_cast<float>(q)) << i;
    ASSERT_EQ(dequantized[i], static_cast<float>(q) * scale) << i;
  }
  ExpectSameInPieces(*AsInt8(weight));
  ExpectSameInPieces(*AsFloatIntegers(weight));
  ExpectSameInPieces(*AsDequantized(weight));
}

INSTANTIATE_TEST_SUITE_P(RunLengths, WeightTest,
                         testing::Values(WeightCase{1, 1000}, WeightCase{9, 333}, WeightCase{64, 65}, WeightCase{100000, 3},
                                         WeightCase{200000, 1}));

TEST(NibbleTest, FlatPackingFillsTheLastByteWithZero) {
  auto weight = std::make_shared<IntegerWeight>(FloatTensorOf({1, -8, 7, -1, 3}, {5}), ScaleRuns{{1}, 5}, 4, "layer");
  EXPECT_EQ(ReadAll(*AsNibbles(weight)), (std::vector<uint8_t>{0x81, 0xF7, 0x03}));
}

class AxisNibbleTest : public testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(AxisNibbleTest, NeighboursAlongTheAxisShareAByte) {
  const std::vector<int64_t>& dims = GetParam();  // [outer, axis, inner]
  const uint64_t outer = dims[0];
  const uint64_t axis = dims[1];
  const uint64_t inner = dims[2];
  const std::vector<float> values = RandomValues(outer * axis * inner);
  auto weight = std::make_shared<IntegerWeight>(FloatTensorOf(values, dims), ScaleRuns{{0.3F}, values.size()}, 4, "layer");
  PayloadPtr packed = AsNibblesAlongAxis(weight, inner);
  const std::vector<uint8_t> bytes = ReadAll(*packed);
  ASSERT_EQ(bytes.size(), values.size() / 2);
  auto q = [&](uint64_t o, uint64_t a, uint64_t i) { return Reference(values[(o * axis + a) * inner + i], 0.3F, 4) & 0xF; };
  for (uint64_t o = 0; o < outer; ++o) {
    for (uint64_t k = 0; k < axis / 2; ++k) {
      for (uint64_t i = 0; i < inner; ++i) {
        ASSERT_EQ(bytes[(o * (axis / 2) + k) * inner + i], q(o, 2 * k, i) | q(o, 2 * k + 1, i) << 4);
      }
    }
  }
  ExpectSameInPieces(*packed);
}

INSTANTIATE_TEST_SUITE_P(Shapes, AxisNibbleTest,
                         testing::Values(std::vector<int64_t>{5, 6, 9}, std::vector<int64_t>{7, 64, 1},
                                         std::vector<int64_t>{1, 4, 100000}, std::vector<int64_t>{3, 2, 40000}));

TEST(TransposeTest, GathersColumns) {
  const std::vector<float> values = RandomValues(size_t{123} * 457);
  PayloadPtr transposed = TransposeToFloat(FloatTensorOf(values, {123, 457}), 123, 457, std::make_shared<StripeCache>());
  std::vector<float> result(values.size());
  std::memcpy(result.data(), ReadAll(*transposed).data(), result.size() * sizeof(float));
  for (size_t row = 0; row < 123; ++row) {
    for (size_t column = 0; column < 457; ++column) {
      ASSERT_EQ(result[column * 123 + row], values[row * 457 + column]);
    }
  }
  ExpectSameInPieces(*transposed);
}

TEST(TransposeTest, ManyStripesOfManyTensorsShareOneCache) {
  constexpr int kRows = 4000000;  // two columns a stripe
  constexpr int kColumns = 5;
  auto cache = std::make_shared<StripeCache>();
  std::vector<float> values(size_t{kRows} * kColumns);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i % 16777213);
  }
  std::vector<PayloadPtr> tensors;
  tensors.reserve(3);
  for (int i = 0; i < 3; ++i) {
    tensors.push_back(TransposeToFloat(FloatTensorOf(values, {kRows, kColumns}), kRows, kColumns, cache));
  }
  for (const PayloadPtr& tensor : tensors) {
    std::vector<float> piece(1000);
    for (int column : {4, 0, 3, 1, 2}) {
      const uint64_t first = static_cast<uint64_t>(column) * kRows + kRows - 500;  // into the next column where there is one
      const size_t count = column == kColumns - 1 ? 500 : 1000;
      auto bytes = absl::MakeSpan(reinterpret_cast<uint8_t*>(piece.data()), count * sizeof(float));
      ASSERT_TRUE(tensor->Read(first * sizeof(float), bytes).ok());
      for (size_t i = 0; i < count; ++i) {
        const uint64_t e = first + i;
        ASSERT_EQ(piece[i], values[e % kRows * kColumns + e / kRows]);
      }
    }
  }
}

TEST(WeightErrorTest, NamesTheFirstElementThatIsNotFinite) {
  std::vector<float> values = RandomValues(100000);
  values[70001] = NAN;
  auto weight = std::make_shared<IntegerWeight>(FloatTensorOf(values, {100000}), ScaleRuns{{0.1F}, 100000}, 8, "conv1");
  std::vector<uint8_t> bytes(100000);
  const absl::Status status = AsInt8(weight)->Read(0, absl::MakeSpan(bytes));
  EXPECT_EQ(ReasonOf(status), v1::TENSOR_INVALID);
  EXPECT_EQ(PlaceOf(status).layer, "conv1");
  EXPECT_NE(status.message().find("70001"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace modelpress::engine
