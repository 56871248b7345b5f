// What ends an attempt, at every stage of it, and what becomes of it where the store or the clock misbehave.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "modelpress/v1/compression.pb.h"
#include "server/base/sha256.h"
#include "server/blobs/directory_blob_store.h"
#include "server/rpc/status.h"
#include "server/worker/owner.h"
#include "server/worker/run_protocol.h"
#include "server/worker/scratch.h"
#include "server/worker/worker.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"
#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/testing/chosen_machine.h"
#include "tests/server/testing/unreliable_job_store.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

constexpr char kProject[] = "p";

// A worker over stores of its own, and a script in the place of the engine.
class StagesTest : public testing::Test {
 protected:
  StagesTest()
      : stores_(harness_.Open(clock_, quotas_)), jobs_(stores_->jobs()), blobs_(*DirectoryBlobStore::OpenFolder(folder_.path())) {
    options_.scratch_folder = folder_.path() + "/scratch";
    EXPECT_OK(MakeFolder(options_.scratch_folder));
    options_.owner = *ThisOwner();
    options_.isolation.mode = IsolationMode::kOff;
    EXPECT_OK(stores_->workspaces().CreateWorkspace({kProject, "w"}, "", ""));
    UseEngine("printf report > $1/report\ncat $ANSWER");
  }
  ~StagesTest() override { worker_.reset(); }

  // It gets the attempt's folder as $1; $ANSWER is a file with the answer that names the output "report".
  void UseEngine(const std::string& script) {
    RunEvent answer;
    answer.mutable_result()->add_outputs()->set_name("report");
    v1::SaveModelResponse response;
    response.mutable_report()->set_name("report");
    answer.mutable_result()->mutable_response()->PackFrom(response);
    WriteTestFile(folder_.path() + "/answer", Frame(answer));
    options_.executable = folder_.path() + "/engine";
    std::ofstream(options_.executable) << "#!/bin/sh\nhead -c 1 > /dev/null\nset -- " << options_.scratch_folder
                                       << "/*-*\nANSWER=" << folder_.path() << "/answer\n"
                                       << script << "\ncat > /dev/null\n";
    std::filesystem::permissions(options_.executable, std::filesystem::perms::owner_all);
  }
  void StartWorker() {
    events_ = std::make_unique<JobEvents>(jobs_);
    worker_ = std::make_unique<Worker>(options_, WorkerContext{jobs_, *blobs_, *events_, metrics_, clock_, admission_});
    worker_->Start();
  }
  void Submit(const std::string& id) {
    Job job;
    job.id = id;
    job.project = kProject;
    v1::SaveModelRequest request;
    request.mutable_options()->mutable_execution_timeout()->set_seconds(3600);
    job.request.PackFrom(request);
    job.metadata.set_workspace("workspaces/w");
    job.metadata.set_method("SaveModel");
    ASSERT_OK(stores_->jobs().Create(job, ""));
  }
  Job Get(const std::string& id) {
    absl::StatusOr<Job> job = stores_->jobs().Get(id);
    EXPECT_OK(job);
    return job.ok() ? *std::move(job) : Job();
  }
  static void WaitUntil(const std::function<bool()>& condition) {
    while (!condition()) {
      std::this_thread::yield();
    }
  }
  void ExpectEnd(const std::string& id, State::State state, int attempt) {
    WaitUntil([&] { return Get(id).done(); });
    const Job job = Get(id);
    EXPECT_EQ(job.metadata.state(), state) << job.error.value_or(google::rpc::Status()).ShortDebugString();
    EXPECT_EQ(job.metadata.attempt(), attempt);
  }
  // Time goes by until the job has ended.
  void WaitThroughPauses(const std::string& id) {
    WaitUntil([&] {
      clock_.Advance(absl::Milliseconds(1));
      return Get(id).done();
    });
  }
  std::string Folder() const { return AttemptFolder(options_.scratch_folder, "j", 1); }
  // Waits until the engine has left `name` in the attempt's folder.
  void AwaitFile(const std::string& name) {
    WaitUntil([&] { return std::filesystem::exists(absl::StrCat(Folder(), "/", name)); });
  }

  TestFolder folder_;
  FakeClock clock_;
  const Quotas quotas_;
  SqliteStoreHarness harness_;
  const std::unique_ptr<StoreHandle> stores_;
  UnreliableJobStore jobs_;
  const std::unique_ptr<DirectoryBlobStore> blobs_;
  Metrics metrics_;
  ChosenMachine machine_;
  Admission admission_{{.enabled = false}, machine_, metrics_};
  WorkerOptions options_;
  std::unique_ptr<JobEvents> events_;
  std::unique_ptr<Worker> worker_;
};

TEST_F(StagesTest, AnEndThatCannotBeStoredIsTriedUntilItIs) {
  StartWorker();
  jobs_.Fail("Finish", 3);
  Submit("j");
  ExpectEnd("j", State::SUCCEEDED, 1);
  EXPECT_EQ(jobs_.failed("Finish"), 3);
  ASSERT_OK_AND_ASSIGN(const bool here, blobs_->Contains({Sha256Hex("report"), 6}));
  EXPECT_TRUE(here);
}

TEST_F(StagesTest, AnEndThatWasStoredAlthoughTheStoreSaidNothingIsTheEnd) {
  StartWorker();
  jobs_.Fail("Finish", 1, UnreliableJobStore::Failure::kAfter);
  Submit("j");
  ExpectEnd("j", State::SUCCEEDED, 1);
  // The worker found that out by itself, and goes on to the next.
  Submit("k");
  ExpectEnd("k", State::SUCCEEDED, 1);
  EXPECT_EQ(Get("j").metadata.state(), State::SUCCEEDED);
}

TEST_F(StagesTest, WorkGoesOnWhileTheStoreIsAway) {
  UseEngine("printf x > $1/started\nhead -c 1 " + folder_.path() + "/go > /dev/null\nprintf report > $1/report\ncat $ANSWER");
  ASSERT_EQ(mkfifo((folder_.path() + "/go").c_str(), 0600), 0);
  StartWorker();
  Submit("j");
  AwaitFile("started");
  jobs_.Fail("Heartbeat", 1'000'000);
  jobs_.Fail("HeldState", 1'000'000);
  const int before = jobs_.failed("Heartbeat");
  for (int i = 0; i < 3; ++i) {  // far beyond the lease, within the patience
    clock_.Advance(absl::Minutes(1));
    WaitUntil([&] { return jobs_.failed("Heartbeat") > before + i; });
  }
  jobs_.Fail("Heartbeat", 0);
  jobs_.Fail("HeldState", 0);
  std::ofstream(folder_.path() + "/go") << "x";
  ExpectEnd("j", State::SUCCEEDED, 1);
}

TEST_F(StagesTest, WorkIsDroppedWhenTheStoreIsAwayForTooLong) {
  UseEngine("printf x > $1/started");
  StartWorker();
  Submit("j");
  AwaitFile("started");
  jobs_.Fail("Heartbeat", 1'000'000);
  jobs_.Fail("HeldState", 1'000'000);
  clock_.Advance(options_.store_patience + absl::Seconds(1));
  WaitUntil([&] { return !std::filesystem::exists(Folder()); });
  EXPECT_EQ(Get("j").metadata.state(), State::RUNNING);  // until its lease runs out
}

TEST_F(StagesTest, ClaimsThatFailAreTriedAgain) {
  jobs_.Fail("Claim", 3);
  StartWorker();
  Submit("j");
  ExpectEnd("j", State::SUCCEEDED, 1);
}

TEST_F(StagesTest, JumpsOfTheSystemClockChangeNothing) {
  UseEngine("printf x > $1/started\nhead -c 1 " + folder_.path() + "/go > /dev/null\nprintf report > $1/report\ncat $ANSWER");
  ASSERT_EQ(mkfifo((folder_.path() + "/go").c_str(), 0600), 0);
  StartWorker();
  Submit("j");
  AwaitFile("started");
  for (const absl::Duration jump : {absl::Hours(100'000), -absl::Hours(200'000)}) {
    clock_.Jump(jump);
    events_->Notify();  // whoever waits looks at the time
    ASSERT_OK(stores_->jobs().Heartbeat("j", 1, {}));
  }
  std::ofstream(folder_.path() + "/go") << "x";
  ExpectEnd("j", State::SUCCEEDED, 1);
}

TEST_F(StagesTest, TheTimeoutIsMeasuredByTheSteadyClock) {
  UseEngine("printf x > $1/started");
  StartWorker();
  Submit("j");
  AwaitFile("started");
  clock_.Advance(absl::Seconds(3601));
  ExpectEnd("j", State::FAILED, 1);
}

TEST_F(StagesTest, ALostLeaseEndsTheWork) {
  UseEngine("printf $$ > $1/started");
  StartWorker();
  Submit("j");
  AwaitFile("started");
  worker_->StopClaiming();
  ASSERT_OK(stores_->jobs().Requeue("j", 1, false));
  events_->Notify();
  WaitUntil([&] { return !std::filesystem::exists(Folder()); });
  EXPECT_EQ(Get("j").metadata.state(), State::PENDING);
}

// 64 GiB without a byte on the disk, which take minutes to hash.
constexpr char kBigOutput[] = "printf $$ > $1/pid\ntruncate -s 64G $1/report\ncat $ANSWER";

class AdoptionTest : public StagesTest {
 protected:
  // Until the child is dead and its output is being hashed.
  void AwaitAdoption() {
    AwaitFile("report");
    pid_t child = 0;
    ASSERT_TRUE(absl::SimpleAtoi(ReadTestFile(Folder() + "/pid"), &child));
    WaitUntil([&] { return kill(child, 0) != 0 && errno == ESRCH; });
  }
};

TEST_F(AdoptionTest, CancelTakesEffectWhileOutputsAreHashed) {
  UseEngine(kBigOutput);
  StartWorker();
  Submit("j");
  AwaitAdoption();
  ASSERT_OK(stores_->jobs().RequestCancel(kProject, "j"));
  events_->Notify();
  const absl::Time begin = absl::Now();
  ExpectEnd("j", State::CANCELLED, 1);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));  // hashing takes minutes
}

TEST_F(AdoptionTest, TheTimeoutTakesEffectWhileOutputsAreHashed) {
  UseEngine(kBigOutput);
  StartWorker();
  Submit("j");
  AwaitAdoption();
  clock_.Advance(absl::Seconds(3601));
  ExpectEnd("j", State::FAILED, 1);
}

TEST_F(AdoptionTest, ADrainTakesEffectWhileOutputsAreHashed) {
  UseEngine(kBigOutput);
  StartWorker();
  Submit("j");
  AwaitAdoption();
  worker_->Stop(absl::ZeroDuration());
  EXPECT_EQ(Get("j").metadata.state(), State::PENDING);
  EXPECT_EQ(Get("j").failures, 0);
}

TEST_F(StagesTest, CheckpointsStayForTheNextAttemptAndGoWithTheOperation) {
  UseEngine("if [ -e " + CheckpointFolder(options_.scratch_folder, "j") +
            "/state ]; then printf report > $1/report; cat $ANSWER; else printf x > " +
            CheckpointFolder(options_.scratch_folder, "j") + "/state; kill -SEGV $$; fi");
  StartWorker();
  Submit("j");
  ExpectEnd("j", State::SUCCEEDED, 2);
  EXPECT_EQ(Get("j").failures, 1);
  WaitUntil([&] { return std::filesystem::is_empty(options_.scratch_folder); });
}

TEST_F(StagesTest, KillsFromOutsideAreNotTheOperationsFault) {
  UseEngine(
      "if [ -e $1/../killed ]; then printf report > $1/report; cat $ANSWER; else printf x > $1/../killed; kill -KILL $$; fi");
  StartWorker();
  Submit("j");
  ExpectEnd("j", State::SUCCEEDED, 2);
  EXPECT_EQ(Get("j").failures, 0);
}

TEST_F(StagesTest, KillsForWantOfMemoryAreItsFailures) {
  machine_.kills_between_looks = 1;
  options_.retries.first_pause = absl::Milliseconds(10);
  UseEngine("kill -KILL $$");
  StartWorker();
  Submit("j");
  const absl::Duration begin = clock_.Elapsed();
  WaitThroughPauses("j");
  ExpectEnd("j", State::FAILED, 3);
  EXPECT_EQ(ReasonOf(FromRpcStatus(*Get("j").error)), v1::RESOURCE_LIMIT);
  EXPECT_GE(clock_.Elapsed() - begin, 4 * options_.retries.first_pause);
}

class FailingDiskTest : public StagesTest {
 protected:
  void SetUp() override {
    StagesTest::SetUp();
    RunEvent answer;
    *answer.mutable_result()->mutable_error() = ToRpcStatus(MakeError(v1::STORAGE_FULL, "no space"));
    UseEngine(absl::StrCat("printf $$ > $1/started\ncat ", folder_.path(), "/full"));
    WriteTestFile(folder_.path() + "/full", Frame(answer));
    options_.retries.first_pause = absl::Milliseconds(10);
    StartWorker();
    Submit("j");
  }
  // Until the first attempt has failed and is held back.
  void AwaitPause() {
    WaitUntil([&] { return Get("j").metadata.state() == State::RUNNING; });
    WaitUntil([&] { return !std::filesystem::exists(Folder()); });
  }
};

TEST_F(FailingDiskTest, IsTriedAgainWithPauses) {
  const absl::Duration begin = clock_.Elapsed();
  WaitThroughPauses("j");
  ExpectEnd("j", State::FAILED, 5);
  EXPECT_EQ(ReasonOf(FromRpcStatus(*Get("j").error)), v1::STORAGE_FULL);
  EXPECT_GE(clock_.Elapsed() - begin, 40 * options_.retries.first_pause);
}

TEST_F(FailingDiskTest, APauseHoldsTheOperation) {
  AwaitPause();
  EXPECT_EQ(Get("j").metadata.state(), State::RUNNING);
  EXPECT_EQ(Get("j").metadata.attempt(), 1);
  ASSERT_OK(stores_->jobs().RequestCancel(kProject, "j"));
  events_->Notify();
  ExpectEnd("j", State::CANCELLED, 1);
}

TEST_F(FailingDiskTest, ADrainEndsAPause) {
  AwaitPause();
  worker_->Stop(absl::Hours(1));
  EXPECT_EQ(Get("j").metadata.state(), State::PENDING);
  EXPECT_EQ(Get("j").failures, 1);
}

}  // namespace
}  // namespace modelpress::server
