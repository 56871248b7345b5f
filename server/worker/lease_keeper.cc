#include "server/worker/lease_keeper.h"

#include <algorithm>
#include <utility>

#include "absl/log/log.h"
#include "engine/base/status.h"
#include "server/worker/retries.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

constexpr absl::Duration kProgressInterval = absl::Milliseconds(250);
constexpr absl::Duration kRetryInterval = absl::Seconds(1);  // of a heartbeat that failed, at most
// However long there is nothing to do: the clock may move other than the one that waits are measured by.
constexpr absl::Duration kMaxWait = absl::Seconds(1);

}  // namespace

LeaseKeeper::LeaseKeeper(JobStore& jobs, JobEvents& events, const Clock& clock, const Job& job, absl::Duration lease,
                         absl::Duration patience, std::function<void()> wake)
    : jobs_(jobs),
      events_(events),
      clock_(clock),
      id_(job.id),
      attempt_(job.metadata.attempt()),
      lease_(lease),
      patience_(patience),
      wake_(std::move(wake)),
      heard_at_(clock.Elapsed()),
      thread_([this] { Loop(); }) {}

LeaseKeeper::~LeaseKeeper() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  due_.notify_one();
  thread_.join();
}

void LeaseKeeper::Report(const v1::Progress& progress) {
  {
    const std::lock_guard lock(mutex_);
    progress_ = progress;
    progress_new_ = true;
  }
  due_.notify_one();
}

LeaseKeeper::Finding LeaseKeeper::finding() const {
  const std::lock_guard lock(mutex_);
  return finding_;
}

void LeaseKeeper::Learn(Finding finding) {
  {
    const std::lock_guard lock(mutex_);
    if (finding_ == finding || finding_ == Finding::kLost) {
      return;
    }
    finding_ = finding;
  }
  wake_();
}

void LeaseKeeper::Note(const absl::Status& status) {
  const absl::Duration now = clock_.Elapsed();
  if (!IsStoreTrouble(status)) {
    LOG_IF(INFO, failing_) << "the job store answers again";
    failing_ = false;
    heard_at_ = now;
    return;
  }
  LOG_IF(ERROR, !failing_) << "cannot keep the lease at the moment, the work goes on: " << status;
  failing_ = true;
  if (now - heard_at_ > patience_) {
    LOG(ERROR) << "the job store did not answer for " << absl::FormatDuration(patience_) << ": " << status;
    Learn(Finding::kLost);
  }
}

void LeaseKeeper::Look() { Conclude(jobs_.HeldState(id_, attempt_)); }

void LeaseKeeper::Beat(const v1::Progress& progress) { Conclude(jobs_.Heartbeat(id_, attempt_, progress)); }

void LeaseKeeper::Conclude(const absl::StatusOr<State::State>& state) {
  Note(state.status());
  if (state.ok()) {
    Learn(*state == State::CANCELLING ? Finding::kCancelling : Finding::kHeld);
  } else if (!IsStoreTrouble(state.status())) {
    Learn(Finding::kLost);
  }
}

void LeaseKeeper::Loop() {
  const auto await_change = [this](uint64_t seen) {
    return events_.Await(seen, absl::InfiniteDuration(), [this] {
      const std::lock_guard lock(mutex_);
      changed_ = true;
      due_.notify_one();
    });
  };
  uint64_t ticket = await_change(events_.generation());
  Look();  // a cancel may have come between the claim and here
  absl::Duration beat_at = clock_.Elapsed() + lease_ / 3;
  absl::Duration progress_at = clock_.Elapsed();  // the next may be stored
  std::unique_lock lock(mutex_);
  while (!stopping_ && finding_ != Finding::kLost) {
    const absl::Duration next = progress_new_ ? std::min(beat_at, progress_at) : beat_at;
    if (const absl::Duration rest = next - clock_.Elapsed(); !changed_ && rest > absl::ZeroDuration()) {
      due_.wait_for(lock, absl::ToChronoNanoseconds(std::min(rest, kMaxWait)));
      continue;
    }
    const bool changed = std::exchange(changed_, false);
    lock.unlock();
    if (changed) {
      ticket = await_change(events_.generation());
      Look();
    }
    lock.lock();
    if (const absl::Duration now = clock_.Elapsed(); now >= beat_at || (progress_new_ && now >= progress_at)) {
      const bool progressed = std::exchange(progress_new_, false);
      const v1::Progress progress = progress_;
      lock.unlock();
      Beat(progress);
      if (progressed && !failing_) {
        events_.Notify();
      }
      lock.lock();
      beat_at = now + (failing_ ? std::min(lease_ / 3, kRetryInterval) : lease_ / 3);
      progress_at = now + kProgressInterval;
    }
  }
  lock.unlock();
  events_.Cancel(ticket);
}

}  // namespace modelpress::server
