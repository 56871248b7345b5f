#include "engine/prune/cut_tensor.h"

#include <algorithm>
#include <random>
#include <string>

#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using Dims = std::vector<int64_t>;

Tensor RandomTensor(const Dims& dims, int data_type, std::mt19937& random) {
  onnx::TensorProto proto;
  proto.set_name("w");
  proto.set_data_type(data_type);
  uint64_t count = 1;
  for (const int64_t dim : dims) {
    proto.add_dims(dim);
    count *= dim;
  }
  std::string& raw = *proto.mutable_raw_data();
  raw.resize(FindElementType(data_type)->RawBytes(count));
  std::generate(raw.begin(), raw.end(), [&] { return static_cast<char>(random()); });
  return FromProto(std::move(proto));
}

std::string Bytes(const Tensor& tensor) {
  const PayloadPtr elements = RawElements(tensor);
  std::string bytes(elements->size(), '\0');
  EXPECT_TRUE(elements->Read(0, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}).ok());
  return bytes;
}

Dims RandomSubset(int64_t length, std::mt19937& random) {
  Dims kept;
  for (int64_t i = 0; i < length; ++i) {
    if (random() % 2 == 0) {
      kept.push_back(i);
    }
  }
  if (kept.empty()) {
    kept.push_back(0);
  }
  return kept;
}

// Element after element.
std::string Sliced(const std::string& bytes, const Dims& dims, int axis, const Dims& kept, size_t element_bytes) {
  size_t outer = 1;
  size_t inner = element_bytes;
  for (int i = 0; i < static_cast<int>(dims.size()); ++i) {
    (i < axis ? outer : inner) *= i == axis ? 1 : dims[i];
  }
  std::string result;
  for (size_t o = 0; o < outer; ++o) {
    for (const int64_t k : kept) {
      result.append(bytes, (o * dims[axis] + k) * inner, inner);
    }
  }
  return result;
}

TEST(KeepAlongAxisTest, KeepsBitsHoweverItIsRead) {
  std::mt19937 random(3);
  for (const Dims& dims : {Dims{5, 7, 3, 3}, Dims{40, 300}, Dims{300, 40}, Dims{17}, Dims{3, 5000, 2}, Dims{2, 3, 4000}}) {
    for (const int data_type :
         {onnx::TensorProto::FLOAT, onnx::TensorProto::FLOAT16, onnx::TensorProto::DOUBLE, onnx::TensorProto::INT8}) {
      const Tensor tensor = RandomTensor(dims, data_type, random);
      for (int axis = 0; axis < static_cast<int>(dims.size()); ++axis) {
        const Dims kept = RandomSubset(dims[axis], random);
        const absl::StatusOr<Tensor> cut = KeepAlongAxis(tensor, axis, kept);
        ASSERT_TRUE(cut.ok()) << cut.status();
        const std::string expected =
            Sliced(Bytes(tensor), dims, axis, kept, static_cast<size_t>(FindElementType(data_type)->bits) / 8);
        EXPECT_EQ(cut->header.dims(axis), static_cast<int64_t>(kept.size()));
        EXPECT_EQ(Bytes(*cut), expected);
        for (int i = 0; i < 20; ++i) {  // any piece
          const uint64_t offset = random() % expected.size();
          std::string piece(random() % (expected.size() - offset) + 1, '\0');
          ASSERT_TRUE(cut->payload->Read(offset, {reinterpret_cast<uint8_t*>(piece.data()), piece.size()}).ok());
          ASSERT_EQ(piece, expected.substr(offset, piece.size()));
        }
      }
    }
  }
}

TEST(KeepAlongAxisTest, ReadsPackedIntegers) {
  onnx::TensorProto proto;  // float16 in int32_data
  proto.set_data_type(onnx::TensorProto::FLOAT16);
  proto.add_dims(3);
  for (const int value : {15360, 0, 49152}) {  // 1, 0, -2
    proto.add_int32_data(value);
  }
  const absl::StatusOr<Tensor> cut = KeepAlongAxis(FromProto(std::move(proto)), 0, {0, 2});
  ASSERT_TRUE(cut.ok()) << cut.status();
  std::vector<float> values(2);
  ASSERT_TRUE(ReadFloats(*cut, 0, absl::MakeSpan(values)).ok());
  EXPECT_EQ(values, (std::vector<float>{1, -2}));
}

TEST(KeepAlongAxisTest, RefusesWhatHasNoBytesPerElement) {
  onnx::TensorProto strings;
  strings.set_data_type(onnx::TensorProto::STRING);
  strings.add_dims(2);
  strings.add_string_data("a");
  strings.add_string_data("b");
  EXPECT_EQ(ReasonOf(KeepAlongAxis(FromProto(strings), 0, {0}).status()), v1::TENSOR_INVALID);
  onnx::TensorProto halves;
  halves.set_data_type(onnx::TensorProto::INT4);
  halves.add_dims(4);
  halves.set_raw_data("ab");
  EXPECT_EQ(ReasonOf(KeepAlongAxis(FromProto(halves), 0, {0}).status()), v1::TENSOR_INVALID);
}

// [Cout/groups, Cin]: columns go, the rest is divided into groups anew (prune.md section 7).
TEST(KeepGroupedInputsTest, AsTheReferencesViews) {
  std::mt19937 random(4);
  constexpr int64_t kGroups = 3;
  constexpr int64_t kRows = 4;     // of a group
  constexpr int64_t kColumns = 5;  // of a group
  constexpr int64_t kKernel = 6;
  const Tensor tensor = RandomTensor({kGroups * kRows, kColumns, kKernel}, onnx::TensorProto::FLOAT, random);
  const std::string bytes = Bytes(tensor);
  // Evenly, and not: then columns move from one group to another.
  for (const Dims& kept : {Dims{0, 3, 6, 7, 10, 14}, Dims{0, 1, 2, 3, 7, 13}}) {
    const absl::StatusOr<Tensor> cut = KeepGroupedInputs(tensor, kGroups, kept);
    ASSERT_TRUE(cut.ok()) << cut.status();
    std::string expected;
    const int64_t columns = static_cast<int64_t>(kept.size()) / kGroups;
    for (int64_t o = 0; o < kGroups * kRows; ++o) {
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t channel = kept[o / kRows * columns + c];
        const int64_t row = channel / kColumns * kRows + o % kRows;
        expected.append(bytes, (row * kColumns + channel % kColumns) * kKernel * sizeof(float), kKernel * sizeof(float));
      }
    }
    EXPECT_EQ(Bytes(*cut), expected);
  }
}

}  // namespace
}  // namespace modelpress::engine
