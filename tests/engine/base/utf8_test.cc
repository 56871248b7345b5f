#include "engine/base/utf8.h"

#include <string>

#include "gtest/gtest.h"

namespace modelpress {
namespace {

TEST(Utf8Test, FindsTheFirstByteThatIsNone) {
  for (const char* good : {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xef\xbf\xbd"}) {
    EXPECT_EQ(ValidUtf8Prefix(good), std::string(good).size()) << good;
  }
  // A lone continuation, overlong, a surrogate, beyond U+10FFFF, cut off.
  for (const char* bad : {"\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\xff"}) {
    EXPECT_EQ(ValidUtf8Prefix(std::string("ab") + bad), 2) << bad;
  }
}

TEST(Utf8Test, EscapesWhatIsNone) {
  EXPECT_EQ(AsUtf8("a\xff\xc3\xa9", 100), "a\\xff\xc3\xa9");
  EXPECT_EQ(AsUtf8("\xe2\x82", 100), "\\xe2\\x82");
}

TEST(Utf8Test, CutsBetweenCharacters) {
  EXPECT_EQ(AsUtf8("abcdef", 6), "abcdef");
  EXPECT_EQ(AsUtf8("abcdefg", 6), "abc...");
  EXPECT_EQ(AsUtf8("ab\xc3\xa9\xc3\xa9\xc3\xa9", 6), "ab...");
  for (size_t size = 0; size < 20; ++size) {
    const std::string cut = AsUtf8(std::string(size, '\xff'), 10);
    EXPECT_LE(cut.size(), 10);
    EXPECT_EQ(ValidUtf8Prefix(cut), cut.size());
  }
}

}  // namespace
}  // namespace modelpress
