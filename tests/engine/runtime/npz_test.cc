#include "engine/runtime/npz.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "onnx/onnx_pb.h"
#include "tests/engine/model/model_testing.h"
#include "tests/engine/npz_writer.h"

namespace modelpress::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<const InputFile> OpenInput(const TestFolder& folder, const std::string& name) {
  return *InputFile::Open(name, folder.Path(name));
}

// All elements, in pieces of 5 bytes.
absl::StatusOr<std::string> ReadAll(absl::StatusOr<std::unique_ptr<ArrayReader>> reader, size_t bytes) {
  MP_RETURN_IF_ERROR(reader.status());
  std::string all(bytes, '\0');
  for (size_t i = 0; i < bytes; i += 5) {
    const size_t count = std::min<size_t>(5, bytes - i);
    MP_RETURN_IF_ERROR((*reader)->Read({reinterpret_cast<uint8_t*>(all.data()) + i, count}));
  }
  return all;
}

absl::StatusOr<std::unique_ptr<ArrayReader>> OpenBytes(const TestFolder& folder, const std::string& bytes) {
  folder.Write("a.npy", bytes);
  return OpenNpy(OpenInput(folder, "a.npy"));
}

void ExpectUnreadable(const absl::Status& status, const std::string& text) {
  EXPECT_EQ(ReasonOf(status), v1::DATA_UNREADABLE) << status;
  EXPECT_THAT(status.message(), HasSubstr(text));
}

TEST(NpyTest, ReadsEveryTypeAndVersion) {
  const TestFolder folder;
  const std::vector<std::pair<std::string, int>> types = {
      {"<f2", onnx::TensorProto::FLOAT16}, {"<f4", onnx::TensorProto::FLOAT},  {"<f8", onnx::TensorProto::DOUBLE},
      {"|i1", onnx::TensorProto::INT8},    {"<i2", onnx::TensorProto::INT16},  {"<i4", onnx::TensorProto::INT32},
      {"<i8", onnx::TensorProto::INT64},   {"|u1", onnx::TensorProto::UINT8},  {"<u2", onnx::TensorProto::UINT16},
      {"=u4", onnx::TensorProto::UINT32},  {"<u8", onnx::TensorProto::UINT64}, {"|b1", onnx::TensorProto::BOOL}};
  for (const auto& [descr, data_type] : types) {
    for (const int version : {1, 2, 3}) {
      const std::string bytes(static_cast<size_t>(6 * (descr[2] - '0')), '\1');
      absl::StatusOr<std::unique_ptr<ArrayReader>> reader =
          OpenBytes(folder, NpyBytes(descr, {2, 3}, bytes, /*fortran_order=*/false, version));
      ASSERT_TRUE(reader.ok()) << descr << reader.status();
      EXPECT_EQ((*reader)->data_type(), data_type);
      EXPECT_THAT((*reader)->dims(), ElementsAre(2, 3));
      const absl::StatusOr<std::string> read = ReadAll(std::move(reader), bytes.size());
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(*read, bytes);
    }
  }
}

TEST(NpyTest, ReadsScalarsEmptyArraysAndPython2Headers) {
  const TestFolder folder;
  const auto scalar = OpenBytes(folder, FloatNpy({}, {1.5F}));
  ASSERT_TRUE(scalar.ok()) << scalar.status();
  EXPECT_THAT((*scalar)->dims(), ElementsAre());
  const auto empty = OpenBytes(folder, FloatNpy({0, 7}, {}));
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_THAT((*empty)->dims(), ElementsAre(0, 7));
  const auto old = OpenBytes(folder, absl::StrReplaceAll(FloatNpy({2}, {1, 2}), {{"(2, )", "(2L,)"}}));
  ASSERT_TRUE(old.ok()) << old.status();
  EXPECT_THAT((*old)->dims(), ElementsAre(2));
  const auto vector = OpenBytes(folder, NpyBytes("<f4", {2}, std::string(8, '\0'), /*fortran_order=*/true));
  EXPECT_TRUE(vector.ok()) << "one dimension has only one order: " << vector.status();
}

TEST(NpyTest, SaysWhatItDoesNotTake) {
  const TestFolder folder;
  const std::string four(16, '\0');
  auto status = [&](const std::string& bytes) { return OpenBytes(folder, bytes).status(); };
  ExpectUnreadable(status(NpyBytes("|O", {4}, four)), "never loaded");
  ExpectUnreadable(status(NpyBytes(">f4", {4}, four)), "big-endian");
  ExpectUnreadable(status(NpyBytes("<f4", {2, 2}, four, /*fortran_order=*/true)), "Fortran order");
  ExpectUnreadable(status(NpyBytes("<c8", {2}, four)), "'<c8'");
  ExpectUnreadable(status(NpyBytes("<U4", {1}, four)), "'<U4'");
  ExpectUnreadable(status(absl::StrReplaceAll(NpyBytes("<f4", {4}, four), {{"'<f4'", "[('a', '<f4')]"}})), "structured");
  ExpectUnreadable(status(NpyBytes("<f4", {4}, four, false, 4)), "version 4");
  ExpectUnreadable(status(NpyBytes("<f4", {5}, four)), "truncated or damaged");
  ExpectUnreadable(status(NpyBytes("<f4", {3}, four)), "truncated or damaged");
  ExpectUnreadable(status(NpyBytes("<f4", {-4}, four)), "damaged");
  ExpectUnreadable(status(NpyBytes("<f4", {1L << 40, 1L << 40}, four)), "than any file can hold");
  ExpectUnreadable(status(NpyBytes("<f4", {1L << 62, 1L << 62, 4}, four)), "than any file can hold");
  ExpectUnreadable(status(NpyBytes("<f4", std::vector<int64_t>(33, 1), "1234")), "damaged");
  ExpectUnreadable(status(std::string("\x93NUMPY\2\0\xff\xff\xff\xff", 12)), "4294967295 bytes, more than");
  ExpectUnreadable(status("GIF89a - a picture"), "not a NumPy array");
  ExpectUnreadable(status(""), "too short");
  EXPECT_EQ(PlaceOf(status("")).file, "a.npy");
}

TEST(NpyTest, RefusesBooleansThatAreNone) {
  const TestFolder folder;
  ExpectUnreadable(ReadAll(OpenBytes(folder, NpyBytes("|b1", {2}, std::string("\1\2"))), 2).status(), "booleans");
}

NpzMembers TwoMembers() { return {{"x__0", FloatNpy({2, 2}, {1, 2, 3, 4})}, {"a/b", NpyBytes("|u1", {3}, "abc")}}; }

TEST(NpzTest, ReadsStoredAndDeflatedMembersInTurn) {
  const TestFolder folder;
  for (const bool compressed : {false, true}) {
    WriteNpz(folder.Path("d.npz"), TwoMembers(), compressed);
    std::unique_ptr<ArrayReader> x;
    std::unique_ptr<ArrayReader> b;
    {
      const auto npz = NpzFile::Open(OpenInput(folder, "d.npz"));
      ASSERT_TRUE(npz.ok()) << npz.status();
      EXPECT_THAT((*npz)->names(), ElementsAre("x__0", "a/b"));
      x = *(*npz)->OpenArray("x__0");
      b = *(*npz)->OpenArray("a/b");
      ExpectUnreadable((*npz)->OpenArray("y").status(), "no member 'y'");
    }
    EXPECT_THAT(x->dims(), ElementsAre(2, 2));
    std::vector<float> values(4);
    std::vector<uint8_t> letters(3);
    auto* const bytes = reinterpret_cast<uint8_t*>(values.data());
    EXPECT_TRUE(x->Read({bytes, 8}).ok());
    EXPECT_TRUE(b->Read({letters.data(), 1}).ok());
    EXPECT_TRUE(x->Read({bytes + 8, 8}).ok());
    EXPECT_TRUE(b->Read({letters.data() + 1, 2}).ok());
    EXPECT_THAT(values, ElementsAre(1, 2, 3, 4));
    EXPECT_THAT(letters, ElementsAre('a', 'b', 'c'));
    EXPECT_EQ(ReasonOf(b->Read({letters.data(), 1})), v1::INTERNAL_ERROR);
  }
}

// Opens the archive and all its members and reads everything.
absl::Status ReadEverything(const TestFolder& folder, const std::string& bytes) {
  folder.Write("d.npz", bytes);
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<NpzFile> npz, NpzFile::Open(OpenInput(folder, "d.npz")));
  for (const std::string& name : npz->names()) {
    MP_ASSIGN_OR_RETURN(const std::unique_ptr<ArrayReader> array, npz->OpenArray(name));
    const size_t size = name == "x__0" ? 16 : 3;
    std::vector<uint8_t> out(size);
    MP_RETURN_IF_ERROR(array->Read(absl::MakeSpan(out)));
  }
  return absl::OkStatus();
}

TEST(NpzTest, EveryTruncationIsRefused) {
  const TestFolder folder;
  for (const bool compressed : {false, true}) {
    WriteNpz(folder.Path("whole.npz"), TwoMembers(), compressed);
    const std::string whole = folder.Read("whole.npz");
    ASSERT_TRUE(ReadEverything(folder, whole).ok());
    for (size_t size = 0; size < whole.size(); ++size) {
      const absl::Status status = ReadEverything(folder, whole.substr(0, size));
      ASSERT_EQ(ReasonOf(status), v1::DATA_UNREADABLE) << size << status;
    }
  }
}

// A flipped byte may lie where it means nothing (a date), or in a name or a shape; elsewhere the checksum finds it. Never
// anything else.
TEST(NpzTest, FlippedBytesAreRefusedOrHarmless) {
  const TestFolder folder;
  for (const bool compressed : {false, true}) {
    WriteNpz(folder.Path("whole.npz"), TwoMembers(), compressed);
    const std::string whole = folder.Read("whole.npz");
    int refused = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 + i * 37 % 255));
      const absl::Status status = ReadEverything(folder, damaged);
      ASSERT_TRUE(status.ok() || ReasonOf(status) == v1::DATA_UNREADABLE || ReasonOf(status) == v1::INTERNAL_ERROR)
          << i << status;
      refused += status.ok() ? 0 : 1;
    }
    EXPECT_GT(refused, static_cast<int>(whole.size() / 2));
  }
}

TEST(NpzTest, GarbageIsRefused) {
  const TestFolder folder;
  for (uint32_t seed = 1; seed < 50; ++seed) {
    const std::string garbage = Pattern(size_t{40} * seed, seed);
    EXPECT_EQ(ReasonOf(ReadEverything(folder, garbage)), v1::DATA_UNREADABLE);
    EXPECT_EQ(ReasonOf(ReadEverything(folder, "PK\3\4" + garbage)), v1::DATA_UNREADABLE);
  }
}

// An archive of a few hundred bytes whose directory claims 2^27 members, in the form for more than 65,535.
TEST(NpzTest, AClaimOfManyMembersAllocatesNothing) {
  const TestFolder folder;
  auto number = [](uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) {
      text += static_cast<char>(value >> (8 * i));
    }
    return text;
  };
  constexpr uint64_t kClaimed = 1 << 27;
  for (const uint64_t directory_bytes : {uint64_t{0}, uint64_t{46}, kClaimed * 46}) {
    const std::string end64 = "PK\6\6" + number(44, 8) + number(45, 2) + number(45, 2) + number(0, 8) + number(kClaimed, 8) +
                              number(kClaimed, 8) + number(directory_bytes, 8) + number(0, 8);
    const std::string locator = "PK\6\7" + number(0, 4) + number(46, 8) + number(1, 4);
    const std::string end = "PK\5\6" + number(0, 4) + number(0xffff, 2) + number(0xffff, 2) + number(0xffffffff, 4) +
                            number(0xffffffff, 4) + number(0, 2);
    EXPECT_EQ(ReasonOf(ReadEverything(folder, absl::StrCat("PK\1\2", std::string(42, '\0'), end64, locator, end))),
              v1::DATA_UNREADABLE);
  }
}

TEST(NpzTest, BombsAreRefusedByTheDirectoryAlone) {
  const TestFolder folder;
  const std::string zeros(size_t{20} << 20, '\0');
  WriteNpz(folder.Path("d.npz"), {{"x", NpyBytes("|u1", {20 << 20}, zeros)}}, /*compressed=*/true);
  EXPECT_TRUE(ReadEverything(folder, folder.Read("d.npz")).ok()) << "a few zeros are no bomb";
  NpzMembers members;
  for (int i = 0; i < 5; ++i) {
    members.emplace_back(absl::StrCat("x", i), NpyBytes("|u1", {20 << 20}, zeros));
  }
  WriteNpz(folder.Path("d.npz"), members, /*compressed=*/true);
  ExpectUnreadable(NpzFile::Open(OpenInput(folder, "d.npz")).status(), "times the archive's size");
  // Two entries of the directory for the same bytes.
  WriteNpz(folder.Path("d.npz"), {{"x", FloatNpy({1000}, std::vector<float>(1000, 1))}});
  const std::string whole = folder.Read("d.npz");
  const size_t directory = whole.rfind("PK\1\2");
  const size_t end = whole.rfind("PK\5\6");
  std::string second = whole.substr(directory, end - directory);
  second[second.find("x.npy")] = 'y';
  std::string tail = whole.substr(end);
  tail[8] = tail[10] = 2;
  tail[12] = static_cast<char>(2 * second.size());
  ExpectUnreadable(ReadEverything(folder, absl::StrCat(whole.substr(0, end), second, tail)), "overlap");
}

TEST(NpzTest, AMemberThatUnpacksToOtherThanItsHeaderSaysIsRefused) {
  const TestFolder folder;
  WriteNpz(folder.Path("d.npz"), {{"x__0", FloatNpy({5}, {1, 2, 3, 4})}}, true);
  ExpectUnreadable(ReadEverything(folder, folder.Read("d.npz")), "member 'x__0': the array has");
  WriteNpz(folder.Path("d.npz"), {{"x__0", FloatNpy({3}, {1, 2, 3, 4})}}, true);
  ExpectUnreadable(ReadEverything(folder, folder.Read("d.npz")), "truncated or damaged");
}

}  // namespace
}  // namespace modelpress::engine
