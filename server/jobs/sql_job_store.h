#ifndef MODELPRESS_SERVER_JOBS_SQL_JOB_STORE_H_
#define MODELPRESS_SERVER_JOBS_SQL_JOB_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/quotas.h"
#include "server/jobs/job_store.h"
#include "server/sql/database.h"

namespace modelpress::server {

// Jobs in a database of OpenDatabase(). Thread-safe.
//
// Durability (server/sql/database.h): a Heartbeat may be forgotten when the database's machine or server dies; the next one comes
// soon. Everything else survives. So must a Claim: were it forgotten while its worker goes on, the next one would get the same
// attempt number, and two would work as one.
class SqlJobStore final : public JobStore {
 public:
  // All must outlive the store.
  SqlJobStore(Database& database, const Clock& clock, const Quotas& quotas)
      : database_(database), clock_(clock), quotas_(quotas) {}

  absl::StatusOr<Job> Create(const Job& job, const std::string& request_id) override;
  absl::StatusOr<std::optional<Job>> FindCreated(const std::string& project, const std::string& request_id,
                                                 const google::protobuf::Any& request) override;
  absl::StatusOr<Job> Find(const std::string& project, const std::string& id) override;
  absl::StatusOr<JobPage> List(const std::string& project, const JobFilter& filter, int page_size,
                               const std::string& page_token) override;
  absl::Status Delete(const std::string& project, const std::string& id) override;
  absl::StatusOr<Job> RequestCancel(const std::string& project, const std::string& id) override;
  absl::StatusOr<std::set<std::string>> Unfinished(const std::vector<std::string>& ids) override;
  absl::StatusOr<Job> Get(const std::string& id) override;
  absl::StatusOr<std::optional<Job>> Claim(const Claimant& claimant) override;
  absl::StatusOr<std::optional<Job>> NextInLine() override;
  absl::StatusOr<v1::OperationMetadata::State> Heartbeat(const std::string& id, int attempt,
                                                         const v1::Progress& progress) override;
  absl::StatusOr<v1::OperationMetadata::State> HeldState(const std::string& id, int attempt) override;
  absl::StatusOr<v1::OperationMetadata::State> Finish(const std::string& id, int attempt, const Outcome& outcome) override;
  absl::Status Requeue(const std::string& id, int attempt, bool failed) override;
  absl::StatusOr<std::vector<Lease>> Leases() override;
  absl::Status Revoke(const Lease& seen, const std::optional<Outcome>& outcome) override;
  absl::Status AwaitTurn() override;
  absl::StatusOr<int64_t> ForgetFinished(absl::Time ended_before, int limit) override;
  absl::StatusOr<int64_t> ForgetRequests(absl::Time came_before, int limit) override;
  absl::StatusOr<std::vector<std::pair<std::pair<std::string, v1::OperationMetadata::State>, int64_t>>> Count() override;
  absl::StatusOr<std::optional<absl::Time>> OldestPending() override;
  absl::StatusOr<uint64_t> Version() override { return database_.Version(); }
  absl::Duration poll_interval() const override { return database_.poll_interval(); }
  std::unique_ptr<Subscription> Subscribe(std::function<void()> changed) override {
    return database_.Subscribe(std::move(changed));
  }

 private:
  // Up to `limit` rows of a table whose `time` is before `before`.
  absl::StatusOr<int64_t> Forget(absl::string_view table, absl::string_view time, absl::Time before, int limit);

  Database& database_;
  const Clock& clock_;
  const Quotas& quotas_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_JOBS_SQL_JOB_STORE_H_
