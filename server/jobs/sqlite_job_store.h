#ifndef MODELPRESS_SERVER_JOBS_SQLITE_JOB_STORE_H_
#define MODELPRESS_SERVER_JOBS_SQLITE_JOB_STORE_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/base/clock.h"
#include "server/base/quotas.h"
#include "server/base/sqlite.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// Jobs in a database of OpenDatabase(). Thread-safe.
//
// Durability (server/base/sqlite.h): Claim and Heartbeat survive the end of any process, not a power failure, which ends the
// attempts they tell of as well: the job is then found PENDING, or under a lease that runs out. Everything else survives both.
class SqliteJobStore final : public JobStore {
 public:
  // All must outlive the store.
  SqliteJobStore(Database& database, const Clock& clock, const Quotas& quotas)
      : database_(database), clock_(clock), quotas_(quotas) {}

  absl::StatusOr<Job> Create(const Job& job, const std::string& request_id) override;
  absl::StatusOr<Job> Find(const std::string& project, const std::string& id) override;
  absl::StatusOr<JobPage> List(const std::string& project, const JobFilter& filter, int page_size,
                               const std::string& page_token) override;
  absl::Status Delete(const std::string& project, const std::string& id) override;
  absl::StatusOr<Job> RequestCancel(const std::string& project, const std::string& id) override;
  absl::StatusOr<Job> Get(const std::string& id) override;
  absl::StatusOr<std::optional<Job>> Claim(const Claimant& claimant) override;
  absl::StatusOr<v1::OperationMetadata::State> Heartbeat(const std::string& id, int attempt,
                                                         const v1::Progress& progress) override;
  absl::StatusOr<v1::OperationMetadata::State> Finish(const std::string& id, int attempt, const Outcome& outcome) override;
  absl::Status Requeue(const std::string& id, int attempt, bool failed) override;
  absl::StatusOr<std::vector<Job>> Leased() override;
  absl::StatusOr<int64_t> ForgetFinished(absl::Time ended_before, int limit) override;
  absl::StatusOr<std::vector<std::pair<std::pair<std::string, v1::OperationMetadata::State>, int64_t>>> Count() override;
  absl::StatusOr<std::optional<absl::Time>> OldestPending() override;
  absl::StatusOr<uint64_t> Version() override;

 private:
  Database& database_;
  const Clock& clock_;
  const Quotas& quotas_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_JOBS_SQLITE_JOB_STORE_H_
