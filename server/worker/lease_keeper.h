// Keeps the lease of one attempt, from its claim until its end is stored.
#ifndef MODELPRESS_SERVER_WORKER_LEASE_KEEPER_H_
#define MODELPRESS_SERVER_WORKER_LEASE_KEEPER_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "modelpress/v1/operations.pb.h"
#include "server/base/clock.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// Adds heartbeats, stores progress and finds out what others did to the job, in a thread of its own: a store that hangs holds up
// nothing else of the attempt. While the store fails the attempt goes on, and the heartbeats are tried again and again.
class LeaseKeeper {
 public:
  enum class Finding {
    kHeld,
    kCancelling,  // and held
    kLost,        // another attempt has the job, or nothing was heard of the store for `patience`: drop all work
  };

  // `wake` is called when finding() has changed, on some thread; it must only hand on. The references must outlive the keeper.
  LeaseKeeper(JobStore& jobs, JobEvents& events, const Clock& clock, const Job& job, absl::Duration lease,
              absl::Duration patience, std::function<void()> wake);
  // Adds no heartbeat any more.
  ~LeaseKeeper();
  LeaseKeeper(const LeaseKeeper&) = delete;
  LeaseKeeper& operator=(const LeaseKeeper&) = delete;

  // Stored soon, the newest only.
  void Report(const v1::Progress& progress);
  Finding finding() const;

 private:
  void Loop();
  // What the store says of the job now.
  void Look();
  void Beat(const v1::Progress& progress);
  void Conclude(const absl::StatusOr<v1::OperationMetadata::State>& state);
  void Learn(Finding finding);
  // Of a call to the store; keeps count of how long it has failed.
  void Note(const absl::Status& status);

  JobStore& jobs_;
  JobEvents& events_;
  const Clock& clock_;
  const std::string id_;
  const int attempt_;
  const absl::Duration lease_;
  const absl::Duration patience_;
  const std::function<void()> wake_;

  mutable std::mutex mutex_;
  std::condition_variable due_;
  bool stopping_ = false;
  bool changed_ = false;  // the store, since the last look
  bool progress_new_ = false;
  v1::Progress progress_;
  Finding finding_ = Finding::kHeld;

  // Of the thread.
  absl::Duration heard_at_;  // when the store last answered
  bool failing_ = false;
  std::thread thread_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_LEASE_KEEPER_H_
