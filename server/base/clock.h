// Time and ids, injected so that tests need neither sleep nor luck.
#ifndef MODELPRESS_SERVER_BASE_CLOCK_H_
#define MODELPRESS_SERVER_BASE_CLOCK_H_

#include <ctime>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace modelpress::server {

class Clock {
 public:
  virtual ~Clock() = default;
  // What people call the time; may jump.
  virtual absl::Time Now() const = 0;
  // Time since some moment; never jumps, and goes on while the machine sleeps. For everything that is a duration.
  virtual absl::Duration Elapsed() const = 0;
};

// Clock::Elapsed() of the machine, for waits that nobody injects a clock into.
inline absl::Duration SteadyNow() {
  timespec time = {};
  clock_gettime(CLOCK_BOOTTIME, &time);
  return absl::DurationFromTimespec(time);
}

class SystemClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Duration Elapsed() const override { return SteadyNow(); }
};

class IdGenerator {
 public:
  virtual ~IdGenerator() = default;
  // A new id that never came before: a letter followed by lower-case letters and digits, sorting by creation time.
  virtual std::string NewId() = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_CLOCK_H_
