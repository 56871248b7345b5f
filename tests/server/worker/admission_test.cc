#include "server/worker/admission.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/testing/chosen_machine.h"
#include "tests/server/testing/unreliable_job_store.h"

namespace modelpress::server {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr char kProject[] = "p";

class AdmissionTest : public testing::Test {
 protected:
  AdmissionTest() : stores_(harness_.Open(clock_, quotas_)) {
    EXPECT_OK(stores_->workspaces().CreateWorkspace({kProject, "w"}, "", ""));
  }
  void Submit(const std::string& id, uint64_t memory_mib, uint64_t disk_mib) {
    Job job;
    job.id = id;
    job.project = kProject;
    job.request.set_value(id);
    job.metadata.set_workspace("workspaces/w");
    job.metadata.set_method("SaveModel");
    job.cost = {.memory_bytes = memory_mib * kMiB, .disk_bytes = disk_mib * kMiB};
    ASSERT_OK(stores_->jobs().Create(job, ""));
  }
  // The id of the job that is let in; "": none.
  std::string Claim(Admission& admission) {
    absl::StatusOr<std::optional<Job>> job = admission.Claim(stores_->jobs(), "worker");
    EXPECT_OK(job);
    if (!job.ok() || !job->has_value()) {
      return "";
    }
    last_ = **job;
    return last_.id;
  }
  double Waiting() const {
    for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
      if (family.name == "modelpress_admission_waiting") {
        return family.metric.at(0).gauge.value;
      }
    }
    return -1;
  }

  FakeClock clock_;
  const Quotas quotas_;
  SqliteStoreHarness harness_;
  const std::unique_ptr<StoreHandle> stores_;
  Metrics metrics_;
  ChosenMachine machine_;
  Job last_;
};

TEST_F(AdmissionTest, WhatRunsTakesItsRoom) {
  Admission admission({}, machine_, metrics_);
  Submit("a", 600, 1);
  Submit("b", 600, 1);
  EXPECT_EQ(Claim(admission), "a");
  const Job a = last_;
  EXPECT_EQ(Claim(admission), "");
  EXPECT_EQ(Waiting(), 1);
  EXPECT_EQ(stores_->jobs().Get("b")->metadata.state(), v1::OperationMetadata::PENDING);
  admission.Ended(a);
  EXPECT_EQ(Claim(admission), "b");
  EXPECT_EQ(Waiting(), 0);
}

TEST_F(AdmissionTest, MemoryThatARunningOneHasIsNotCountedTwice) {
  Admission admission({}, machine_, metrics_);
  Submit("a", 600, 1);
  Submit("b", 500, 1);
  EXPECT_EQ(Claim(admission), "a");
  admission.RunsIn(last_, 1);
  EXPECT_EQ(Claim(admission), "");
  machine_.resident = 600 * kMiB;  // it has all that it needs, and a lot is free still
  machine_.memory = 550 * kMiB;
  EXPECT_EQ(Claim(admission), "b");
}

TEST_F(AdmissionTest, OneAlwaysRunsHoweverMuchItIsExpectedToNeed) {
  Admission admission({}, machine_, metrics_);
  Submit("a", 100'000, 100'000);
  Submit("b", 1, 20'000);
  EXPECT_EQ(Claim(admission), "a");
  const Job a = last_;
  EXPECT_EQ(Claim(admission), "");  // that there is no room beside the other
  EXPECT_EQ(Waiting(), 1);
  admission.Ended(a);
  EXPECT_EQ(Claim(admission), "b");
}

TEST_F(AdmissionTest, AFullDiskHoldsUpEvenTheFirst) {
  Admission admission({.min_free_disk_bytes = 100 * kMiB}, machine_, metrics_);
  Submit("a", 1, 50);
  machine_.disk = 100 * kMiB;
  EXPECT_EQ(Claim(admission), "");
  EXPECT_EQ(Waiting(), 1);
  machine_.disk = 101 * kMiB;
  EXPECT_EQ(Claim(admission), "a");
  EXPECT_EQ(Waiting(), 0);
  EXPECT_FALSE(admission.OutOfDisk());
  machine_.disk = 49 * kMiB;
  EXPECT_TRUE(admission.OutOfDisk());
}

TEST_F(AdmissionTest, NobodyOvertakes) {
  Admission admission({}, machine_, metrics_);
  Submit("a", 600, 1);
  Submit("big", 600, 1);
  Submit("small", 1, 1);
  EXPECT_EQ(Claim(admission), "a");
  EXPECT_EQ(Claim(admission), "");
}

TEST_F(AdmissionTest, ADatabaseThatHangsDoesNotHoldUpWhatRuns) {
  Admission admission({}, machine_, metrics_);
  Submit("a", 1, 1);
  EXPECT_EQ(Claim(admission), "a");
  UnreliableJobStore jobs(stores_->jobs());
  std::promise<void> asked;
  std::promise<void> answer;
  jobs.BeforeEvery("Claim", [&] {
    asked.set_value();
    answer.get_future().wait();
  });
  std::thread claimant([&] { EXPECT_OK(admission.Claim(jobs, "other")); });
  asked.get_future().wait();
  admission.RunsIn(last_, 1);
  admission.Ended(last_);
  answer.set_value();
  claimant.join();
}

TEST_F(AdmissionTest, SwitchedOffEverythingIsLetIn) {
  Admission admission({.enabled = false}, machine_, metrics_);
  machine_.disk = 0;
  machine_.memory = 0;
  Submit("a", 600, 600);
  Submit("b", 600, 600);
  EXPECT_EQ(Claim(admission), "a");
  EXPECT_EQ(Claim(admission), "b");
  EXPECT_FALSE(admission.OutOfDisk());
}

TEST(ThisMachineTest, TellsWhatThereIs) {
  const ThisMachine machine("/");
  EXPECT_GT(machine.FreeMemory(), 0);
  EXPECT_LT(machine.FreeMemory(), UINT64_MAX);
  EXPECT_GT(machine.ResidentMemory(getpid()), kMiB);
  EXPECT_EQ(machine.ResidentMemory(0), 0);
  EXPECT_GT(machine.FreeDisk(), 0);
}

}  // namespace
}  // namespace modelpress::server
