// Waiting between attempts.
#ifndef MODELPRESS_CLIENT_CPP_RETRY_H_
#define MODELPRESS_CLIENT_CPP_RETRY_H_

#include <functional>
#include <optional>
#include <stop_token>

#include "absl/time/time.h"

namespace modelpress::client {

// How often and how patiently a broken stream or an unreachable server is tried again.
struct RetryPolicy {
  int max_attempts = 8;  // in a row without any progress
  absl::Duration initial_backoff = absl::Milliseconds(200);
  absl::Duration max_backoff = absl::Seconds(10);
};

// Exponential backoff with jitter: the n-th wait is between half of and the whole of initial_backoff * 2^n, at most max_backoff.
class Backoff {
 public:
  // `random` gives uniform numbers in [0, 1).
  Backoff(const RetryPolicy& policy, std::function<double()> random) : policy_(policy), random_(std::move(random)) {}

  // How long to wait before the next attempt; nothing if the attempts are used up.
  std::optional<absl::Duration> Next();
  // There was progress: count from the beginning.
  void Reset() { failures_ = 0; }

 private:
  RetryPolicy policy_;
  std::function<double()> random_;
  int failures_ = 0;
};

// False if `stop` was requested before the time was over.
bool WaitFor(absl::Duration duration, const std::stop_token& stop);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_RETRY_H_
