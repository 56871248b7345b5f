#include "engine/formats/safetensors.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::string LengthBytes(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) {
    bytes += static_cast<char>(length >> (8 * i) & 0xFF);
  }
  return bytes;
}

std::string Safetensors(const std::string& header, const std::string& data) { return LengthBytes(header.size()) + header + data; }

absl::StatusOr<std::vector<Tensor>> Read(const std::string& bytes, const TestFolder& folder = {}) {
  absl::StatusOr<std::shared_ptr<const InputFile>> file = InputFile::Open("w.safetensors", folder.Write("w", bytes));
  if (!file.ok()) {
    return file.status();
  }
  return ReadSafetensors(*std::move(file));
}

// The message of the error; checks the rest of it.
std::string Error(const std::string& bytes, const std::string& tensor = "") {
  const absl::Status status = Read(bytes).status();
  EXPECT_EQ(v1::WEIGHTS_INVALID, ReasonOf(status)) << status;
  EXPECT_EQ("w.safetensors", PlaceOf(status).file);
  EXPECT_EQ(tensor, PlaceOf(status).layer) << status;
  return std::string(status.message());
}

std::string BytesOf(const Tensor& tensor) {
  std::string bytes(tensor.payload->size(), '\0');
  EXPECT_TRUE(tensor.payload->Read(0, absl::MakeSpan(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size())).ok());
  return bytes;
}

// What safetensors 0.4.5 writes of five torch tensors: a = int64 [1, -2], b.weight = [[1.5, -2], [0.25, 3]], e = zeros(0, 3),
// h = bfloat16 [1], s = True.
std::string TorchFile() {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"b.weight":{"dtype":"F32",)"
      R"("shape":[2,2],"data_offsets":[16,32]},"e":{"dtype":"F32","shape":[0,3],"data_offsets":[32,32]},"h":{"dtype":"BF16",)"
      R"("shape":[1],"data_offsets":[32,34]},"s":{"dtype":"BOOL","shape":[],"data_offsets":[34,35]}}  )";
  EXPECT_EQ(0x140, header.size());
  const char data[] =
      "\x01\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\xff\xff\xff\xff\xff\x00\x00\xc0?\x00\x00\x00\xc0\x00\x00\x80>\x00\x00@@\x80?"
      "\x01";
  return Safetensors(header, std::string(data, sizeof(data) - 1));
}

TEST(ReadSafetensorsTest, WhatTorchWrites) {
  const absl::StatusOr<std::vector<Tensor>> tensors = Read(TorchFile());
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_THAT(*tensors, SizeIs(5));
  std::vector<std::string> names;
  for (const Tensor& tensor : *tensors) {
    names.push_back(tensor.name());
  }
  EXPECT_THAT(names, ElementsAre("a", "b.weight", "e", "h", "s"));
  const Tensor& weight = (*tensors)[1];
  EXPECT_EQ(TensorProto::FLOAT, weight.header.data_type());
  EXPECT_THAT(weight.header.dims(), ElementsAre(2, 2));
  EXPECT_NE(nullptr, weight.payload->AsFileRange()) << "the data stays in the file";
  std::vector<float> values(4);
  ASSERT_TRUE(ReadFloats(weight, 0, absl::MakeSpan(values)).ok());
  EXPECT_THAT(values, ElementsAre(1.5F, -2.0F, 0.25F, 3.0F));
  EXPECT_EQ(TensorProto::INT64, (*tensors)[0].header.data_type());
  EXPECT_EQ(DataField::kNone, (*tensors)[2].field);
  EXPECT_EQ(nullptr, (*tensors)[2].payload);
  std::vector<float> half(1);
  ASSERT_TRUE(ReadFloats((*tensors)[3], 0, absl::MakeSpan(half)).ok());
  EXPECT_THAT(half, ElementsAre(1.0F));
  EXPECT_THAT((*tensors)[4].header.dims(), IsEmpty());
  EXPECT_EQ("\x01", BytesOf((*tensors)[4]));
}

TEST(ReadSafetensorsTest, EveryElementType) {
  const std::vector<std::pair<std::string, size_t>> sizes = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I8", 1},
                                                             {"I16", 2}, {"I32", 4}, {"I64", 8}, {"U8", 1},   {"U16", 2},
                                                             {"U32", 4}, {"U64", 8}, {"BOOL", 1}};
  for (const auto& [type, size] : sizes) {
    const std::string header =
        absl::StrCat(R"({"x":{"data_offsets":[0,)", 3 * size, R"(],"shape":[3,1],"dtype":")", type, R"("}})");
    const absl::StatusOr<std::vector<Tensor>> tensors = Read(Safetensors(header, std::string(3 * size, '\x01')));
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    EXPECT_EQ(std::string(3 * size, '\x01'), BytesOf((*tensors)[0])) << type;
    EXPECT_THAT(Error(Safetensors(header, std::string(3 * size - 1, '\x01')), "x"), HasSubstr("do not lie in the file"));
  }
}

TEST(ReadSafetensorsTest, NoTensorsAtAll) {
  EXPECT_THAT(*Read(Safetensors("{}", "")), IsEmpty());
  EXPECT_THAT(*Read(Safetensors(R"({"__metadata__":{}})", "")), IsEmpty());
  EXPECT_THAT(Error(Safetensors("{}", "x")), HasSubstr("the file has 1 bytes of tensors, its header names 0"));
}

TEST(ReadSafetensorsTest, TheRunsMayStandInAnotherOrderThanTheHeader) {
  const absl::StatusOr<std::vector<Tensor>> tensors = Read(Safetensors(
      R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "xyz"));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ("yz", BytesOf((*tensors)[0]));
  EXPECT_EQ("x", BytesOf((*tensors)[1]));
}

// A file with the tensors a and b of bytes at these offsets, and `size` bytes of data.
std::string TwoRuns(const std::string& a, const std::string& b, int size) {
  return Safetensors(absl::StrCat(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)", a,
                                  R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)", b, "}}"),
                     std::string(size, 'x'));
}

TEST(ReadSafetensorsTest, RunsMustCoverTheFileOnce) {
  EXPECT_TRUE(Read(TwoRuns("[2,4]", "[0,2]", 4)).ok());
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[1,3]", 3), "b"), HasSubstr("they overlap"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[0,2]", 2), "b"), HasSubstr("they overlap"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[3,5]", 5), "b"), HasSubstr("belong to no tensor"));
  EXPECT_THAT(Error(TwoRuns("[1,3]", "[3,5]", 5), "a"), HasSubstr("belong to no tensor"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[2,4]", 5)), HasSubstr("its header names 4"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[2,4]", 3), "b"), HasSubstr("do not lie in the file"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[4,2]", 4), "b"), HasSubstr("do not lie in the file"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[18446744073709551614,18446744073709551615]", 4), "b"),
              HasSubstr("do not lie in the file"));
  EXPECT_THAT(Error(TwoRuns("[0,2]", "[2,3]", 3), "b"), HasSubstr("needs 2 bytes, it has 1"));
}

TEST(ReadSafetensorsTest, HugeShapesAllocateNothing) {
  auto with_shape = [](const std::string& shape) {
    return Safetensors(absl::StrCat(R"({"x":{"dtype":"F32","data_offsets":[0,4],"shape":)", shape, "}}"), "1234");
  };
  EXPECT_TRUE(Read(with_shape("[1]")).ok());
  for (const char* huge : {"[4611686018427387905]", "[4294967296,4294967296]", "[9223372036854775807,9223372036854775807]",
                           "[4611686018427387904,4]", "[65536,65536,65536,65536,1]"}) {
    EXPECT_THAT(Error(with_shape(huge), "x"), HasSubstr("larger than any tensor can be"));
  }
  EXPECT_THAT(Error(with_shape("[9223372036854775808]"), "x"), HasSubstr("dim of 9223372036854775808"));
  EXPECT_THAT(Error(with_shape("[18446744073709551616]"), "x"), HasSubstr("no 64-bit integer"));
  EXPECT_THAT(Error(with_shape("[-1]"), "x"), HasSubstr("negative"));
  EXPECT_THAT(Error(with_shape("[1.0]"), "x"), HasSubstr("no 64-bit integer"));
  EXPECT_THAT(Error(with_shape("[1,[1]]"), "x"), HasSubstr("a list where a whole number"));
  EXPECT_THAT(Error(with_shape("1"), "x"), HasSubstr("a number where a list"));
  std::string many = "[1";
  for (int i = 0; i < 32; ++i) {
    many += ",1";
  }
  EXPECT_THAT(Error(with_shape(many + "]"), "x"), HasSubstr("more than 32 dims"));
}

TEST(ReadSafetensorsTest, EntriesAreCheckedKeyByKey) {
  auto with = [](const std::string& entry) { return Safetensors(absl::StrCat(R"({"x":)", entry, "}"), "1234"); };
  const std::string rest = R"("shape":[1],"data_offsets":[0,4])";
  EXPECT_TRUE(Read(with(absl::StrCat(R"({"dtype":"F32",)", rest, "}"))).ok());
  EXPECT_THAT(Error(with(absl::StrCat("{", rest, "}")), "x"), HasSubstr("needs a dtype"));
  EXPECT_THAT(Error(with(R"({"dtype":"F32","shape":[1]})"), "x"), HasSubstr("two data_offsets"));
  EXPECT_THAT(Error(with(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})"), "x"), HasSubstr("two data_offsets"));
  EXPECT_THAT(Error(with(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})"), "x"), HasSubstr("more than two"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"dtype":"F8_E4M3",)", rest, "}")), "x"), HasSubstr("F8_E4M3 is not supported"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"dtype":1,)", rest, "}")), "x"), HasSubstr("a number where a text"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"dtype":{},)", rest, "}")), "x"), HasSubstr("an object where a text"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"dtype":"F32","dtype":"F32",)", rest, "}")), "x"), HasSubstr("dtype is given twice"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"shape":[],"dtype":"F32",)", rest, "}")), "x"), HasSubstr("shape is given twice"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"data_offsets":[],"dtype":"F32",)", rest, "}")), "x"),
              HasSubstr("data_offsets is given twice"));
  EXPECT_THAT(Error(with(absl::StrCat(R"({"stride":[1],"dtype":"F32",)", rest, "}")), "x"), HasSubstr("'stride' is none of"));
  EXPECT_THAT(Error(with("null"), "x"), HasSubstr("null where an object"));
  EXPECT_THAT(Error(with("[]"), "x"), HasSubstr("a list where an object"));
  EXPECT_THAT(Error(Safetensors(R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{}})", ""), "x"),
              HasSubstr("the name is given twice"));
  EXPECT_THAT(Error(Safetensors(R"({"__metadata__":{"a":1}})", ""), "__metadata__"), HasSubstr("a text of __metadata__"));
}

TEST(ReadSafetensorsTest, TheHeadersLengthIsCheckedBeforeItIsRead) {
  EXPECT_THAT(Error(""), HasSubstr("too short"));
  EXPECT_THAT(Error("1234567"), HasSubstr("too short"));
  EXPECT_THAT(Error(LengthBytes(0)), HasSubstr("no JSON object"));
  EXPECT_THAT(Error(LengthBytes(3) + "{}"), HasSubstr("has 3 bytes, the file only 2 more"));
  EXPECT_THAT(Error(LengthBytes(~uint64_t{0}) + "{}"), HasSubstr("more than the 100000000"));

  const TestFolder folder;
  const std::string path = folder.Write("w", LengthBytes(kMaxSafetensorsHeader + 1) + "{}");
  std::filesystem::resize_file(path, 8 + kMaxSafetensorsHeader + 1);
  EXPECT_THAT(ReadSafetensors(*InputFile::Open("w", path)).status().message(), HasSubstr("more than the 100000000"));
}

TEST(ReadSafetensorsTest, WhatIsNoJsonIsRefused) {
  EXPECT_THAT(Error(Safetensors("[]", "")), HasSubstr("no JSON object"));
  EXPECT_THAT(Error(Safetensors(" {}", "")), HasSubstr("no JSON object"));
  EXPECT_THAT(Error(Safetensors("{", "")), HasSubstr("not JSON at byte 10"));
  EXPECT_THAT(Error(Safetensors("{}x", "")), HasSubstr("not JSON at byte 11"));
  EXPECT_THAT(Error(Safetensors(std::string("{}\0", 3), "")), HasSubstr("has a NUL"));
  EXPECT_THAT(Error(Safetensors("{\"\xFF\":{}}", "")), HasSubstr("not JSON"));
  std::string deep = R"({"__metadata__":)";
  deep.append(1'000'000, '[');
  EXPECT_THAT(Error(Safetensors(deep, ""), "__metadata__"), HasSubstr("a list where an object"));
}

TEST(ReadSafetensorsTest, ALongNameDoesNotMakeALongError) {
  const std::string name(1'000'000, 'n');
  EXPECT_LT(Read(Safetensors(absl::StrCat("{\"", name, "\":1}"), "")).status().message().size(), 2000);
}

TEST(ReadSafetensorsTest, EveryTruncationIsRefused) {
  const TestFolder folder;
  const std::string whole = TorchFile();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(v1::WEIGHTS_INVALID, ReasonOf(Read(whole.substr(0, size), folder).status())) << size;
  }
}

TEST(ReadSafetensorsTest, DamagedFilesAreRefusedOrReadWithinTheirBounds) {
  const TestFolder folder;
  const std::string whole = TorchFile();
  std::mt19937 random(7);
  for (int i = 0; i < 500; ++i) {
    std::string damaged = whole;
    for (int changes = 0; changes < 1 + i % 4; ++changes) {
      damaged[random() % damaged.size()] = static_cast<char>(random() % 256);
    }
    const absl::StatusOr<std::vector<Tensor>> tensors = Read(damaged, folder);
    if (!tensors.ok()) {
      EXPECT_EQ(v1::WEIGHTS_INVALID, ReasonOf(tensors.status())) << tensors.status();
      continue;
    }
    for (const Tensor& tensor : *tensors) {
      if (tensor.payload != nullptr) {
        EXPECT_LE(tensor.payload->AsFileRange()->offset + tensor.payload->size(), damaged.size());
      }
    }
  }
}

}  // namespace
}  // namespace modelpress::engine
