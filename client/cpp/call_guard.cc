#include "client/cpp/call_guard.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace modelpress::client {

absl::Status StopGuard::Explain(const absl::Status& status) const {
  return !status.ok() && stop_.stop_requested() ? absl::CancelledError("interrupted") : status;
}

IdleGuard::IdleGuard(grpc::ClientContext& context, absl::Duration idle_timeout)
    : context_(context),
      idle_timeout_(idle_timeout),
      deadline_(absl::Now() + idle_timeout),
      watcher_([this](const std::stop_token& done) { Watch(done); }) {}

void IdleGuard::Touch() {
  std::lock_guard lock(mutex_);
  deadline_ = absl::Now() + idle_timeout_;  // the watcher looks again when the old deadline is over
}

absl::Status IdleGuard::Explain(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  return !status.ok() && expired_
             ? absl::UnavailableError(absl::StrCat("nothing moved for ", absl::FormatDuration(idle_timeout_)))
             : status;
}

void IdleGuard::Watch(const std::stop_token& done) {
  std::unique_lock lock(mutex_);
  while (!done.stop_requested()) {
    absl::Duration left = deadline_ - absl::Now();
    if (left <= absl::ZeroDuration()) {
      expired_ = true;
      context_.TryCancel();
      return;
    }
    changed_.wait_for(lock, done, absl::ToChronoNanoseconds(left), [] { return false; });
  }
}

}  // namespace modelpress::client
