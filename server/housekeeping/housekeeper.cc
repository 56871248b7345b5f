#include "server/housekeeping/housekeeper.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "server/base/posix.h"
#include "server/worker/scratch.h"

namespace modelpress::server {
namespace {

constexpr absl::Duration kJump = absl::Minutes(1);

}  // namespace

Housekeeper::Housekeeper(const HousekeepingOptions& options, const HousekeepingContext& context)
    : options_(options),
      context_(context),
      rescuer_(options.rescuer, context.jobs, context.events, context.clock),
      rescue_at_(context.clock.Elapsed()),
      boot_time_(context.clock.Now() - context.clock.Elapsed()),
      ages_known_at_(context.clock.Elapsed() + options.clock_trial) {}

Housekeeper::~Housekeeper() { Stop(); }

void Housekeeper::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void Housekeeper::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void Housekeeper::Loop() {
  absl::Duration round_at = context_.clock.Elapsed();
  while (GoOn()) {
    if (context_.clock.Elapsed() >= round_at) {
      Round().IgnoreError();  // it was logged
      round_at = context_.clock.Elapsed() + options_.interval;
    }
    const absl::Duration rest = std::min(rescue_at_, round_at) - context_.clock.Elapsed();
    std::unique_lock lock(mutex_);
    stop_.wait_for(lock, absl::ToChronoNanoseconds(std::clamp(rest, absl::ZeroDuration(), absl::Seconds(1))),
                   [this] { return stopping_; });
  }
}

absl::StatusOr<int64_t> Housekeeper::Rescue() {
  MP_ASSIGN_OR_RETURN(const int64_t taken, rescuer_.Look());
  for (int64_t i = 0; i < taken; ++i) {
    context_.metrics.OperationRetried("lost");
  }
  return taken;
}

bool Housekeeper::GoOn() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      return false;
    }
  }
  if (context_.clock.Elapsed() >= rescue_at_) {
    const absl::Status rescued = Rescue().status();
    LOG_IF(ERROR, !rescued.ok() && !rescue_failing_) << "cannot look for lost operations at the moment: " << rescued;
    LOG_IF(INFO, rescued.ok() && rescue_failing_) << "lost operations are looked for again";
    rescue_failing_ = !rescued.ok();
    rescue_at_ = context_.clock.Elapsed() + options_.rescuer.interval;
  }
  return true;
}

bool Housekeeper::AgesAreKnown() {
  const absl::Duration elapsed = context_.clock.Elapsed();
  const absl::Time boot_time = context_.clock.Now() - elapsed;
  if (absl::AbsDuration(boot_time - boot_time_) > kJump) {
    LOG(WARNING) << "the system's clock jumped by " << absl::FormatDuration(boot_time - boot_time_)
                 << "; nothing is removed for its age for a while";
    ages_known_at_ = elapsed + std::max(options_.blob_grace, options_.clock_trial);
  }
  boot_time_ = boot_time;
  return elapsed >= ages_known_at_;
}

absl::StatusOr<int64_t> Housekeeper::InBatches(absl::FunctionRef<absl::StatusOr<int64_t>()> remove_batch) {
  int64_t removed = 0;
  while (GoOn()) {
    MP_ASSIGN_OR_RETURN(const int64_t batch, remove_batch());
    removed += batch;
    if (batch == 0) {
      break;
    }
  }
  return removed;
}

template <typename Items>
absl::StatusOr<int64_t> Housekeeper::RemoveEach(
    const Items& items, absl::FunctionRef<absl::StatusOr<bool>(const typename Items::value_type&)> remove) {
  int64_t removed = 0;
  absl::Status status;
  for (const auto& item : items) {
    if (!GoOn()) {
      break;
    }
    const absl::StatusOr<bool> gone = remove(item);
    status.Update(gone.status());
    removed += gone.value_or(false) ? 1 : 0;
    LOG_IF(WARNING, !gone.ok()) << "housekeeping goes on after " << gone.status();
    if (ReasonOf(gone.status()) == v1::STORAGE_UNAVAILABLE) {
      break;
    }
  }
  MP_RETURN_IF_ERROR(status);
  return removed;
}

absl::StatusOr<int64_t> Housekeeper::ExpireOperations() {
  if (options_.operation_ttl <= absl::ZeroDuration() || !AgesAreKnown()) {
    return 0;
  }
  const absl::Time cutoff = context_.clock.Now() - options_.operation_ttl;
  return InBatches([&] { return context_.jobs.ForgetFinished(cutoff, options_.batch); });
}

absl::StatusOr<int64_t> Housekeeper::ExpireWorkspaces() {
  if (options_.workspace_ttl <= absl::ZeroDuration() || !AgesAreKnown()) {
    return 0;
  }
  const absl::Time cutoff = context_.clock.Now() - options_.workspace_ttl;
  return InBatches([&]() -> absl::StatusOr<int64_t> {
    MP_ASSIGN_OR_RETURN(const std::vector<WorkspaceKey> gone, context_.workspaces.DeleteIdleWorkspaces(cutoff, options_.batch));
    for (const WorkspaceKey& workspace : gone) {
      LOG(INFO) << "workspaces/" << workspace.id << " of project " << workspace.project << " was not used since "
                << absl::FormatTime(cutoff, absl::UTCTimeZone()) << " and is removed";
    }
    return static_cast<int64_t>(gone.size());
  });
}

absl::StatusOr<int64_t> Housekeeper::ExpireUploads() {
  if (options_.upload_ttl <= absl::ZeroDuration() || !AgesAreKnown()) {
    return 0;
  }
  const absl::Time cutoff = context_.clock.Now() - options_.upload_ttl;
  std::set<std::string> active;
  MP_RETURN_IF_ERROR(context_.blobs.ForEachUpload([&](const BlobStore::StoredUpload& upload) {
    if (upload.write_time >= cutoff) {
      active.insert(upload.id);
    }
    return true;
  }));
  return InBatches([&]() -> absl::StatusOr<int64_t> {
    MP_ASSIGN_OR_RETURN(const std::vector<std::string> gone,
                        context_.workspaces.DeleteUploadsBefore(cutoff, active, options_.batch));
    return RemoveEach(gone, [&](const std::string& id) -> absl::StatusOr<bool> {
      MP_RETURN_IF_ERROR(context_.blobs.DiscardUpload(id));
      return true;
    });
  });
}

absl::StatusOr<int64_t> Housekeeper::ExpireRequestIds() {
  if (!AgesAreKnown()) {
    return 0;
  }
  const absl::Time cutoff = context_.clock.Now() - options_.request_id_ttl;
  return InBatches([&] { return context_.jobs.ForgetRequests(cutoff, options_.batch); });
}

absl::StatusOr<int64_t> Housekeeper::RemoveOrphanedUploads() {
  // The row comes before the file and goes after it, and no id comes twice: a file without a row is nobody's, however young.
  std::vector<std::string> ids;
  uint64_t bytes = 0;
  MP_RETURN_IF_ERROR(context_.blobs.ForEachUpload([&](const BlobStore::StoredUpload& upload) {
    ids.push_back(upload.id);
    bytes += upload.committed_size;
    return true;
  }));
  context_.metrics.SetStorageBytes("uploads", bytes);
  return RemoveEach(ids, [&](const std::string& id) -> absl::StatusOr<bool> {
    MP_ASSIGN_OR_RETURN(const bool exists, context_.workspaces.UploadExists(id));
    if (!exists) {
      MP_RETURN_IF_ERROR(context_.blobs.DiscardUpload(id));
    }
    return !exists;
  });
}

absl::StatusOr<int64_t> Housekeeper::RemoveDeadCheckpoints() {
  std::vector<std::pair<std::string, std::string>> folders;  // path, operation
  const std::string& scratch = options_.rescuer.scratch_folder;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(scratch, error); !error && it != decltype(it)(); it.increment(error)) {
    if (std::optional<std::string> operation = OperationOfCheckpointFolder(it->path().filename().string())) {
      folders.emplace_back(it->path().string(), *std::move(operation));
    }
  }
  if (error) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("read ", scratch, ": ", error.message()));
  }
  return RemoveEach(folders, [&](const std::pair<std::string, std::string>& folder) -> absl::StatusOr<bool> {
    const absl::StatusOr<Job> job = context_.jobs.Get(folder.second);
    if (!job.ok() && !absl::IsNotFound(job.status())) {
      return job.status();
    }
    const bool dead = !job.ok() || job->done();
    if (dead) {
      RemoveTree(folder.first);
    }
    return dead;
  });
}

absl::StatusOr<int64_t> Housekeeper::CollectGarbage() {
  const absl::Time cutoff = context_.clock.Now() - options_.blob_grace;
  const bool ages_are_known = AgesAreKnown();
  std::set<std::string> candidates;  // the first of those that are old enough, from next_blob_ on
  uint64_t bytes = 0;
  const absl::Status listed = context_.blobs.ForEach([&](const BlobStore::StoredBlob& blob) {
    bytes += blob.size_bytes;
    if (ages_are_known && blob.touch_time < cutoff && blob.sha256 >= next_blob_) {
      candidates.insert(blob.sha256);
      if (static_cast<int64_t>(candidates.size()) > options_.blobs_per_round) {
        candidates.erase(std::prev(candidates.end()));
      }
    }
    return true;
  });
  if (listed.ok()) {
    context_.metrics.SetStorageBytes("blobs", bytes);
  }
  if (const absl::StatusOr<DiskSpace> space = DiskSpaceOf(options_.data_folder); space.ok()) {
    context_.metrics.SetStorageFreeBytes(space->free_bytes);
  }
  next_blob_ = static_cast<int64_t>(candidates.size()) == options_.blobs_per_round ? *candidates.rbegin() + "0" : "";
  absl::StatusOr<int64_t> removed = RemoveEach(candidates, [&](const std::string& sha256) -> absl::StatusOr<bool> {
    std::optional<uint64_t> freed;
    MP_RETURN_IF_ERROR(context_.workspaces
                           .RemoveUnreferenced(sha256,
                                               [&]() -> absl::Status {
                                                 MP_ASSIGN_OR_RETURN(freed, context_.blobs.RemoveIfOlder(sha256, cutoff));
                                                 return absl::OkStatus();
                                               })
                           .status());
    if (freed.has_value()) {
      context_.metrics.BlobRemoved(*freed);
    }
    return freed.has_value();
  });
  MP_RETURN_IF_ERROR(listed);
  return removed;
}

absl::StatusOr<int64_t> Housekeeper::RemoveStrays() {
  return AgesAreKnown() ? context_.blobs.RemoveStrays(context_.clock.Now() - options_.blob_grace) : 0;
}

absl::Status Housekeeper::Round() {
  struct Step {
    const char* what;
    absl::StatusOr<int64_t> (Housekeeper::*run)();
  };
  constexpr Step kSteps[] = {
      {"operations", &Housekeeper::ExpireOperations},
      {"workspaces", &Housekeeper::ExpireWorkspaces},
      {"uploads", &Housekeeper::ExpireUploads},
      {"request ids", &Housekeeper::ExpireRequestIds},
      {"orphaned uploads", &Housekeeper::RemoveOrphanedUploads},
      {"checkpoints", &Housekeeper::RemoveDeadCheckpoints},
      {"unreferenced contents", &Housekeeper::CollectGarbage},
      {"stray files", &Housekeeper::RemoveStrays},
  };
  const absl::Duration start = context_.clock.Elapsed();
  std::vector<std::string> done;
  absl::Status status;
  for (const Step& step : kSteps) {
    if (!GoOn()) {
      return status;
    }
    const absl::StatusOr<int64_t> removed = (this->*step.run)();
    status.Update(removed.status());
    LOG_IF(WARNING, !removed.ok()) << "housekeeping could not look after all " << step.what
                                   << ", the next round tries again: " << removed.status();
    if (removed.value_or(0) > 0) {
      done.push_back(absl::StrCat(*removed, " ", step.what));
    }
  }
  const absl::Duration duration = context_.clock.Elapsed() - start;
  if (status.ok()) {
    context_.metrics.HousekeepingEnded(duration);
  }
  LOG_IF(INFO, !done.empty()) << "housekeeping removed " << absl::StrJoin(done, ", ") << " in " << absl::FormatDuration(duration);
  return status;
}

}  // namespace modelpress::server
