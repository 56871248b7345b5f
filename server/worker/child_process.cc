#include "server/worker/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"
#include "server/base/clock.h"
#include "server/base/sanitizers.h"

namespace modelpress::server {
namespace {

constexpr size_t kMaxLogLine = 8192;

// The machine's failure: it has no process or descriptor left, or the program is gone.
absl::Status StartError(const char* what, int error) {
  return MakeError(v1::ENGINE_CRASHED, absl::StrCat("cannot start the engine's process: ", what, ": ", std::strerror(error)));
}

void SetLimit(pid_t pid, __rlimit_resource resource, uint64_t soft, uint64_t hard) {
  const rlimit limit = {.rlim_cur = soft, .rlim_max = hard};
  prlimit(pid, resource, &limit, nullptr);  // fails only where the process has ended already
}

// What posix_spawn needs, released in any case.
class SpawnSetup {
 public:
  SpawnSetup() {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
  }
  ~SpawnSetup() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;

  posix_spawn_file_actions_t* actions() { return &actions_; }
  posix_spawnattr_t* attributes() { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

// What the engine and its libraries go by. Everything else stays out: a variable may hold a password of the database or of a
// cloud, which a model that has taken over the process could write into its outputs.
constexpr absl::string_view kVariables[] = {
    "PATH=", "TZ=",       "LANG=", "LC_",  "LD_",  "GLIBC_TUNABLES=", "MALLOC_", "ASAN_", "LSAN_", "TSAN_", "UBSAN_",
    "OMP_",  "OPENBLAS_", "MKL_",  "KMP_", "ORT_", "CUDA_",           "NVIDIA_"};

std::vector<char*> EnvironmentOfChild() {
  std::vector<char*> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::ranges::any_of(kVariables, [&](absl::string_view start) { return absl::StartsWith(*entry, start); })) {
      entries.push_back(*entry);
    }
  }
  entries.push_back(nullptr);
  return entries;
}

// Reads once; sets `open` to false at the end of the stream.
std::string ReadSome(int fd, bool& open) {
  std::string bytes(1 << 16, '\0');
  const ssize_t size = read(fd, bytes.data(), bytes.size());
  if (size <= 0) {
    open = size < 0 && (errno == EINTR || errno == EAGAIN);
    return "";
  }
  bytes.resize(static_cast<size_t>(size));
  return bytes;
}

}  // namespace

std::string ChildExit::Cause() const {
  if (signal == 0) {
    return absl::StrCat("exit code ", code);
  }
  const char* name = sigabbrev_np(signal);
  return name == nullptr ? absl::StrCat("signal ", signal) : absl::StrCat("SIG", name);
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const std::string& executable, const ChildLimits& limits) {
  // A socket for its input, because a send to a process that has died can be told not to raise SIGPIPE.
  int input[2];
  int output[2];
  int log[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, input) != 0) {
    return StartError("socketpair", errno);
  }
  UniqueFd our_input(input[0]);
  UniqueFd child_input(input[1]);
  if (pipe2(output, O_CLOEXEC) != 0) {
    return StartError("pipe", errno);
  }
  UniqueFd our_output(output[0]);
  UniqueFd child_output(output[1]);
  if (pipe2(log, O_CLOEXEC) != 0) {
    return StartError("pipe", errno);
  }
  UniqueFd our_log(log[0]);
  UniqueFd child_log(log[1]);

  SpawnSetup setup;
  posix_spawn_file_actions_adddup2(setup.actions(), child_input.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(setup.actions(), child_output.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(setup.actions(), child_log.get(), STDERR_FILENO);
  posix_spawn_file_actions_addclosefrom_np(setup.actions(), STDERR_FILENO + 1);
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(setup.attributes(), &none);
  posix_spawnattr_setsigdefault(setup.attributes(), &all);
  posix_spawnattr_setpgroup(setup.attributes(), 0);
  posix_spawnattr_setflags(setup.attributes(), POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::string path = executable;
  std::string role = "run";
  char* arguments[] = {path.data(), role.data(), nullptr};
  std::vector<char*> environment = EnvironmentOfChild();
  pid_t pid = -1;
  if (const int error = posix_spawn(&pid, path.c_str(), setup.actions(), setup.attributes(), arguments, environment.data());
      error != 0) {
    return StartError("posix_spawn", error);
  }
  std::unique_ptr<ChildProcess> child(new ChildProcess);
  child->pid_ = pid;
  child->memory_limit_ = limits.memory_bytes;
  child->input_ = std::move(our_input);
  child->output_ = std::move(our_output);
  child->log_ = std::move(our_log);
  SetLimit(pid, RLIMIT_CORE, 0, 0);
  if (limits.cpu_seconds > 0) {
    SetLimit(pid, RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 5);
  }
  if (limits.file_bytes > 0) {
    SetLimit(pid, RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes);
  }
  if (limits.memory_bytes > 0 && !kUnderSanitizer) {
    SetLimit(pid, RLIMIT_DATA, limits.memory_bytes, limits.memory_bytes);
  }
  return child;
}

ChildProcess::~ChildProcess() {
  Kill();
  Reap();
}

bool ChildProcess::Alive() {
  siginfo_t info = {};
  return !reaped_ && waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

void ChildProcess::Flush() {
  const ssize_t sent = send(input_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) {
    unsent_.erase(0, static_cast<size_t>(sent));
  } else if (errno != EAGAIN && errno != EINTR) {
    unsent_.clear();  // it has died, which the end of its output tells
  }
}

absl::Status ChildProcess::ReadEvents(absl::FunctionRef<void(const RunEvent&)> take) {
  frames_.Append(ReadSome(output_.get(), output_open_));
  RunEvent event;
  while (true) {
    MP_ASSIGN_OR_RETURN(const bool got, frames_.Next(event));
    if (!got) {
      return absl::OkStatus();
    }
    MP_RETURN_IF_ERROR(LimitEvent(event));
    take(event);
  }
}

void ChildProcess::ReadLog(absl::FunctionRef<void(absl::string_view)> take_line) {
  log_line_ += ReadSome(log_.get(), log_open_);
  auto take = [&](absl::string_view line) {
    if (const std::optional<std::string> shown = log_limiter_.Take(line, absl::UnixEpoch() + SteadyNow()); shown.has_value()) {
      take_line(*shown);
    }
  };
  size_t begin = 0;
  for (size_t end = 0; (end = log_line_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    take(absl::string_view(log_line_).substr(begin, end - begin));
  }
  log_line_.erase(0, begin);
  if (!log_line_.empty() && (!log_open_ || log_line_.size() > kMaxLogLine)) {
    take(log_line_);
    log_line_.clear();
  }
  if (!log_open_ && log_limiter_.dropped() > 0) {
    take_line(absl::StrCat(log_limiter_.dropped(), " more lines were dropped: no engine says so much"));
  }
}

uint64_t ChildProcess::SumOfStatus(std::initializer_list<absl::string_view> fields) const {
  std::ifstream file(absl::StrCat("/proc/", pid_, "/status"));
  uint64_t sum = 0;
  for (std::string line; std::getline(file, line);) {
    for (const absl::string_view field : fields) {
      if (absl::StartsWith(line, field)) {
        std::istringstream text(line.substr(field.size()));
        uint64_t value = 0;
        text >> value;
        sum += value;
      }
    }
  }
  return sum;
}

bool ChildProcess::OverMemoryLimit() const {
  return memory_limit_ > 0 && SumOfStatus({"RssAnon:", "RssShmem:"}) * 1024 > memory_limit_;
}

bool ChildProcess::OverThreadLimit() const { return SumOfStatus({"Threads:"}) > kMaxThreads; }

void ChildProcess::Kill() {
  if (!reaped_) {
    kill(-pid_, SIGKILL);
  }
}

void ChildProcess::AwaitEnd(absl::Duration timeout) const {
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  if (process.get() >= 0) {
    pollfd fd = {process.get(), POLLIN, 0};
    poll(&fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  }
}

ChildExit ChildProcess::Reap() {
  if (!reaped_) {
    int status = 0;
    rusage usage = {};
    while (wait4(pid_, &status, 0, &usage) < 0 && errno == EINTR) {
    }
    reaped_ = true;
    exit_.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    exit_.code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    exit_.peak_rss_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  }
  return exit_;
}

}  // namespace modelpress::server
