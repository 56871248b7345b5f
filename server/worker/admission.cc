#include "server/worker/admission.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

constexpr uint64_t kUnknown = UINT64_MAX;
constexpr absl::string_view kCgroups = "/sys/fs/cgroup";

uint64_t Minus(uint64_t a, uint64_t b) { return a == kUnknown ? a : a - std::min(a, b); }

uint64_t MiB(uint64_t bytes) { return bytes >> 20; }

// The number after `key` in a file of lines "KEY[:] NUMBER ..."; nullopt if there is none.
std::optional<uint64_t> ReadField(const std::string& path, absl::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    absl::string_view rest = line;
    if (!absl::ConsumePrefix(&rest, key)) {
      continue;
    }
    absl::ConsumePrefix(&rest, ":");
    const std::vector<absl::string_view> words = absl::StrSplit(rest, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    uint64_t value = 0;
    if (!words.empty() && absl::SimpleAtoi(words[0], &value)) {
      return value;
    }
  }
  return std::nullopt;
}

// The number that a file holds; nullopt if it holds none ("max").
std::optional<uint64_t> ReadNumber(const std::string& path) { return ReadField(path, ""); }

// What is left of the limit of one cgroup (version 2). Pages of files that were not used lately are given back when needed.
uint64_t RestOfCgroup(const std::string& folder) {
  const std::optional<uint64_t> limit = ReadNumber(folder + "/memory.max");
  const std::optional<uint64_t> used = ReadNumber(folder + "/memory.current");
  if (!limit.has_value() || !used.has_value()) {
    return kUnknown;
  }
  return Minus(*limit, Minus(*used, ReadField(folder + "/memory.stat", "inactive_file ").value_or(0)));
}

// Where the cgroup (version 2) of this process is; nullopt: in none.
std::optional<std::string> CgroupFolder() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    absl::string_view path = line;
    if (absl::ConsumePrefix(&path, "0::")) {
      return absl::StrCat(kCgroups, path == "/" ? "" : path);
    }
  }
  return std::nullopt;
}

}  // namespace

uint64_t ThisMachine::FreeMemory() const {
  uint64_t free = kUnknown;
  if (const std::optional<uint64_t> kib = ReadField("/proc/meminfo", "MemAvailable:")) {
    free = *kib * 1024;
  }
  // Every group around this process limits it.
  for (std::string folder = CgroupFolder().value_or(""); folder.size() >= kCgroups.size(); folder.erase(folder.rfind('/'))) {
    free = std::min(free, RestOfCgroup(folder));
  }
  return free;
}

uint64_t ThisMachine::ResidentMemory(pid_t process) const {
  return ReadField(absl::StrCat("/proc/", process, "/status"), "VmRSS:").value_or(0) * 1024;
}

uint64_t ThisMachine::FreeDisk() const {
  const absl::StatusOr<DiskSpace> space = DiskSpaceOf(folder_);
  return space.ok() ? space->free_bytes : kUnknown;
}

uint64_t ThisMachine::OutOfMemoryKills() const {
  // A cgroup hears of the death of each of its processes, whoever ran out of memory.
  std::optional<uint64_t> kills;
  if (const std::optional<std::string> cgroup = CgroupFolder()) {
    kills = ReadField(*cgroup + "/memory.events", "oom_kill ");
  }
  return kills.has_value() ? *kills : ReadField("/proc/vmstat", "oom_kill ").value_or(0);
}

JobCost Admission::Free() {
  if (!options_.enabled) {
    return {kUnknown, kUnknown};
  }
  const std::lock_guard lock(mutex_);
  const uint64_t disk = Minus(machine_.FreeDisk(), options_.min_free_disk_bytes);
  if (running_.empty()) {
    return {kUnknown, disk > 0 ? kUnknown : 0};
  }
  JobCost free{machine_.FreeMemory(), disk};
  for (const auto& [id, running] : running_) {
    const uint64_t has = running.process == 0 ? 0 : machine_.ResidentMemory(running.process);
    free.memory_bytes = Minus(free.memory_bytes, Minus(running.cost.memory_bytes, has));
    free.disk_bytes = Minus(free.disk_bytes, running.cost.disk_bytes);
  }
  return free;
}

absl::StatusOr<std::optional<Job>> Admission::Claim(JobStore& jobs, const std::string& owner) {
  const std::lock_guard one(claiming_);
  const JobCost free = Free();
  MP_ASSIGN_OR_RETURN(std::optional<Job> job, jobs.Claim({.owner = owner, .free = free}));
  std::optional<Job> waiting;
  if (job.has_value()) {
    const std::lock_guard lock(mutex_);
    running_[job->id] = {.cost = job->cost};
  } else if (free.memory_bytes != kUnknown || free.disk_bytes != kUnknown) {
    MP_ASSIGN_OR_RETURN(waiting, jobs.NextInLine());
    if (waiting.has_value() && waiting->cost.memory_bytes <= free.memory_bytes && waiting->cost.disk_bytes <= free.disk_bytes) {
      waiting.reset();  // it came in between
    }
  }
  NoteWaiting(waiting, free);
  return job;
}

void Admission::NoteWaiting(const std::optional<Job>& waiting, const JobCost& free) {
  if (waiting.has_value() == waiting_) {
    return;
  }
  if (waiting.has_value()) {
    const bool memory = waiting->cost.memory_bytes > free.memory_bytes;
    LOG(WARNING) << "operations/" << waiting->id << " waits for " << (memory ? "memory" : "disk") << ": it is expected to need "
                 << MiB(memory ? waiting->cost.memory_bytes : waiting->cost.disk_bytes) << " MiB, "
                 << MiB(memory ? free.memory_bytes : free.disk_bytes) << " MiB are to be had";
  } else {
    LOG(INFO) << "no operation waits for memory or disk any longer";
  }
  waiting_ = waiting.has_value();
  metrics_.SetAdmissionWaiting(waiting.has_value());
}

void Admission::RunsIn(const Job& job, pid_t process) {
  const std::lock_guard lock(mutex_);
  running_[job.id].process = process;
}

void Admission::Ended(const Job& job) {
  const std::lock_guard lock(mutex_);
  running_.erase(job.id);
}

bool Admission::OutOfDisk() const { return options_.enabled && machine_.FreeDisk() < options_.min_free_disk_bytes / 2; }

}  // namespace modelpress::server
