// Where operations live. Every change is durable when the call returns unless it says otherwise. Several processes may use one
// store at the same time; an operation is worked on by at most one of them, which every later call proves by naming the
// attempt it claimed.
//
// A lease needs no clocks that agree: its holder adds heartbeats, and whoever sees their number stand still for the lease's time,
// measured by a clock of its own that never jumps, gives the job back (Revoke), which fences the old attempt off.
//
// Calls for people name the project that they speak for; what another project has does not exist for them.
//
//   PENDING --Claim--> RUNNING --Finish--> SUCCEEDED | FAILED
//      |                 |  \--Requeue, Revoke (infrastructure failed, lease lost) --> PENDING, attempt + 1 at the next Claim
//      |                 \--RequestCancel--> CANCELLING --Finish--> CANCELLED | SUCCEEDED | FAILED
//      \--RequestCancel--> CANCELLED
#ifndef MODELPRESS_SERVER_JOBS_JOB_STORE_H_
#define MODELPRESS_SERVER_JOBS_JOB_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/longrunning/operations.pb.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"
#include "modelpress/v1/operations.pb.h"
#include "modelpress/v1/workspaces.pb.h"
#include "server/sql/database.h"

namespace modelpress::server {

// What an operation is estimated to need at most while it runs; 0: not known.
struct JobCost {
  uint64_t memory_bytes = 0;
  uint64_t disk_bytes = 0;
};

// Who asks for work, and how much of it there is room for.
struct Claimant {
  std::string owner;  // becomes Job::lease_owner
  JobCost free = {UINT64_MAX, UINT64_MAX};
};

// One operation as stored. `metadata.state`, `.attempt` and the times are the truth; nothing is kept twice.
struct Job {
  std::string id;                  // "operations/{id}" without the prefix
  std::string project;             // whose it is
  google::protobuf::Any request;   // the compression request as accepted
  v1::OperationMetadata metadata;  // inputs carry the pinned digests
  // In a final state exactly one of: the response, or the error.
  std::optional<google::protobuf::Any> response;
  std::optional<google::rpc::Status> error;
  int failures = 0;         // attempts that ended without an answer; those given back by a worker that stops do not count
  std::string lease_owner;  // while RUNNING or CANCELLING
  int64_t beats = 0;        // heartbeats so far, of all attempts
  std::string cache_key;  // of the result (operation, canonical parameters, input digests, engine version); "": not to be reused
  JobCost cost;           // what it is estimated to need
  std::string trace_parent;  // of the call that asked for it (W3C Trace Context); "": it came without. Gives metadata.trace_id

  bool done() const;
};

// True for SUCCEEDED, FAILED and CANCELLED.
bool IsFinal(v1::OperationMetadata::State state);

// The google.longrunning view of a job.
google::longrunning::Operation ToOperation(const Job& job);

// That an attempt holds a job.
struct Lease {
  std::string job_id;
  int attempt = 0;
  std::string owner;  // as Job::lease_owner
  int64_t beats = 0;  // as Job::beats
};

// A name in the job's workspace and the content it is to point to.
struct OutputFile {
  std::string path;  // in the workspace
  std::string sha256;
  uint64_t size_bytes = 0;
};

struct Outcome {
  // SUCCEEDED with `response` and `outputs`; FAILED or CANCELLED with `error`.
  v1::OperationMetadata::State state = v1::OperationMetadata::STATE_UNSPECIFIED;
  std::optional<google::protobuf::Any> response;
  std::optional<google::rpc::Status> error;
  std::vector<OutputFile> outputs;
  std::vector<std::string> warnings;
  std::string report = {};  // OperationMetadata.report
};

// For the drivers of JobStore: the error of a job that ends CANCELLED without its worker having a say (OPERATION_CANCELLED), and
// whether an outcome is one that the comment above allows (INTERNAL_ERROR if not).
google::rpc::Status CancelledError();
absl::Status CheckOutcome(const Outcome& outcome);
// The error with its details as a job keeps it.
google::rpc::Status StoredError(const absl::Status& status);

// Requests and responses of all methods alike. The message in `any`; nullptr if it is of no type known to this program, or
// malformed.
std::unique_ptr<google::protobuf::Message> UnpackAny(const google::protobuf::Any& any);
// `response` with `edit` applied to every File in it. INTERNAL_ERROR if it cannot be unpacked; the errors of `edit`.
absl::StatusOr<google::protobuf::Any> EditFiles(const google::protobuf::Any& response,
                                                absl::FunctionRef<absl::Status(v1::File&)> edit);

struct JobFilter {
  std::optional<std::string> workspace;  // "workspaces/{id}"
  std::optional<std::string> method;
  std::optional<v1::OperationMetadata::State> state;
  std::optional<bool> done;
};

// What the operations of a page of several take at most, as messages.
inline constexpr int64_t kJobPageBytes = 3 << 20;

struct JobPage {
  std::vector<Job> jobs;        // without their requests
  std::string next_page_token;  // empty: the last page
};

class JobStore {
 public:
  virtual ~JobStore() = default;

  // Accepts `job` (state PENDING, no attempt yet). With a `request_id` that the project gave before (within any time the store
  // remembers, at least 24 h): the job of that time if `job.request` is equal, else REQUEST_ID_REUSED. WORKSPACE_NOT_FOUND if the
  // workspace is gone. FILE_CHANGED if an input's content is in no file of the project any more; from here on it is kept for the
  // job. QUOTA_EXCEEDED if as many of the project's jobs wait already as may.
  //
  // If the project has a SUCCEEDED job with the same `cache_key` (not empty), and files that hold the content of every output of
  // that one, then nothing is to be run: the new job is SUCCEEDED at once, with metadata.cached, no attempt, the same warnings,
  // outputs and response, its outputs linked in its own workspace (QUOTA_EXCEEDED if they do not fit there).
  virtual absl::StatusOr<Job> Create(const Job& job, const std::string& request_id) = 0;
  // The job that Create would return for a `request_id` that the project gave before; nullopt if it is new, or empty.
  // REQUEST_ID_REUSED if the request of that time is not equal to `request`. OPERATION_NOT_FOUND if the job was deleted.
  virtual absl::StatusOr<std::optional<Job>> FindCreated(const std::string& project, const std::string& request_id,
                                                         const google::protobuf::Any& request) = 0;
  // OPERATION_NOT_FOUND.
  virtual absl::StatusOr<Job> Find(const std::string& project, const std::string& id) = 0;
  // Newest first. A page ends before `page_size` where the operations would take more than kJobPageBytes; it has one at least, if
  // there is one. Nothing beyond the page is read, but for how big it is. PAGE_TOKEN_INVALID.
  virtual absl::StatusOr<JobPage> List(const std::string& project, const JobFilter& filter, int page_size,
                                       const std::string& page_token) = 0;
  // Forgets a finished job. OPERATION_NOT_FOUND, OPERATION_RUNNING.
  virtual absl::Status Delete(const std::string& project, const std::string& id) = 0;
  // PENDING becomes CANCELLED at once, RUNNING becomes CANCELLING; a finished job stays as it is. OPERATION_NOT_FOUND.
  virtual absl::StatusOr<Job> RequestCancel(const std::string& project, const std::string& id) = 0;

  // Those of the ids that are of unfinished jobs, of whatever project. Much cheaper than to get them.
  virtual absl::StatusOr<std::set<std::string>> Unfinished(const std::vector<std::string>& ids) = 0;

  // For workers. OPERATION_NOT_FOUND.
  virtual absl::StatusOr<Job> Get(const std::string& id) = 0;
  // Takes a PENDING job: RUNNING, attempt + 1, under a lease. Nothing to do: nullopt.
  //
  // Projects take turns: of those with PENDING jobs and fewer unfinished attempts than their quota of `running`, the one with the
  // fewest; among equals the one whose oldest PENDING job was accepted first. That job is taken. If it needs more than
  // `claimant.free`, nothing is taken, not a smaller one either: otherwise small jobs could keep a big one waiting for ever.
  virtual absl::StatusOr<std::optional<Job>> Claim(const Claimant& claimant) = 0;
  // The job that Claim would take if there were room for everything; nullopt: none.
  virtual absl::StatusOr<std::optional<Job>> NextInLine() = 0;
  // Keeps the lease of attempt `attempt` and stores its progress (neither need be durable). Returns the state: CANCELLING asks
  // the holder to stop. FAILED_PRECONDITION (without reason) if that attempt does not hold the job any more: drop all work on it.
  virtual absl::StatusOr<v1::OperationMetadata::State> Heartbeat(const std::string& id, int attempt,
                                                                 const v1::Progress& progress) = 0;
  // The state of a job that attempt `attempt` holds: as Heartbeat, without being a sign of life.
  virtual absl::StatusOr<v1::OperationMetadata::State> HeldState(const std::string& id, int attempt) = 0;
  // Ends attempt `attempt`: links the outputs under their names and stores the outcome, both or neither. A CANCELLING job whose
  // attempt succeeded all the same ends SUCCEEDED. Outputs that do not fit the project's quota of bytes are not linked and the
  // job ends FAILED with QUOTA_EXCEEDED. Returns the state that it ended in. FAILED_PRECONDITION as Heartbeat.
  virtual absl::StatusOr<v1::OperationMetadata::State> Finish(const std::string& id, int attempt, const Outcome& outcome) = 0;
  // Gives the job back to PENDING (CANCELLED if it was CANCELLING), for another attempt; `failed` adds one to Job::failures.
  // FAILED_PRECONDITION as Heartbeat.
  virtual absl::Status Requeue(const std::string& id, int attempt, bool failed) = 0;
  // All leases, whoever holds them.
  virtual absl::StatusOr<std::vector<Lease>> Leases() = 0;
  // Takes the job from a holder that is held for dead: Finish with `outcome` if there is one, else Requeue, as an attempt that
  // did not fail. FAILED_PRECONDITION as Heartbeat, and if the holder has added heartbeats since Leases returned `seen`: it
  // lives, and keeps the job.
  virtual absl::Status Revoke(const Lease& seen, const std::optional<Outcome>& outcome) = 0;
  // Returns once this process has had a turn to change something, for which every heartbeat has to wait, too. As long as nobody
  // gets one, heartbeats that stand still tell nothing of those who are to add them.
  virtual absl::Status AwaitTurn() = 0;
  // Forgets up to `limit` jobs that ended before `ended_before`, those that ended first first. Returns how many. A job that came
  // after one which was accepted since then is younger than its times say (somebody set the clock), and stays.
  virtual absl::StatusOr<int64_t> ForgetFinished(absl::Time ended_before, int limit) = 0;
  // Forgets up to `limit` request ids, of operations and of workspaces, that came before `came_before`: they are new again.
  // Returns how many. What came after a younger one stays, as with jobs.
  virtual absl::StatusOr<int64_t> ForgetRequests(absl::Time came_before, int limit) = 0;
  // (method, state) -> count of all jobs, for metrics.
  virtual absl::StatusOr<std::vector<std::pair<std::pair<std::string, v1::OperationMetadata::State>, int64_t>>> Count() = 0;

  // When the PENDING job that waits longest was accepted; nullopt: none waits. For metrics.
  virtual absl::StatusOr<std::optional<absl::Time>> OldestPending() = 0;

  // Changes whenever any process has changed anything in the store; cheap enough to ask every poll_interval().
  virtual absl::StatusOr<uint64_t> Version() = 0;
  virtual absl::Duration poll_interval() const = 0;
  // Has `changed` called soon after a change by any process that outlives a power failure: a hint, as that of Database::Subscribe
  // (server/sql/database.h). nullptr where there are none.
  virtual std::unique_ptr<Subscription> Subscribe(std::function<void()> changed) = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_JOBS_JOB_STORE_H_
