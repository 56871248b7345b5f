// Finds operations whose worker is gone.
#ifndef MODELPRESS_SERVER_HOUSEKEEPING_RESCUER_H_
#define MODELPRESS_SERVER_HOUSEKEEPING_RESCUER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/worker/retries.h"

namespace modelpress::server {

struct RescuerOptions {
  std::string scratch_folder;
  absl::Duration lease = absl::Seconds(10);
  absl::Duration interval = absl::Seconds(1);  // between looks, about
  RetryLimits retries;
};

// Ends what dead workers left: jobs whose heartbeats stood still for the lease's time, or whose holder is a dead process of this
// machine, go back to the queue (or fail, after so many attempts), and scratch folders without a living attempt are removed. Any
// number may be at work in any processes.
//
// Only time that this object watched counts: it is the sum of the times between looks, none of which counts for more than two
// intervals. A machine that slept, a store that could not be reached, a process that was stopped: none of it lets leases run out,
// because none of it gave their holders the chance to add heartbeats. Nor does a writer that holds up all others: heartbeats are
// changes, and wait for it, while looks do not. So once a job was still for half its lease, looks wait for their turn to change
// something; and a heartbeat that comes between the last look and the taking keeps the job with its holder.
class Rescuer {
 public:
  // All must outlive this.
  Rescuer(RescuerOptions options, JobStore& jobs, JobEvents& events, const Clock& clock);

  // Returns how many jobs were taken from their holders, or the first error, when it has done what it could.
  absl::StatusOr<int64_t> Look();

 private:
  struct Seen {
    int64_t beats;
    absl::Duration still;  // for how long they were seen to stay the same
  };

  absl::StatusOr<int64_t> TakeLost();
  absl::Status RemoveDeadScratch();

  const RescuerOptions options_;
  JobStore& jobs_;
  JobEvents& events_;
  const Clock& clock_;
  std::map<std::string, Seen> seen_;  // by id of the job
  std::optional<absl::Duration> looked_at_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_HOUSEKEEPING_RESCUER_H_
