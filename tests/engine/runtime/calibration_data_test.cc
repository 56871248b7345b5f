#include "engine/runtime/calibration_data.h"

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "onnx/onnx_pb.h"
#include "tests/engine/model/model_testing.h"
#include "tests/engine/npz_writer.h"
#include "tests/engine/runtime/runtime_testing.h"

namespace modelpress::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

InputSpec Spec(const std::string& name, const std::vector<int64_t>& dims, int data_type = onnx::TensorProto::FLOAT) {
  return {.name = name, .data_type = data_type, .dims = dims};
}

absl::StatusOr<std::unique_ptr<CalibrationData>> OpenData(const TestFolder& folder, const std::string& path,
                                                          const std::vector<InputSpec>& inputs,
                                                          const CalibrationDataOptions& options = {}) {
  return CalibrationData::Open(folder.Files(), path, inputs, options);
}

std::vector<float> Iota(size_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 0.0F);
  return values;
}

// The first dimension of each batch.
std::vector<int64_t> BatchSizes(const absl::StatusOr<std::unique_ptr<CalibrationData>>& data) {
  EXPECT_TRUE(data.ok()) << data.status();
  std::vector<int64_t> sizes;
  if (data.ok()) {
    for (auto batch = (*data)->Next(); batch.ok(); batch = (*data)->Next()) {
      sizes.push_back((*batch)[0].dims[0]);
    }
  }
  return sizes;
}

void ExpectError(const absl::Status& status, v1::Reason reason, const std::string& text) {
  EXPECT_EQ(ReasonOf(status), reason) << status;
  EXPECT_THAT(status.message(), HasSubstr(text));
}

std::string ProtoBytes(const onnx::TensorProto& proto) { return proto.SerializeAsString(); }

onnx::TensorProto FloatProto(const std::vector<int64_t>& dims, const std::vector<float>& values) {
  onnx::TensorProto proto = MakeTensor("", onnx::TensorProto::FLOAT, dims);
  proto.mutable_float_data()->Assign(values.begin(), values.end());
  return proto;
}

TEST(CalibrationDataTest, ReadsNumberedBatchesInOrderAsOftenAsAsked) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"y__1", NpyBytes("<i8", {1}, BytesOf<int64_t>({7}))},
                                  {"x__0", FloatNpy({1, 2}, {1, 2})},
                                  {"x__1", FloatNpy({2, 2}, {3, 4, 5, 6})},
                                  {"y__0", NpyBytes("<i8", {1}, BytesOf<int64_t>({-7}))}});
  const auto data = OpenData(folder, "d.npz", {Spec("x", {-1, 2}), Spec("y", {1}, onnx::TensorProto::INT64)});
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ((*data)->batch_count(), 2);
  EXPECT_EQ((*data)->sample_count(), 3);
  EXPECT_EQ((*data)->byte_count(), 6 * 4 + 2 * 8);
  EXPECT_THAT((*data)->warnings(), IsEmpty());
  for (int pass = 0; pass < 2; ++pass) {
    const absl::StatusOr<Batch> first = (*data)->Next();
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_THAT(ValuesOf((*first)[0]), ElementsAre(1, 2));
    EXPECT_THAT(ValuesOf<int64_t>((*first)[1]), ElementsAre(-7));
    const absl::StatusOr<Batch> second = (*data)->Next();
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_THAT((*second)[0].dims, ElementsAre(2, 2));
    EXPECT_THAT(ValuesOf((*second)[0]), ElementsAre(3, 4, 5, 6));
    EXPECT_TRUE(absl::IsOutOfRange((*data)->Next().status()));
    ASSERT_TRUE((*data)->Rewind().ok());
  }
}

TEST(CalibrationDataTest, CutsSamplesIntoBatches) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"x", FloatNpy({10, 2}, Iota(20))}}, true);
  const std::vector<InputSpec> free = {Spec("x", {-1, 2})};
  EXPECT_THAT(BatchSizes(OpenData(folder, "d.npz", free)), ElementsAre(10));
  EXPECT_THAT(BatchSizes(OpenData(folder, "d.npz", free, {.batch_size = 4})), ElementsAre(4, 4, 2));
  EXPECT_THAT(BatchSizes(OpenData(folder, "d.npz", free, {.batches = 4})), ElementsAre(3, 3, 2, 2));
  EXPECT_THAT(BatchSizes(OpenData(folder, "d.npz", free, {.batch_size = 3, .batches = 2})), ElementsAre(3, 3));
  EXPECT_THAT(BatchSizes(OpenData(folder, "d.npz", {Spec("x", {5, 2})})), ElementsAre(5, 5));
  WriteNpz(folder.Path("many.npz"), {{"x", FloatNpy({33, 1}, Iota(33))}});
  EXPECT_THAT(BatchSizes(OpenData(folder, "many.npz", {Spec("x", {-1, 1})})), ElementsAre(16, 16, 1));

  const auto data = OpenData(folder, "d.npz", free, {.batch_size = 4});
  ASSERT_TRUE(data.ok());
  EXPECT_EQ((*data)->sample_count(), 10);
  std::vector<float> all;
  for (auto batch = (*data)->Next(); batch.ok(); batch = (*data)->Next()) {
    const std::vector<float> values = ValuesOf((*batch)[0]);
    all.insert(all.end(), values.begin(), values.end());
  }
  EXPECT_EQ(all, Iota(20));
}

TEST(CalibrationDataTest, SaysWhySamplesCannotBeCut) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"x", FloatNpy({10, 2}, Iota(20))}, {"y", FloatNpy({9}, Iota(9))}});
  ExpectError(OpenData(folder, "d.npz", {Spec("x", {-1, 2}), Spec("y", {-1})}).status(), v1::DATA_MISMATCH, "has 9 samples");
  WriteNpz(folder.Path("one.npz"), {{"x", FloatNpy({10, 2}, Iota(20))}});
  ExpectError(OpenData(folder, "one.npz", {Spec("x", {4, 2})}).status(), v1::DATA_MISMATCH, "exactly 4 samples at a time");
  ExpectError(OpenData(folder, "one.npz", {Spec("x", {5, 2})}, {.batch_size = 2}).status(), v1::DATA_MISMATCH,
              "not batches of 2");
  ExpectError(OpenData(folder, "one.npz", {Spec("x", {-1, 3})}).status(), v1::DATA_MISMATCH,
              "has the shape [any, 2], the model wants [any, 3]");
  WriteNpz(folder.Path("scalar.npz"), {{"x", FloatNpy({}, {1})}});
  ExpectError(OpenData(folder, "scalar.npz", {Spec("x", {})}).status(), v1::DATA_MISMATCH, "no axis of samples");
  WriteNpz(folder.Path("none.npz"), {{"x", FloatNpy({0, 2}, {})}});
  ExpectError(OpenData(folder, "none.npz", {Spec("x", {-1, 2})}).status(), v1::DATA_TOO_SHORT, "no samples");
}

TEST(CalibrationDataTest, TooFewBatchesAreAnErrorMoreAWarning) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"x__0", FloatNpy({2}, {1, 2})}, {"x__1", FloatNpy({2}, {3, NAN})}});
  const absl::Status status = OpenData(folder, "d.npz", {Spec("x", {-1})}, {.batches = 3}).status();
  ExpectError(status, v1::DATA_TOO_SHORT, "d.npz: the data holds 2 batches, 3 are wanted");
  EXPECT_EQ(MetadataOf(status)["batches"], "2");
  EXPECT_EQ(MetadataOf(status)["wanted"], "3");
  // What is not used is not looked at.
  const auto data = OpenData(folder, "d.npz", {Spec("x", {-1})}, {.batches = 1});
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ((*data)->batch_count(), 1);
  EXPECT_THAT((*data)->warnings(), ElementsAre("d.npz holds 2 batches; only the first 1 is used"));
  folder.Write("s.npy", FloatNpy({2, 2}, Iota(4)));
  ExpectError(OpenData(folder, "s.npy", {Spec("x", {-1, 2})}, {.batches = 3}).status(), v1::DATA_TOO_SHORT, "3 are wanted");
}

TEST(CalibrationDataTest, NamesTheSampleThatIsNotFinite) {
  const TestFolder folder;
  std::vector<float> values = Iota(12);
  values[11] = std::numeric_limits<float>::infinity();
  folder.Write("d.npy", FloatNpy({6, 2}, values));
  const absl::Status status = OpenData(folder, "d.npy", {Spec("x", {-1, 2})}, {.batch_size = 4}).status();
  ExpectError(status, v1::DATA_NOT_FINITE, "d.npy: the array for the input 'x' in batch 1: sample 5 holds NaN or infinity");
  EXPECT_EQ(MetadataOf(status)["input"], "x");
  EXPECT_EQ(MetadataOf(status)["batch"], "1");
  EXPECT_EQ(MetadataOf(status)["sample"], "5");
  folder.Write("h.npy", NpyBytes("<f2", {1}, std::string("\x00\x7e", 2)));
  ExpectError(OpenData(folder, "h.npy", {Spec("x", {-1}, onnx::TensorProto::FLOAT16)}).status(), v1::DATA_NOT_FINITE, "sample 0");
  ExpectError(OpenData(folder, "h.npy", {Spec("x", {-1})}).status(), v1::DATA_NOT_FINITE, "sample 0");
  folder.Write("big.npy", NpyBytes("<f8", {2}, BytesOf<double>({1, 1e300})));
  ExpectError(OpenData(folder, "big.npy", {Spec("x", {-1})}).status(), v1::DATA_NOT_FINITE, "sample 1");
}

TEST(CalibrationDataTest, ConvertsWhereNothingIsLost) {
  const TestFolder folder;
  auto read = [&](const std::string& descr, const std::string& bytes, int64_t count, int data_type) {
    folder.Write("d.npy", NpyBytes(descr, {count}, bytes));
    const auto data = OpenData(folder, "d.npy", {Spec("x", {-1}, data_type)});
    EXPECT_TRUE(data.ok()) << data.status();
    return data.ok() ? (*(*data)->Next())[0] : HostTensor();
  };
  EXPECT_THAT(ValuesOf(read("<f8", BytesOf<double>({0.1, -2}), 2, onnx::TensorProto::FLOAT)), ElementsAre(0.1F, -2));
  EXPECT_THAT(ValuesOf(read("<f2", BytesOf<uint16_t>({0x3c00, 0x8001}), 2, onnx::TensorProto::FLOAT)), ElementsAre(1, -0x1p-24F));
  EXPECT_THAT(ValuesOf<int32_t>(read("<i8", BytesOf<int64_t>({-5, INT32_MAX}), 2, onnx::TensorProto::INT32)),
              ElementsAre(-5, INT32_MAX));
  EXPECT_THAT(ValuesOf<int64_t>(read("|u1", BytesOf<uint8_t>({200}), 1, onnx::TensorProto::INT64)), ElementsAre(200));
  EXPECT_THAT(ValuesOf<uint8_t>(read("|b1", "\1", 1, onnx::TensorProto::BOOL)), ElementsAre(1));

  auto refuse = [&](const std::string& descr, const std::string& bytes, int data_type, const std::string& text) {
    folder.Write("d.npy", NpyBytes(descr, {1}, bytes));
    ExpectError(OpenData(folder, "d.npy", {Spec("x", {-1}, data_type)}).status(), v1::DATA_MISMATCH, text);
  };
  refuse("<i8", BytesOf<int64_t>({int64_t{1} << 31}), onnx::TensorProto::INT32, "does not fit int32");
  refuse("<i8", BytesOf<int64_t>({-1}), onnx::TensorProto::UINT64, "does not fit uint64");
  refuse("<i8", BytesOf<int64_t>({1}), onnx::TensorProto::FLOAT, "of type int64, the model wants float");
  refuse("<f4", BytesOf<float>({1}), onnx::TensorProto::FLOAT16, "of type float, the model wants float16");
  refuse("<f4", BytesOf<float>({1}), onnx::TensorProto::INT64, "of type float, the model wants int64");
  refuse("<f4", BytesOf<float>({1}), onnx::TensorProto::STRING, "the model wants string, which data cannot hold");
}

TEST(CalibrationDataTest, AnArrayOfAnyNameIsForTheOnlyInput) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"arr_0", FloatNpy({3, 2}, Iota(6))}});
  InputSpec optional = Spec("state", {1});
  optional.optional = true;
  const auto data = OpenData(folder, "d.npz", {optional, Spec("x", {-1, 2})});
  ASSERT_TRUE(data.ok()) << data.status();
  const Batch batch = *(*data)->Next();
  ASSERT_THAT(batch, SizeIs(2));
  EXPECT_EQ(batch[0].data_type, 0);
  EXPECT_THAT(batch[0].bytes, IsEmpty());
  EXPECT_EQ(ValuesOf(batch[1]), Iota(6));
  ExpectError(OpenData(folder, "d.npz", {Spec("x", {-1, 2}), Spec("y", {-1})}).status(), v1::DATA_MISMATCH,
              "member 'arr_0' is neither an input nor '<input>__<number of the batch>'; the model's inputs are 'x', 'y'");
}

TEST(CalibrationDataTest, SaysWhatIsMissingInAnArchive) {
  const TestFolder folder;
  const std::string x = FloatNpy({1}, {1});
  const std::vector<InputSpec> two = {Spec("x", {-1}), Spec("y", {-1})};
  auto status = [&](const NpzMembers& members) {
    WriteNpz(folder.Path("d.npz"), members);
    return OpenData(folder, "d.npz", two).status();
  };
  ExpectError(status({{"x", x}}), v1::DATA_MISMATCH, "no data for the input 'y'");
  ExpectError(status({{"x__0", x}, {"y__0", x}, {"x__1", x}}), v1::DATA_MISMATCH, "no data for the input 'y' in batch 1");
  ExpectError(status({{"x__0", x}, {"y__0", x}, {"x__2", x}, {"y__2", x}}), v1::DATA_MISMATCH, "but no batch 1");
  ExpectError(status({{"x__0", x}, {"y", x}}), v1::DATA_UNREADABLE, "mixes");
  ExpectError(status({{"x__00", x}, {"y__0", x}}), v1::DATA_MISMATCH, "member 'x__00'");
  ExpectError(status({{"z__0", x}, {"y__0", x}}), v1::DATA_MISMATCH, "member 'z__0'");
}

TEST(CalibrationDataTest, ChecksShapesOfEveryBatch) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"x__0", FloatNpy({1, 2}, Iota(2))}, {"x__1", FloatNpy({2}, Iota(2))}});
  const absl::Status status = OpenData(folder, "d.npz", {Spec("x", {-1, 2})}).status();
  ExpectError(status, v1::DATA_MISMATCH, "member 'x__1' for the input 'x' in batch 1: it has the shape [2]");
  EXPECT_EQ(PlaceOf(status).file, "d.npz");
  InputSpec any = Spec("x", {});
  any.any_shape = true;
  EXPECT_TRUE(OpenData(folder, "d.npz", {any}).ok());
}

TEST(CalibrationDataTest, ReadsTensorProtos) {
  const TestFolder folder;
  folder.Write("typed.pb", ProtoBytes(FloatProto({2, 1}, {1, 2})));
  onnx::TensorProto raw = MakeTensor("", onnx::TensorProto::INT32, {2});
  raw.set_raw_data(BytesOf<int32_t>({-1, 5}));
  folder.Write("raw.pb", ProtoBytes(raw));
  onnx::TensorProto varints = MakeTensor("", onnx::TensorProto::INT32, {2});
  varints.add_int32_data(-1);
  varints.add_int32_data(5);
  folder.Write("varints.pb", ProtoBytes(varints));
  const auto typed = OpenData(folder, "typed.pb", {Spec("x", {-1, 1})});
  ASSERT_TRUE(typed.ok()) << typed.status();
  EXPECT_EQ((*typed)->batch_count(), 1);
  EXPECT_THAT(ValuesOf((*(*typed)->Next())[0]), ElementsAre(1, 2));
  for (const char* name : {"raw.pb", "varints.pb"}) {
    const auto data = OpenData(folder, name, {Spec("x", {2}, onnx::TensorProto::INT64)});
    ASSERT_TRUE(data.ok()) << data.status();
    EXPECT_THAT(ValuesOf<int64_t>((*(*data)->Next())[0]), ElementsAre(-1, 5));
  }

  folder.Write("bad.pb", "\x0a\xff");
  ExpectError(OpenData(folder, "bad.pb", {Spec("x", {2})}).status(), v1::DATA_UNREADABLE, "not an ONNX TensorProto");
  folder.Write("short.pb", ProtoBytes(FloatProto({3}, {1, 2})));
  ExpectError(OpenData(folder, "short.pb", {Spec("x", {3})}).status(), v1::DATA_UNREADABLE, "dims of the tensor need 3");
  onnx::TensorProto external = MakeTensor("", onnx::TensorProto::FLOAT, {3});
  MakeExternal(external, {{"location", "weights.bin"}});
  folder.Write("external.pb", ProtoBytes(external));
  ExpectError(OpenData(folder, "external.pb", {Spec("x", {3})}).status(), v1::DATA_UNREADABLE, "outside the file");
}

TEST(CalibrationDataTest, AFolderHoldsBatchesInTheNaturalOrderOfNames) {
  const TestFolder folder;
  for (const int i : {0, 1, 2, 10, 100}) {
    folder.Write("batches/b" + std::to_string(i) + ".npy", FloatNpy({1}, {static_cast<float>(i)}));
  }
  for (const char* path : {"batches", "batches/"}) {
    const auto data = OpenData(folder, path, {Spec("x", {1})});
    ASSERT_TRUE(data.ok()) << data.status();
    std::vector<float> order;
    for (auto batch = (*data)->Next(); batch.ok(); batch = (*data)->Next()) {
      order.push_back(ValuesOf((*batch)[0])[0]);
    }
    EXPECT_THAT(order, ElementsAre(0, 1, 2, 10, 100));
  }
  WriteNpz(folder.Write("archives/1.npz", ""), {{"y", FloatNpy({1}, {1})}, {"x", FloatNpy({3}, Iota(3))}});
  WriteNpz(folder.Write("archives/2.npz", ""), {{"y", FloatNpy({1}, {2})}, {"x", FloatNpy({2}, Iota(2))}});
  EXPECT_THAT(BatchSizes(OpenData(folder, "archives", {Spec("x", {-1}), Spec("y", {1})})), ElementsAre(3, 2));
}

TEST(CalibrationDataTest, AFolderMayHoldOnnxTestData) {
  const TestFolder folder;
  for (const int i : {0, 1}) {
    const std::string set = "model/test_data_set_" + std::to_string(i) + "/";
    folder.Write(set + "input_0.pb", ProtoBytes(FloatProto({i + 1}, Iota(i + 1))));
    folder.Write(set + "y.npy", FloatNpy({1}, {5}));
    folder.Write(set + "output_0.pb", "whatever");
  }
  EXPECT_THAT(BatchSizes(OpenData(folder, "model", {Spec("x", {-1}), Spec("y", {1})})), ElementsAre(1, 2));
  EXPECT_THAT(BatchSizes(OpenData(folder, "model/test_data_set_1", {Spec("x", {-1}), Spec("y", {1})})), ElementsAre(2));
  folder.Write("model/test_data_set_1/input_1.pb", ProtoBytes(FloatProto({1}, {5})));
  ExpectError(OpenData(folder, "model", {Spec("x", {-1}), Spec("y", {1})}).status(), v1::DATA_MISMATCH, "has two files");
  ExpectError(OpenData(folder, "model", {Spec("x", {-1})}).status(), v1::DATA_MISMATCH, "stands for no input");
}

TEST(CalibrationDataTest, SaysWhatIsWrongWithAFolder) {
  const TestFolder folder;
  const std::vector<InputSpec> one = {Spec("x", {1})};
  ExpectError(OpenData(folder, "nothing", one).status(), v1::FILE_NOT_FOUND, "no such file, nor a folder");
  folder.Write("kinds/a.npy", FloatNpy({1}, {1}));
  folder.Write("kinds/b.pb", ProtoBytes(FloatProto({1}, {1})));
  ExpectError(OpenData(folder, "kinds", one).status(), v1::DATA_UNREADABLE, "kinds/b.pb: the folder mixes kinds of files");
  folder.Write("unknown/a.npy", FloatNpy({1}, {1}));
  folder.Write("unknown/notes.txt", "hello");
  ExpectError(OpenData(folder, "unknown", one).status(), v1::DATA_UNREADABLE, "unknown/notes.txt: the name ends");
  ExpectError(OpenData(folder, "unknown/notes.txt", one).status(), v1::DATA_UNREADABLE, "the name ends");
  folder.Write("mixed/a.npy", FloatNpy({1}, {1}));
  folder.Write("mixed/b/input_0.npy", FloatNpy({1}, {1}));
  ExpectError(OpenData(folder, "mixed", one).status(), v1::DATA_UNREADABLE, "mixes files ('a.npy') and folders ('b')");
  folder.Write("deep/a/b/x.npy", FloatNpy({1}, {1}));
  ExpectError(OpenData(folder, "deep", one).status(), v1::DATA_UNREADABLE, "too deep");
  folder.Write("one.npy", FloatNpy({1}, {1}));
  ExpectError(OpenData(folder, "one.npy", {Spec("x", {1}), Spec("y", {1})}).status(), v1::DATA_MISMATCH,
              "one array is not enough, the model's inputs are 'x', 'y'");
  ExpectError(OpenData(folder, "one.npy", {}).status(), v1::DATA_MISMATCH, "no inputs");
}

}  // namespace
}  // namespace modelpress::engine
