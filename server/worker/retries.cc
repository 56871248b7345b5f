#include "server/worker/retries.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/rpc/error_details.pb.h"
#include "server/rpc/status.h"

namespace modelpress::server {

using State = v1::OperationMetadata;

namespace {

Ending FailedAttempt(int limit, const Job& job, Outcome last) {
  if (job.failures + 1 < limit) {
    return {.failed = true};
  }
  return {.outcome = std::move(last)};
}

}  // namespace

absl::Duration PauseAfter(const RetryLimits& limits, const Job& job) {
  constexpr int kGrowth = 3;
  absl::Duration pause = limits.first_pause;
  for (int i = 0; i < job.failures; ++i) {
    pause *= kGrowth;
  }
  return pause;
}

Outcome Failure(State::State state, const absl::Status& error) {
  Outcome outcome;
  outcome.state = state;
  outcome.error = ToRpcStatus(error);
  return outcome;
}

Outcome Crashed(int attempts, const std::string& cause) {
  return Failure(State::FAILED,
                 MakeError(v1::ENGINE_CRASHED, absl::StrCat("the engine died without an answer, of ", cause, "; ", attempts,
                                                            " attempts failed; please report it with the input")));
}

Ending AfterFailure(const RetryLimits& limits, const Job& job, Outcome last) {
  return FailedAttempt(limits.max_failures, job, std::move(last));
}

Ending AfterLoss(const RetryLimits& limits, int attempt, Outcome last) {
  if (attempt < limits.max_attempts) {
    return {};
  }
  return {.outcome = std::move(last)};
}

Ending AfterError(const RetryLimits& limits, const Job& job, const absl::Status& error) {
  Outcome last = Failure(State::FAILED, error);
  return IsInfrastructureError(error) ? FailedAttempt(limits.max_disk_failures, job, std::move(last))
                                      : Ending{.outcome = std::move(last)};
}

absl::Status FromRpcStatus(const google::rpc::Status& error) {
  for (const google::protobuf::Any& detail : error.details()) {
    google::rpc::ErrorInfo info;
    v1::Reason reason = v1::REASON_UNSPECIFIED;
    if (detail.UnpackTo(&info) && v1::Reason_Parse(info.reason(), &reason) && reason != v1::REASON_UNSPECIFIED) {
      return MakeError(reason, error.message());
    }
  }
  return {static_cast<absl::StatusCode>(error.code()), error.message()};
}

absl::StatusOr<State::State> Apply(JobStore& jobs, const Job& job, const Ending& ending) {
  if (ending.outcome.has_value()) {
    return jobs.Finish(job.id, job.metadata.attempt(), *ending.outcome);
  }
  MP_RETURN_IF_ERROR(jobs.Requeue(job.id, job.metadata.attempt(), ending.failed));
  return State::PENDING;
}

bool IsStoreTrouble(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    default:
      return ReasonOf(status) == v1::STORAGE_ERROR || ReasonOf(status) == v1::STORAGE_FULL;
  }
}

}  // namespace modelpress::server
