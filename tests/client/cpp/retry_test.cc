#include "client/cpp/retry.h"

#include "gtest/gtest.h"

namespace modelpress::client {
namespace {

TEST(BackoffTest, GrowsUpToTheLimitAndEnds) {
  RetryPolicy policy{.max_attempts = 6, .initial_backoff = absl::Seconds(1), .max_backoff = absl::Seconds(5)};
  Backoff longest(policy, [] { return 1.0; });
  for (int seconds : {1, 2, 4, 5, 5}) {
    EXPECT_EQ(longest.Next(), absl::Seconds(seconds));
  }
  EXPECT_EQ(longest.Next(), std::nullopt);
  longest.Reset();
  EXPECT_EQ(longest.Next(), absl::Seconds(1));
}

TEST(BackoffTest, JitterTakesUpToAHalf) {
  RetryPolicy policy{.max_attempts = 3, .initial_backoff = absl::Seconds(1), .max_backoff = absl::Seconds(5)};
  Backoff shortest(policy, [] { return 0.0; });
  EXPECT_EQ(shortest.Next(), absl::Milliseconds(500));
  EXPECT_EQ(shortest.Next(), absl::Seconds(1));
}

TEST(WaitForTest, EndsWhenAskedTo) {
  std::stop_source stop;
  EXPECT_TRUE(WaitFor(absl::Milliseconds(1), stop.get_token()));
  stop.request_stop();
  EXPECT_FALSE(WaitFor(absl::Hours(1), stop.get_token()));
}

}  // namespace
}  // namespace modelpress::client
