// A job store that fails when the test wants it to, as one that is reached over a network does.
#ifndef MODELPRESS_TESTS_SERVER_TESTING_UNRELIABLE_JOB_STORE_H_
#define MODELPRESS_TESTS_SERVER_TESTING_UNRELIABLE_JOB_STORE_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// Hands on to a real store. Thread-safe.
class UnreliableJobStore final : public JobStore {
 public:
  enum class Failure {
    kBefore,  // nothing was changed
    kAfter,   // the call did its work, but that could not be told
  };

  explicit UnreliableJobStore(JobStore& store) : store_(store) {}

  // The next `times` calls of `method` ("Finish") fail with STORAGE_UNAVAILABLE.
  void Fail(const std::string& method, int times, Failure failure = Failure::kBefore) {
    const std::lock_guard lock(mutex_);
    failures_[method] = {times, failure};
  }
  // Has `hook` called at the beginning of every call of `method`, on the caller's thread. Before the store is used.
  void BeforeEvery(const std::string& method, std::function<void()> hook) { hooks_[method] = std::move(hook); }
  // How many calls of `method` have failed.
  int failed(const std::string& method) {
    const std::lock_guard lock(mutex_);
    return failed_[method];
  }

  absl::StatusOr<Job> Create(const Job& job, const std::string& request_id) override { return store_.Create(job, request_id); }
  absl::StatusOr<std::optional<Job>> FindCreated(const std::string& project, const std::string& request_id,
                                                 const google::protobuf::Any& request) override {
    return store_.FindCreated(project, request_id, request);
  }
  absl::StatusOr<Job> Find(const std::string& project, const std::string& id) override { return store_.Find(project, id); }
  absl::StatusOr<JobPage> List(const std::string& project, const JobFilter& filter, int page_size,
                               const std::string& page_token) override {
    return store_.List(project, filter, page_size, page_token);
  }
  absl::Status Delete(const std::string& project, const std::string& id) override { return store_.Delete(project, id); }
  absl::StatusOr<Job> RequestCancel(const std::string& project, const std::string& id) override {
    return store_.RequestCancel(project, id);
  }
  absl::StatusOr<std::set<std::string>> Unfinished(const std::vector<std::string>& ids) override {
    return store_.Unfinished(ids);
  }
  absl::StatusOr<Job> Get(const std::string& id) override {
    return Call<absl::StatusOr<Job>>("Get", [&] { return store_.Get(id); });
  }
  absl::StatusOr<std::optional<Job>> Claim(const Claimant& claimant) override {
    return Call<absl::StatusOr<std::optional<Job>>>("Claim", [&] { return store_.Claim(claimant); });
  }
  absl::StatusOr<std::optional<Job>> NextInLine() override { return store_.NextInLine(); }
  absl::StatusOr<v1::OperationMetadata::State> Heartbeat(const std::string& id, int attempt,
                                                         const v1::Progress& progress) override {
    return Call<absl::StatusOr<v1::OperationMetadata::State>>("Heartbeat",
                                                              [&] { return store_.Heartbeat(id, attempt, progress); });
  }
  absl::StatusOr<v1::OperationMetadata::State> Finish(const std::string& id, int attempt, const Outcome& outcome) override {
    return Call<absl::StatusOr<v1::OperationMetadata::State>>("Finish", [&] { return store_.Finish(id, attempt, outcome); });
  }
  absl::Status Requeue(const std::string& id, int attempt, bool failed) override {
    return Call<absl::Status>("Requeue", [&] { return store_.Requeue(id, attempt, failed); });
  }
  absl::StatusOr<v1::OperationMetadata::State> HeldState(const std::string& id, int attempt) override {
    return Call<absl::StatusOr<v1::OperationMetadata::State>>("HeldState", [&] { return store_.HeldState(id, attempt); });
  }
  absl::StatusOr<std::vector<Lease>> Leases() override {
    return Call<absl::StatusOr<std::vector<Lease>>>("Leases", [&] { return store_.Leases(); });
  }
  absl::Status Revoke(const Lease& seen, const std::optional<Outcome>& outcome) override {
    return Call<absl::Status>("Revoke", [&] { return store_.Revoke(seen, outcome); });
  }
  absl::Status AwaitTurn() override {
    return Call<absl::Status>("AwaitTurn", [&] { return store_.AwaitTurn(); });
  }
  absl::StatusOr<int64_t> ForgetFinished(absl::Time ended_before, int limit) override {
    return Call<absl::StatusOr<int64_t>>("ForgetFinished", [&] { return store_.ForgetFinished(ended_before, limit); });
  }
  absl::StatusOr<int64_t> ForgetRequests(absl::Time came_before, int limit) override {
    return store_.ForgetRequests(came_before, limit);
  }
  absl::StatusOr<std::vector<std::pair<std::pair<std::string, v1::OperationMetadata::State>, int64_t>>> Count() override {
    return store_.Count();
  }
  absl::StatusOr<std::optional<absl::Time>> OldestPending() override { return store_.OldestPending(); }
  absl::StatusOr<uint64_t> Version() override { return store_.Version(); }
  absl::Duration poll_interval() const override { return store_.poll_interval(); }
  std::unique_ptr<Subscription> Subscribe(std::function<void()> changed) override { return store_.Subscribe(std::move(changed)); }

 private:
  template <typename Result>
  Result Call(const std::string& method, const std::function<Result()>& call) {
    if (const auto hook = hooks_.find(method); hook != hooks_.end()) {
      hook->second();
    }
    std::optional<Failure> failure;
    {
      const std::lock_guard lock(mutex_);
      if (auto planned = failures_.find(method); planned != failures_.end() && planned->second.first > 0) {
        --planned->second.first;
        ++failed_[method];
        failure = planned->second.second;
      }
    }
    if (!failure.has_value()) {
      return call();
    }
    if (*failure == Failure::kAfter) {
      [[maybe_unused]] const Result unheard = call();
    }
    return MakeError(v1::STORAGE_UNAVAILABLE, "the database cannot be reached at the moment; try again");
  }

  JobStore& store_;
  std::map<std::string, std::function<void()>> hooks_;
  std::mutex mutex_;
  std::map<std::string, std::pair<int, Failure>> failures_;
  std::map<std::string, int> failed_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_TESTING_UNRELIABLE_JOB_STORE_H_
