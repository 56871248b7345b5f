#include "server/worker/run.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "engine/functions/file_checkpoints.h"
#include "engine/functions/functions.h"
#include "engine/runtime/load_check.h"
#include "google/protobuf/io/zero_copy_stream_impl.h"
#include "google/protobuf/util/delimited_message_util.h"
#include "server/base/clock.h"
#include "server/base/posix.h"
#include "server/base/sha256.h"
#include "server/rpc/status.h"
#include "server/sandbox/sandbox.h"
#include "server/worker/dispatch.h"
#include "server/worker/run_limits.h"
#include "server/worker/run_protocol.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);
constexpr int kOomScore = 1000;          // the first to go (proc(5))
constexpr size_t kOwnDescriptors = 256;  // that the engine opens besides its inputs

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
    const absl::Duration now = SteadyNow();
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
  absl::Duration next_ = -absl::InfiniteDuration();
};

// Opens what the operation may use, and then gives up everything else. To be called with one thread, and before anybody looks at
// the input. `spec` names its folders by `folders` afterwards: what is above them may be out of reach for the user it becomes.
absl::Status Confine(Sandbox& sandbox, RunSpec& spec, std::vector<UniqueFd>& folders, engine::FileSet& files,
                     const EventPipe& events) {
  SandboxOptions options;
  for (std::string* folder : {spec.mutable_output_dir(), spec.mutable_checkpoint_dir()}) {
    if (!folder->empty()) {
      MP_ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(*folder, O_PATH | O_DIRECTORY));
      *folder = absl::StrCat("/proc/self/fd/", fd.get());
      options.folders.push_back(fd.get());
      folders.push_back(std::move(fd));
    }
  }
  MP_RETURN_IF_ERROR(files.OpenAll(std::max<size_t>(RaiseDescriptorLimit(), kOwnDescriptors) - kOwnDescriptors));
  if (!spec.isolation().enter()) {
    return absl::OkStatus();
  }
  if (spec.isolation().own_user()) {
    options.user = {spec.isolation().uid(), spec.isolation().gid()};
  }
  const std::vector<Mechanism> mechanisms = sandbox.Enter(options);
  RunEvent event;
  for (const Mechanism& mechanism : mechanisms) {
    Isolation::Mechanism& told = *event.mutable_isolation()->add_mechanisms();
    told.set_name(mechanism.name);
    told.set_active(mechanism.active);
    told.set_needed(mechanism.needed);
    told.set_detail(mechanism.detail);
  }
  events.Send(event);
  if (spec.isolation().require() && LacksMechanism(mechanisms)) {
    return MakeError(v1::INTERNAL_ERROR, "the server cannot isolate the engine as it is told to; its log says what is missing");
  }
  return absl::OkStatus();
}

RunResult FailedResult(const absl::Status& status) {
  RunResult failed;
  *failed.mutable_error() = ToRpcStatus(status);
  return failed;
}

RunResult Serve(const RunSpec& spec, const engine::FileSet& files, const EventPipe& events) {
  engine::CallContext context;
  for (const RunSpec::Input& input : spec.inputs()) {
    context.digests.push_back({input.name(), input.sha256(), input.size_bytes()});
  }
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
  return FailedResult(result.status());
}

// Ends the process when the worker's end of stdin closes.
void ExitWithWorker() {
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) != 0) {
  }
  _exit(1);
}

}  // namespace

int RunChild() {
  // The kernel's help against outliving a worker that was killed; the end of stdin covers the moment before this call.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Where memory runs out the kernel is to stop the engine, which is started again, and not the server. Fails where it is
  // forbidden to ask for that, which changes nothing else.
  std::ofstream("/proc/self/oom_score_adj") << kOomScore;
  std::set_new_handler([] { _exit(kExitOutOfMemory); });
  RaiseDescriptorLimit();  // a model may have its weights in thousands of files, each of which is open while it is worked on
  const EventPipe events;
  engine::InitializeRuntime();
  Sha256Hex("");  // OpenSSL reads its configuration at its first use
  Sandbox sandbox;
  RunEvent event;
  event.mutable_ready();
  events.Send(event);

  RunSpec spec;
  google::protobuf::io::FileInputStream input(STDIN_FILENO);
  if (!google::protobuf::util::ParseDelimitedFromZeroCopyStream(&spec, &input, nullptr)) {
    return 0;
  }
  std::map<std::string, std::string> paths;
  for (const RunSpec::Input& input : spec.inputs()) {
    paths[input.name()] = input.path();
  }
  engine::FileSet files(std::move(paths));
  std::vector<UniqueFd> folders;
  const absl::Status confined = Confine(sandbox, spec, folders, files, events);
  std::thread(ExitWithWorker).detach();
  try {
    *event.mutable_result() = confined.ok() ? Serve(spec, files, events) : FailedResult(confined);
  } catch (const std::bad_alloc&) {  // where a library allocates without operator new
    _exit(kExitOutOfMemory);
  }
  // Here too, so that an answer which only has too much to warn of is cut and not refused.
  if (const absl::Status limited = LimitEvent(event); !limited.ok()) {
    *event.mutable_result() = FailedResult(MakeError(v1::RESOURCE_LIMIT, limited.message()));
  }
  events.Send(event);
  // Neither destructors nor the operating system have anything left to do for anyone: the worker kills and reaps at once.
  _exit(0);
}

}  // namespace modelpress::server
