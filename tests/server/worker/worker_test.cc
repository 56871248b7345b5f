#include "server/worker/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "server/worker/isolation.h"
#include "server/worker/owner.h"
#include "server/worker/run_protocol.h"
#include "server/worker/scratch.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// Processes `modelpressd run` whose parent is `parent`.
std::set<pid_t> Children(pid_t parent) {
  std::set<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid)) {
      continue;
    }
    const std::string stat = ReadFile(entry.path() / "stat");
    std::istringstream fields(stat.substr(std::min(stat.size(), stat.rfind(')') + 1)));
    std::string state;
    pid_t its_parent = 0;
    fields >> state >> its_parent;
    if (its_parent == parent && state != "Z" && ReadFile(entry.path() / "cmdline").ends_with(std::string("\0run\0", 5))) {
      children.insert(pid);
    }
  }
  return children;
}

// Stops the only child of `parent`, which must come up soon: whoever is given an operation next holds it until it is killed.
pid_t StopSpare(pid_t parent) {
  std::set<pid_t> children;
  while ((children = Children(parent)).empty()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(children.size(), 1);
  const pid_t child = *children.begin();
  // Initialised and waiting for its spec: it reads stdin. Stopped earlier it might not yet be bound to its worker's life.
  const std::string reads_stdin = absl::StrCat(SYS_read, " 0x0 ");
  while (!ReadFile(absl::StrCat("/proc/", child, "/syscall")).starts_with(reads_stdin)) {
    std::this_thread::yield();
  }
  EXPECT_EQ(kill(child, SIGSTOP), 0);
  return child;
}

bool IsAlive(pid_t pid) {
  const std::string stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  return !stat.empty() && stat.find(") Z ") == std::string::npos;
}

class WorkerTest : public DaemonFixture {
 protected:
  void StartWithWorker(const DaemonOptions& options) {
    Start(options);
    MakeWorkspace("w");
    const char* source = std::getenv("MODELPRESS_SOURCE_DIR");
    ASSERT_NE(source, nullptr);
    const std::string golden = absl::StrCat(source, "/tests/golden/save/conv2d_bn_relu_linear/");
    PutFile("workspaces/w/files/model/m.onnx", ReadFile(golden + "modified.onnx"));
    PutFile("workspaces/w/files/record/r.txt", ReadFile(golden + "record.txt"));
  }
  DaemonOptions OneWorker() const {
    DaemonOptions options = Options();
    options.workers = 1;
    return options;
  }
  std::string Submit(const std::string& model = "model/m.onnx", absl::Duration timeout = absl::ZeroDuration()) {
    v1::SaveModelRequest request;
    request.set_workspace("workspaces/w");
    request.set_modified_onnx_file(model);
    request.set_record_file("record/r.txt");
    request.set_save_path("results/x");
    request.mutable_options()->set_no_cache(true);
    if (timeout > absl::ZeroDuration()) {
      request.mutable_options()->mutable_execution_timeout()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(timeout)));
    }
    grpc::ClientContext context;
    google::longrunning::Operation operation;
    const grpc::Status status = compression_->SaveModel(&context, request, &operation);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return operation.name();
  }
  void WaitUntilRunning(const std::string& name) {
    google::longrunning::GetOperationRequest request;
    request.set_name(name);
    google::longrunning::Operation operation;
    do {
      grpc::ClientContext context;
      ASSERT_TRUE(operations_->GetOperation(&context, request, &operation).ok());
      ASSERT_FALSE(operation.done());
    } while (MetadataOf(operation).state() != v1::OperationMetadata::RUNNING);
  }
  void ExpectSucceeded(const std::string& name, int attempt) {
    const google::longrunning::Operation operation = Wait(name, 60);
    ASSERT_TRUE(operation.done());
    const v1::OperationMetadata metadata = MetadataOf(operation);
    EXPECT_EQ(metadata.state(), v1::OperationMetadata::SUCCEEDED) << operation.error().ShortDebugString();
    EXPECT_EQ(metadata.attempt(), attempt);
    v1::SaveModelResponse response;
    ASSERT_TRUE(operation.response().UnpackTo(&response));
    EXPECT_EQ(response.deploy_model().name(), "workspaces/w/files/results/x_deploy_model.onnx");
    EXPECT_EQ(response.report().name(), "workspaces/w/files/results/x_report.json");
    v1::DownloadFileRequest download;
    download.set_name(response.fake_quant_model().name());
    download.set_sha256(response.fake_quant_model().sha256());
    std::string content;
    ASSERT_TRUE(Download(download, &content).ok());
    EXPECT_EQ(content.size(), response.fake_quant_model().size_bytes());
    EXPECT_EQ(Sha256Hex(content), response.fake_quant_model().sha256());
    EXPECT_EQ(metadata.outputs_size(), 3 + response.external_data_size());
  }
  void ExpectFailed(const std::string& name, const std::string& reason, int attempt) {
    const google::longrunning::Operation operation = Wait(name, 60);
    ASSERT_TRUE(operation.done());
    EXPECT_EQ(ReasonOf(operation.error()), reason) << operation.error().ShortDebugString();
    EXPECT_EQ(MetadataOf(operation).attempt(), attempt);
  }
  // Has the worker run `script` in the place of the engine. It gets the spec on stdin, and the attempt's folder as $1.
  void UseEngine(DaemonOptions& options, const std::string& script) {
    options.worker.executable = absl::StrCat(folder_, "/engine");
    std::ofstream(options.worker.executable)
        << "#!/bin/sh\nhead -c 1 > /dev/null\nset -- " << options.data_folder << "/scratch/*-*\n"
        << script << "\ncat > /dev/null\n";
    std::filesystem::permissions(options.worker.executable, std::filesystem::perms::owner_all);
  }
  bool ScratchHasAttempts() const {
    return std::ranges::any_of(std::filesystem::directory_iterator(folder_ + "/data/scratch"), [](const auto& entry) {
      return !OperationOfCheckpointFolder(entry.path().filename().string()).has_value();
    });
  }
  bool ScratchIsEmpty() const { return std::filesystem::is_empty(folder_ + "/data/scratch"); }
};

TEST_F(WorkerTest, RunsAnOperation) {
  StartWithWorker(OneWorker());
  ExpectSucceeded(Submit(), 1);
  ExpectSucceeded(Submit(), 1);
  Stop();
  EXPECT_TRUE(ScratchIsEmpty());
}

TEST_F(WorkerTest, BadInputFailsOnceAndForAll) {
  StartWithWorker(OneWorker());
  PutFile("workspaces/w/files/bad/m.onnx", "no model");
  ExpectFailed(Submit("bad/m.onnx"), "MODEL_UNREADABLE", 1);
}

TEST_F(WorkerTest, KilledChildIsReplaced) {
  StartWithWorker(OneWorker());
  const pid_t child = StopSpare(getpid());
  const std::string name = Submit();
  // The next spare shows that this one was given the operation; RUNNING is told before, and a dead spare would not be given any.
  while (Children(getpid()).size() < 2) {
    std::this_thread::yield();
  }
  kill(child, SIGKILL);
  ExpectSucceeded(name, 2);
}

TEST_F(WorkerTest, ChildThatAlwaysDiesFailsAfterThreeAttempts) {
  DaemonOptions options = OneWorker();
  options.worker.executable = "/bin/false";
  StartWithWorker(options);
  const std::string name = Submit();
  ExpectFailed(name, "ENGINE_CRASHED", 3);
}

TEST_F(WorkerTest, AProcessThatCannotStartIsTheMachinesFailure) {
  DaemonOptions options = OneWorker();
  const std::string program = options.worker.executable;
  options.worker.executable = absl::StrCat(folder_, "/engine");  // not there yet, as if there were no descriptor left
  options.worker.retries.first_pause = absl::Milliseconds(1);
  StartWithWorker(options);
  const std::string name = Submit();
  ExpectFailed(name, "ENGINE_CRASHED", 5);  // as a disk that fails: with pauses
  std::filesystem::create_symlink(program, options.worker.executable);
  ExpectSucceeded(Submit(), 1);
}

TEST_F(WorkerTest, TheEngineGetsNoSecrets) {
  ASSERT_EQ(setenv("PGPASSWORD", "secret-of-the-database", 1), 0);
  DaemonOptions options = OneWorker();
  UseEngine(options, absl::StrCat("env > ", folder_, "/environment; exit 1"));
  StartWithWorker(options);
  ExpectFailed(Submit(), "ENGINE_CRASHED", 3);
  ASSERT_EQ(unsetenv("PGPASSWORD"), 0);
  std::ifstream file(folder_ + "/environment");
  const std::string environment((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_THAT(environment, testing::HasSubstr("PATH="));
  EXPECT_THAT(environment, testing::Not(testing::HasSubstr("secret")));
}

TEST_F(WorkerTest, TheKernelWouldStopTheEngineBeforeTheServer) {
  StartWithWorker(OneWorker());
  EXPECT_EQ(ReadFile(absl::StrCat("/proc/", StopSpare(getpid()), "/oom_score_adj")), "1000\n");
}

TEST_F(WorkerTest, CancelKillsTheChild) {
  StartWithWorker(OneWorker());
  const pid_t child = StopSpare(getpid());
  const std::string name = Submit();
  WaitUntilRunning(name);
  grpc::ClientContext context;
  google::longrunning::CancelOperationRequest request;
  request.set_name(name);
  google::protobuf::Empty empty;
  const absl::Time begin = absl::Now();
  ASSERT_TRUE(operations_->CancelOperation(&context, request, &empty).ok());
  ExpectFailed(name, "OPERATION_CANCELLED", 1);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
  EXPECT_FALSE(Children(getpid()).contains(child));
  ExpectSucceeded(Submit(), 1);
}

TEST_F(WorkerTest, TimeoutKillsTheChild) {
  StartWithWorker(OneWorker());
  StopSpare(getpid());
  ExpectFailed(Submit("model/m.onnx", absl::Milliseconds(100)), "OPERATION_DEADLINE", 1);
}

TEST_F(WorkerTest, MemoryLimitIsTold) {
  DaemonOptions options = OneWorker();
  options.worker.limits.memory_bytes = 128 << 20;
  options.worker.executable = absl::StrCat(folder_, "/hog");
  // Shared memory, which RLIMIT_DATA does not count.
  std::ofstream(options.worker.executable) << "#!/usr/bin/python3\nimport mmap, sys\nm = mmap.mmap(-1, 1 << 28)\n"
                                              "for i in range(0, 1 << 28, 4096): m[i] = 1\nsys.stdin.read()\n";
  std::filesystem::permissions(options.worker.executable, std::filesystem::perms::owner_all);
  StartWithWorker(options);
  ExpectFailed(Submit(), "RESOURCE_LIMIT", 1);
}

TEST_F(WorkerTest, CpuLimitIsTold) {
  DaemonOptions options = OneWorker();
  options.worker.limits.cpu_seconds = 1;
  options.worker.executable = absl::StrCat(folder_, "/spinner");
  std::ofstream(options.worker.executable) << "#!/bin/sh\nwhile :; do :; done\n";
  std::filesystem::permissions(options.worker.executable, std::filesystem::perms::owner_all);
  StartWithWorker(options);
  ExpectFailed(Submit(), "RESOURCE_LIMIT", 1);
}

TEST_F(WorkerTest, DiskLimitIsTold) {
  DaemonOptions options = OneWorker();
  options.worker.limits.disk_bytes = 16 << 20;
  UseEngine(options, "dd if=/dev/zero of=$1/big bs=1M count=32 2> /dev/null");
  StartWithWorker(options);
  ExpectFailed(Submit(), "RESOURCE_LIMIT", 1);
  Stop();
  EXPECT_TRUE(ScratchIsEmpty());
}

TEST_F(WorkerTest, AForbiddenSystemCallIsToldAndNotTriedAgain) {
  DaemonOptions options = OneWorker();
  UseEngine(options, "kill -SYS $$");
  StartWithWorker(options);
  const std::string name = Submit();
  ExpectFailed(name, "ENGINE_CRASHED", 1);
  EXPECT_NE(Wait(name, 0).error().message().find("SIGSYS"), std::string::npos);
}

TEST_F(WorkerTest, OutputsBehindALinkAreNotTaken) {
  RunEvent answer;
  answer.mutable_result()->add_outputs()->set_name("results/secret");
  v1::SaveModelResponse response;
  response.mutable_report()->set_name("results/secret");
  answer.mutable_result()->mutable_response()->PackFrom(response);
  std::ofstream(folder_ + "/answer", std::ios::binary) << Frame(answer);
  std::ofstream(folder_ + "/secret") << "secret";
  DaemonOptions options = OneWorker();
  options.worker.retries.max_disk_failures = 1;
  UseEngine(options, absl::StrCat("ln -s ", folder_, " $1/results\ncat ", folder_, "/answer"));
  StartWithWorker(options);
  ExpectFailed(Submit(), "STORAGE_ERROR", 1);
  EXPECT_EQ(ReadFile(folder_ + "/secret"), "secret");
}

TEST_F(WorkerTest, RunsAnOperationInFullIsolation) {
  const absl::StatusOr<std::optional<SandboxUser>> user = ResolveChildUser("");
  ASSERT_TRUE(user.ok());
  if (LacksMechanism(AvailableMechanisms(*user))) {
    GTEST_SKIP() << "not to be had here";
  }
  DaemonOptions options = OneWorker();
  options.worker.isolation = {.mode = IsolationMode::kRequire, .user = *user};
  StartWithWorker(options);
  ExpectSucceeded(Submit(), 1);
  PutFile("workspaces/w/files/bad/m.onnx", "no model");
  ExpectFailed(Submit("bad/m.onnx"), "MODEL_UNREADABLE", 1);
  Stop();
  EXPECT_TRUE(ScratchIsEmpty());
  for (const auto& blob : std::filesystem::recursive_directory_iterator(options.data_folder + "/blobs")) {
    struct stat info = {};
    ASSERT_EQ(stat(blob.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_uid, geteuid()) << blob.path();  // none stays with the child's user
  }
}

TEST_F(WorkerTest, StartsOnlyIsolatedWhereThatIsRequired) {
  DaemonOptions options = OneWorker();
  options.worker.isolation.mode = IsolationMode::kRequire;
  options.worker.executable = "/bin/false";
  EXPECT_FALSE(Daemon::Start(options).ok());
}

TEST_F(WorkerTest, DrainGivesTheOperationBack) {
  DaemonOptions options = OneWorker();
  options.drain_timeout = absl::Milliseconds(200);
  options.worker.retries.max_failures = 1;  // a drain is no failure
  StartWithWorker(options);
  StopSpare(getpid());
  const std::string name = Submit();
  WaitUntilRunning(name);
  Stop();
  EXPECT_FALSE(ScratchHasAttempts());  // checkpoints stay for the next one
  Start(options);
  ExpectSucceeded(name, 2);
  Stop();
  EXPECT_TRUE(ScratchIsEmpty());
}

TEST_F(WorkerTest, DrainLetsTheChildEnd) {
  DaemonOptions options = OneWorker();
  options.drain_timeout = absl::Seconds(60);
  StartWithWorker(options);
  const pid_t child = StopSpare(getpid());
  const std::string name = Submit();
  WaitUntilRunning(name);
  std::thread stopper([this] { Stop(); });
  kill(child, SIGCONT);
  stopper.join();
  options.workers = 0;
  Start(options);
  ExpectSucceeded(name, 1);
}

TEST_F(WorkerTest, WorkOfAKilledWorkerGoesOnAtOnce) {
  DaemonOptions options = Options();
  StartWithWorker(options);
  std::string program = options.worker.executable;
  std::string data = absl::StrCat("--data_dir=", options.data_folder);
  std::string lease = "--lease_s=3600";
  std::string metrics = "--metrics_listen=";
  std::string role = "work";
  char* arguments[] = {program.data(), role.data(), data.data(), lease.data(), metrics.data(), nullptr};
  pid_t worker = 0;
  ASSERT_EQ(posix_spawn(&worker, program.c_str(), nullptr, nullptr, arguments, environ), 0);
  const pid_t child = StopSpare(worker);
  const std::string name = Submit();
  WaitUntilRunning(name);
  kill(worker, SIGKILL);
  waitpid(worker, nullptr, 0);
  while (IsAlive(child)) {
    std::this_thread::yield();  // the kernel kills it with its worker
  }
  Stop();
  options.workers = 1;
  Start(options);
  ExpectSucceeded(name, 2);
  Stop();
  EXPECT_TRUE(ScratchIsEmpty());
}

// Lease fencing between processes: whoever was stopped for longer than its lease finds its work taken, and drops it.
TEST_F(WorkerTest, AWorkerThatWasStoppedBeyondItsLeaseDropsItsWork) {
  DaemonOptions options = Options();
  options.worker.lease = absl::Seconds(1);
  StartWithWorker(options);
  std::string program = options.worker.executable;
  std::string data = absl::StrCat("--data_dir=", options.data_folder);
  std::string lease = "--lease_s=1";
  std::string metrics = "--metrics_listen=";
  std::string role = "work";
  char* arguments[] = {program.data(), role.data(), data.data(), lease.data(), metrics.data(), nullptr};
  pid_t worker = 0;
  ASSERT_EQ(posix_spawn(&worker, program.c_str(), nullptr, nullptr, arguments, environ), 0);
  const pid_t child = StopSpare(worker);
  const std::string name = Submit();
  WaitUntilRunning(name);
  ASSERT_EQ(kill(worker, SIGSTOP), 0);
  Stop();
  options.workers = 1;
  Start(options);
  ExpectSucceeded(name, 2);
  // The late one and its child, which may have the answer, go on. With the other one gone, the next operation is its, after it
  // has dropped the one that it was stopped at.
  ASSERT_EQ(kill(child, SIGCONT), 0);
  ASSERT_EQ(kill(worker, SIGCONT), 0);
  Stop();
  options.workers = 0;
  Start(options);
  ExpectSucceeded(Submit(), 1);
  ExpectSucceeded(name, 2);
  EXPECT_EQ(kill(worker, SIGTERM), 0);
  int status = 0;
  waitpid(worker, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(OwnerTest, ThisProcessLivesAndOthersAreLeftAlone) {
  const absl::StatusOr<std::string> owner = ThisOwner();
  ASSERT_TRUE(owner.ok()) << owner.status();
  EXPECT_FALSE(IsDeadOwner(*owner));
  EXPECT_FALSE(IsDeadOwner("other-boot/1/2/3"));
  EXPECT_FALSE(IsDeadOwner("nonsense"));
  EXPECT_TRUE(IsDeadOwner(*owner + "0"));  // the pid came again, for a process with another start time
}

}  // namespace
}  // namespace modelpress::server
