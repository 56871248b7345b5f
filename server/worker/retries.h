// What becomes of an operation when an attempt at it has ended, and of that where the store cannot be reached.
#ifndef MODELPRESS_SERVER_WORKER_RETRIES_H_
#define MODELPRESS_SERVER_WORKER_RETRIES_H_

#include <algorithm>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

struct RetryLimits {
  // With so many failed attempts an operation ends FAILED, by what the last one failed of: a child that ended without an answer,
  // or a disk that was full or failed. Disks get better more often than engines do.
  int max_failures = 3;
  int max_disk_failures = 5;
  int max_attempts = 20;                          // attempts in all, those ended from outside included
  absl::Duration first_pause = absl::Seconds(1);  // PauseAfter the first failure
};

// How long the next attempt waits after one that failed because of the machine: 1, 3, 9, 27 s, so that what is over in a moment
// does not use up all attempts.
absl::Duration PauseAfter(const RetryLimits& limits, const Job& job);

// How an attempt ends in the store.
struct Ending {
  std::optional<Outcome> outcome;  // none: back to the queue
  bool failed = false;             // without an outcome: counts as a failure
};

// FAILED or CANCELLED with `error`.
Outcome Failure(v1::OperationMetadata::State state, const absl::Status& error);
// ENGINE_CRASHED: the last of so many attempts that failed died of `cause`.
Outcome Crashed(int attempts, const std::string& cause);

// An attempt whose child ended without an answer: another one, or `last` if that was the last one.
Ending AfterFailure(const RetryLimits& limits, const Job& job, Outcome last);
// Attempt `attempt`, whose worker or child was killed from outside. That is the machine's failure, not the
// operation's, so it does not count against it; only one that goes on outliving them is suspected of being the cause.
Ending AfterLoss(const RetryLimits& limits, int attempt, Outcome last);
// An attempt that ended with `error` of ours or of the engine: another one if the machine is to blame (IsInfrastructureError),
// FAILED otherwise. It counts as a failure: it may be the operation's own doing (a disk that it filled, outputs that it did not
// write).
Ending AfterError(const RetryLimits& limits, const Job& job, const absl::Status& error);

// The status that a google.rpc.Status of ToRpcStatus stands for, as far as code, reason and message go.
absl::Status FromRpcStatus(const google::rpc::Status& error);

// Stores it for the job's attempt. Returns the state that the job is in then, as far as is known. Errors as JobStore's.
absl::StatusOr<v1::OperationMetadata::State> Apply(JobStore& jobs, const Job& job, const Ending& ending);

// True if the store failed, not the request: the same may work in a while, and whether it has worked is not known.
bool IsStoreTrouble(const absl::Status& status);

// Times between tries: doubled each time.
class Backoff {
 public:
  Backoff(absl::Duration first, absl::Duration last) : first_(first), last_(last), next_(first) {}
  absl::Duration Next() {
    const absl::Duration now = next_;
    next_ = std::min(next_ * 2, last_);
    return now;
  }
  void Reset() { next_ = first_; }

 private:
  const absl::Duration first_;
  const absl::Duration last_;
  absl::Duration next_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_RETRIES_H_
