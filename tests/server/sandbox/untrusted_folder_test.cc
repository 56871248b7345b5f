#include "server/sandbox/untrusted_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

constexpr uint64_t kNoLimit = UINT64_MAX;

// Runs `body` as an ordinary user, for whom modes count.
int RunAsNobody(const std::function<int()>& body) {
  return RunInChild([&] {
    if (geteuid() == 0 && (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)) {
      return 126;
    }
    return body();
  });
}

class UntrustedFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(chmod(parent_.path().c_str(), 0777), 0);
    folder_ = absl::StrCat(parent_.path(), "/attempt");
  }
  TestFolder parent_;
  std::string folder_;
};

TEST_F(UntrustedFolderTest, RemovesWhateverIsThere) {
  const int code = RunAsNobody([this] {
    mkdir(folder_.c_str(), 0700);
    // Deeper than a process may have files open, and than any path may be long.
    int level = open(folder_.c_str(), O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < 1500; ++i) {
      if (mkdirat(level, "deeper", 0700) != 0) {
        return 2;
      }
      const int inner = openat(level, "deeper", O_RDONLY | O_DIRECTORY);
      close(level);
      level = inner;
    }
    close(level);
    std::filesystem::create_directories(folder_ + "/a/b/c");
    WriteTestFile(folder_ + "/a/b/c/file", "x");
    WriteTestFile(folder_ + "/.removed-0", "taken");
    WriteTestFile(parent_.path() + "/kept", "x");
    if (symlink("..", (folder_ + "/a/up").c_str()) != 0 || symlink(parent_.path().c_str(), (folder_ + "/out").c_str()) != 0 ||
        mkfifo((folder_ + "/a/pipe").c_str(), 0) != 0 || mkdir((folder_ + "/a/closed").c_str(), 0) != 0 ||
        chmod((folder_ + "/a/b").c_str(), 0300) != 0 || chmod((folder_ + "/a").c_str(), 0) != 0) {
      return 3;
    }
    return RemoveFolder(folder_).ok() ? 0 : 1;
  });
  EXPECT_EQ(code, 0);
  EXPECT_FALSE(std::filesystem::exists(folder_));
  EXPECT_TRUE(std::filesystem::exists(parent_.path() + "/kept"));
  EXPECT_TRUE(RemoveFolder(folder_).ok());  // nothing there
}

TEST_F(UntrustedFolderTest, ALinkInItsPlaceIsNotFollowed) {
  mkdir((parent_.path() + "/other").c_str(), 0700);
  WriteTestFile(parent_.path() + "/other/file", "x");
  ASSERT_EQ(symlink((parent_.path() + "/other").c_str(), folder_.c_str()), 0);
  EXPECT_FALSE(RemoveFolder(folder_).ok());
  EXPECT_TRUE(std::filesystem::exists(parent_.path() + "/other/file"));
}

TEST_F(UntrustedFolderTest, BytesAndNamesAreCounted) {
  std::filesystem::create_directories(folder_ + "/a");
  WriteTestFile(folder_ + "/a/file", TestBytes(1'000'000));
  const int synced = open((folder_ + "/a/file").c_str(), O_RDWR);  // blocks are given out late by some file systems
  ASSERT_EQ(fsync(synced), 0);
  close(synced);
  EXPECT_TRUE(TakesMoreThan(folder_, 900'000, kNoLimit));
  EXPECT_FALSE(TakesMoreThan(folder_, 1'100'000, kNoLimit));
  EXPECT_TRUE(TakesMoreThan(folder_, kNoLimit, 1));
  EXPECT_FALSE(TakesMoreThan(folder_, kNoLimit, 2));
  // What takes no space is not counted, and what lies outside neither.
  ASSERT_EQ(symlink("/", (folder_ + "/a/root").c_str()), 0);
  WriteTestFile(folder_ + "/sparse", "");
  ASSERT_EQ(truncate((folder_ + "/sparse").c_str(), 1 << 30), 0);
  EXPECT_FALSE(TakesMoreThan(folder_, 1'100'000, 4));
  EXPECT_FALSE(TakesMoreThan(folder_ + "/none", 0, 0));
}

TEST_F(UntrustedFolderTest, HidingDoesNotHelp) {
  std::string path = folder_;
  for (int i = 0; i < 60; ++i) {
    path += "/deeper";
  }
  std::filesystem::create_directories(path);
  EXPECT_TRUE(TakesMoreThan(folder_, kNoLimit, kNoLimit));
  ASSERT_TRUE(RemoveFolder(folder_).ok());
  EXPECT_EQ(RunAsNobody([this] {
              mkdir(folder_.c_str(), 0700);
              mkdir((folder_ + "/closed").c_str(), 0300);
              return TakesMoreThan(folder_, kNoLimit, kNoLimit) ? 0 : 1;
            }),
            0);
}

TEST_F(UntrustedFolderTest, GivesAFolderAway) {
  mkdir(folder_.c_str(), 0750);
  const SandboxUser user{geteuid() == 0 ? 65534U : geteuid(), geteuid() == 0 ? 65534U : getegid()};
  ASSERT_TRUE(GiveFolder(folder_, user).ok());
  struct stat info = {};
  ASSERT_EQ(stat(folder_.c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, user.uid);
  EXPECT_EQ(info.st_gid, user.gid);
  EXPECT_EQ(info.st_mode & 07777, 0700);
  EXPECT_FALSE(GiveFolder(folder_ + "/none", user).ok());
}

}  // namespace
}  // namespace modelpress::server
