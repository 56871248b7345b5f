#include <cmath>
#include <cstring>
#include <limits>

#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "engine/model/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;
using ::testing::ElementsAre;

template <typename T>
std::string RawBytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::vector<float> Floats(const TensorProto& proto, uint64_t first, size_t count) {
  std::vector<float> out(count);
  absl::Status status = ReadFloats(FromProto(proto), first, absl::MakeSpan(out));
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

TEST(ReadFloatsTest, FloatInBothFields) {
  TensorProto typed = MakeTensor("w", TensorProto::FLOAT, {3});
  for (float value : {1.5F, -2.0F, 0x1p-149F}) {
    typed.add_float_data(value);
  }
  TensorProto raw = MakeTensor("w", TensorProto::FLOAT, {3});
  raw.set_raw_data(RawBytesOf<float>({1.5F, -2.0F, 0x1p-149F}));
  EXPECT_THAT(Floats(typed, 1, 2), ElementsAre(-2.0F, 0x1p-149F));
  EXPECT_THAT(Floats(raw, 0, 3), ElementsAre(1.5F, -2.0F, 0x1p-149F));
}

TEST(ReadFloatsTest, DoubleInBothFieldsIsRoundedToNearestEven) {
  TensorProto typed = MakeTensor("w", TensorProto::DOUBLE, {3});
  TensorProto raw = typed;
  const std::vector<double> values = {1 + 0x1p-24, 1 + 0x3p-24, -1e300};
  for (double value : values) {
    typed.add_double_data(value);
  }
  raw.set_raw_data(RawBytesOf(values));
  for (const TensorProto& tensor : {typed, raw}) {
    EXPECT_THAT(Floats(tensor, 0, 3), ElementsAre(1.0F, 1 + 0x1p-22F, -std::numeric_limits<float>::infinity()));
    EXPECT_THAT(Floats(tensor, 1, 1), ElementsAre(1 + 0x1p-22F));
  }
}

// Every float16 there is, against its definition; raw and as packed int32_data.
TEST(ReadFloatsTest, EveryFloat16InBothFields) {
  TensorProto typed = MakeTensor("w", TensorProto::FLOAT16, {65536});
  TensorProto raw = typed;
  std::vector<uint16_t> bits;
  for (int i = 0; i < 65536; ++i) {
    bits.push_back(static_cast<uint16_t>(i));
    typed.add_int32_data(i);
  }
  raw.set_raw_data(RawBytesOf(bits));
  const std::vector<float> from_typed = Floats(typed, 0, 65536);
  const std::vector<float> from_raw = Floats(raw, 0, 65536);
  for (int i = 0; i < 65536; ++i) {
    const int exponent = i >> 10 & 31;
    const int mantissa = i & 1023;
    double expected = exponent == 31  ? (mantissa == 0 ? INFINITY : NAN)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
    expected = i >= 32768 ? -expected : expected;
    for (float value : {from_typed[i], from_raw[i]}) {
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(value)) << i;
      } else {
        EXPECT_EQ(value, expected) << i;
        EXPECT_EQ(std::signbit(value), i >= 32768) << i;
      }
    }
  }
  EXPECT_EQ(Floats(typed, 40000, 3), Floats(raw, 40000, 3));
}

TEST(ReadFloatsTest, Bfloat16InBothFields) {
  TensorProto typed = MakeTensor("w", TensorProto::BFLOAT16, {3});
  TensorProto raw = typed;
  for (int bits : {0x3f80, 0xc040, 0x0001}) {
    typed.add_int32_data(bits);
  }
  raw.set_raw_data(RawBytesOf<uint16_t>({0x3f80, 0xc040, 0x0001}));
  EXPECT_THAT(Floats(typed, 0, 3), ElementsAre(1.0F, -3.0F, 0x1p-133F));
  EXPECT_THAT(Floats(raw, 1, 2), ElementsAre(-3.0F, 0x1p-133F));
}

TEST(ReadFloatsTest, RefusesOtherTypesAndRanges) {
  std::vector<float> out(3);
  TensorProto ints = MakeTensor("w", TensorProto::INT8, {3});
  ints.set_raw_data("abc");
  EXPECT_EQ(ReasonOf(ReadFloats(FromProto(ints), 0, absl::MakeSpan(out))), v1::TENSOR_INVALID);
  TensorProto floats = MakeRawTensor("w", 4);
  EXPECT_EQ(ReasonOf(ReadFloats(FromProto(floats), 2, absl::MakeSpan(out))), v1::TENSOR_INVALID);
  EXPECT_EQ(ReasonOf(ReadFloats(FromProto(floats), ~uint64_t{0}, absl::MakeSpan(out))), v1::TENSOR_INVALID);
  EXPECT_TRUE(ReadFloats(FromProto(floats), 1, absl::MakeSpan(out)).ok());
}

TEST(TensorTest, ProtoRoundTrip) {
  const onnx::ModelProto model = MakeModel(300);
  for (const TensorProto& proto : model.graph().initializer()) {
    Tensor tensor = FromProto(proto);
    EXPECT_EQ(tensor.header.raw_data().size() + tensor.header.float_data_size() + tensor.header.int32_data_size(), 0)
        << proto.name();
    auto back = ToProto(tensor);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back->SerializeAsString(), proto.SerializeAsString()) << proto.name();
  }
}

// Packed integers as little-endian elements, however the range is cut; over several blocks of its index.
TEST(TensorTest, RawElementsOfPackedIntegers) {
  constexpr int kCount = 150000;
  TensorProto proto = MakeTensor("w", TensorProto::INT32, {kCount});
  std::vector<int32_t> values;
  for (int i = 0; i < kCount; ++i) {
    values.push_back(i % 3 == 0 ? -i : i * 1000);
    proto.add_int32_data(values.back());
  }
  PayloadPtr raw = RawElements(FromProto(proto));
  const std::string expected = RawBytesOf(values);
  ASSERT_EQ(raw->size(), expected.size());
  std::string whole(expected.size(), '\0');
  ASSERT_TRUE(raw->Read(0, {reinterpret_cast<uint8_t*>(whole.data()), whole.size()}).ok());
  EXPECT_EQ(whole, expected);
  for (size_t offset : {size_t{0}, size_t{3}, size_t{65536} * 4 - 1, expected.size() - 7}) {
    std::string part(7, '\0');
    ASSERT_TRUE(raw->Read(offset, {reinterpret_cast<uint8_t*>(part.data()), part.size()}).ok());
    EXPECT_EQ(part, expected.substr(offset, 7)) << offset;
  }
}

}  // namespace
}  // namespace modelpress::engine
