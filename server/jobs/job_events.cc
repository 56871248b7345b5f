#include "server/jobs/job_events.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "server/base/clock.h"

namespace modelpress::server {

JobEvents::JobEvents(JobStore& store)
    : store_(store), thread_([this] { Loop(); }), hints_(store.Subscribe([this] { Notify(); })) {}

JobEvents::~JobEvents() {
  hints_.reset();
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

uint64_t JobEvents::generation() const {
  std::lock_guard lock(mutex_);
  return generation_;
}

void JobEvents::Notify() {
  {
    std::lock_guard lock(mutex_);
    ++generation_;
    work_ = true;
  }
  changed_.notify_one();
}

uint64_t JobEvents::Await(uint64_t seen, absl::Duration timeout, std::function<void()> wake) {
  return Add({"", false, seen, SteadyNow() + timeout, std::move(wake)});
}

uint64_t JobEvents::AwaitEnd(const std::string& job, uint64_t seen, absl::Duration timeout, std::function<void()> wake) {
  return Add({job, false, seen, SteadyNow() + timeout, std::move(wake)});
}

uint64_t JobEvents::Add(Waiter waiter) {
  uint64_t ticket = 0;
  {
    std::lock_guard lock(mutex_);
    ticket = ++last_ticket_;
    waiters_.emplace(ticket, std::move(waiter));
    work_ = true;
  }
  changed_.notify_one();
  return ticket;
}

void JobEvents::WakeAll() {
  {
    std::lock_guard lock(mutex_);
    all_woken_ = ++generation_;
    work_ = true;
  }
  changed_.notify_one();
}

void JobEvents::Wake(uint64_t ticket) {
  {
    std::lock_guard lock(mutex_);
    auto it = waiters_.find(ticket);
    if (it == waiters_.end()) {
      return;
    }
    it->second.deadline = -absl::InfiniteDuration();
    work_ = true;
  }
  changed_.notify_one();
}

void JobEvents::Cancel(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  waiters_.erase(ticket);
}

// The lock is not held while the store is asked: waiters may come and go, and generation_ may grow, meanwhile.
void JobEvents::AskForEnds(std::unique_lock<std::mutex>& lock) {
  std::vector<uint64_t> tickets;
  std::vector<std::string> jobs;
  for (const auto& [ticket, waiter] : waiters_) {
    if (!waiter.job.empty() && !waiter.ended && waiter.seen != generation_ && waiter.seen >= all_woken_) {
      tickets.push_back(ticket);
      jobs.push_back(waiter.job);
    }
  }
  if (jobs.empty()) {
    return;
  }
  const uint64_t seen = generation_;
  lock.unlock();
  const absl::StatusOr<std::set<std::string>> unfinished = store_.Unfinished(jobs);
  lock.lock();
  for (const uint64_t ticket : tickets) {
    if (auto it = waiters_.find(ticket); it != waiters_.end()) {
      it->second.ended = !unfinished.ok() || !unfinished->contains(it->second.job);
      it->second.seen = std::max(it->second.seen, seen);
    }
  }
}

void JobEvents::WakeDue(absl::Duration now) {
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    const Waiter& waiter = it->second;
    const bool changed = waiter.job.empty() ? waiter.seen != generation_ : waiter.ended;
    if (changed || waiter.seen < all_woken_ || waiter.deadline <= now) {
      it->second.wake();
      it = waiters_.erase(it);
    } else {
      ++it;
    }
  }
}

void JobEvents::Loop() {
  uint64_t version = 0;
  absl::Duration poll_at;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    work_ = false;
    // The store is asked without the lock: a change that it shows may be one of our own that Notify told of already, which wakes
    // waiters once more than needed and never once less.
    if (!waiters_.empty() && SteadyNow() >= poll_at) {
      lock.unlock();
      absl::StatusOr<uint64_t> now = store_.Version();
      poll_at = SteadyNow() + store_.poll_interval();
      lock.lock();
      if (!now.ok()) {
        LOG_EVERY_N_SEC(ERROR, 10) << "cannot see changes of the job store: " << now.status();
      } else if (*now != version) {
        version = *now;
        ++generation_;
      }
    }
    AskForEnds(lock);
    WakeDue(SteadyNow());
    auto due = [this] { return stopping_ || work_; };
    if (waiters_.empty()) {
      changed_.wait(lock, due);
    } else {
      absl::Duration next = poll_at;
      for (const auto& [ticket, waiter] : waiters_) {
        next = std::min(next, waiter.deadline);
      }
      changed_.wait_for(lock, absl::ToChronoNanoseconds(std::max(next - SteadyNow(), absl::ZeroDuration())), due);
    }
  }
}

}  // namespace modelpress::server
