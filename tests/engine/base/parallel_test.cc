#include "engine/base/parallel.h"

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace modelpress {
namespace {

TEST(ParallelForTest, CallsEachIndexOnce) {
  for (const int threads : {-1, 0, 1, 2, 3, 16}) {
    for (const uint64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(count);
      ParallelFor(threads, count, [&](uint64_t i) { ++calls[i]; });
      for (uint64_t i = 0; i < count; ++i) {
        EXPECT_EQ(calls[i], 1) << threads << " threads, " << i << " of " << count;
      }
    }
  }
}

TEST(ParallelForTest, OneThreadIsTheCallers) {
  std::set<std::thread::id> ids;
  ParallelFor(1, 100, [&](uint64_t) { ids.insert(std::this_thread::get_id()); });
  EXPECT_EQ(ids, std::set{std::this_thread::get_id()});
}

TEST(ParallelForTest, SeveralThreadsWorkAtTheSameTime) {
  // Each call waits for the other one.
  std::atomic<int> arrived = 0;
  ParallelFor(2, 2, [&](uint64_t) {
    ++arrived;
    while (arrived < 2) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(arrived, 2);
}

}  // namespace
}  // namespace modelpress
