#include "engine/model/file_set.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

class FileSetTest : public testing::Test {
 protected:
  FileSetTest() : folder_(std::filesystem::path(testing::TempDir()) / absl::StrCat("file_set_test-", getpid())) {
    std::filesystem::create_directories(folder_);
    for (const char* name : {"a", "b", "c"}) {
      std::ofstream(folder_ / name) << "content of " << name;
      paths_[name] = (folder_ / name).string();
    }
    std::ofstream(folder_ / "empty").flush();
    paths_["empty"] = (folder_ / "empty").string();
  }
  ~FileSetTest() override { std::filesystem::remove_all(folder_); }

  static std::string Read(const InputFile& file, uint64_t offset, size_t size) {
    std::string bytes(size, '\0');
    EXPECT_TRUE(file.ReadAt(offset, absl::MakeSpan(reinterpret_cast<uint8_t*>(bytes.data()), size)).ok());
    return bytes;
  }

  const std::filesystem::path folder_;
  std::map<std::string, std::string> paths_;
};

TEST_F(FileSetTest, WhatWasOpenedNeedsNoFileSystem) {
  FileSet files(paths_);
  ASSERT_TRUE(files.OpenAll(/*max_descriptors=*/2).ok());
  std::filesystem::remove_all(folder_);
  int descriptors = 0;
  for (const char* name : {"a", "b", "c", "empty"}) {
    const absl::StatusOr<std::shared_ptr<const InputFile>> file = files.Open(name);
    ASSERT_TRUE(file.ok()) << file.status();
    descriptors += (*file)->fd() >= 0 ? 1 : 0;
    if ((*file)->size() > 0) {
      EXPECT_EQ(Read(**file, 8, 4), absl::StrCat("of ", name));
      EXPECT_EQ((*file)->mapping().size(), (*file)->size());
    }
    std::array<uint8_t, 2> beyond{};
    EXPECT_EQ(ReasonOf((*file)->ReadAt((*file)->size(), absl::MakeSpan(beyond))), v1::STORAGE_ERROR);
    EXPECT_EQ(ReasonOf((*file)->ReadAt(UINT64_MAX, absl::MakeSpan(beyond))), v1::STORAGE_ERROR);
  }
  EXPECT_EQ(descriptors, 2);
  EXPECT_EQ(ReasonOf(files.Open("d").status()), v1::FILE_NOT_FOUND);
}

TEST_F(FileSetTest, AFileThatIsGoneIsFoundOutAtOnce) {
  std::filesystem::remove(folder_ / "b");
  FileSet files(paths_);
  EXPECT_EQ(ReasonOf(files.OpenAll(100)), v1::STORAGE_ERROR);
  EXPECT_TRUE(files.Open("a").ok());
}

}  // namespace
}  // namespace modelpress::engine
