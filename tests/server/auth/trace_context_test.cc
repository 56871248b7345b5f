#include "server/auth/trace_context.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace modelpress::server {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpan[] = "00f067aa0ba902b7";

TEST(TraceContextTest, ValidOnesAreKept) {
  const std::string valid = absl::StrCat("00-", kTrace, "-", kSpan, "-01");
  EXPECT_EQ(ParseTraceparent(valid), valid);
  // Later versions may have more.
  EXPECT_EQ(ParseTraceparent(absl::StrCat("cc-", kTrace, "-", kSpan, "-01")), valid);
  EXPECT_EQ(ParseTraceparent(absl::StrCat("cc-", kTrace, "-", kSpan, "-01-what-ever")), valid);
}

TEST(TraceContextTest, OthersAreNone) {
  const std::string zeros(32, '0');
  for (const std::string& bad :
       {std::string(), std::string("00"), absl::StrCat("00-", kTrace, "-", kSpan), absl::StrCat("00-", kTrace, "-", kSpan, "-1"),
        absl::StrCat("00-", kTrace, "-", kSpan, "-01-more"), absl::StrCat("00-", kTrace, "-", kSpan, "-01 "),
        absl::StrCat(" 00-", kTrace, "-", kSpan, "-01"), absl::StrCat("ff-", kTrace, "-", kSpan, "-01"),
        absl::StrCat("cc-", kTrace, "-", kSpan, "-01.what"), absl::StrCat("0x-", kTrace, "-", kSpan, "-01"),
        absl::StrCat("00-", zeros, "-", kSpan, "-01"), absl::StrCat("00-", kTrace, "-", zeros.substr(16), "-01"),
        absl::StrCat("00-", "4BF92F3577B34DA6A3CE929D0E0E4736", "-", kSpan, "-01"),
        absl::StrCat("00_", kTrace, "-", kSpan, "-01"), absl::StrCat("00-", kTrace, "_", kSpan, "-01"),
        absl::StrCat("00-", kTrace, "-", kSpan, "_01"), absl::StrCat("00-", kTrace, "-", kSpan, "-0g")}) {
    EXPECT_EQ(ParseTraceparent(bad), std::nullopt) << bad;
  }
}

TEST(TraceContextTest, NewOnesAreValidAndDiffer) {
  const std::string one = NewTraceparent();
  EXPECT_EQ(ParseTraceparent(one), one);
  EXPECT_NE(NewTraceparent(), one);
}

}  // namespace
}  // namespace modelpress::server
