// What keeps a data folder in order while nobody looks: operations of dead workers, what has had its time, what nothing refers
// to, what crashes left behind.
#ifndef MODELPRESS_SERVER_HOUSEKEEPING_HOUSEKEEPER_H_
#define MODELPRESS_SERVER_HOUSEKEEPING_HOUSEKEEPER_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/blobs/blob_store.h"
#include "server/housekeeping/rescuer.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/metrics/metrics.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

struct HousekeepingOptions {
  absl::Duration interval = absl::Minutes(1);  // between rounds; the first comes at the start
  // What is older goes; zero: nothing does.
  absl::Duration workspace_ttl = absl::ZeroDuration();  // since anything last happened in it
  absl::Duration operation_ttl = absl::Hours(720);      // since its end
  absl::Duration upload_ttl = absl::Hours(168);         // since its last byte
  absl::Duration request_id_ttl = absl::Hours(24);      // since the call
  // Content that nothing refers to stays so long. Where the file system has no hard links this must be longer than an attempt
  // takes from its first adopted output to its end (server/blobs/blob_store.h).
  absl::Duration blob_grace = absl::Hours(1);
  // For so long after the start, and after every jump of the system's clock, nothing goes for its age.
  absl::Duration clock_trial = absl::Hours(1);
  int batch = 100;                 // rows that one transaction removes
  int64_t blobs_per_round = 5000;  // contents that one round asks the database about; the next goes on from there
  std::string data_folder;
  RescuerOptions rescuer;
};

// All must outlive the housekeeper.
struct HousekeepingContext {
  JobStore& jobs;
  WorkspaceStore& workspaces;
  BlobStore& blobs;
  JobEvents& events;
  Metrics& metrics;
  const Clock& clock;
};

// One thread, in every process; any number of processes may do all of this at the same time. It works in small steps: between two
// of them it stops if it has to, and looks for lost operations when that is due.
//
// Ages are differences of the system's clock, there is no other for what outlives processes. So that a clock which is wrong for a
// while does no harm, be it that a machine starts with it or that somebody sets it, nothing goes for its age in the first
// `clock_trial` of a process, nor within that time (or `blob_grace`, if it is longer) of a jump of more than a minute.
class Housekeeper {
 public:
  Housekeeper(const HousekeepingOptions& options, const HousekeepingContext& context);
  // Stop().
  ~Housekeeper();
  Housekeeper(const Housekeeper&) = delete;
  Housekeeper& operator=(const Housekeeper&) = delete;

  void Start();
  void Stop();

  // The steps, for the thread, or for tests that do not start it. Each returns how many things it removed (or took away), or its
  // first error, when it has done what it could.
  //
  // Operations of dead workers, and their scratch folders.
  absl::StatusOr<int64_t> Rescue();
  // Finished operations, workspaces and uploads that are too old.
  absl::StatusOr<int64_t> ExpireOperations();
  absl::StatusOr<int64_t> ExpireWorkspaces();
  absl::StatusOr<int64_t> ExpireUploads();
  // Ids of calls that nobody will repeat any more.
  absl::StatusOr<int64_t> ExpireRequestIds();
  // Bytes of uploads that no row knows: a process died between the row and the file.
  absl::StatusOr<int64_t> RemoveOrphanedUploads();
  // Checkpoints of operations that have ended or are forgotten.
  absl::StatusOr<int64_t> RemoveDeadCheckpoints();
  // Content that nothing refers to. Also measures what is stored.
  absl::StatusOr<int64_t> CollectGarbage();
  // Files that this program does not make.
  absl::StatusOr<int64_t> RemoveStrays();

  // One round of everything but Rescue, each step once. What fails is logged and keeps nothing else from its turn, neither in its
  // step nor after it; the first error is returned. One more line says what was removed.
  absl::Status Round();

 private:
  void Loop();
  // Between two steps: looks for lost operations if that is due. False: stop.
  bool GoOn();
  // Calls `remove_batch` (which returns how many it removed) until there is nothing to remove.
  absl::StatusOr<int64_t> InBatches(absl::FunctionRef<absl::StatusOr<int64_t>()> remove_batch);
  // Calls `remove` (which returns whether it removed something) for each of `items`. One that fails keeps no other from its turn,
  // unless nothing works: the store cannot be reached at all. Returns how many were removed, or the first error.
  template <typename Items>
  absl::StatusOr<int64_t> RemoveEach(const Items& items,
                                     absl::FunctionRef<absl::StatusOr<bool>(const typename Items::value_type&)> remove);
  // False for some time after the start, and after the system's clock has jumped.
  bool AgesAreKnown();

  const HousekeepingOptions options_;
  const HousekeepingContext context_;
  Rescuer rescuer_;
  absl::Duration rescue_at_;  // of Clock::Elapsed
  bool rescue_failing_ = false;
  std::string next_blob_;         // where the next round of garbage collection begins
  absl::Time boot_time_;          // Now() - Elapsed(), which only a jump changes
  absl::Duration ages_known_at_;  // of Clock::Elapsed
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_HOUSEKEEPING_HOUSEKEEPER_H_
