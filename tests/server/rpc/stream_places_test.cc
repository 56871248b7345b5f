#include "server/rpc/stream_places.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace modelpress::server {
namespace {

// As many as the project is let in for.
int EnterAll(StreamPlaces& places, const std::string& project) {
  int count = 0;
  while (places.Enter(project)) {
    ++count;
  }
  return count;
}

TEST(StreamPlacesTest, OneProjectGetsHalf) {
  StreamPlaces places(8);
  EXPECT_EQ(EnterAll(places, "a"), 4);
  places.Leave("a");
  EXPECT_EQ(EnterAll(places, "a"), 1);
}

TEST(StreamPlacesTest, WhoHasNoneFindsSome) {
  StreamPlaces places(256);
  for (int i = 0; i < 8; ++i) {  // each takes half of what those before have left
    EXPECT_GT(EnterAll(places, absl::StrCat("p", i)), 0) << i;
  }
}

TEST(StreamPlacesTest, ALoneProjectMayHaveHalfAgainWhenOthersHaveLeft) {
  StreamPlaces places(9);
  EXPECT_EQ(EnterAll(places, "a"), 5);
  EXPECT_EQ(EnterAll(places, "b"), 2);
  for (int i = 0; i < 5; ++i) {
    places.Leave("a");
  }
  EXPECT_EQ(EnterAll(places, "b"), 3);
}

TEST(StreamPlacesTest, NoPlacesLetNobodyIn) {
  StreamPlaces places(0);
  EXPECT_FALSE(places.Enter("a"));
}

}  // namespace
}  // namespace modelpress::server
