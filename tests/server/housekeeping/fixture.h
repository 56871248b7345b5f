// Stores of their own for tests of housekeeping.
#ifndef MODELPRESS_TESTS_SERVER_HOUSEKEEPING_FIXTURE_H_
#define MODELPRESS_TESTS_SERVER_HOUSEKEEPING_FIXTURE_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/base/posix.h"
#include "server/base/sha256.h"
#include "server/blobs/directory_blob_store.h"
#include "server/housekeeping/housekeeper.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"
#include "tests/server/sql/sql_store_harness.h"

namespace modelpress::server {

inline constexpr char kProject[] = "p";

inline BlobInfo InfoOf(const std::string& bytes) { return {Sha256Hex(bytes), bytes.size()}; }

// The stores as one process has them open.
class OpenStores {
 public:
  OpenStores(StoreHarness& harness, const std::string& folder, const Clock& clock, const Quotas& quotas)
      : handle_(harness.Open(clock, quotas)), blobs_(*DirectoryBlobStore::OpenFolder(folder)) {}

  JobStore& jobs() { return handle_->jobs(); }
  WorkspaceStore& workspaces() { return handle_->workspaces(); }
  BlobStore& blobs() { return *blobs_; }

  // Gives `path` of the workspace "w" the content, as an upload does.
  absl::Status PutFile(const std::string& path, const std::string& bytes) {
    // An id is never used twice: bytes may stay under it until housekeeping discards them.
    MP_ASSIGN_OR_RETURN(const UploadRow upload, workspaces().FindOrCreateUpload({.id = absl::StrCat("u-", path, "-", ++uploads_),
                                                                                 .workspace = {kProject, "w"},
                                                                                 .path = path,
                                                                                 .sha256 = Sha256Hex(bytes),
                                                                                 .size_bytes = bytes.size()}));
    MP_ASSIGN_OR_RETURN(const bool here, blobs().Keep(InfoOf(bytes)));
    if (!here) {
      MP_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, blobs().OpenWriter(upload.id, InfoOf(bytes)));
      MP_RETURN_IF_ERROR(writer->Append(absl::MakeConstSpan(bytes).subspan(writer->committed_size())));
      MP_RETURN_IF_ERROR(writer->Finish());
    }
    return workspaces().FinishUpload(upload);
  }

 private:
  const std::unique_ptr<StoreHandle> handle_;
  const std::unique_ptr<DirectoryBlobStore> blobs_;
  int uploads_ = 0;
};

inline Job NewJob(const std::string& id) {
  Job job;
  job.id = id;
  job.project = kProject;
  job.request.set_type_url("type.googleapis.com/modelpress.v1.SaveModelRequest");
  job.request.set_value(id);
  job.metadata.set_workspace("workspaces/w");
  job.metadata.set_method("SaveModel");
  return job;
}

inline Outcome Success(std::vector<OutputFile> outputs) {
  return {.state = v1::OperationMetadata::SUCCEEDED, .response = NewJob("").request, .outputs = std::move(outputs)};
}

class HousekeepingTest : public testing::Test {
 protected:
  HousekeepingTest() {
    clock_.Advance(absl::Now() - clock_.Now());  // files have the real time
    EXPECT_OK(MakeFolder(scratch_));
    stores_ = std::make_unique<OpenStores>(harness_, folder_.path(), clock_, quotas_);
    events_ = std::make_unique<JobEvents>(stores_->jobs());
    EXPECT_OK(stores_->workspaces().CreateWorkspace({kProject, "w"}, "", ""));
  }

  HousekeepingOptions Options() const { return {.data_folder = folder_.path(), .rescuer = {.scratch_folder = scratch_}}; }
  std::unique_ptr<Housekeeper> MakeHousekeeper(const HousekeepingOptions& options) {
    return std::make_unique<Housekeeper>(
        options, HousekeepingContext{stores_->jobs(), stores_->workspaces(), stores_->blobs(), *events_, metrics_, clock_});
  }
  bool Has(const std::string& bytes) {
    const absl::StatusOr<bool> has = stores_->blobs().Contains(InfoOf(bytes));
    EXPECT_OK(has);
    return has.ok() && *has;
  }

  TestFolder folder_;
  const std::string scratch_ = folder_.path() + "/scratch";
  FakeClock clock_;
  const Quotas quotas_;
  SqliteStoreHarness harness_;
  Metrics metrics_;
  std::unique_ptr<OpenStores> stores_;
  std::unique_ptr<JobEvents> events_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_HOUSEKEEPING_FIXTURE_H_
