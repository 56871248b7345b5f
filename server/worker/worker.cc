#include "server/worker/worker.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <future>
#include <iterator>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/log/log.h"
#include "server/log/trace.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"
#include "server/rpc/status.h"
#include "server/sandbox/untrusted_folder.h"
#include "server/worker/lease_keeper.h"
#include "server/worker/request.h"
#include "server/worker/scratch.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

constexpr absl::Duration kMemoryCheckInterval = absl::Milliseconds(50);
constexpr absl::Duration kDiskCheckInterval = absl::Milliseconds(500);
constexpr uint64_t kMaxScratchEntries = 200'000;
constexpr absl::Duration kSpareDelay = absl::Seconds(1);
constexpr absl::Duration kEndOfDying = absl::Seconds(2);
// Between looks for work where nothing tells of any: memory or disk may have become free.
constexpr absl::Duration kIdleInterval = absl::Seconds(1);
// However long there is nothing to do: poll(2) has a clock of its own, which stands still while the machine sleeps.
constexpr absl::Duration kMaxPoll = absl::Seconds(1);
constexpr absl::Duration kFirstRetry = absl::Milliseconds(100);
constexpr absl::Duration kLastRetry = absl::Seconds(5);

}  // namespace

// One attempt at one job, from the claim to its end in the store.
class Worker::Attempt {
 public:
  Attempt(Worker& worker, const Job& job)
      : worker_(worker),
        options_(worker.options_),
        context_(worker.context_),
        job_(job),
        attempt_(job.metadata.attempt()),
        folder_(AttemptFolder(options_.scratch_folder, job.id, attempt_)),
        checkpoints_(CheckpointFolder(options_.scratch_folder, job.id)),
        start_(context_.clock.Elapsed()),
        timeout_(std::min(options_.max_execution, ExecutionTimeout(job.request))),
        oom_kills_(context_.admission.OutOfMemoryKills()),
        keeper_(context_.jobs, context_.events, context_.clock, job, options_.lease, options_.store_patience,
                [&worker] { worker.WriteWake(); }) {}
  ~Attempt() {
    adoption_stop_.request_stop();
    if (adoption_.valid()) {
      adoption_.wait();  // it uses the folder
    }
    RemoveTree(folder_);
    context_.admission.Ended(job_);
  }
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  // False if the machine is to blame that there is no answer: the next attempt should not come at once.
  bool Run() {
    const std::optional<Ending> ending = Work();
    if (ending.has_value()) {
      if (machine_failed_ && !ending->outcome.has_value()) {
        HoldBack();
      }
      Store(*ending);
    }
    return !machine_failed_;
  }

 private:
  // Why the attempt was stopped by us.
  enum class Verdict { kNone, kCancelled, kTimeout, kMemory, kThreads, kDisk, kDiskFull, kDrained, kLeaseLost, kGarbage };

  // Everything up to the end; nullopt if it is another's to say.
  std::optional<Ending> Work() {
    for (const std::string& folder : {folder_, checkpoints_}) {
      absl::Status made = MakeFolder(folder);
      if (made.ok()) {
        made = GrantFolder(folder, options_.isolation);
      }
      if (!made.ok()) {
        return Failed(made);
      }
    }
    absl::StatusOr<std::unique_ptr<ChildProcess>> child = worker_.TakeChild();
    if (!child.ok()) {
      return Failed(child.status());
    }
    child_ = *std::move(child);
    context_.admission.RunsIn(job_, child_->pid());
    LOG(INFO) << "attempt " << attempt_ << " of " << job_.metadata.method() << " runs in process " << child_->pid();
    child_->Send(Spec());
    child_->Flush();
    Supervise([this] { return child_->output_fd() < 0 || result_.has_value(); });
    const ChildExit exit = EndChild();
    if (TakesTooMuch(folder_)) {
      Judge(Verdict::kDisk);  // whatever it answered
    }
    worker_.PrepareSpare();  // starts while the outputs are taken over
    if (verdict_ == Verdict::kNone && result_.has_value()) {
      adoption_ = std::async(std::launch::async, [this] {
        absl::StatusOr<Outcome> outcome = Adopt();
        adopted_ = true;
        worker_.WriteWake();
        return outcome;
      });
      Supervise([this] { return adopted_.load(); });
    }
    return Conclude(exit);
  }

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
    spec.set_checkpoint_dir(checkpoints_);
    *spec.mutable_isolation() = SpecOf(options_.isolation);
    return spec;
  }

  // Waits until `done`, or a verdict falls. Reads what the child says meanwhile, if there is one.
  void Supervise(const std::function<bool()>& done) {
    // Not at once: a short operation would share the processors with the start of the next one's process.
    absl::Duration spare_at = start_ + kSpareDelay;
    absl::Duration disk_at = context_.clock.Elapsed();
    absl::Duration memory_at = child_ != nullptr ? start_ : absl::InfiniteDuration();
    while (true) {
      if (done()) {
        return;
      }
      const absl::Duration now = context_.clock.Elapsed();
      if (now >= disk_at) {
        disk_at = now + kDiskCheckInterval;
        if (context_.admission.OutOfDisk()) {
          Judge(Verdict::kDiskFull);
        }
        if (child_ != nullptr && (TakesTooMuch(folder_) || TakesTooMuch(checkpoints_))) {
          Judge(Verdict::kDisk);
        }
      }
      if (now >= memory_at) {
        memory_at = now + kMemoryCheckInterval;
        if (child_->OverMemoryLimit()) {
          Judge(Verdict::kMemory);
        }
        if (child_->OverThreadLimit()) {
          Judge(Verdict::kThreads);
        }
      }
      if (now >= start_ + timeout_) {
        Judge(Verdict::kTimeout);
      }
      if (now >= worker_.KillTime()) {
        Judge(Verdict::kDrained);
      }
      switch (keeper_.finding()) {
        case LeaseKeeper::Finding::kHeld:
          break;
        case LeaseKeeper::Finding::kCancelling:
          Judge(Verdict::kCancelled);
          break;
        case LeaseKeeper::Finding::kLost:
          Judge(Verdict::kLeaseLost);
          break;
      }
      if (verdict_ != Verdict::kNone) {
        return;
      }
      if (now >= spare_at) {
        spare_at = absl::InfiniteDuration();
        worker_.PrepareSpare();
      }
      const absl::Duration next = std::min({disk_at, memory_at, spare_at, start_ + timeout_, worker_.KillTime()});
      Poll(std::clamp(next - now, absl::ZeroDuration(), kMaxPoll));
    }
  }

  void Poll(absl::Duration timeout) {
    pollfd fds[] = {{worker_.wake_.get(), POLLIN, 0},
                    {child_ != nullptr ? child_->output_fd() : -1, POLLIN, 0},
                    {child_ != nullptr ? child_->log_fd() : -1, POLLIN, 0},
                    {child_ != nullptr && child_->has_unsent() ? child_->input_fd() : -1, POLLOUT, 0}};
    poll(fds, std::size(fds), static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(timeout, absl::Milliseconds(1)))));
    if (fds[0].revents != 0) {
      worker_.WaitForWake(absl::ZeroDuration());
    }
    if (fds[1].revents != 0) {
      ReadEvents();
    }
    if (fds[2].revents != 0) {
      ReadLog();
    }
    if (fds[3].revents != 0) {
      child_->Flush();
    }
  }

  bool TakesTooMuch(const std::string& folder) const {
    const uint64_t limit = options_.limits.disk_bytes;
    return TakesMoreThan(folder, limit > 0 ? limit : UINT64_MAX, kMaxScratchEntries);
  }

  // The first verdict counts.
  void Judge(Verdict verdict) {
    if (verdict_ == Verdict::kNone) {
      verdict_ = verdict;
    }
  }

  void ReadEvents() {
    const absl::Status read = child_->ReadEvents([this](const RunEvent& event) {
      if (event.has_progress()) {
        keeper_.Report(event.progress());
      } else if (event.has_result()) {
        result_ = event.result();
      } else if (event.has_isolation() && !std::exchange(isolation_told_, true)) {  // before it saw any input: the truth
        ReportIsolation(event.isolation(), context_.metrics);
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

  std::optional<Ending> Conclude(const ChildExit& exit) {
    switch (verdict_) {
      case Verdict::kLeaseLost:
        LOG(WARNING) << "attempt " << attempt_ << " was taken from this worker; its work is dropped";
        context_.metrics.ChildDied("lease lost");
        return std::nullopt;
      case Verdict::kDrained:
        LOG(INFO) << "the server stops: the operation goes back to the queue";
        context_.metrics.ChildDied("drained");
        return Ending();
      case Verdict::kCancelled:
        context_.metrics.ChildDied("cancelled");
        return Final(Failure(State::CANCELLED, MakeError(v1::OPERATION_CANCELLED, "the operation was cancelled on request")));
      case Verdict::kTimeout:
        context_.metrics.ChildDied("timeout");
        return Final(Failure(
            State::FAILED,
            MakeError(v1::OPERATION_DEADLINE, absl::StrCat("the operation did not end within ", absl::FormatDuration(timeout_),
                                                           "; give a longer execution_timeout"))));
      case Verdict::kMemory:
        return LimitHit("memory limit", absl::StrCat(options_.limits.memory_bytes >> 20, " MiB of memory"));
      case Verdict::kThreads:
        return LimitHit("thread limit", absl::StrCat(kMaxThreads, " threads"));
      case Verdict::kDisk:
        return LimitHit("disk limit", options_.limits.disk_bytes > 0
                                          ? absl::StrCat(options_.limits.disk_bytes >> 20, " MiB of disk for its outputs")
                                          : absl::StrCat(kMaxScratchEntries, " output files"));
      case Verdict::kDiskFull:
        context_.metrics.ChildDied("disk full");
        return Failed(MakeError(v1::STORAGE_FULL, "the server's disk is almost full; free space there and try again"));
      case Verdict::kGarbage:
        context_.metrics.ChildDied("protocol error");
        return AfterFailure(options_.retries, job_, Crashed(job_.failures + 1, "an answer that cannot be read"));
      case Verdict::kNone:
        break;
    }
    if (adoption_.valid()) {
      absl::StatusOr<Outcome> outcome = adoption_.get();
      return outcome.ok() ? Answer(*std::move(outcome)) : Failed(outcome.status());
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
    if (exit.signal == SIGSYS) {  // not tried again: no engine does that by itself, whoever made it do it has had one chance
      return Final(Failure(State::FAILED,
                           MakeError(v1::ENGINE_CRASHED,
                                     "the engine was stopped at a system call that it must not make (SIGSYS): either the input "
                                     "attacks the server, or it is an error of the server's; please report it with the input")));
    }
    if (exit.signal == SIGKILL && context_.admission.OutOfMemoryKills() != oom_kills_) {
      machine_failed_ = true;  // there may be more memory in a while
      return AfterFailure(
          options_.retries, job_,
          Failure(State::FAILED,
                  MakeError(v1::RESOURCE_LIMIT,
                            absl::StrCat("the server's memory does not suffice for the operation: the kernel stopped it "
                                         "when it had ",
                                         exit.peak_rss_bytes >> 20, " MiB; ask the server's operator for more"))));
    }
    if (exit.signal == SIGKILL) {  // from outside: an engine that crashes dies of other signals
      return AfterLoss(options_.retries, attempt_, Crashed(attempt_, exit.Cause()));
    }
    return AfterFailure(options_.retries, job_, Crashed(job_.failures + 1, exit.Cause()));
  }

  static Ending Final(Outcome outcome) { return {.outcome = std::move(outcome)}; }

  Ending LimitHit(const std::string& cause, const std::string& limit) {
    context_.metrics.ChildDied(cause);
    return Final(
        Failure(State::FAILED, MakeError(v1::RESOURCE_LIMIT, absl::StrCat("the operation needs more than the server's limit of ",
                                                                          limit, "; ask its operator for more"))));
  }

  // `error` is ours, not the engine's.
  Ending Failed(const absl::Status& error) {
    LOG(ERROR) << "attempt " << attempt_ << ": " << error;
    machine_failed_ = IsInfrastructureError(error);
    return AfterError(options_.retries, job_, error);
  }

  // Keeps the operation for a while before it goes back to the queue: whoever is next would meet the same disk.
  void HoldBack() {
    RemoveTree(folder_);  // it may be what fills the disk
    const absl::Duration end = context_.clock.Elapsed() + PauseAfter(options_.retries, job_);
    while (!worker_.stopping_ && keeper_.finding() == LeaseKeeper::Finding::kHeld) {
      const absl::Duration left = end - context_.clock.Elapsed();
      if (left <= absl::ZeroDuration()) {
        return;
      }
      Poll(std::min(left, kMaxPoll));
    }
  }

  // The engine's answer, its outputs adopted.
  Ending Answer(Outcome outcome) {
    if (outcome.error.has_value()) {
      if (const absl::Status error = FromRpcStatus(*outcome.error); IsInfrastructureError(error)) {
        return Failed(error);
      }
    }
    return Final(std::move(outcome));
  }

  absl::StatusOr<Outcome> Adopt() {
    Outcome outcome;
    outcome.warnings.assign(result_->warnings().begin(), result_->warnings().end());
    outcome.report = result_->report();
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
      MP_ASSIGN_OR_RETURN(const BlobInfo blob, context_.blobs.Adopt(folder_, output.name(), adoption_stop_.get_token()));
      outcome.outputs.push_back({.path = output.name(), .sha256 = blob.sha256, .size_bytes = blob.size_bytes});
    }
    MP_ASSIGN_OR_RETURN(outcome.response, NameOutputs(result_->response(), workspace, outcome.outputs));
    outcome.state = State::SUCCEEDED;
    return outcome;
  }

  // Stores the end. While the store fails it is tried again: the lease may still be this attempt's, and if it is not, the store
  // will say so.
  void Store(Ending ending) {
    Backoff backoff(kFirstRetry, kLastRetry);
    const absl::Duration since = context_.clock.Elapsed();
    bool told = false;
    while (true) {
      const absl::StatusOr<State::State> state = Apply(context_.jobs, job_, ending);
      if (state.ok()) {
        return Ended(*state, ending);
      }
      if (absl::IsFailedPrecondition(state.status()) || absl::IsNotFound(state.status())) {
        return LookHowItEnded(ending);
      }
      context_.metrics.StoreFailed(ReasonOf(state.status()));
      if (!IsStoreTrouble(state.status())) {
        LOG(ERROR) << "attempt " << attempt_ << " cannot end so: " << state.status();
        if (!ending.outcome.has_value() || ending.outcome->state == State::FAILED) {
          return;  // the lease runs out and the next attempt does it all again
        }
        ending = Final(Failure(State::FAILED, state.status()));
        continue;
      }
      const absl::Duration now = context_.clock.Elapsed();
      if (now - since > options_.store_patience || now >= worker_.KillTime()) {
        LOG(ERROR) << "attempt " << attempt_ << " could not be ended, its work is dropped: " << state.status();
        return;
      }
      LOG_IF(ERROR, !std::exchange(told, true))
          << "the end of attempt " << attempt_ << " cannot be stored at the moment: " << state.status();
      worker_.WaitForWake(std::clamp(worker_.KillTime() - now, absl::ZeroDuration(), backoff.Next()));
      if (!KeepOutputs(ending)) {
        ending =
            AfterLoss(options_.retries, attempt_, Failure(State::FAILED, MakeError(v1::STORAGE_ERROR, "an output was lost")));
      }
    }
  }

  // Outputs wait for their file names: so that they count as new where links do not protect them. False if one is gone.
  bool KeepOutputs(const Ending& ending) {
    return !ending.outcome.has_value() || std::ranges::all_of(ending.outcome->outputs, [this](const OutputFile& output) {
      const absl::StatusOr<bool> kept = context_.blobs.Keep({output.sha256, output.size_bytes});
      return !kept.ok() || *kept;  // where the disk cannot tell, the store will not work either
    });
  }

  // The job is not this attempt's any more: either another's, or its end was stored though we were told otherwise.
  void LookHowItEnded(const Ending& ending) {
    const absl::StatusOr<Job> job = context_.jobs.Get(job_.id);
    if (job.ok() && job->done() && job->metadata.attempt() == attempt_ && ending.outcome.has_value() &&
        job->metadata.state() == ending.outcome->state) {
      return Ended(job->metadata.state(), ending);
    }
    LOG(WARNING) << "attempt " << attempt_ << " was taken from this worker; its work is dropped";
  }

  void Ended(State::State state, const Ending& ending) {
    if (!IsFinal(state)) {
      context_.metrics.OperationRetried(ending.failed ? "failure" : verdict_ == Verdict::kDrained ? "drained" : "lost");
      return;
    }
    RemoveTree(checkpoints_);
    const absl::Duration duration = context_.clock.Elapsed() - start_;
    context_.metrics.OperationEnded(job_.metadata.method(), state, duration);
    LOG(INFO) << State::State_Name(state) << " after " << absl::FormatDuration(duration)
              << (ending.outcome->error.has_value() ? absl::StrCat(": ", ending.outcome->error->message()) : "");
  }

  Worker& worker_;
  const WorkerOptions& options_;
  const WorkerContext& context_;
  const Job& job_;
  const int attempt_;
  const std::string folder_;
  const std::string checkpoints_;
  const absl::Duration start_;
  const absl::Duration timeout_;
  const uint64_t oom_kills_;  // before it
  LeaseKeeper keeper_;
  std::unique_ptr<ChildProcess> child_;
  std::optional<RunResult> result_;
  Verdict verdict_ = Verdict::kNone;
  bool isolation_told_ = false;
  bool machine_failed_ = false;
  std::stop_source adoption_stop_;
  std::atomic<bool> adopted_ = false;
  std::future<absl::StatusOr<Outcome>> adoption_;
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
  kill_nanos_ = absl::ToInt64Nanoseconds(context_.clock.Elapsed() + patience);
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
  if (poll(&fd, 1, static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(timeout, absl::Milliseconds(1))))) > 0) {
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

bool Worker::RunJob(const Job& job) {
  const ScopedLogFields fields({{"operation", job.id}, {"method", job.metadata.method()}, {"project", job.project}});
  const ScopedLogFields trace(TraceFields(FormatTraceparent(ContinueTrace(job.trace_parent))));
  context_.metrics.WorkerBusy(true);
  context_.events.Notify();  // RUNNING now
  if (job.metadata.attempt() == 1) {
    context_.metrics.OperationStarted(job.metadata.method(),
                                      FromProto(job.metadata.start_time()) - FromProto(job.metadata.create_time()));
  }
  bool fine = false;
  try {
    fine = Attempt(*this, job).Run();
  } catch (const std::system_error& error) {  // no thread is to be had; without its beats the operation goes back to the queue
    LOG(ERROR) << "attempt " << job.metadata.attempt() << " cannot go on: " << error.what();
    context_.admission.Ended(job);
  }
  context_.metrics.WorkerBusy(false);
  context_.events.Notify();
  return fine;
}

void Worker::Loop() {
  PrepareSpare();
  Backoff backoff(kFirstRetry, kLastRetry);
  bool failing = false;  // claims, so far as was logged
  while (!stopping_) {
    const uint64_t seen = context_.events.generation();
    const absl::StatusOr<std::optional<Job>> job = context_.admission.Claim(context_.jobs, options_.owner);
    if (!job.ok()) {
      LOG_IF(ERROR, !failing) << "cannot claim operations at the moment: " << job.status();
      context_.metrics.StoreFailed(ReasonOf(job.status()));
      failing = true;
      Pause(backoff.Next());
      continue;
    }
    LOG_IF(INFO, failing) << "operations can be claimed again";
    failing = false;
    if (job->has_value()) {
      if (RunJob(**job)) {
        backoff.Reset();
      } else {
        Pause(backoff.Next());
      }
      continue;
    }
    backoff.Reset();
    PrepareSpare();
    const uint64_t ticket = context_.events.Await(seen, absl::InfiniteDuration(), [this] { WriteWake(); });
    WaitForWake(kIdleInterval);
    context_.events.Cancel(ticket);
  }
  spare_.reset();
}

void Worker::Pause(absl::Duration pause) {
  const absl::Duration end = SteadyNow() + pause;
  for (absl::Duration rest = pause; !stopping_ && rest > absl::ZeroDuration(); rest = end - SteadyNow()) {
    WaitForWake(rest);
  }
}

}  // namespace modelpress::server
