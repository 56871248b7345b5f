// Wakes whoever waits for a change of the job store: long polls, workers. Changes by this process are told with Notify() and wake
// at once; so do those by other processes where the store gives hints (JobStore::Subscribe). Whatever the hints miss is found by
// looking at JobStore::Version() every JobStore::poll_interval(), only while somebody waits.
#ifndef MODELPRESS_SERVER_JOBS_JOB_EVENTS_H_
#define MODELPRESS_SERVER_JOBS_JOB_EVENTS_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// Thread-safe.
class JobEvents {
 public:
  // `store` must outlive this.
  explicit JobEvents(JobStore& store);
  ~JobEvents();
  JobEvents(const JobEvents&) = delete;
  JobEvents& operator=(const JobEvents&) = delete;

  // Counts the changes seen. Read it before looking at the store, then wait for a change since: none can be missed between.
  uint64_t generation() const;
  // This process changed the store.
  void Notify();

  // Calls `wake` once: when the generation is another than `seen`, when `timeout` has passed, or by Wake(). It runs on the
  // watcher's thread with a lock held and must only hand on: no blocking, no call to this class. Returns a ticket for Wake and
  // Cancel.
  uint64_t Await(uint64_t seen, absl::Duration timeout, std::function<void()> wake);
  // As Await, for the end of one job: other changes do not wake it. Many may wait at little cost: after a change the store is
  // asked once for all of them. Where it cannot be asked, they are woken.
  uint64_t AwaitEnd(const std::string& job, uint64_t seen, absl::Duration timeout, std::function<void()> wake);
  // Wakes everybody who waits, and who calls Await or AwaitEnd with what was seen before.
  void WakeAll();
  // Wakes one waiter now; nothing if it was woken already.
  void Wake(uint64_t ticket);
  // Forgets one waiter: `wake` does not run any more, nor runs still, when this returns.
  void Cancel(uint64_t ticket);

 private:
  struct Waiter {
    std::string job;          // empty: waits for any change
    bool ended;               // the job
    uint64_t seen;            // for a job: the store was asked since
    absl::Duration deadline;  // as SteadyNow()
    std::function<void()> wake;
  };

  uint64_t Add(Waiter waiter);
  void Loop();
  void AskForEnds(std::unique_lock<std::mutex>& lock);
  void WakeDue(absl::Duration now);

  JobStore& store_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t generation_ = 1;
  uint64_t all_woken_ = 0;  // generation of the last WakeAll
  uint64_t last_ticket_ = 0;
  bool work_ = false;  // something happened that the watcher must look at before its next poll
  bool stopping_ = false;
  std::map<uint64_t, Waiter> waiters_;
  std::thread thread_;
  std::unique_ptr<Subscription> hints_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_JOBS_JOB_EVENTS_H_
