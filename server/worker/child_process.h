// One `modelpressd run`: a process in a process group of its own, with limits, that dies with its worker.
//
// Limits are set by the worker with prlimit(2) as soon as the process exists, so that nothing in the child can forget them:
//   CPU time   RLIMIT_CPU    -> SIGXCPU
//   file size  RLIMIT_FSIZE  -> SIGXFSZ
//   disk       no limit of the kernel's: the worker looks (untrusted_folder.h)
//   memory     RLIMIT_DATA (what the process allocates; mapped model files do not count, which RLIMIT_AS would do although they
//   cost nothing) ->
//              an allocation fails and the child exits with kExitOutOfMemory. Shared anonymous memory and libraries that
//              overcommit escape it, so the worker looks at the resident anonymous memory as well (OverMemoryLimit). A cgroup
//              would be exact, but needs rights that an unprivileged container does not have.
#ifndef MODELPRESS_SERVER_WORKER_CHILD_PROCESS_H_
#define MODELPRESS_SERVER_WORKER_CHILD_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/posix.h"
#include "server/worker/run_limits.h"
#include "server/worker/run_protocol.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {

// 0: no limit.
struct ChildLimits {
  uint64_t memory_bytes = 0;
  uint64_t cpu_seconds = 0;
  uint64_t file_bytes = 0;
  uint64_t disk_bytes = 0;  // of all output files; the worker looks at it from time to time
};

inline constexpr uint64_t kMaxThreads = 4096;  // of a child

// How a process ended.
struct ChildExit {
  int signal = 0;  // that killed it; 0: it exited with `code`
  int code = 0;
  uint64_t peak_rss_bytes = 0;

  // "SIGSEGV", "exit code 3".
  std::string Cause() const;
};

// Used by one thread, which must live as long: the kernel kills the child when the thread that started it ends.
class ChildProcess {
 public:
  // Runs `executable run`. INTERNAL_ERROR.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::string& executable, const ChildLimits& limits);
  // Kills and reaps.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // False once it has ended, however.
  bool Alive();

  // Queues the spec. Flush() sends what the child takes without blocking; it is needed while `has_unsent()`, when input_fd() is
  // writable.
  void Send(const RunSpec& spec) { unsent_ += Frame(spec); }
  bool has_unsent() const { return !unsent_.empty(); }
  void Flush();

  // For poll(2). -1 once closed.
  int input_fd() const { return input_.get(); }
  int output_fd() const { return output_open_ ? output_.get() : -1; }
  int log_fd() const { return log_open_ ? log_.get() : -1; }
  // Reads what is there; both stop at the end of the stream, after which the fd is -1. DATA_LOSS if the child writes no protocol.
  // Events and lines are limited (run_limits.h).
  absl::Status ReadEvents(absl::FunctionRef<void(const RunEvent&)> take);
  void ReadLog(absl::FunctionRef<void(absl::string_view)> take_line);

  // True when more than the memory limit is resident.
  bool OverMemoryLimit() const;
  // True when it has more threads than any operation needs. RLIMIT_NPROC would count those of its user's other processes.
  bool OverThreadLimit() const;
  // SIGKILL to the whole group, stopped or not.
  void Kill();
  // Waits until it has ended by itself, but no longer than `timeout`.
  void AwaitEnd(absl::Duration timeout) const;
  // Waits for the end. Call after Kill, or when its output has ended.
  ChildExit Reap();

 private:
  ChildProcess() = default;
  // Of the lines of /proc/PID/status that begin with one of `fields`.
  uint64_t SumOfStatus(std::initializer_list<absl::string_view> fields) const;

  pid_t pid_ = -1;
  bool reaped_ = false;
  uint64_t memory_limit_ = 0;
  ChildExit exit_;
  UniqueFd input_;
  UniqueFd output_;
  UniqueFd log_;
  bool output_open_ = true;
  bool log_open_ = true;
  std::string unsent_;
  FrameReader frames_;
  std::string log_line_;
  LogLimiter log_limiter_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_CHILD_PROCESS_H_
