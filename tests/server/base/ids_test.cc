#include "server/base/ids.h"

#include <algorithm>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "tests/server/base/fake_clock.h"

namespace modelpress::server {
namespace {

TEST(RandomIdGeneratorTest, IdsAreNamesAndNeverRepeat) {
  FakeClock clock;
  RandomIdGenerator ids(clock, 'u');
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    std::string id = ids.NewId();
    EXPECT_EQ(id.size(), 27);
    EXPECT_EQ(id[0], 'u');
    EXPECT_TRUE(std::all_of(id.begin(), id.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); })) << id;
    EXPECT_TRUE(seen.insert(id).second);
  }
}

TEST(RandomIdGeneratorTest, IdsSortByTime) {
  FakeClock clock;
  RandomIdGenerator ids(clock);
  std::string last = ids.NewId();
  for (int i = 0; i < 1000; ++i) {
    clock.Advance(absl::Milliseconds(1) * (1 + i * i));
    std::string next = ids.NewId();
    EXPECT_LT(last, next);
    last = next;
  }
}

}  // namespace
}  // namespace modelpress::server
