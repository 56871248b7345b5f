// Uploads, adopted outputs and deletes, with the collection of garbage at work all the time.

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "server/worker/scratch.h"
#include "tests/server/housekeeping/fixture.h"

namespace modelpress::server {
namespace {

constexpr int kTurns = 60;

class GarbageStressTest : public HousekeepingTest, public testing::WithParamInterface<absl::Duration> {
 protected:
  // As another process would have them open.
  std::unique_ptr<OpenStores> Open() { return std::make_unique<OpenStores>(harness_, folder_.path(), system_clock_, quotas_); }

  const SystemClock system_clock_;
};

// Few contents, so that all want the same ones.
std::string Content(int turn) { return absl::StrCat("content ", turn % 3); }

void UploadAndDelete(OpenStores& stores, int thread) {
  const std::string path = absl::StrCat("upload", thread);
  for (int turn = 0; turn < kTurns; ++turn) {
    ASSERT_OK(stores.PutFile(path, Content(turn)));
    ASSERT_OK_AND_ASSIGN(const bool here, stores.blobs().Contains(InfoOf(Content(turn))));
    ASSERT_TRUE(here) << "a file without content";
    ASSERT_OK(stores.workspaces().DeleteFile({kProject, "w"}, path));
  }
}

void AdoptAndDelete(OpenStores& stores, const std::string& scratch, int thread) {
  for (int turn = 0; turn < kTurns; ++turn) {
    const std::string id = absl::StrCat("j", thread, "x", turn);
    ASSERT_OK(stores.jobs().Create(NewJob(id), ""));
    ASSERT_OK_AND_ASSIGN(const std::optional<Job> job, stores.jobs().Claim({"worker"}));
    ASSERT_TRUE(job.has_value());
    const std::string folder = AttemptFolder(scratch, job->id, 1);
    ASSERT_OK(MakeFolder(folder));
    WriteTestFile(folder + "/out", Content(turn));
    ASSERT_OK_AND_ASSIGN(const BlobInfo blob, stores.blobs().Adopt(folder, "out", std::stop_token()));
    const std::string path = "output-of-" + job->id;
    ASSERT_OK(stores.jobs().Finish(job->id, 1, Success({{.path = path, .sha256 = blob.sha256, .size_bytes = blob.size_bytes}})));
    std::filesystem::remove_all(folder);
    ASSERT_OK_AND_ASSIGN(const bool here, stores.blobs().Contains(blob));
    ASSERT_TRUE(here) << "an output without content";
    ASSERT_OK(stores.workspaces().DeleteFile({kProject, "w"}, path));
  }
}

TEST_P(GarbageStressTest, NoFileEverLacksItsContent) {
  std::vector<std::thread> workers;
  std::vector<std::thread> collectors;
  std::atomic<bool> done = false;
  std::atomic<int64_t> removed = 0;
  workers.reserve(4);
  for (int i = 0; i < 2; ++i) {
    workers.emplace_back([this, i] { UploadAndDelete(*Open(), i); });
    workers.emplace_back([this, i] { AdoptAndDelete(*Open(), scratch_, i); });
  }
  HousekeepingOptions options = Options();
  options.blob_grace = GetParam();
  options.clock_trial = absl::ZeroDuration();
  collectors.reserve(2);
  for (int i = 0; i < 2; ++i) {
    collectors.emplace_back([&] {
      const std::unique_ptr<OpenStores> stores = Open();
      JobEvents events(stores->jobs());
      Housekeeper housekeeper(options, {stores->jobs(), stores->workspaces(), stores->blobs(), events, metrics_, system_clock_});
      while (!done || removed == 0) {  // at the end nothing is referred to
        const absl::StatusOr<int64_t> now = housekeeper.CollectGarbage();
        EXPECT_OK(now);
        removed += now.value_or(0);
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  done = true;
  for (std::thread& collector : collectors) {
    collector.join();
  }
}

INSTANTIATE_TEST_SUITE_P(Grace, GarbageStressTest, testing::Values(absl::ZeroDuration(), absl::Milliseconds(1)),
                         [](const auto& grace) { return grace.index == 0 ? "None" : "Short"; });

}  // namespace
}  // namespace modelpress::server
