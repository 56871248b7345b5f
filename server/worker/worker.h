// Claims operations and has each worked on by a child process of its own.
#ifndef MODELPRESS_SERVER_WORKER_WORKER_H_
#define MODELPRESS_SERVER_WORKER_WORKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/posix.h"
#include "server/blobs/blob_store.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/metrics/metrics.h"
#include "server/worker/child_process.h"
#include "server/worker/isolation.h"

namespace modelpress::server {

struct WorkerOptions {
  std::string executable = "/proc/self/exe";  // run as `executable run`
  std::string scratch_folder;                 // exists, on the blob store's file system
  std::string owner;                          // ThisOwner()
  absl::Duration lease = absl::Seconds(10);
  int threads_per_operation = 1;
  ChildLimits limits;
  IsolationOptions isolation;
  absl::Duration max_execution = absl::Hours(24);  // of one attempt; caps CallOptions.execution_timeout
  int max_failures = 3;                            // attempts whose child ends without an answer, then the operation fails
  int max_attempts = 20;                           // attempts in all, those ended from outside included
};

// What a worker works with. All must outlive it. Every worker and service of one process shares one set.
struct WorkerContext {
  JobStore& jobs;
  BlobStore& blobs;
  JobEvents& events;
  Metrics& metrics;
  const Clock& clock;
};

// Ends what dead workers left: jobs under a lease that ran out or whose holder is a dead process of this machine go back to the
// queue (or fail, after `max_attempts` in all), and scratch folders without a living attempt are removed. Safe to run at any time
// in any process.
absl::Status Rescue(const WorkerOptions& options, const WorkerContext& context);

// One thread that works on one operation at a time, and keeps a spare child started for the next one.
//
// An attempt: claim -> child gets the RunSpec -> its outputs are adopted by the blob store -> Finish links them and stores the
// outcome. Until Finish nothing is visible; after it nothing is left to do but to remove the scratch folder. Whatever is killed
// in between, the lease ends and Rescue (of any process) starts the next attempt.
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
  void RunJob(const Job& job);
  // The spare child, or a new one.
  absl::StatusOr<std::unique_ptr<ChildProcess>> TakeChild();
  void PrepareSpare();
  // Blocks until `wake_` is written to or `timeout` has passed.
  void WaitForWake(absl::Duration timeout);
  void WriteWake() const;
  absl::Time KillTime() const { return kill_nanos_ == INT64_MAX ? absl::InfiniteFuture() : absl::FromUnixNanos(kill_nanos_); }

  const WorkerOptions options_;
  const WorkerContext context_;
  UniqueFd wake_;  // eventfd: something changed
  std::atomic<bool> stopping_ = false;
  std::atomic<int64_t> kill_nanos_ = INT64_MAX;  // Unix time at which a running child is killed
  std::unique_ptr<ChildProcess> spare_;          // of the thread
  std::thread thread_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_WORKER_H_
