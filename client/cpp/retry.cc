#include "client/cpp/retry.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <mutex>

namespace modelpress::client {

std::optional<absl::Duration> Backoff::Next() {
  if (++failures_ >= policy_.max_attempts) {
    return std::nullopt;
  }
  absl::Duration whole = std::min(policy_.max_backoff, policy_.initial_backoff * std::exp2(failures_ - 1));
  return whole * (0.5 + 0.5 * random_());
}

bool WaitFor(absl::Duration duration, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, stop, absl::ToChronoNanoseconds(duration), [] { return false; });
  return !stop.stop_requested();
}

}  // namespace modelpress::client
