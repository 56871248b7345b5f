#include "server/worker/retries.h"

#include <gtest/gtest.h>

#include <string>

#include "engine/base/status.h"
#include "server/rpc/status.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

constexpr RetryLimits kLimits{.max_failures = 3, .max_disk_failures = 5, .max_attempts = 5};

Job JobWith(int attempt, int failures) {
  Job job;
  job.metadata.set_attempt(attempt);
  job.failures = failures;
  return job;
}

bool IsAnotherAttempt(const Ending& ending, bool failed) { return !ending.outcome.has_value() && ending.failed == failed; }

std::string ReasonIn(const Ending& ending) {
  return ending.outcome.has_value() && ending.outcome->error.has_value()
             ? v1::Reason_Name(ReasonOf(FromRpcStatus(*ending.outcome->error)))
             : "";
}

TEST(RetriesTest, AnswersOfTheEngineAreFinal) {
  for (const v1::Reason reason : {v1::MODEL_UNREADABLE, v1::RECORD_SYNTAX, v1::RESOURCE_LIMIT, v1::OPERATION_DEADLINE,
                                  v1::INTERNAL_ERROR, v1::REQUEST_INVALID, v1::QUOTA_EXCEEDED}) {
    const Ending ending = AfterError(kLimits, JobWith(1, 0), MakeError(reason, "no"));
    EXPECT_EQ(ReasonIn(ending), v1::Reason_Name(reason));
    EXPECT_EQ(ending.outcome->state, State::FAILED);
  }
}

TEST(RetriesTest, DisksThatFailAreTriedAgainAndCounted) {
  for (const v1::Reason reason : {v1::STORAGE_FULL, v1::STORAGE_ERROR, v1::STORAGE_UNAVAILABLE}) {
    const absl::Status error = MakeError(reason, "no");
    EXPECT_TRUE(IsAnotherAttempt(AfterError(kLimits, JobWith(1, 0), error), /*failed=*/true));
    EXPECT_TRUE(IsAnotherAttempt(AfterError(kLimits, JobWith(4, 3), error), /*failed=*/true));
    EXPECT_EQ(ReasonIn(AfterError(kLimits, JobWith(5, 4), error)), v1::Reason_Name(reason));
  }
}

TEST(RetriesTest, PausesGrow) {
  EXPECT_EQ(PauseAfter({}, JobWith(1, 0)), absl::Seconds(1));
  EXPECT_EQ(PauseAfter({}, JobWith(5, 3)), absl::Seconds(27));
}

TEST(RetriesTest, DeathsWithoutAnAnswerAreCounted) {
  EXPECT_TRUE(IsAnotherAttempt(AfterFailure(kLimits, JobWith(1, 0), Crashed(1, "SIGSEGV")), /*failed=*/true));
  EXPECT_TRUE(IsAnotherAttempt(AfterFailure(kLimits, JobWith(9, 1), Crashed(2, "SIGSEGV")), /*failed=*/true));
  const Ending last = AfterFailure(kLimits, JobWith(3, 2), Crashed(3, "SIGSEGV"));
  EXPECT_EQ(ReasonIn(last), "ENGINE_CRASHED");
  EXPECT_NE(last.outcome->error->message().find("SIGSEGV"), std::string::npos);
}

TEST(RetriesTest, LossesAreNotCountedButEndSomeDay) {
  EXPECT_TRUE(IsAnotherAttempt(AfterLoss(kLimits, 1, Crashed(1, "SIGKILL")), /*failed=*/false));
  EXPECT_TRUE(IsAnotherAttempt(AfterLoss(kLimits, 4, Crashed(4, "SIGKILL")), /*failed=*/false));
  EXPECT_EQ(ReasonIn(AfterLoss(kLimits, 5, Crashed(5, "SIGKILL"))), "ENGINE_CRASHED");
}

TEST(RetriesTest, TroubleOfTheStoreIsToldFromItsAnswers) {
  for (const v1::Reason reason : {v1::STORAGE_FULL, v1::STORAGE_ERROR, v1::STORAGE_UNAVAILABLE}) {
    EXPECT_TRUE(IsStoreTrouble(MakeError(reason, "no")));
  }
  EXPECT_TRUE(IsStoreTrouble(absl::DeadlineExceededError("slow")));
  EXPECT_FALSE(IsStoreTrouble(absl::OkStatus()));
  EXPECT_FALSE(IsStoreTrouble(absl::FailedPreconditionError("not held")));
  EXPECT_FALSE(IsStoreTrouble(MakeError(v1::OPERATION_NOT_FOUND, "no")));
  EXPECT_FALSE(IsStoreTrouble(MakeError(v1::QUOTA_EXCEEDED, "no")));
}

TEST(RetriesTest, ErrorsComeBackFromTheWire) {
  const absl::Status error = FromRpcStatus(ToRpcStatus(MakeError(v1::STORAGE_FULL, "no space")));
  EXPECT_EQ(ReasonOf(error), v1::STORAGE_FULL);
  EXPECT_NE(error.message().find("no space"), absl::string_view::npos);
}

TEST(BackoffTest, DoublesUpToItsEnd) {
  Backoff backoff(absl::Milliseconds(100), absl::Milliseconds(300));
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(100));
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(200));
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(300));
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(300));
  backoff.Reset();
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(100));
}

}  // namespace
}  // namespace modelpress::server
