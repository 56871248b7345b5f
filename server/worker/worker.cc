#include "server/worker/worker.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "server/log/log.h"
#include "server/log/trace.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"
#include "server/rpc/status.h"
#include "server/worker/owner.h"
#include "server/worker/request.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

constexpr absl::Duration kMemoryCheckInterval = absl::Milliseconds(50);
constexpr absl::Duration kProgressInterval = absl::Milliseconds(250);
constexpr absl::Duration kSpareDelay = absl::Seconds(1);
constexpr absl::Duration kEndOfDying = absl::Seconds(2);
constexpr absl::Duration kRescueInterval = absl::Seconds(1);

std::string ScratchName(const std::string& id, int attempt) { return absl::StrCat(id, "-", attempt); }

void RemoveTree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) {
    LOG(WARNING) << "cannot remove " << path << ": " << error.message();
  }
}

Outcome Failure(State::State state, const absl::Status& status) {
  Outcome outcome;
  outcome.state = state;
  outcome.error = ToRpcStatus(status);
  return outcome;
}

Outcome Crashed(int failures, const std::string& cause) {
  return Failure(State::FAILED, MakeError(v1::ENGINE_CRASHED, absl::StrCat("the engine died without an answer on ", failures,
                                                                           " attempts, the last time by ", cause,
                                                                           "; please report it with the input")));
}

// Requeues or fails a job whose attempt ended without an answer.
absl::Status GiveBackFailed(const WorkerOptions& options, const WorkerContext& context, const Job& job,
                            const std::string& cause) {
  const int failures = job.failures + 1;
  if (failures < options.max_failures) {
    context.metrics.OperationRetried("crash");
    return context.jobs.Requeue(job.id, job.metadata.attempt(), /*failed=*/true);
  }
  return context.jobs.Finish(job.id, job.metadata.attempt(), Crashed(failures, cause)).status();
}

// Requeues a job whose worker or child was killed from outside. That is the machine's failure, not the job's, so it does not
// count against the job; only one that goes on outliving them is suspected of being the cause.
absl::Status GiveBackLost(const WorkerOptions& options, const WorkerContext& context, const Job& job, const std::string& cause) {
  if (job.metadata.attempt() < options.max_attempts) {
    context.metrics.OperationRetried("lost");
    return context.jobs.Requeue(job.id, job.metadata.attempt(), /*failed=*/false);
  }
  return context.jobs.Finish(job.id, job.metadata.attempt(), Crashed(job.metadata.attempt(), cause)).status();
}

absl::Status RemoveDeadScratch(const WorkerOptions& options, const WorkerContext& context) {
  std::vector<std::filesystem::path> folders;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(options.scratch_folder, error); !error && it != decltype(it)();
       it.increment(error)) {
    folders.push_back(it->path());
  }
  if (error) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("read ", options.scratch_folder, ": ", error.message()));
  }
  if (folders.empty()) {
    return absl::OkStatus();
  }
  // An attempt claims before it makes its folder: a folder seen before this look belongs to a lease seen by it, or to nobody.
  MP_ASSIGN_OR_RETURN(const std::vector<Job> leased, context.jobs.Leased());
  for (const std::filesystem::path& folder : folders) {
    const bool alive = std::ranges::any_of(
        leased, [&folder](const Job& job) { return folder.filename() == ScratchName(job.id, job.metadata.attempt()); });
    if (!alive) {
      RemoveTree(folder.string());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Rescuer::Look() {
  MP_ASSIGN_OR_RETURN(const std::vector<Job> leased, context_.jobs.Leased());
  const absl::Duration now = context_.clock.Elapsed();
  std::map<std::string, Seen> seen;
  for (const Job& job : leased) {
    Seen last{job.beats, now};
    if (const auto before = seen_.find(job.id); before != seen_.end() && before->second.beats == job.beats) {
      last = before->second;
    }
    seen.emplace(job.id, last);
  }
  seen_ = std::move(seen);
  for (const Job& job : leased) {
    const bool expired = now - seen_.at(job.id).since > options_.lease;
    if (!expired && !IsDeadOwner(job.lease_owner)) {
      continue;
    }
    const absl::Status given_back = GiveBackLost(options_, context_, job, "the loss of its worker");
    if (absl::IsFailedPrecondition(given_back)) {
      continue;  // another process was quicker, or the holder lives after all and went on
    }
    MP_RETURN_IF_ERROR(given_back);
    LOG(WARNING) << "operations/" << job.id << ": attempt " << job.metadata.attempt() << " was lost ("
                 << (expired ? "its lease ran out" : "its worker is dead") << ")";
    context_.events.Notify();
  }
  return RemoveDeadScratch(options_, context_);
}

// One attempt at one job, from the claim to its end in the store.
class Worker::Attempt {
 public:
  Attempt(Worker& worker, const Job& job)
      : worker_(worker),
        options_(worker.options_),
        context_(worker.context_),
        job_(job),
        attempt_(job.metadata.attempt()),
        folder_(absl::StrCat(options_.scratch_folder, "/", ScratchName(job.id, attempt_))),
        start_(absl::Now()),
        timeout_(std::min(options_.max_execution, ExecutionTimeout(job.request))) {}
  ~Attempt() { RemoveTree(folder_); }
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  absl::Status Run() {
    MP_RETURN_IF_ERROR(MakeFolder(folder_));
    absl::StatusOr<std::unique_ptr<ChildProcess>> child = worker_.TakeChild();
    if (!child.ok()) {
      return GiveBackFailed(options_, context_, job_, std::string(child.status().message()));
    }
    child_ = *std::move(child);
    LOG(INFO) << "attempt " << attempt_ << " of " << job_.metadata.method() << " runs in process " << child_->pid();
    child_->Send(Spec());
    child_->Flush();
    Supervise();
    const ChildExit exit = EndChild();
    worker_.PrepareSpare();  // starts while the outputs are taken over
    return Conclude(exit);
  }

 private:
  // Why the child was killed by us.
  enum class Verdict { kNone, kCancelled, kTimeout, kMemory, kDrained, kLeaseLost, kGarbage };

  RunSpec Spec() const {
    RunSpec spec;
    spec.set_operation(job_.id);
    *spec.mutable_request() = job_.request;
    for (const v1::File& file : job_.metadata.inputs()) {
      RunSpec::Input& input = *spec.add_inputs();
      const absl::StatusOr<FileName> name = ParseFileName(file.name(), "inputs");
      input.set_name(name.ok() ? name->path : file.name());
      input.set_path(context_.blobs.Path(file.sha256()));
      input.set_sha256(file.sha256());
      input.set_size_bytes(file.size_bytes());
    }
    spec.set_output_dir(folder_);
    spec.set_threads(options_.threads_per_operation);
    return spec;
  }

  // Reads what the child says until it ends or a verdict falls.
  void Supervise() {
    // Not at once: a short operation would share the processors with the start of the next one's process.
    absl::Time spare_at = start_ + kSpareDelay;
    absl::Time heartbeat_at = start_ + options_.lease / 3;
    absl::Time memory_at = options_.limits.memory_bytes > 0 ? start_ : absl::InfiniteFuture();
    uint64_t seen = context_.events.generation();
    uint64_t ticket = AwaitChange(seen);
    CheckState();  // a cancel may have come between the claim and here
    while (verdict_ == Verdict::kNone && child_->output_fd() >= 0 && !result_.has_value()) {
      const absl::Time progress_at = progress_new_ ? progress_stored_ + kProgressInterval : absl::InfiniteFuture();
      const absl::Time next = std::min({heartbeat_at, progress_at, memory_at, spare_at, start_ + timeout_, worker_.KillTime()});
      pollfd fds[] = {{child_->output_fd(), POLLIN, 0},
                      {child_->log_fd(), POLLIN, 0},
                      {child_->has_unsent() ? child_->input_fd() : -1, POLLOUT, 0},
                      {worker_.wake_.get(), POLLIN, 0}};
      const absl::Duration rest = std::clamp(next - absl::Now(), absl::ZeroDuration(), absl::Seconds(60));
      poll(fds, std::size(fds), static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(rest, absl::Milliseconds(1)))));
      if (fds[0].revents != 0) {
        ReadEvents();
      }
      if (fds[1].revents != 0) {
        ReadLog();
      }
      if (fds[2].revents != 0) {
        child_->Flush();
      }
      if (fds[3].revents != 0) {
        worker_.WaitForWake(absl::ZeroDuration());
        context_.events.Cancel(ticket);
        seen = context_.events.generation();
        ticket = AwaitChange(seen);
        CheckState();
      }
      const absl::Time now = absl::Now();
      if (now >= heartbeat_at || now >= progress_at) {
        Heartbeat();
        heartbeat_at = now + options_.lease / 3;
      }
      if (now >= spare_at) {
        spare_at = absl::InfiniteFuture();
        worker_.PrepareSpare();
      }
      if (now >= memory_at) {
        memory_at = now + kMemoryCheckInterval;
        if (child_->OverMemoryLimit()) {
          Judge(Verdict::kMemory);
        }
      }
      if (now >= start_ + timeout_) {
        Judge(Verdict::kTimeout);
      }
      if (now >= worker_.KillTime()) {
        Judge(Verdict::kDrained);
      }
    }
    context_.events.Cancel(ticket);
  }

  uint64_t AwaitChange(uint64_t seen) {
    return context_.events.Await(seen, absl::InfiniteDuration(), [this] { worker_.WriteWake(); });
  }

  void Judge(Verdict verdict) {
    if (verdict_ == Verdict::kNone && !result_.has_value()) {
      verdict_ = verdict;
    }
  }

  void ReadEvents() {
    const absl::Status read = child_->ReadEvents([this](const RunEvent& event) {
      if (event.has_progress()) {
        progress_ = event.progress();
        progress_new_ = true;
      } else if (event.has_result()) {
        result_ = event.result();
      }
    });
    if (!read.ok()) {
      LOG(ERROR) << "the child does not keep to the protocol: " << read;
      Judge(Verdict::kGarbage);
    }
  }

  void ReadLog() {
    child_->ReadLog([](absl::string_view line) { LOG(INFO) << "engine: " << line; });
  }

  // Looks at what others did to the job.
  void CheckState() {
    const absl::StatusOr<Job> job = context_.jobs.Get(job_.id);
    if (!job.ok()) {
      LOG_IF(ERROR, ReasonOf(job.status()) != v1::OPERATION_NOT_FOUND) << "cannot look at the operation: " << job.status();
      return;  // the next heartbeat tells
    }
    if (job->metadata.attempt() != attempt_ || job->done() || job->metadata.state() == State::PENDING) {
      Judge(Verdict::kLeaseLost);
    } else if (job->metadata.state() == State::CANCELLING) {
      Judge(Verdict::kCancelled);
    }
  }

  // Extends the lease. A store that fails is tried again at the next beat: the lease tells how long that may go on.
  void Heartbeat() {
    const absl::StatusOr<State::State> state = context_.jobs.Heartbeat(job_.id, attempt_, progress_);
    progress_stored_ = absl::Now();
    if (!state.ok()) {
      LOG(ERROR) << "heartbeat failed: " << state.status();
      if (absl::IsFailedPrecondition(state.status()) || absl::IsNotFound(state.status())) {
        Judge(Verdict::kLeaseLost);
      }
      return;
    }
    if (*state == State::CANCELLING) {
      Judge(Verdict::kCancelled);
    }
    if (std::exchange(progress_new_, false)) {
      context_.events.Notify();
    }
  }

  ChildExit EndChild() {
    if (verdict_ == Verdict::kNone && !result_.has_value()) {
      child_->AwaitEnd(kEndOfDying);  // its output has ended: let it die its own death, which says why
    }
    child_->Kill();
    const ChildExit exit = child_->Reap();
    while (child_->log_fd() >= 0) {  // its last words; the group is dead, so the end of the stream comes
      ReadLog();
    }
    child_.reset();
    context_.metrics.ChildEnded(job_.metadata.method(), exit.peak_rss_bytes);
    const ScopedLogFields peak({{"peak_rss_bytes", absl::StrCat(exit.peak_rss_bytes)}});
    LOG(INFO) << "the child took at most " << (exit.peak_rss_bytes >> 20) << " MiB";
    return exit;
  }

  absl::Status Conclude(const ChildExit& exit) {
    switch (verdict_) {
      case Verdict::kLeaseLost:
        LOG(WARNING) << "attempt " << attempt_ << " was taken from this worker; its work is dropped";
        context_.metrics.ChildDied("lease lost");
        return absl::OkStatus();
      case Verdict::kDrained:
        LOG(INFO) << "the server stops: the operation goes back to the queue";
        context_.metrics.ChildDied("drained");
        context_.metrics.OperationRetried("drained");
        return context_.jobs.Requeue(job_.id, attempt_, /*failed=*/false);
      case Verdict::kCancelled:
        context_.metrics.ChildDied("cancelled");
        return Finish(Failure(State::CANCELLED, MakeError(v1::OPERATION_CANCELLED, "the operation was cancelled on request")));
      case Verdict::kTimeout:
        context_.metrics.ChildDied("timeout");
        return Finish(Failure(
            State::FAILED,
            MakeError(v1::OPERATION_DEADLINE, absl::StrCat("the operation did not end within ", absl::FormatDuration(timeout_),
                                                           "; give a longer execution_timeout"))));
      case Verdict::kMemory:
        return LimitHit("memory limit", absl::StrCat(options_.limits.memory_bytes >> 20, " MiB of memory"));
      case Verdict::kGarbage:
        context_.metrics.ChildDied("protocol error");
        return GiveBackFailed(options_, context_, job_, "an answer that cannot be read");
      case Verdict::kNone:
        break;
    }
    if (result_.has_value()) {
      return Finish(Answer());
    }
    if (exit.signal == SIGXCPU) {
      return LimitHit("cpu limit", absl::StrCat(options_.limits.cpu_seconds, " s of CPU time"));
    }
    if (exit.signal == SIGXFSZ) {
      return LimitHit("file limit", absl::StrCat(options_.limits.file_bytes >> 20, " MiB for one file"));
    }
    if (exit.signal == 0 && exit.code == kExitOutOfMemory) {
      return LimitHit("memory limit", absl::StrCat(options_.limits.memory_bytes >> 20, " MiB of memory"));
    }
    LOG(ERROR) << "attempt " << attempt_ << ": the child died without an answer: " << exit.Cause();
    context_.metrics.ChildDied(exit.Cause());
    if (exit.signal == SIGKILL) {  // from outside: an engine that crashes dies of other signals
      return GiveBackLost(options_, context_, job_, exit.Cause());
    }
    return GiveBackFailed(options_, context_, job_, exit.Cause());
  }

  absl::Status LimitHit(const std::string& cause, const std::string& limit) {
    context_.metrics.ChildDied(cause);
    return Finish(
        Failure(State::FAILED, MakeError(v1::RESOURCE_LIMIT, absl::StrCat("the operation needs more than the server's limit of ",
                                                                          limit, "; ask its operator for more"))));
  }

  // The outcome that the child's answer stands for; the lease is kept while big outputs are hashed.
  Outcome Answer() {
    std::future<absl::StatusOr<Outcome>> future = std::async(std::launch::async, [this] { return Adopt(); });
    while (future.wait_for(absl::ToChronoNanoseconds(options_.lease / 3)) != std::future_status::ready) {
      Heartbeat();
    }
    absl::StatusOr<Outcome> outcome = future.get();
    return outcome.ok() ? *std::move(outcome) : Failure(State::FAILED, outcome.status());
  }

  absl::StatusOr<Outcome> Adopt() {
    Outcome outcome;
    outcome.warnings.assign(result_->warnings().begin(), result_->warnings().end());
    if (!result_->has_response()) {
      outcome.state = State::FAILED;
      outcome.error = result_->has_error()
                          ? result_->error()
                          : ToRpcStatus(MakeError(v1::INTERNAL_ERROR, "the engine gave neither answer nor error"));
      return outcome;
    }
    MP_ASSIGN_OR_RETURN(const std::string workspace, ParseWorkspaceName(job_.metadata.workspace(), "workspace"));
    for (const RunResult::Output& output : result_->outputs()) {
      MP_RETURN_IF_ERROR(CheckPath(output.name(), ""));
      MP_ASSIGN_OR_RETURN(const BlobInfo blob, context_.blobs.Adopt(absl::StrCat(folder_, "/", output.name())));
      outcome.outputs.push_back({.path = output.name(), .sha256 = blob.sha256, .size_bytes = blob.size_bytes});
    }
    MP_ASSIGN_OR_RETURN(outcome.response, NameOutputs(result_->response(), workspace, outcome.outputs));
    outcome.state = State::SUCCEEDED;
    return outcome;
  }

  absl::Status Finish(const Outcome& outcome) {
    MP_ASSIGN_OR_RETURN(const State::State state, context_.jobs.Finish(job_.id, attempt_, outcome));
    context_.metrics.OperationEnded(job_.metadata.method(), state, absl::Now() - start_);
    LOG(INFO) << State::State_Name(state) << " after " << absl::FormatDuration(absl::Now() - start_)
              << (outcome.error.has_value() ? absl::StrCat(": ", outcome.error->message()) : "");
    return absl::OkStatus();
  }

  Worker& worker_;
  const WorkerOptions& options_;
  const WorkerContext& context_;
  const Job& job_;
  const int attempt_;
  const std::string folder_;
  const absl::Time start_;
  const absl::Duration timeout_;
  std::unique_ptr<ChildProcess> child_;
  v1::Progress progress_;
  bool progress_new_ = false;
  absl::Time progress_stored_ = absl::InfinitePast();
  std::optional<RunResult> result_;
  Verdict verdict_ = Verdict::kNone;
};

Worker::Worker(const WorkerOptions& options, const WorkerContext& context)
    : options_(options), context_(context), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Worker::~Worker() { Stop(absl::ZeroDuration()); }

void Worker::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void Worker::StopClaiming() {
  stopping_ = true;
  WriteWake();
}

void Worker::Stop(absl::Duration patience) {
  StopClaiming();
  kill_nanos_ = absl::ToUnixNanos(absl::Now() + patience);
  WriteWake();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void Worker::WriteWake() const {
  const uint64_t one = 1;
  // Fails only when it was written to some 2^64 times already.
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));
}

void Worker::WaitForWake(absl::Duration timeout) {
  pollfd fd = {wake_.get(), POLLIN, 0};
  if (poll(&fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout))) > 0) {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(wake_.get(), &count, sizeof(count));
  }
}

absl::StatusOr<std::unique_ptr<ChildProcess>> Worker::TakeChild() {
  if (spare_ != nullptr && spare_->Alive()) {
    return std::move(spare_);
  }
  spare_.reset();
  return ChildProcess::Start(options_.executable, options_.limits);
}

void Worker::PrepareSpare() {
  if (stopping_ || (spare_ != nullptr && spare_->Alive())) {
    return;
  }
  absl::StatusOr<std::unique_ptr<ChildProcess>> spare = ChildProcess::Start(options_.executable, options_.limits);
  if (!spare.ok()) {
    LOG(ERROR) << "cannot start a spare child: " << spare.status();
    return;
  }
  spare_ = *std::move(spare);
}

void Worker::RunJob(const Job& job) {
  const ScopedLogFields fields({{"operation", job.id}, {"method", job.metadata.method()}, {"project", job.project}});
  const ScopedLogFields trace(TraceFields(FormatTraceparent(ContinueTrace(job.trace_parent))));
  context_.metrics.WorkerBusy(true);
  context_.events.Notify();  // RUNNING now
  if (job.metadata.attempt() == 1) {
    context_.metrics.OperationStarted(job.metadata.method(),
                                      FromProto(job.metadata.start_time()) - FromProto(job.metadata.create_time()));
  }
  const absl::Status status = Attempt(*this, job).Run();
  if (!status.ok()) {
    // The lease runs out and the next attempt does it all again; in the meantime the store may recover.
    LOG(ERROR) << "attempt " << job.metadata.attempt() << " could not be ended: " << status;
    context_.metrics.StoreFailed(ReasonOf(status));
  }
  context_.metrics.WorkerBusy(false);
  context_.events.Notify();
}

void Worker::Loop() {
  PrepareSpare();
  Rescuer rescuer(options_, context_);
  absl::Time rescue_at = absl::InfinitePast();
  while (!stopping_) {
    if (absl::Now() >= rescue_at) {
      if (absl::Status rescued = rescuer.Look(); !rescued.ok()) {
        LOG(ERROR) << "cannot look for lost operations: " << rescued;
      }
      rescue_at = absl::Now() + kRescueInterval;
    }
    const uint64_t seen = context_.events.generation();
    const absl::StatusOr<std::optional<Job>> job = context_.jobs.Claim({.owner = options_.owner});
    if (job.ok() && job->has_value()) {
      RunJob(**job);
      continue;
    }
    if (!job.ok()) {
      LOG(ERROR) << "cannot claim: " << job.status();
      context_.metrics.StoreFailed(ReasonOf(job.status()));
      WaitForWake(kRescueInterval);
      continue;
    }
    PrepareSpare();
    const uint64_t ticket = context_.events.Await(seen, absl::InfiniteDuration(), [this] { WriteWake(); });
    WaitForWake(kRescueInterval);
    context_.events.Cancel(ticket);
  }
  spare_.reset();
}

}  // namespace modelpress::server
