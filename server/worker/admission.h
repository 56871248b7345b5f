// Which operations a process may start: those for which there is memory and disk.
#ifndef MODELPRESS_SERVER_WORKER_ADMISSION_H_
#define MODELPRESS_SERVER_WORKER_ADMISSION_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "server/jobs/job_store.h"
#include "server/metrics/metrics.h"

namespace modelpress::server {

struct AdmissionOptions {
  bool enabled = true;
  uint64_t min_free_disk_bytes = uint64_t{256} << 20;  // that operations leave free
};

// What the machine has. Thread-safe.
class Machine {
 public:
  virtual ~Machine() = default;
  // What processes may still allocate: the kernel's MemAvailable, or less where a cgroup around this process allows less.
  virtual uint64_t FreeMemory() const = 0;
  virtual uint64_t ResidentMemory(pid_t process) const = 0;  // 0: it is gone
  virtual uint64_t FreeDisk() const = 0;
  // How many processes the kernel has killed so far because memory was used up, here or, in a cgroup, among those with this one.
  virtual uint64_t OutOfMemoryKills() const = 0;
};

// This machine. What cannot be found out counts as free without end.
class ThisMachine final : public Machine {
 public:
  // `folder`: on the file system that operations write to.
  explicit ThisMachine(std::string folder) : folder_(std::move(folder)) {}
  uint64_t FreeMemory() const override;
  uint64_t ResidentMemory(pid_t process) const override;
  uint64_t FreeDisk() const override;
  uint64_t OutOfMemoryKills() const override;

 private:
  const std::string folder_;
};

// Shared by the workers of a process. Thread-safe.
//
// A worker is offered what is free now, less what the operations that run in this process were estimated to need and do not have
// yet. So processes that share a machine see each other's operations as soon as these have grown, not before. An operation for
// which there is no room stays PENDING, and with it those behind it in line (JobStore::Claim). Where nothing else runs in the
// process, one is let in whatever it is estimated to need, as long as there is any disk to be had: it would wait for ever
// otherwise, and all projects behind it, for an estimate that may be too high. If it is not, OutOfDisk and the child's limits end
// it.
class Admission {
 public:
  // All must outlive it.
  Admission(const AdmissionOptions& options, const Machine& machine, Metrics& metrics)
      : options_(options), machine_(machine), metrics_(metrics) {}

  // JobStore::Claim of what there is room for. What it returns wants an Ended.
  absl::StatusOr<std::optional<Job>> Claim(JobStore& jobs, const std::string& owner);
  // The process that works on it.
  void RunsIn(const Job& job, pid_t process);
  void Ended(const Job& job);
  // True if so little disk is left that operations have to stop: half of what is to stay free.
  bool OutOfDisk() const;
  uint64_t OutOfMemoryKills() const { return machine_.OutOfMemoryKills(); }

 private:
  struct Running {
    JobCost cost;
    pid_t process = 0;
  };

  JobCost Free();
  void NoteWaiting(const std::optional<Job>& waiting, const JobCost& free);

  const AdmissionOptions options_;
  const Machine& machine_;
  Metrics& metrics_;
  std::mutex claiming_;   // so that two workers do not take the same room; held while the database is asked, which may take long
  bool waiting_ = false;  // as last told; by who claims
  std::mutex mutex_;
  std::map<std::string, Running> running_;  // by id of the job
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_ADMISSION_H_
