#ifndef MODELPRESS_TESTS_SERVER_BASE_FAKE_CLOCK_H_
#define MODELPRESS_TESTS_SERVER_BASE_FAKE_CLOCK_H_

#include <mutex>

#include "absl/time/time.h"
#include "server/base/clock.h"

namespace modelpress::server {

// A clock that stands still until the test moves it. Thread-safe.
class FakeClock final : public Clock {
 public:
  absl::Time Now() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }

  absl::Duration Elapsed() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return elapsed_;
  }

  void Advance(absl::Duration duration) {
    std::lock_guard<std::mutex> lock(mutex_);
    now_ += duration;
    elapsed_ += duration;
  }
  // Somebody sets the clock: no time goes by.
  void Jump(absl::Duration duration) {
    std::lock_guard<std::mutex> lock(mutex_);
    now_ += duration;
  }

 private:
  mutable std::mutex mutex_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  absl::Duration elapsed_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_BASE_FAKE_CLOCK_H_
