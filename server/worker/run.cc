#include "server/worker/run.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <exception>
#include <iostream>
#include <map>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "engine/functions/file_checkpoints.h"
#include "engine/functions/functions.h"
#include "engine/runtime/load_check.h"
#include "google/protobuf/io/zero_copy_stream_impl.h"
#include "google/protobuf/util/delimited_message_util.h"
#include "server/rpc/status.h"
#include "server/worker/dispatch.h"
#include "server/worker/run_protocol.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);

// Where the worker listens. Libraries may print to stdout, so that descriptor is made another name of stderr and the protocol
// gets its own.
class EventPipe {
 public:
  EventPipe() : fd_(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1)) { dup2(STDERR_FILENO, STDOUT_FILENO); }

  void Send(const RunEvent& event) const {
    const std::string bytes = Frame(event);
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t size = write(fd_, bytes.data() + sent, bytes.size() - sent);
      if (size < 0) {
        _exit(1);  // the worker is gone, and with it whoever wanted to know
      }
      sent += static_cast<size_t>(size);
    }
  }

 private:
  const int fd_;
};

// Sends progress at most every kProgressInterval, but every stage once.
class ProgressReporter {
 public:
  explicit ProgressReporter(const EventPipe& events) : events_(events) {}

  void Report(const std::string& stage, uint64_t done, uint64_t total) {
    const absl::Time now = absl::Now();
    if (stage == stage_ && now < next_) {
      return;
    }
    stage_ = stage;
    next_ = now + kProgressInterval;
    RunEvent event;
    event.mutable_progress()->set_stage(stage);
    event.mutable_progress()->set_done(done);
    event.mutable_progress()->set_total(total);
    events_.Send(event);
  }

 private:
  const EventPipe& events_;
  std::string stage_;
  absl::Time next_ = absl::InfinitePast();
};

RunResult Serve(const RunSpec& spec, const EventPipe& events) {
  std::map<std::string, std::string> paths;
  engine::CallContext context;
  for (const RunSpec::Input& input : spec.inputs()) {
    paths[input.name()] = input.path();
    context.digests.push_back({input.name(), input.sha256(), input.size_bytes()});
  }
  const engine::FileSet files(std::move(paths));
  ProgressReporter reporter(events);
  context.files = &files;
  context.output_root = spec.output_dir();
  context.threads = spec.threads();
  context.log = [](const std::string& line) { std::cerr << line << std::endl; };  // the worker logs what comes here
  context.progress = [&reporter](const std::string& stage, uint64_t done, uint64_t total) {
    reporter.Report(stage, done, total);
  };
  std::optional<engine::FileCheckpoints> checkpoints;
  if (!spec.checkpoint_dir().empty()) {
    context.checkpoints = &checkpoints.emplace(spec.checkpoint_dir(), context.log);
  }
  absl::StatusOr<RunResult> result = Dispatch(spec.request(), context);
  if (result.ok()) {
    return *std::move(result);
  }
  RunResult failed;
  *failed.mutable_error() = ToRpcStatus(result.status());
  return failed;
}

// Ends the process when the worker's end of stdin closes.
void ExitWithWorker() {
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) != 0) {
  }
  _exit(1);
}

// A model may have its weights in thousands of files, each of which is open while it is worked on.
void RaiseFileLimit() {
  rlimit files = {};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
}

}  // namespace

int RunChild() {
  // The kernel's help against outliving a worker that was killed; the end of stdin covers the moment before this call.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::set_new_handler([] { _exit(kExitOutOfMemory); });
  RaiseFileLimit();
  const EventPipe events;
  engine::InitializeRuntime();
  RunEvent event;
  event.mutable_ready();
  events.Send(event);

  RunSpec spec;
  google::protobuf::io::FileInputStream input(STDIN_FILENO);
  if (!google::protobuf::util::ParseDelimitedFromZeroCopyStream(&spec, &input, nullptr)) {
    return 0;
  }
  std::thread(ExitWithWorker).detach();
  try {
    *event.mutable_result() = Serve(spec, events);
  } catch (const std::bad_alloc&) {  // where a library allocates without operator new
    _exit(kExitOutOfMemory);
  }
  events.Send(event);
  // Neither destructors nor the operating system have anything left to do for anyone: the worker kills and reaps at once.
  _exit(0);
}

}  // namespace modelpress::server
