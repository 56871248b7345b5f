#include "server/rpc/names.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include "engine/base/status.h"

namespace modelpress::server {
namespace {

TEST(NamesTest, RoundTrip) {
  EXPECT_EQ(*ParseWorkspaceName(FormatWorkspaceName("w-1"), "name"), "w-1");
  const absl::StatusOr<FileName> file = ParseFileName(FormatFileName("w", "a/files/b c.onnx"), "name");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->workspace, "w");
  EXPECT_EQ(file->path, "a/files/b c.onnx");
  EXPECT_EQ(ParseUploadName(FormatUploadName("w", "u1"), "name")->upload, "u1");
  EXPECT_EQ(*ParseOperationName("operations/o1", "name"), "o1");
}

TEST(NamesTest, BadNamesNameTheirField) {
  for (const char* name : {"workspaces/", "w", "workspaces/W", "workspaces/1a", "workspaces/a/b", "workspaces/a_b"}) {
    const absl::Status status = ParseWorkspaceName(name, "parent").status();
    EXPECT_EQ(ReasonOf(status), v1::NAME_INVALID) << name;
    EXPECT_EQ(PlaceOf(status).field, "parent");
  }
  EXPECT_EQ(ReasonOf(ParseWorkspaceName("", "name").status()), v1::REQUEST_INVALID);
  EXPECT_EQ(ReasonOf(ParseWorkspaceName("workspaces/" + std::string(64, 'a'), "name").status()), v1::NAME_INVALID);
  EXPECT_TRUE(ParseWorkspaceName("workspaces/" + std::string(63, 'a'), "name").ok());
  for (const char* name : {"operations/", "operations/../x", "operations/A", "o1"}) {
    EXPECT_EQ(ReasonOf(ParseOperationName(name, "name").status()), v1::NAME_INVALID) << name;
  }
  for (const char* name : {"workspaces/w/uploads/../etc", "workspaces/w/uploads/", "workspaces/w"}) {
    EXPECT_EQ(ReasonOf(ParseUploadName(name, "name").status()), v1::NAME_INVALID) << name;
  }
}

TEST(NamesTest, PathsAreRelativeAndPlain) {
  const std::string longest(255, 'x');
  for (const std::string& path : {std::string("a"), std::string("a/b.onnx"), std::string("..a"),
                                  std::string("\xC3\xA4/\xF0\x9F\x98\x80"), longest, std::string("a b")}) {
    EXPECT_TRUE(CheckPath(path, "f").ok()) << path;
  }
  for (const std::string& path :
       {std::string("/a"), std::string("a/"), std::string("a//b"), std::string("."), std::string("a/.."), std::string("../a"),
        std::string("a\\b"), std::string("a\nb"), std::string("a\0b", 3), std::string("a\x7F"), std::string("\xC2\x85"),
        std::string("\xFF"), std::string("\xC0\xAF"), std::string("\xED\xA0\x80"), std::string("\xE2\x82"), longest + "x",
        absl::StrCat(longest, "/", longest, "/", longest, "/", longest, "/y")}) {
    EXPECT_EQ(ReasonOf(CheckPath(path, "f")), v1::NAME_INVALID) << path;
  }
  EXPECT_EQ(ReasonOf(CheckPath("", "f")), v1::REQUEST_INVALID);
}

TEST(NamesTest, DigestsAndRequestIds) {
  EXPECT_TRUE(CheckSha256(std::string(64, 'a'), "f").ok());
  EXPECT_FALSE(CheckSha256(std::string(64, 'A'), "f").ok());
  EXPECT_FALSE(CheckSha256(std::string(63, 'a'), "f").ok());
  EXPECT_TRUE(CheckRequestId("", "f").ok());
  EXPECT_TRUE(CheckRequestId("123e4567-e89b-12d3-A456-426614174000", "f").ok());
  EXPECT_FALSE(CheckRequestId("123e4567-e89b-12d3-a456-42661417400", "f").ok());
  EXPECT_FALSE(CheckRequestId("123e4567ae89b-12d3-a456-426614174000", "f").ok());
}

}  // namespace
}  // namespace modelpress::server
