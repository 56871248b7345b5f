#include "server/housekeeping/housekeeper.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "server/worker/owner.h"
#include "server/worker/scratch.h"
#include "tests/server/housekeeping/fixture.h"
#include "tests/server/testing/unreliable_job_store.h"

namespace modelpress::server {
namespace {

using State = v1::OperationMetadata;

class HousekeeperTest : public HousekeepingTest {
 protected:
  double MetricOf(const std::string& name) const {
    for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
      if (family.name == name) {
        return family.metric.at(0).counter.value + family.metric.at(0).gauge.value;
      }
    }
    ADD_FAILURE() << "no metric " << name;
    return -1;
  }
  // Expects that a step succeeds and returns what it did.
  static int64_t Did(const absl::StatusOr<int64_t>& step) {
    EXPECT_OK(step);
    return step.value_or(-1);
  }
  void SetFileTime(const std::string& path, absl::Time time) {
    const timespec when = absl::ToTimespec(time);
    const timespec times[2] = {when, when};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0) << path;
  }
};

TEST_F(HousekeeperTest, ContentThatNothingRefersToGoesAfterTheGraceTime) {
  ASSERT_OK(stores_->PutFile("a", "one"));
  ASSERT_OK(stores_->PutFile("b", "three"));
  const auto housekeeper = MakeHousekeeper(Options());
  clock_.Advance(absl::Minutes(30));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "a"));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  EXPECT_TRUE(Has("one"));
  EXPECT_EQ(MetricOf("modelpress_storage_bytes"), 8);
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 1);
  EXPECT_FALSE(Has("one"));
  EXPECT_TRUE(Has("three"));
  EXPECT_EQ(MetricOf("modelpress_gc_removed_blobs_total"), 1);
  EXPECT_EQ(MetricOf("modelpress_gc_freed_bytes_total"), 3);
  EXPECT_GT(MetricOf("modelpress_storage_free_bytes"), 0);
}

TEST_F(HousekeeperTest, ContentThatIsReferredToStays) {
  const auto housekeeper = MakeHousekeeper(Options());
  // Of an unfinished operation whose input was deleted meanwhile.
  ASSERT_OK(stores_->PutFile("input", "input"));
  Job job = NewJob("j");
  v1::File& input = *job.metadata.add_inputs();
  input.set_name("workspaces/w/files/input");
  input.set_sha256(Sha256Hex("input"));
  input.set_size_bytes(5);
  ASSERT_OK(stores_->jobs().Create(job, ""));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "input"));
  // Of an upload that waits for its last step.
  ASSERT_OK(stores_->PutFile("first", "upload"));
  ASSERT_OK(stores_->workspaces().FindOrCreateUpload(
      {.id = "u1", .workspace = {kProject, "w"}, .path = "second", .sha256 = Sha256Hex("upload"), .size_bytes = 6}));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "first"));
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  EXPECT_TRUE(Has("input") && Has("upload"));
  ASSERT_OK(stores_->jobs().RequestCancel(kProject, "j"));
  ASSERT_OK(stores_->workspaces().DeleteUpload({kProject, "w"}, "u1"));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 2);
}

TEST_F(HousekeeperTest, AdoptedOutputsStayAsLongAsTheirAttempt) {
  const auto housekeeper = MakeHousekeeper(Options());
  ASSERT_OK(stores_->jobs().Create(NewJob("j"), ""));
  ASSERT_OK(stores_->jobs().Claim({*ThisOwner()}));
  const std::string folder = AttemptFolder(scratch_, "j", 1);
  ASSERT_OK(MakeFolder(folder));
  for (const char* name : {"new", "again"}) {
    WriteTestFile(absl::StrCat(folder, "/", name), "output");
    ASSERT_OK(stores_->blobs().Adopt(folder, name, std::stop_token()));
  }
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  std::filesystem::remove(folder + "/new");
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  // An upload of the same content does not replace what the attempt relies on.
  ASSERT_OK(stores_->PutFile("a", "output"));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "a"));
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  std::filesystem::remove_all(folder);
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 1);
}

TEST_F(HousekeeperTest, GarbageIsCollectedInPortions) {
  for (int i = 0; i < 5; ++i) {
    ASSERT_OK(stores_->PutFile(absl::StrCat("f", i), absl::StrCat("content ", i)));
    if (i != 2) {
      ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, absl::StrCat("f", i)));
    }
  }
  HousekeepingOptions options = Options();
  options.blobs_per_round = 2;
  const auto housekeeper = MakeHousekeeper(options);
  clock_.Advance(absl::Hours(2));
  int64_t removed = 0;
  for (int round = 0; round < 3; ++round) {
    removed += Did(housekeeper->CollectGarbage());
  }
  EXPECT_EQ(removed, 4);
  EXPECT_TRUE(Has("content 2"));
}

TEST_F(HousekeeperTest, NothingGoesForItsAgeAfterAJumpOfTheClock) {
  ASSERT_OK(stores_->PutFile("a", "one"));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "a"));
  const auto housekeeper = MakeHousekeeper(Options());
  clock_.Jump(absl::Hours(100));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  clock_.Advance(absl::Minutes(59));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 0);
  EXPECT_TRUE(Has("one"));
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(Did(housekeeper->CollectGarbage()), 1);
}

TEST_F(HousekeeperTest, NothingGoesForItsAgeUntilTheClockHasProvedGood) {
  HousekeepingOptions options = Options();
  options.workspace_ttl = absl::Hours(24);
  ASSERT_OK(stores_->PutFile("a", "one"));
  ASSERT_OK(stores_->PutFile("b", "three"));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "b"));
  clock_.Jump(absl::Hours(100'000));  // the machine starts with a wrong clock,
  const auto housekeeper = MakeHousekeeper(options);
  EXPECT_OK(housekeeper->Round());
  clock_.Advance(absl::Minutes(59));
  EXPECT_OK(housekeeper->Round());
  clock_.Jump(-absl::Hours(100'000));  // which is set right
  for (int minutes = 0; minutes < 3; ++minutes) {
    EXPECT_OK(housekeeper->Round());
    clock_.Advance(absl::Minutes(1));
  }
  EXPECT_OK(stores_->workspaces().GetFile({kProject, "w"}, "a"));
  EXPECT_TRUE(Has("one") && Has("three"));
  clock_.Advance(absl::Hours(1));
  EXPECT_OK(housekeeper->Round());
  EXPECT_TRUE(Has("one"));
  EXPECT_FALSE(Has("three"));
}

TEST_F(HousekeeperTest, AStepThatFailsKeepsNoOtherFromItsTurn) {
  ASSERT_OK(stores_->PutFile("a", "one"));
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "a"));
  UnreliableJobStore jobs(stores_->jobs());
  Housekeeper housekeeper(Options(), {jobs, stores_->workspaces(), stores_->blobs(), *events_, metrics_, clock_});
  clock_.Advance(absl::Hours(2));
  jobs.Fail("ForgetFinished", 1);
  std::filesystem::remove_all(scratch_);
  EXPECT_REASON(housekeeper.Round(), STORAGE_UNAVAILABLE);
  EXPECT_FALSE(Has("one"));
  EXPECT_REASON(housekeeper.Round(), STORAGE_ERROR);  // of the folder of checkpoints
  ASSERT_OK(MakeFolder(scratch_));
  EXPECT_OK(housekeeper.Round());
}

TEST_F(HousekeeperTest, AContentThatFailsKeepsNoOtherFromItsTurn) {
  std::map<std::string, std::string> contents;  // by digest
  for (int i = 0; i < 3; ++i) {
    const std::string bytes = absl::StrCat("content ", i);
    ASSERT_OK(stores_->PutFile("a", bytes));
    contents[Sha256Hex(bytes)] = bytes;
  }
  ASSERT_OK(stores_->workspaces().DeleteFile({kProject, "w"}, "a"));
  // When they have been listed already the first of them becomes a name that leads nowhere.
  const std::string first = stores_->blobs().Path(contents.begin()->first);
  UnreliableJobStore jobs(stores_->jobs());
  jobs.BeforeEvery("Leases", [&] {
    std::filesystem::remove(first);
    std::filesystem::create_symlink(first, first);
  });
  Housekeeper housekeeper(Options(), {jobs, stores_->workspaces(), stores_->blobs(), *events_, metrics_, clock_});
  clock_.Advance(absl::Hours(2));
  EXPECT_REASON(housekeeper.CollectGarbage(), STORAGE_ERROR);
  EXPECT_EQ(MetricOf("modelpress_gc_removed_blobs_total"), 2);
  contents.erase(contents.begin());
  for (const auto& [sha256, bytes] : contents) {
    EXPECT_FALSE(Has(bytes));
  }
}

TEST_F(HousekeeperTest, UploadsWithoutProgressAreGivenUp) {
  auto begin = [&](const std::string& id) {
    ASSERT_OK(stores_->workspaces().FindOrCreateUpload(
        {.id = id, .workspace = {kProject, "w"}, .path = id, .sha256 = Sha256Hex(id + "!"), .size_bytes = id.size() + 1}));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<BlobWriter> writer, stores_->blobs().OpenWriter(id, InfoOf(id + "!")));
    ASSERT_OK(writer->Append(id));
  };
  begin("idle");
  begin("slow");
  const auto housekeeper = MakeHousekeeper(Options());
  EXPECT_EQ(Did(housekeeper->ExpireUploads()), 0);
  clock_.Advance(absl::Hours(169));
  SetFileTime(folder_.path() + "/uploads/slow", clock_.Now() - absl::Hours(1));
  EXPECT_EQ(Did(housekeeper->ExpireUploads()), 1);
  EXPECT_REASON(stores_->workspaces().GetUpload({kProject, "w"}, "idle"), UPLOAD_NOT_FOUND);
  EXPECT_EQ(*stores_->blobs().CommittedSize("idle"), 0);
  ASSERT_OK(stores_->workspaces().GetUpload({kProject, "w"}, "slow"));
  EXPECT_EQ(*stores_->blobs().CommittedSize("slow"), 4);
  // The bytes of an upload that no row knows.
  ASSERT_OK(stores_->workspaces().DeleteUpload({kProject, "w"}, "slow"));
  EXPECT_EQ(Did(housekeeper->RemoveOrphanedUploads()), 1);
  EXPECT_EQ(*stores_->blobs().CommittedSize("slow"), 0);
}

TEST_F(HousekeeperTest, FinishedOperationsAreForgottenInBatches) {
  HousekeepingOptions options = Options();
  options.batch = 2;
  const auto housekeeper = MakeHousekeeper(options);
  for (int i = 0; i < 5; ++i) {
    ASSERT_OK(stores_->jobs().Create(NewJob(absl::StrCat("old", i)), ""));
    ASSERT_OK(stores_->jobs().RequestCancel(kProject, absl::StrCat("old", i)));
  }
  ASSERT_OK(stores_->jobs().Create(NewJob("pending"), ""));
  clock_.Advance(absl::Hours(719));
  ASSERT_OK(stores_->jobs().Create(NewJob("young"), ""));
  ASSERT_OK(stores_->jobs().RequestCancel(kProject, "young"));
  EXPECT_EQ(Did(housekeeper->ExpireOperations()), 0);
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(Did(housekeeper->ExpireOperations()), 5);
  ASSERT_OK(stores_->jobs().Get("pending"));
  ASSERT_OK(stores_->jobs().Get("young"));
}

TEST_F(HousekeeperTest, RequestIdsAreRememberedForADay) {
  const auto housekeeper = MakeHousekeeper(Options());
  ASSERT_OK(stores_->jobs().Create(NewJob("o"), "r"));
  clock_.Advance(absl::Hours(24));
  EXPECT_EQ(Did(housekeeper->ExpireRequestIds()), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Did(housekeeper->ExpireRequestIds()), 1);
}

TEST_F(HousekeeperTest, IdleWorkspacesGoOnlyWhereThatIsWanted) {
  ASSERT_OK(stores_->PutFile("a", "one"));
  const auto keeping = MakeHousekeeper(Options());
  HousekeepingOptions options = Options();
  options.workspace_ttl = absl::Hours(24);
  const auto removing = MakeHousekeeper(options);
  clock_.Advance(absl::Hours(100'000));
  EXPECT_EQ(Did(keeping->ExpireWorkspaces()), 0);
  EXPECT_EQ(Did(removing->ExpireWorkspaces()), 1);
  EXPECT_REASON(stores_->workspaces().GetWorkspace({kProject, "w"}), WORKSPACE_NOT_FOUND);
}

TEST_F(HousekeeperTest, CheckpointsLiveAsLongAsTheirOperations) {
  const auto housekeeper = MakeHousekeeper(Options());
  ASSERT_OK(stores_->jobs().Create(NewJob("waits"), ""));
  ASSERT_OK(stores_->jobs().Create(NewJob("ended"), ""));
  ASSERT_OK(stores_->jobs().RequestCancel(kProject, "ended"));
  for (const char* id : {"waits", "ended", "unknown"}) {
    ASSERT_OK(MakeFolder(CheckpointFolder(scratch_, id)));
    WriteTestFile(CheckpointFolder(scratch_, id) + "/layer", "x");
  }
  EXPECT_EQ(Did(housekeeper->RemoveDeadCheckpoints()), 2);
  EXPECT_TRUE(std::filesystem::exists(CheckpointFolder(scratch_, "waits")));
  EXPECT_FALSE(std::filesystem::exists(CheckpointFolder(scratch_, "ended")));
}

TEST_F(HousekeeperTest, StrayFilesGoAfterTheGraceTime) {
  const std::string stray = folder_.path() + "/blobs/00/half-written.tmp";
  WriteTestFile(stray, "x");
  ASSERT_OK(stores_->PutFile("a", "one"));
  const auto housekeeper = MakeHousekeeper(Options());
  EXPECT_EQ(Did(housekeeper->RemoveStrays()), 0);
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(Did(housekeeper->RemoveStrays()), 1);
  EXPECT_FALSE(std::filesystem::exists(stray));
  EXPECT_TRUE(Has("one"));
}

TEST_F(HousekeeperTest, TheThreadRepairsAtTheStartAndStops) {
  ASSERT_OK(stores_->jobs().Create(NewJob("j"), ""));
  ASSERT_OK(stores_->jobs().Claim({*ThisOwner() + "0"}));  // its process is dead
  ASSERT_OK(MakeFolder(CheckpointFolder(scratch_, "unknown")));
  const auto housekeeper = MakeHousekeeper(Options());
  housekeeper->Start();
  while (stores_->jobs().Get("j")->metadata.state() != State::PENDING ||
         std::filesystem::exists(CheckpointFolder(scratch_, "unknown"))) {
    std::this_thread::yield();
  }
  housekeeper->Stop();
}

}  // namespace
}  // namespace modelpress::server
