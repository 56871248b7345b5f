// Claims operations and has each worked on by a child process of its own.
#ifndef MODELPRESS_SERVER_WORKER_WORKER_H_
#define MODELPRESS_SERVER_WORKER_WORKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/posix.h"
#include "server/blobs/blob_store.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/metrics/metrics.h"
#include "server/worker/admission.h"
#include "server/worker/child_process.h"
#include "server/worker/isolation.h"
#include "server/worker/retries.h"

namespace modelpress::server {

struct WorkerOptions {
  std::string executable = "/proc/self/exe";  // run as `executable run`
  std::string scratch_folder;                 // exists, on the blob store's file system
  std::string owner;                          // ThisOwner()
  absl::Duration lease = absl::Seconds(10);
  // How long an attempt goes on without hearing of the store. While a store is down nobody can take the operation, so giving up
  // with the lease would throw away hours of work for a restart of the database; and whoever was cut off alone and goes on in
  // vain does no harm, because its attempt is fenced off.
  absl::Duration store_patience = absl::Minutes(5);
  int threads_per_operation = 1;
  ChildLimits limits;
  IsolationOptions isolation;
  absl::Duration max_execution = absl::Hours(24);  // of one attempt; caps CallOptions.execution_timeout
  RetryLimits retries;
};

// What a worker works with. All must outlive it. Every worker and service of one process shares one set.
struct WorkerContext {
  JobStore& jobs;
  BlobStore& blobs;
  JobEvents& events;
  Metrics& metrics;
  const Clock& clock;
  Admission& admission;
};

// One thread that works on one operation at a time, and keeps a spare child started for the next one.
//
// An attempt: claim -> child gets the RunSpec -> its outputs are adopted by the blob store -> Finish links them and stores the
// outcome. Until Finish nothing is visible; after it nothing is left to do but to remove the scratch folder. Whatever is killed
// in between, the lease ends and the Rescuer (server/housekeeping) of any process starts the next attempt.
//
// Cancel, timeout, drain, a lost lease and a full disk end an attempt at any stage: while its child starts and works, while its
// outputs are hashed. Only when Finish was called it has ended. All times are of Clock::Elapsed.
class Worker {
 public:
  Worker(const WorkerOptions& options, const WorkerContext& context);
  // Stop(absl::ZeroDuration()).
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void Start();
  // Claims nothing more. Returns at once.
  void StopClaiming();
  // StopClaiming, then waits for the attempt that runs; after `patience` its child is killed and the job goes back to the queue,
  // without counting as a failure.
  void Stop(absl::Duration patience);

 private:
  class Attempt;

  void Loop();
  // As Attempt::Run.
  bool RunJob(const Job& job);
  // Waits, unless the worker is to stop.
  void Pause(absl::Duration pause);
  // The spare child, or a new one.
  absl::StatusOr<std::unique_ptr<ChildProcess>> TakeChild();
  void PrepareSpare();
  // Blocks until `wake_` is written to or `timeout` has passed.
  void WaitForWake(absl::Duration timeout);
  void WriteWake() const;
  // When a running child is killed, of Clock::Elapsed.
  absl::Duration KillTime() const {
    return kill_nanos_ == INT64_MAX ? absl::InfiniteDuration() : absl::Nanoseconds(kill_nanos_.load());
  }

  const WorkerOptions options_;
  const WorkerContext context_;
  UniqueFd wake_;  // eventfd: something changed
  std::atomic<bool> stopping_ = false;
  std::atomic<int64_t> kill_nanos_ = INT64_MAX;  // KillTime()
  std::unique_ptr<ChildProcess> spare_;          // of the thread
  std::thread thread_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_WORKER_H_
