#include "server/base/page_token.h"

#include "gtest/gtest.h"
#include "tests/server/base/status_testing.h"

namespace modelpress::server {
namespace {

TEST(PageTokenTest, OnlyTheListThatMadeATokenTakesIt) {
  for (const std::string& key : {std::string("a/ä b"), std::string(1024, 'x'), std::string()}) {
    std::string token = EncodePageToken("files", key);
    ASSERT_OK_AND_ASSIGN(std::string decoded, DecodePageToken("files", token));
    EXPECT_EQ(decoded, key);
    EXPECT_REASON(DecodePageToken("other", token), PAGE_TOKEN_INVALID);
    EXPECT_REASON(DecodePageToken("files", token + "AAAA"), PAGE_TOKEN_INVALID);
    EXPECT_REASON(DecodePageToken("files", token.substr(0, 8)), PAGE_TOKEN_INVALID);
  }
  EXPECT_REASON(DecodePageToken("files", ""), PAGE_TOKEN_INVALID);
  EXPECT_REASON(DecodePageToken("files", "%%%"), PAGE_TOKEN_INVALID);
}

TEST(PageTokenTest, PageSizes) {
  EXPECT_EQ(*ResolvePageSize(0), 50);
  EXPECT_EQ(*ResolvePageSize(1), 1);
  EXPECT_EQ(*ResolvePageSize(1000), 1000);
  EXPECT_EQ(*ResolvePageSize(1001), 1000);
  EXPECT_REASON(ResolvePageSize(-1), REQUEST_INVALID);
}

}  // namespace
}  // namespace modelpress::server
