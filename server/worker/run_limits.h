// What a child may say. A child that was taken over could otherwise fill the log, the database and the worker's memory.
#ifndef MODELPRESS_SERVER_WORKER_RUN_LIMITS_H_
#define MODELPRESS_SERVER_WORKER_RUN_LIMITS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {

// Cuts texts, and warnings over the number that is kept, whose last one then says how many are gone. DATA_LOSS where what is left
// would make no sense: no engine answers so.
absl::Status LimitEvent(RunEvent& event);

// The lines of one child that are logged: so many at once, then so many a second.
class LogLimiter {
 public:
  // The line as it is logged: cut, without control characters; nullopt if it is dropped.
  std::optional<std::string> Take(absl::string_view line, absl::Time now);
  uint64_t dropped() const { return dropped_; }

 private:
  std::optional<absl::Time> refilled_;
  double allowance_ = 0;
  uint64_t dropped_ = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_RUN_LIMITS_H_
