#include "client/cpp/local_path.h"

#include <filesystem>

#include "client/cpp/status.h"
#include "gtest/gtest.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

class LocalPathTest : public testing::Test {
 protected:
  void SetUp() override {
    before_ = std::filesystem::current_path();
    std::filesystem::create_directories(root_ / "w/d");
    std::filesystem::current_path(root_ / "w");
  }
  void TearDown() override { std::filesystem::current_path(before_); }

  // "FOLDER|PREFIX", the folder relative to the test's own.
  std::string Split(const std::string& save_path) {
    absl::StatusOr<SavePath> split = SplitSavePath(save_path);
    EXPECT_TRUE(split.ok()) << split.status();
    return split.ok() ? std::filesystem::relative(split->folder, root_.path()).string() + "|" + split->prefix : "";
  }

  TempFolder root_;
  std::filesystem::path before_;
};

TEST_F(LocalPathTest, SplitsAsTheTableOfSaveMdSaysSection1_1) {
  EXPECT_EQ(Split(""), "w|");
  EXPECT_EQ(Split("res/"), "w/res|");
  EXPECT_EQ(Split("res/x"), "w/res|x");
  EXPECT_EQ(Split("res/x.onnx"), "w/res|x.onnx");
  std::filesystem::current_path(root_ / "w/d");
  EXPECT_EQ(Split("."), "w|d");
  std::filesystem::create_symlink("real/target", root_ / "w/d/lnk");  // dangling: the target is only a prefix
  EXPECT_EQ(Split("lnk"), "w/d/real|target");
}

TEST_F(LocalPathTest, FollowsLinksBeforeDots) {
  std::filesystem::create_directories(root_ / "elsewhere/deep");
  std::filesystem::create_directory_symlink(root_ / "elsewhere/deep", root_ / "w/lnk");
  EXPECT_EQ(Split("lnk/../x"), "elsewhere|x");
  EXPECT_EQ(Split("lnk/"), "elsewhere/deep|");
  EXPECT_EQ(Split("d/.."), ".|w");
  EXPECT_EQ(Split("no//such/../folder/./x"), "w/no/folder|x");
  EXPECT_EQ(Split(root_ / "a/b"), "a|b");
}

TEST_F(LocalPathTest, TheRootHasNoPrefix) {
  EXPECT_EQ(SplitSavePath("/")->folder, "/");
  EXPECT_EQ(SplitSavePath("/.")->prefix, "");
  EXPECT_EQ(SplitSavePath("/x")->folder, "/");
  EXPECT_EQ(SplitSavePath("/../x")->prefix, "x");
}

TEST_F(LocalPathTest, RefusesLinksInACircle) {
  std::filesystem::create_symlink("b", root_ / "w/a");
  std::filesystem::create_symlink("a", root_ / "w/b");
  EXPECT_EQ(DetailsOf(SplitSavePath("a").status()).reason, kLocalIoReason);
}

TEST_F(LocalPathTest, RefusesPrefixesThatMakeTooLongNames) {
  EXPECT_TRUE(SplitSavePath("res/" + std::string(233, 'x')).ok());
  absl::Status status = SplitSavePath("res/" + std::string(234, 'x')).status();
  EXPECT_EQ(DetailsOf(status).reason, "NAME_INVALID");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
}

TEST_F(LocalPathTest, RefusesNamesThatCannotTravel) {
  EXPECT_TRUE(CheckName("mod\u00e8le \U0001F600 1.onnx", "").ok());
  EXPECT_TRUE(CheckName(std::string(255, 'x'), "").ok());
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string(256, 'x'), std::string("a\\b"),
                                  std::string("a\nb"), std::string("\x7f"), std::string("\xff"), std::string("\xc0\xaf"),
                                  std::string("\xed\xa0\x80"), std::string("\xf4\x90\x80\x80"), std::string("cut \xe2\x82")}) {
    EXPECT_EQ(DetailsOf(CheckName(name, "p")).reason, "NAME_INVALID") << name;
  }
}

}  // namespace
}  // namespace modelpress::client
