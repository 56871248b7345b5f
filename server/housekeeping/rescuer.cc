#include "server/housekeeping/rescuer.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/worker/owner.h"
#include "server/worker/scratch.h"

namespace modelpress::server {

Rescuer::Rescuer(RescuerOptions options, JobStore& jobs, JobEvents& events, const Clock& clock)
    : options_(std::move(options)), jobs_(jobs), events_(events), clock_(clock) {}

absl::StatusOr<int64_t> Rescuer::Look() {
  absl::StatusOr<int64_t> taken = TakeLost();
  const absl::Status removed = RemoveDeadScratch();
  return taken.ok() && !removed.ok() ? removed : taken;
}

absl::StatusOr<int64_t> Rescuer::TakeLost() {
  const absl::Duration begin = clock_.Elapsed();
  const absl::Duration watched = std::min(begin - looked_at_.value_or(begin), 2 * options_.interval);
  const bool doubtful = std::ranges::any_of(seen_, [this](const auto& seen) { return seen.second.still > options_.lease / 2; });
  if (doubtful) {
    MP_RETURN_IF_ERROR(jobs_.AwaitTurn());
  }
  MP_ASSIGN_OR_RETURN(const std::vector<Lease> leases, jobs_.Leases());
  looked_at_ = clock_.Elapsed();
  std::map<std::string, Seen> seen;
  for (const Lease& lease : leases) {
    const auto before = seen_.find(lease.job_id);
    const bool still = before != seen_.end() && before->second.beats == lease.beats;
    seen.emplace(lease.job_id, Seen{lease.beats, still ? before->second.still + watched : absl::ZeroDuration()});
  }
  seen_ = std::move(seen);
  int64_t taken = 0;
  absl::Status status;
  for (const Lease& lease : leases) {
    const bool expired = seen_.at(lease.job_id).still > options_.lease;
    if (!expired && !IsDeadOwner(lease.owner)) {
      continue;
    }
    const Ending ending = AfterLoss(options_.retries, lease.attempt, Crashed(lease.attempt, "the loss of its worker"));
    const absl::Status revoked = jobs_.Revoke(lease, ending.outcome);
    if (absl::IsFailedPrecondition(revoked) || absl::IsNotFound(revoked)) {
      continue;  // another process was quicker, or the holder lives after all: it ended the job, or added heartbeats
    }
    status.Update(revoked);
    if (ReasonOf(revoked) == v1::STORAGE_UNAVAILABLE) {
      break;
    }
    if (!revoked.ok()) {
      continue;  // the others have their turn all the same
    }
    ++taken;
    LOG(WARNING) << "operations/" << lease.job_id << ": attempt " << lease.attempt << " was lost ("
                 << (expired ? "its lease ran out" : "its worker is dead") << ")";
    events_.Notify();
  }
  MP_RETURN_IF_ERROR(status);
  return taken;
}

absl::Status Rescuer::RemoveDeadScratch() {
  std::vector<std::filesystem::path> folders;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(options_.scratch_folder, error); !error && it != decltype(it)();
       it.increment(error)) {
    if (!OperationOfCheckpointFolder(it->path().filename().string()).has_value()) {
      folders.push_back(it->path());
    }
  }
  if (error) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("read ", options_.scratch_folder, ": ", error.message()));
  }
  if (folders.empty()) {
    return absl::OkStatus();
  }
  // An attempt claims before it makes its folder: a folder seen before this look belongs to a lease seen by it, or to nobody.
  MP_ASSIGN_OR_RETURN(const std::vector<Lease> leases, jobs_.Leases());
  std::set<std::filesystem::path> alive;
  for (const Lease& lease : leases) {
    alive.insert(AttemptFolder(options_.scratch_folder, lease.job_id, lease.attempt));
  }
  for (const std::filesystem::path& folder : folders) {
    if (!alive.contains(folder)) {
      RemoveTree(folder.string());
    }
  }
  return absl::OkStatus();
}

}  // namespace modelpress::server
