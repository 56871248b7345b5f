#include "server/housekeeping/rescuer.h"

#include <filesystem>
#include <latch>
#include <optional>
#include <string>
#include <thread>

#include "server/worker/owner.h"
#include "server/worker/scratch.h"
#include "tests/server/housekeeping/fixture.h"
#include "tests/server/testing/unreliable_job_store.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

class RescuerTest : public HousekeepingTest {
 protected:
  void Claim(const std::string& id, const std::string& owner = "other-boot/1/2/3") {
    ASSERT_OK(stores_->jobs().Create(NewJob(id), ""));
    ASSERT_OK_AND_ASSIGN(const std::optional<Job> job, stores_->jobs().Claim({owner}));
    ASSERT_EQ(job->id, id);
  }
  State::State StateOf(const std::string& id) { return stores_->jobs().Get(id)->metadata.state(); }
  Rescuer MakeRescuer(JobStore& jobs) { return {Options().rescuer, jobs, *events_, clock_}; }
  // Looks `times` times, a second apart; returns how many jobs were taken.
  int64_t Watch(Rescuer& rescuer, int times) {
    int64_t taken = 0;
    for (int i = 0; i < times; ++i) {
      const absl::StatusOr<int64_t> now = rescuer.Look();
      EXPECT_OK(now);
      taken += now.value_or(0);
      clock_.Advance(absl::Seconds(1));
    }
    return taken;
  }
};

TEST_F(RescuerTest, ASilentWorkerLosesItsJobAfterTheLease) {
  Claim("j");
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  EXPECT_EQ(Watch(rescuer, 11), 0);
  EXPECT_EQ(StateOf("j"), State::RUNNING);
  EXPECT_EQ(Watch(rescuer, 1), 1);
  EXPECT_EQ(StateOf("j"), State::PENDING);
  EXPECT_EQ(stores_->jobs().Get("j")->failures, 0);
  EXPECT_NOT_HELD(stores_->jobs().Heartbeat("j", 1, {}));
}

TEST_F(RescuerTest, HeartbeatsKeepIt) {
  Claim("j");
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Watch(rescuer, 9), 0);
    ASSERT_OK(stores_->jobs().Heartbeat("j", 1, {}));
  }
  EXPECT_EQ(StateOf("j"), State::RUNNING);
}

TEST_F(RescuerTest, JumpsOfTheSystemClockMeanNothing) {
  Claim("j");
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  for (const absl::Duration jump : {absl::Hours(10'000), -absl::Hours(20'000)}) {
    EXPECT_EQ(Watch(rescuer, 3), 0);
    clock_.Jump(jump);
  }
  EXPECT_EQ(Watch(rescuer, 3), 0);
  EXPECT_EQ(StateOf("j"), State::RUNNING);
}

TEST_F(RescuerTest, TimeInWhichNobodyLookedDoesNotCount) {
  Claim("j");
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  EXPECT_EQ(Watch(rescuer, 5), 0);
  clock_.Advance(absl::Hours(1));  // the machine slept, or this process was stopped
  EXPECT_EQ(Watch(rescuer, 3), 0);
  EXPECT_EQ(StateOf("j"), State::RUNNING);
}

TEST_F(RescuerTest, TimeInWhichTheStoreWasAwayDoesNotCount) {
  Claim("j");
  UnreliableJobStore unreliable(stores_->jobs());
  Rescuer rescuer = MakeRescuer(unreliable);
  EXPECT_EQ(Watch(rescuer, 5), 0);
  unreliable.Fail("Leases", 100);
  for (int i = 0; i < 100; ++i) {
    EXPECT_REASON(rescuer.Look(), STORAGE_UNAVAILABLE);
    clock_.Advance(absl::Seconds(1));
  }
  EXPECT_EQ(Watch(rescuer, 3), 0);
  EXPECT_EQ(StateOf("j"), State::RUNNING);
  EXPECT_EQ(Watch(rescuer, 20), 1);
}

TEST_F(RescuerTest, TimeInWhichNobodyCouldWriteDoesNotCount) {
  Claim("j");
  UnreliableJobStore jobs(stores_->jobs());
  Rescuer rescuer = MakeRescuer(jobs);
  OpenStores other(harness_, folder_.path(), clock_, quotas_);
  std::latch held(1);
  std::latch release(1);
  std::thread writer([&] {
    EXPECT_OK(other.workspaces().RemoveUnreferenced(Sha256Hex("x"), [&] {
      held.count_down();
      release.wait();
      return absl::OkStatus();
    }));
  });
  held.wait();
  bool waited = false;
  jobs.BeforeEvery("AwaitTurn", [&] {
    if (!waited) {
      clock_.Advance(absl::Seconds(20));
      release.count_down();
    }
    waited = true;
  });
  EXPECT_EQ(Watch(rescuer, 8), 0);
  EXPECT_TRUE(waited);
  if (!waited) {
    release.count_down();
  }
  writer.join();
  EXPECT_EQ(StateOf("j"), State::RUNNING);
  ASSERT_OK(stores_->jobs().Heartbeat("j", 1, {}));  // which waited as well, and comes after the look
  EXPECT_EQ(Watch(rescuer, 11), 0);
  EXPECT_EQ(StateOf("j"), State::RUNNING);
  EXPECT_EQ(Watch(rescuer, 1), 1);
}

TEST_F(RescuerTest, AHeartbeatInTheLastMomentKeepsTheJob) {
  Claim("j");
  UnreliableJobStore jobs(stores_->jobs());
  Rescuer rescuer = MakeRescuer(jobs);
  int revoked = 0;
  jobs.BeforeEvery("Revoke", [&] {
    if (++revoked == 1) {
      EXPECT_OK(stores_->jobs().Heartbeat("j", 1, {}));
    }
  });
  EXPECT_EQ(Watch(rescuer, 12), 0);
  EXPECT_EQ(revoked, 1);
  EXPECT_EQ(Watch(rescuer, 11), 0);  // counted anew
  EXPECT_EQ(StateOf("j"), State::RUNNING);
  EXPECT_EQ(Watch(rescuer, 1), 1);
}

TEST_F(RescuerTest, ADeadProcessLosesItsJobAtOnce) {
  ASSERT_OK_AND_ASSIGN(const std::string owner, ThisOwner());
  Claim("alive", owner);
  Claim("dead", owner + "0");
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  EXPECT_EQ(Watch(rescuer, 1), 1);
  EXPECT_EQ(StateOf("dead"), State::PENDING);
  EXPECT_EQ(StateOf("alive"), State::RUNNING);
}

TEST_F(RescuerTest, AJobThatIsBeingCancelledEndsCancelled) {
  Claim("j", *ThisOwner() + "0");
  ASSERT_OK(stores_->jobs().RequestCancel(kProject, "j"));
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  EXPECT_EQ(Watch(rescuer, 1), 1);
  EXPECT_EQ(StateOf("j"), State::CANCELLED);
}

TEST_F(RescuerTest, AJobThatOutlivesAllItsWorkersFails) {
  RescuerOptions options = Options().rescuer;
  options.retries.max_attempts = 2;
  Rescuer rescuer(options, stores_->jobs(), *events_, clock_);
  Claim("j", *ThisOwner() + "0");
  EXPECT_EQ(Watch(rescuer, 1), 1);
  ASSERT_OK(stores_->jobs().Claim({*ThisOwner() + "0"}));
  EXPECT_EQ(Watch(rescuer, 1), 1);
  EXPECT_EQ(StateOf("j"), State::FAILED);
}

TEST_F(RescuerTest, FoldersOfDeadAttemptsGo) {
  Claim("j");
  for (const std::string& folder : {AttemptFolder(scratch_, "j", 1), AttemptFolder(scratch_, "j", 0),
                                    AttemptFolder(scratch_, "other", 1), CheckpointFolder(scratch_, "j")}) {
    ASSERT_OK(MakeFolder(folder));
    WriteTestFile(folder + "/x", "x");
  }
  Rescuer rescuer = MakeRescuer(stores_->jobs());
  EXPECT_EQ(Watch(rescuer, 1), 0);
  EXPECT_TRUE(std::filesystem::exists(AttemptFolder(scratch_, "j", 1)));
  EXPECT_TRUE(std::filesystem::exists(CheckpointFolder(scratch_, "j")));
  EXPECT_FALSE(std::filesystem::exists(AttemptFolder(scratch_, "j", 0)));
  EXPECT_FALSE(std::filesystem::exists(AttemptFolder(scratch_, "other", 1)));
}

}  // namespace
}  // namespace modelpress::server
