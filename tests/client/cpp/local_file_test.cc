#include "client/cpp/local_file.h"

#include <sys/stat.h>

#include <filesystem>

#include "client/cpp/status.h"
#include "gtest/gtest.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

int ModeOf(const std::string& path) {
  struct stat info{};
  EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
  return static_cast<int>(info.st_mode & 0777);
}

class Umask {
 public:
  explicit Umask(int mask) : before_(umask(mask)) {}
  ~Umask() { umask(before_); }

 private:
  mode_t before_;
};

TEST(InputFileTest, ReadsAndNoticesAShorterFile) {
  TempFolder folder;
  std::string path = WriteFile(folder / "f", "0123456789");
  absl::StatusOr<InputFile> file = InputFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::string bytes;
  EXPECT_TRUE(file->ReadAt(4, 3, bytes).ok());
  EXPECT_EQ(bytes, "456");
  std::filesystem::resize_file(path, 5);
  EXPECT_EQ(DetailsOf(file->ReadAt(4, 3, bytes)).reason, "FILE_CHANGED");
}

TEST(InputFileTest, RefusesWhatIsNoRegularFile) {
  TempFolder folder;
  EXPECT_EQ(DetailsOf(InputFile::Open(folder / "missing").status()).reason, "FILE_NOT_FOUND");
  EXPECT_EQ(DetailsOf(InputFile::Open(folder.path()).status()).reason, "NAME_INVALID");
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(DetailsOf(InputFile::Open(folder / "pipe").status()).reason, "NAME_INVALID");
}

TEST(StagedFileTest, AppearsOnlyWhenCommitted) {
  TempFolder folder;
  Umask umask(0077);
  std::string path = WriteFile(folder / "out", "old");
  {
    absl::StatusOr<StagedFile> staged = StagedFile::Create(path);
    ASSERT_TRUE(staged.ok()) << staged.status();
    ASSERT_TRUE(staged->Append("new").ok());
    ASSERT_TRUE(staged->Finish().ok());
    EXPECT_EQ(ReadFile(path), "old");
    EXPECT_TRUE(staged->Commit().ok());
  }
  EXPECT_EQ(ReadFile(path), "new");
  EXPECT_EQ(ModeOf(path), 0640);  // whatever the umask
}

TEST(StagedFileTest, LeavesNothingWhenItIsDropped) {
  TempFolder folder;
  std::string longest = folder / std::string(255, 'x');
  {
    absl::StatusOr<StagedFile> staged = StagedFile::Create(longest);
    ASSERT_TRUE(staged.ok()) << staged.status();
    ASSERT_TRUE(staged->Append("half").ok());
    EXPECT_EQ(FilesIn(folder.path()), 1);
  }
  EXPECT_EQ(FilesIn(folder.path()), 0);
}

TEST(MakeFoldersTest, OnlyTheLastOneIsClosedToOthers) {
  TempFolder folder;
  Umask umask(0022);
  ASSERT_TRUE(MakeFolders(folder / "a/b/c").ok());
  EXPECT_EQ(ModeOf(folder / "a"), 0755);
  EXPECT_EQ(ModeOf(folder / "a/b"), 0755);
  EXPECT_EQ(ModeOf(folder / "a/b/c"), 0750);
  ASSERT_TRUE(MakeFolders(folder / "a").ok());  // keeps its mode
  EXPECT_EQ(ModeOf(folder / "a"), 0755);
}

TEST(MakeFoldersTest, SaysWhereAFileIsInTheWay) {
  TempFolder folder;
  WriteFile(folder / "file", "");
  for (const absl::Status& status :
       {MakeFolders(folder / "file/x"), CheckFolderUsable(folder / "file/x"), CheckFolderUsable(folder / "file")}) {
    EXPECT_EQ(DetailsOf(status).reason, kLocalIoReason) << status;
  }
  EXPECT_TRUE(CheckFolderUsable(folder / "a/b/c").ok());
  EXPECT_TRUE(CheckFolderUsable(folder.path()).ok());
}

}  // namespace
}  // namespace modelpress::client
