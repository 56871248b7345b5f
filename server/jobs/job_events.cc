#include "server/jobs/job_events.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/time/clock.h"

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
  uint64_t ticket = 0;
  {
    std::lock_guard lock(mutex_);
    ticket = ++last_ticket_;
    waiters_.emplace(ticket, Waiter{seen, absl::Now() + timeout, std::move(wake)});
    work_ = true;
  }
  changed_.notify_one();
  return ticket;
}

void JobEvents::Wake(uint64_t ticket) {
  {
    std::lock_guard lock(mutex_);
    auto it = waiters_.find(ticket);
    if (it == waiters_.end()) {
      return;
    }
    it->second.deadline = absl::InfinitePast();
    work_ = true;
  }
  changed_.notify_one();
}

void JobEvents::Cancel(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  waiters_.erase(ticket);
}

void JobEvents::WakeDue(absl::Time now) {
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    if (it->second.seen != generation_ || it->second.deadline <= now) {
      it->second.wake();
      it = waiters_.erase(it);
    } else {
      ++it;
    }
  }
}

void JobEvents::Loop() {
  uint64_t version = 0;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    work_ = false;
    // The store is asked without the lock: a change that it shows may be one of our own that Notify told of already, which wakes
    // waiters once more than needed and never once less.
    if (!waiters_.empty()) {
      lock.unlock();
      absl::StatusOr<uint64_t> now = store_.Version();
      lock.lock();
      if (!now.ok()) {
        LOG_EVERY_N_SEC(ERROR, 10) << "cannot see changes of the job store: " << now.status();
      } else if (*now != version) {
        version = *now;
        ++generation_;
      }
    }
    WakeDue(absl::Now());
    auto due = [this] { return stopping_ || work_; };
    if (waiters_.empty()) {
      changed_.wait(lock, due);
    } else {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(store_.poll_interval()), due);
    }
  }
}

}  // namespace modelpress::server
