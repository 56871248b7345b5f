// Work shared among threads.
#ifndef MODELPRESS_ENGINE_BASE_PARALLEL_H_
#define MODELPRESS_ENGINE_BASE_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace modelpress {

// Calls fn(i) once for every i of [0, count), on the caller's thread and up to threads - 1 more; returns when all calls are done.
// Which thread gets which i is left open: a result that must not depend on the number of threads is kept per i and put together
// afterwards. `fn` is called from several threads at once and must not throw.
template <typename Fn>
void ParallelFor(int threads, uint64_t count, const Fn& fn) {
  std::atomic<uint64_t> next = 0;
  const auto work = [&] {
    for (uint64_t i = next++; i < count; i = next++) {
      fn(i);
    }
  };
  std::vector<std::jthread> helpers;
  const auto useful = static_cast<int>(std::min<uint64_t>(count, static_cast<uint64_t>(std::max(threads, 1))));
  for (int i = 1; i < useful; ++i) {
    try {
      helpers.emplace_back(work);
    } catch (const std::system_error&) {
      break;  // go on with those there are
    }
  }
  work();
}

}  // namespace modelpress

#endif  // MODELPRESS_ENGINE_BASE_PARALLEL_H_
