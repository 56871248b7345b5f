#include "server/worker/owner.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"

namespace modelpress::server {
namespace {

// "{boot id}/{pid namespace}"; "" if /proc does not tell.
std::string PidSpace() {
  std::string boot_id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot_id);
  struct stat space = {};
  if (boot_id.empty() || stat("/proc/self/ns/pid", &space) != 0) {
    return "";
  }
  return absl::StrCat(boot_id, "/", space.st_ino);
}

// Field 22 of /proc/PID/stat (proc_pid_stat(5)), in clock ticks since boot; "-" of a zombie; "" if /proc does not tell.
std::string StartTime(pid_t pid) {
  std::stringstream text;
  text << std::ifstream(absl::StrCat("/proc/", pid, "/stat")).rdbuf();
  const std::string stat = text.str();
  const size_t name_end = stat.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) {
    return "";
  }
  // From the state on, which is field 3.
  const std::vector<std::string> fields = absl::StrSplit(stat.substr(name_end + 1), ' ', absl::SkipEmpty());
  if (fields.size() <= 19) {
    return "";
  }
  return fields[0] == "Z" || fields[0] == "X" ? "-" : fields[19];
}

}  // namespace

absl::StatusOr<std::string> ThisOwner() {
  const std::string space = PidSpace();
  const std::string start = StartTime(getpid());
  if (space.empty() || start.empty()) {
    return MakeError(v1::INTERNAL_ERROR, "/proc does not tell who this process is; mount it");
  }
  return absl::StrCat(space, "/", getpid(), "/", start);
}

bool IsDeadOwner(const std::string& owner) {
  const std::vector<std::string> parts = absl::StrSplit(owner, '/');
  pid_t pid = 0;
  if (parts.size() != 4 || absl::StrCat(parts[0], "/", parts[1]) != PidSpace() || !absl::SimpleAtoi(parts[2], &pid)) {
    return false;
  }
  const std::string start = StartTime(pid);
  if (start.empty()) {  // gone, or it lives: another user's that /proc does not show, or we have no descriptor left to look
    return kill(pid, 0) != 0 && errno == ESRCH;
  }
  return start != parts[3];
}

}  // namespace modelpress::server
