// What every driver of WorkspaceStore must do. A driver's test includes this once and instantiates WorkspaceStoreConformance with
// a factory of its harness.
#ifndef MODELPRESS_TESTS_SERVER_WORKSPACES_WORKSPACE_STORE_CONFORMANCE_H_
#define MODELPRESS_TESTS_SERVER_WORKSPACES_WORKSPACE_STORE_CONFORMANCE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/store_harness.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {

using testing::ElementsAre;
using testing::IsEmpty;

class WorkspaceStoreConformance : public testing::TestWithParam<StoreHarnessFactory> {
 protected:
  static constexpr char kProject[] = "p";
  static WorkspaceKey Key(const std::string& id) { return {kProject, id}; }

  void SetUp() override {
    harness_ = GetParam()();
    Reopen();
    ASSERT_OK(workspaces().CreateWorkspace(Key("w"), "", ""));
  }
  void Reopen() {
    handle_.reset();
    handle_ = harness_->Open(clock_, quotas_);
    ASSERT_NE(handle_, nullptr);
  }
  WorkspaceStore& workspaces() { return handle_->workspaces(); }

  static FileRow File(const std::string& path, char digit = 'a', uint64_t size = 5) {
    return {.path = path, .sha256 = std::string(64, digit), .size_bytes = size};
  }
  static UploadRow Upload(const std::string& id, const std::string& path = "model/m.onnx", char digit = 'a', uint64_t size = 9) {
    return {.id = id, .workspace = Key("w"), .path = path, .sha256 = std::string(64, digit), .size_bytes = size};
  }
  static std::vector<std::string> Paths(const std::vector<FileRow>& files) {
    std::vector<std::string> paths;
    paths.reserve(files.size());
    for (const FileRow& file : files) {
      paths.push_back(file.path);
    }
    return paths;
  }
  std::vector<std::string> Snapshot(const std::string& folder) {
    absl::StatusOr<std::vector<FileRow>> files = workspaces().Snapshot(Key("w"), folder, 100);
    EXPECT_OK(files);
    return files.ok() ? Paths(*files) : std::vector<std::string>();
  }
  std::string UsageOf(const std::string& project) {
    absl::StatusOr<ProjectUsage> usage = workspaces().Usage(project);
    EXPECT_OK(usage);
    return absl::StrCat(usage->bytes, " bytes, ", usage->files, " files, ", usage->uploads, " uploads, ", usage->workspaces,
                        " workspaces, ", usage->pending, " pending, ", usage->running, " running");
  }
  static Job NewJob(const std::string& id) {
    Job job;
    job.id = id;
    job.project = kProject;
    job.metadata.set_workspace("workspaces/w");
    return job;
  }

  FakeClock clock_;
  Quotas quotas_;  // none at first; the stores see what a test assigns
  std::unique_ptr<StoreHarness> harness_;
  std::unique_ptr<StoreHandle> handle_;
};

// ---- Workspaces -------------------------------------------------------------------------------------------------------------

TEST_P(WorkspaceStoreConformance, CreateAndGet) {
  ASSERT_OK_AND_ASSIGN(WorkspaceRow created, workspaces().CreateWorkspace(Key("x"), "fallback", ""));
  EXPECT_EQ(created.id, "x");
  EXPECT_EQ(created.create_time, clock_.Now());
  ASSERT_OK_AND_ASSIGN(WorkspaceRow chosen, workspaces().CreateWorkspace(Key(""), "fallback", ""));
  EXPECT_EQ(chosen.id, "fallback");
  EXPECT_REASON(workspaces().CreateWorkspace(Key("x"), "", ""), WORKSPACE_EXISTS);
  EXPECT_REASON(workspaces().CreateWorkspace(Key(""), "x", ""), WORKSPACE_EXISTS);
  Reopen();
  ASSERT_OK_AND_ASSIGN(WorkspaceRow stored, workspaces().GetWorkspace(Key("x")));
  EXPECT_EQ(stored.create_time, created.create_time);
  EXPECT_REASON(workspaces().GetWorkspace(Key("none")), WORKSPACE_NOT_FOUND);
}

TEST_P(WorkspaceStoreConformance, RequestIdGivesTheWorkspaceOfThatTime) {
  ASSERT_OK(workspaces().CreateWorkspace(Key("x"), "f1", "r1"));
  ASSERT_OK_AND_ASSIGN(WorkspaceRow again, workspaces().CreateWorkspace(Key("x"), "f2", "r1"));
  EXPECT_EQ(again.id, "x");
  EXPECT_REASON(workspaces().CreateWorkspace(Key("y"), "", "r1"), REQUEST_ID_REUSED);
  EXPECT_REASON(workspaces().CreateWorkspace(Key(""), "f3", "r1"), REQUEST_ID_REUSED);
  EXPECT_REASON(workspaces().CreateWorkspace(Key("x"), "", "r2"), WORKSPACE_EXISTS);

  ASSERT_OK(workspaces().CreateWorkspace(Key(""), "f4", "r3"));
  clock_.Advance(absl::Hours(1000));
  Reopen();
  ASSERT_OK_AND_ASSIGN(again, workspaces().CreateWorkspace(Key(""), "f5", "r3"));
  EXPECT_EQ(again.id, "f4");
  EXPECT_REASON(workspaces().GetWorkspace(Key("f5")), WORKSPACE_NOT_FOUND);

  // A failed call is not remembered; operations have request ids of their own.
  ASSERT_OK(workspaces().CreateWorkspace(Key("z"), "", "r2"));
  Job job = NewJob("o1");
  ASSERT_OK(handle_->jobs().Create(job, "r1"));
}

TEST_P(WorkspaceStoreConformance, ListsByNameInPages) {
  for (const char* id : {"c", "a", "b-1", "b"}) {
    ASSERT_OK(workspaces().CreateWorkspace(Key(id), "", ""));
  }
  std::vector<std::string> ids;
  std::string token;
  do {
    ASSERT_OK_AND_ASSIGN(Page<WorkspaceRow> page, workspaces().ListWorkspaces(kProject, 2, token));
    EXPECT_LE(page.rows.size(), 2);
    for (const WorkspaceRow& row : page.rows) {
      ids.push_back(row.id);
    }
    token = page.next_page_token;
  } while (!token.empty());
  EXPECT_THAT(ids, ElementsAre("a", "b", "b-1", "c", "w"));
  EXPECT_REASON(workspaces().ListWorkspaces(kProject, -1, ""), REQUEST_INVALID);
  EXPECT_REASON(workspaces().ListWorkspaces(kProject, 0, "x"), PAGE_TOKEN_INVALID);
}

TEST_P(WorkspaceStoreConformance, DeleteTakesFilesAndUploadsWithIt) {
  ASSERT_OK(workspaces().PutFile(Key("w"), File("a")));
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u1")));
  ASSERT_OK(workspaces().DeleteWorkspace(Key("w")));
  EXPECT_REASON(workspaces().DeleteWorkspace(Key("w")), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().GetFile(Key("w"), "a"), WORKSPACE_NOT_FOUND);
  ASSERT_OK(workspaces().CreateWorkspace(Key("w"), "", ""));
  EXPECT_REASON(workspaces().GetFile(Key("w"), "a"), FILE_NOT_FOUND);
  EXPECT_REASON(workspaces().GetUpload(Key("w"), "u1"), UPLOAD_NOT_FOUND);
}

TEST_P(WorkspaceStoreConformance, DeleteWaitsForTheLastOperation) {
  ASSERT_OK(handle_->jobs().Create(NewJob("o1"), ""));
  EXPECT_REASON(workspaces().DeleteWorkspace(Key("w")), WORKSPACE_BUSY);
  ASSERT_OK(handle_->jobs().Claim({"worker"}));
  EXPECT_REASON(workspaces().DeleteWorkspace(Key("w")), WORKSPACE_BUSY);
  ASSERT_OK(handle_->jobs().RequestCancel(kProject, "o1"));
  EXPECT_REASON(workspaces().DeleteWorkspace(Key("w")), WORKSPACE_BUSY);
  ASSERT_OK(handle_->jobs().Requeue("o1", 1, /*failed=*/true));
  EXPECT_OK(workspaces().DeleteWorkspace(Key("w")));
  EXPECT_OK(handle_->jobs().Get("o1"));  // what was done stays known
}

// ---- Files ------------------------------------------------------------------------------------------------------------------

TEST_P(WorkspaceStoreConformance, PutReplacesTheContent) {
  const std::string path = "mödel/ m'%_.onnx";
  ASSERT_OK(workspaces().PutFile(Key("w"), File(path, 'a', uint64_t{1} << 40)));
  clock_.Advance(absl::Seconds(1));
  ASSERT_OK_AND_ASSIGN(FileRow file, workspaces().GetFile(Key("w"), path));
  EXPECT_EQ(file.path, path);
  EXPECT_EQ(file.sha256, std::string(64, 'a'));
  EXPECT_EQ(file.size_bytes, uint64_t{1} << 40);
  EXPECT_EQ(file.update_time, clock_.Now() - absl::Seconds(1));
  ASSERT_OK(workspaces().PutFile(Key("w"), File(path, 'b', 0)));
  Reopen();
  ASSERT_OK_AND_ASSIGN(file, workspaces().GetFile(Key("w"), path));
  EXPECT_EQ(file.sha256, std::string(64, 'b'));
  EXPECT_EQ(file.size_bytes, 0);
  EXPECT_EQ(file.update_time, clock_.Now());
  ASSERT_OK(workspaces().DeleteFile(Key("w"), path));
  EXPECT_REASON(workspaces().GetFile(Key("w"), path), FILE_NOT_FOUND);
  EXPECT_REASON(workspaces().DeleteFile(Key("w"), path), FILE_NOT_FOUND);
}

TEST_P(WorkspaceStoreConformance, ListsFilesByNameInPages) {
  ASSERT_OK(workspaces().CreateWorkspace(Key("v"), "", ""));
  for (const char* path : {"b", "a/b", "a", "a.b", "B"}) {
    ASSERT_OK(workspaces().PutFile(Key("w"), File(path)));
    ASSERT_OK(workspaces().PutFile(Key("v"), File(path)));
  }
  ASSERT_OK_AND_ASSIGN(Page<FileRow> page, workspaces().ListFiles(Key("w"), 3, ""));
  EXPECT_THAT(Paths(page.rows), ElementsAre("B", "a", "a.b"));
  EXPECT_REASON(workspaces().ListFiles(Key("v"), 3, page.next_page_token), PAGE_TOKEN_INVALID);
  ASSERT_OK(workspaces().DeleteFile(Key("w"), "a.b"));  // the row that the token stands behind
  ASSERT_OK_AND_ASSIGN(page, workspaces().ListFiles(Key("w"), 3, page.next_page_token));
  EXPECT_THAT(Paths(page.rows), ElementsAre("a/b", "b"));
  EXPECT_EQ(page.next_page_token, "");
  EXPECT_REASON(workspaces().ListFiles(Key("w"), -1, ""), REQUEST_INVALID);
}

TEST_P(WorkspaceStoreConformance, SnapshotTakesOneFolder) {
  for (const char* path : {"a", "a/b", "a/b/c", "a0", "a.b", "ab/c", "A/b", "a/\xc3\xa4", "z"}) {
    ASSERT_OK(workspaces().PutFile(Key("w"), File(path)));
  }
  EXPECT_THAT(Snapshot("a"), ElementsAre("a/b", "a/b/c", "a/\xc3\xa4"));
  EXPECT_THAT(Snapshot("a/b"), ElementsAre("a/b/c"));
  EXPECT_THAT(Snapshot("none"), IsEmpty());
  EXPECT_EQ(Snapshot("").size(), 9);
  EXPECT_OK(workspaces().Snapshot(Key("w"), "a", 3));
  EXPECT_REASON(workspaces().Snapshot(Key("w"), "a", 2), MODEL_LIMIT);
}

TEST_P(WorkspaceStoreConformance, SnapshotSeesOneMoment) {
  constexpr int kRounds = 30;
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done) {
      absl::StatusOr<std::vector<FileRow>> files = workspaces().Snapshot(Key("w"), "out", 10);
      EXPECT_OK(files);
      ASSERT_TRUE(files.ok() && (files->empty() || files->size() == 2));
      if (files->size() == 2) {
        EXPECT_EQ((*files)[0].size_bytes, (*files)[1].size_bytes);  // both outputs of one operation
      }
    }
  });
  std::unique_ptr<StoreHandle> writer = harness_->Open(clock_, quotas_);
  for (int i = 0; i < kRounds; ++i) {
    const std::string id = absl::StrCat("o", i);
    EXPECT_OK(writer->jobs().Create(NewJob(id), ""));
    EXPECT_OK(writer->jobs().Claim({"worker"}));
    Outcome outcome{.state = v1::OperationMetadata::SUCCEEDED, .response = google::protobuf::Any()};
    for (const char* path : {"out/a", "out/b"}) {
      outcome.outputs.push_back({path, std::string(64, 'a'), static_cast<uint64_t>(i)});
    }
    EXPECT_OK(writer->jobs().Finish(id, 1, outcome));
  }
  done = true;
  reader.join();
}

// ---- Uploads ----------------------------------------------------------------------------------------------------------------

TEST_P(WorkspaceStoreConformance, TheSameUploadIsFoundAgain) {
  ASSERT_OK_AND_ASSIGN(UploadRow first, workspaces().FindOrCreateUpload(Upload("u1")));
  EXPECT_EQ(first.id, "u1");
  Reopen();
  ASSERT_OK_AND_ASSIGN(UploadRow same, workspaces().FindOrCreateUpload(Upload("u2")));
  EXPECT_EQ(same.id, "u1");
  EXPECT_REASON(workspaces().GetUpload(Key("w"), "u2"), UPLOAD_NOT_FOUND);
  ASSERT_OK_AND_ASSIGN(UploadRow got, workspaces().GetUpload(Key("w"), "u1"));
  EXPECT_EQ(got.path, "model/m.onnx");
  EXPECT_EQ(got.workspace, Key("w"));
  EXPECT_EQ(got.sha256, std::string(64, 'a'));
  EXPECT_EQ(got.size_bytes, 9);

  // Another path, digest or size is another upload.
  EXPECT_EQ(workspaces().FindOrCreateUpload(Upload("u3", "model/n.onnx"))->id, "u3");
  EXPECT_EQ(workspaces().FindOrCreateUpload(Upload("u4", "model/m.onnx", 'b'))->id, "u4");
  EXPECT_EQ(workspaces().FindOrCreateUpload(Upload("u5", "model/m.onnx", 'a', 10))->id, "u5");
}

TEST_P(WorkspaceStoreConformance, FinishNamesTheFileAndForgetsTheUpload) {
  ASSERT_OK_AND_ASSIGN(UploadRow upload, workspaces().FindOrCreateUpload(Upload("u1")));
  EXPECT_REASON(workspaces().GetFile(Key("w"), upload.path), FILE_NOT_FOUND);
  ASSERT_OK(workspaces().FinishUpload(upload));
  ASSERT_OK_AND_ASSIGN(FileRow file, workspaces().GetFile(Key("w"), upload.path));
  EXPECT_EQ(file.sha256, upload.sha256);
  EXPECT_EQ(file.size_bytes, upload.size_bytes);
  EXPECT_EQ(file.update_time, clock_.Now());
  EXPECT_REASON(workspaces().GetUpload(Key("w"), "u1"), UPLOAD_NOT_FOUND);
  EXPECT_REASON(workspaces().FinishUpload(upload), UPLOAD_NOT_FOUND);
  EXPECT_EQ(workspaces().FindOrCreateUpload(Upload("u2"))->id, "u2");
}

TEST_P(WorkspaceStoreConformance, DeletedUploadsAreGone) {
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u1")));
  ASSERT_OK(workspaces().CreateWorkspace(Key("v"), "", ""));
  ASSERT_OK(workspaces().DeleteUpload(Key("v"), "u1"));  // not of this workspace
  EXPECT_REASON(workspaces().GetUpload(Key("v"), "u1"), UPLOAD_NOT_FOUND);
  EXPECT_OK(workspaces().GetUpload(Key("w"), "u1"));
  ASSERT_OK(workspaces().DeleteUpload(Key("w"), "u1"));
  EXPECT_REASON(workspaces().GetUpload(Key("w"), "u1"), UPLOAD_NOT_FOUND);
  EXPECT_OK(workspaces().DeleteUpload(Key("w"), "u1"));
  EXPECT_OK(workspaces().DeleteUpload(Key("none"), "u1"));
}

TEST_P(WorkspaceStoreConformance, ManyThreadsOfTwoProcessesShareOneUpload) {
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  std::mutex mutex;
  std::set<std::string> ids;
  std::vector<std::thread> threads;
  threads.reserve(6);
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      absl::StatusOr<UploadRow> row =
          (i % 2 == 0 ? workspaces() : other->workspaces()).FindOrCreateUpload(Upload(absl::StrCat("u", i)));
      EXPECT_OK(row);
      std::lock_guard<std::mutex> lock(mutex);
      ids.insert(row.ok() ? row->id : "none");
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(ids.size(), 1);
}

TEST_P(WorkspaceStoreConformance, AVerifiedUploadIsMarked) {
  ASSERT_OK_AND_ASSIGN(UploadRow upload, workspaces().FindOrCreateUpload(Upload("u1")));
  EXPECT_FALSE(upload.verified);
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u2", "other")));
  ASSERT_OK(workspaces().SetUploadVerified(upload));
  Reopen();
  EXPECT_TRUE(workspaces().GetUpload(Key("w"), "u1")->verified);
  EXPECT_TRUE(workspaces().FindOrCreateUpload(Upload("u3"))->verified);
  EXPECT_FALSE(workspaces().GetUpload(Key("w"), "u2")->verified);
  ASSERT_OK(workspaces().DeleteUpload(Key("w"), "u1"));
  EXPECT_REASON(workspaces().SetUploadVerified(upload), UPLOAD_NOT_FOUND);
}

TEST_P(WorkspaceStoreConformance, NothingWorksInAWorkspaceThatIsGone) {
  UploadRow upload = Upload("u1");
  upload.workspace = Key("gone");
  EXPECT_REASON(workspaces().GetFile(Key("gone"), "a"), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().ListFiles(Key("gone"), 0, ""), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().Snapshot(Key("gone"), "", 10), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().PutFile(Key("gone"), File("a")), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().DeleteFile(Key("gone"), "a"), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().FindOrCreateUpload(upload), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().GetUpload(Key("gone"), "u1"), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().FinishUpload(upload), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().SetUploadVerified(upload), WORKSPACE_NOT_FOUND);
}

// ---- Usage and quotas -------------------------------------------------------------------------------------------------------

TEST_P(WorkspaceStoreConformance, UsageFollowsEveryChange) {
  EXPECT_EQ(UsageOf(kProject), "0 bytes, 0 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  ASSERT_OK(workspaces().PutFile(Key("w"), File("a", 'a', 10)));
  ASSERT_OK(workspaces().PutFile(Key("w"), File("b", 'a', 10)));  // the same content counts again
  EXPECT_EQ(UsageOf(kProject), "20 bytes, 2 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  ASSERT_OK(workspaces().PutFile(Key("w"), File("a", 'b', 3)));
  EXPECT_EQ(UsageOf(kProject), "13 bytes, 2 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  ASSERT_OK_AND_ASSIGN(const UploadRow upload, workspaces().FindOrCreateUpload(Upload("u1", "b", 'c', 100)));
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u2", "b", 'c', 100)));  // the same upload
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u3", "b", 'd', 1000)));
  EXPECT_EQ(UsageOf(kProject), "1113 bytes, 2 files, 2 uploads, 1 workspaces, 0 pending, 0 running");
  ASSERT_OK(workspaces().FinishUpload(upload));
  EXPECT_EQ(UsageOf(kProject), "1103 bytes, 2 files, 1 uploads, 1 workspaces, 0 pending, 0 running");
  ASSERT_OK(workspaces().DeleteUpload(Key("w"), "u3"));
  ASSERT_OK(workspaces().DeleteUpload(Key("w"), "u3"));
  EXPECT_EQ(UsageOf(kProject), "103 bytes, 2 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  ASSERT_OK(workspaces().DeleteFile(Key("w"), "b"));
  EXPECT_REASON(workspaces().DeleteFile(Key("w"), "b"), FILE_NOT_FOUND);
  EXPECT_EQ(UsageOf(kProject), "3 bytes, 1 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  for (const char* id : {"o1", "o2", "o3"}) {
    ASSERT_OK(handle_->jobs().Create(NewJob(id), ""));
  }
  ASSERT_OK(handle_->jobs().Claim({"worker"}));
  ASSERT_OK(handle_->jobs().Claim({"worker"}));
  ASSERT_OK(handle_->jobs().RequestCancel(kProject, "o2"));
  EXPECT_EQ(UsageOf(kProject), "3 bytes, 1 files, 0 uploads, 1 workspaces, 1 pending, 2 running");
  ASSERT_OK(handle_->jobs().Finish("o1", 1,
                                   {.state = v1::OperationMetadata::SUCCEEDED,
                                    .response = google::protobuf::Any(),
                                    .outputs = {{"a", std::string(64, 'e'), 5}, {"out", std::string(64, 'e'), 5}}}));
  ASSERT_OK(handle_->jobs().Requeue("o2", 1, /*failed=*/false));
  ASSERT_OK(handle_->jobs().RequestCancel(kProject, "o3"));
  ASSERT_OK(workspaces().CreateWorkspace(Key("v"), "", ""));
  ASSERT_OK(workspaces().PutFile(Key("v"), File("a", 'a', 1000)));
  ASSERT_OK(workspaces().CreateWorkspace({"q", "w"}, "", ""));
  ASSERT_OK(workspaces().PutFile({"q", "w"}, File("a", 'a', 77)));
  Reopen();
  EXPECT_EQ(UsageOf(kProject), "1010 bytes, 3 files, 0 uploads, 2 workspaces, 0 pending, 0 running");
  ASSERT_OK(workspaces().DeleteWorkspace(Key("w")));
  EXPECT_EQ(UsageOf(kProject), "1000 bytes, 1 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  EXPECT_EQ(UsageOf("q"), "77 bytes, 1 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
  EXPECT_EQ(UsageOf("none"), "0 bytes, 0 files, 0 uploads, 0 workspaces, 0 pending, 0 running");
}

TEST_P(WorkspaceStoreConformance, BytesAreLimited) {
  quotas_ = Quotas({.bytes = 100}, {{"big", {.bytes = 1000}}, {"free", {}}});
  ASSERT_OK(workspaces().PutFile(Key("w"), File("a", 'a', 60)));
  const absl::Status refused = workspaces().PutFile(Key("w"), File("b", 'b', 41));
  EXPECT_REASON(refused, QUOTA_EXCEEDED);
  EXPECT_THAT(MetadataOf(refused), testing::IsSupersetOf({testing::Pair("quota", "bytes"), testing::Pair("limit", "100"),
                                                          testing::Pair("used", "60")}));
  EXPECT_REASON(workspaces().GetFile(Key("w"), "b"), FILE_NOT_FOUND);
  EXPECT_REASON(workspaces().PutFile(Key("w"), File("a", 'b', 101)), QUOTA_EXCEEDED);
  EXPECT_EQ(workspaces().GetFile(Key("w"), "a")->size_bytes, 60);
  EXPECT_OK(workspaces().PutFile(Key("w"), File("a", 'b', 100)));  // the difference is what counts
  EXPECT_OK(workspaces().PutFile(Key("w"), File("a", 'b', 60)));
  // Other workspaces of the project count, other projects do not.
  ASSERT_OK(workspaces().CreateWorkspace(Key("v"), "", ""));
  EXPECT_REASON(workspaces().PutFile(Key("v"), File("b", 'b', 41)), QUOTA_EXCEEDED);
  for (const char* project : {"q", "big", "free"}) {
    ASSERT_OK(workspaces().CreateWorkspace({project, "w"}, "", ""));
  }
  EXPECT_OK(workspaces().PutFile({"q", "w"}, File("b", 'b', 100)));
  EXPECT_OK(workspaces().PutFile({"big", "w"}, File("b", 'b', 1000)));
  EXPECT_REASON(workspaces().PutFile({"big", "w"}, File("c", 'b', 1)), QUOTA_EXCEEDED);
  EXPECT_OK(workspaces().PutFile({"free", "w"}, File("b", 'b', uint64_t{1} << 50)));
  // An unfinished upload holds its room, and only that can refuse it.
  EXPECT_REASON(workspaces().FindOrCreateUpload(Upload("u1", "u", 'c', 41)), QUOTA_EXCEEDED);
  EXPECT_REASON(workspaces().FindOrCreateUpload(Upload("u1", "u", 'c', UINT64_MAX >> 1)), QUOTA_EXCEEDED);
  EXPECT_REASON(workspaces().GetUpload(Key("w"), "u1"), UPLOAD_NOT_FOUND);
  ASSERT_OK_AND_ASSIGN(const UploadRow upload, workspaces().FindOrCreateUpload(Upload("u1", "u", 'c', 40)));
  EXPECT_REASON(workspaces().PutFile(Key("w"), File("b", 'b', 1)), QUOTA_EXCEEDED);
  EXPECT_REASON(workspaces().FindOrCreateUpload(Upload("u2", "u", 'd', 1)), QUOTA_EXCEEDED);
  EXPECT_OK(workspaces().FindOrCreateUpload(Upload("u2", "u", 'c', 40)));  // the same
  EXPECT_OK(workspaces().FindOrCreateUpload(Upload("u3", "u", 'e', 0)));
  quotas_ = Quotas({.bytes = 10}, {});
  EXPECT_OK(workspaces().FinishUpload(upload));
  EXPECT_OK(workspaces().PutFile(Key("w"), File("a", 'b', 59)));  // shrinks
  EXPECT_REASON(workspaces().PutFile(Key("w"), File("a", 'b', 60)), QUOTA_EXCEEDED);
}

TEST_P(WorkspaceStoreConformance, WorkspacesAreLimited) {
  quotas_ = Quotas({.workspaces = 2}, {});
  ASSERT_OK(workspaces().CreateWorkspace(Key("v"), "", "r1"));
  const absl::Status refused = workspaces().CreateWorkspace(Key("u"), "", "r2").status();
  EXPECT_REASON(refused, QUOTA_EXCEEDED);
  EXPECT_THAT(MetadataOf(refused), testing::IsSupersetOf({testing::Pair("quota", "workspaces"), testing::Pair("limit", "2"),
                                                          testing::Pair("used", "2")}));
  EXPECT_REASON(workspaces().GetWorkspace(Key("u")), WORKSPACE_NOT_FOUND);
  EXPECT_REASON(workspaces().CreateWorkspace(Key("v"), "", ""), WORKSPACE_EXISTS);
  EXPECT_OK(workspaces().CreateWorkspace(Key("v"), "", "r1"));
  EXPECT_OK(workspaces().CreateWorkspace({"q", "u"}, "", ""));
  ASSERT_OK(workspaces().DeleteWorkspace(Key("w")));
  EXPECT_OK(workspaces().CreateWorkspace(Key("u"), "", "r2"));
}

TEST_P(WorkspaceStoreConformance, ManyCallersDoNotOvershootAQuota) {
  quotas_ = Quotas({.bytes = 35, .workspaces = 3}, {});
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  std::vector<std::thread> threads;
  threads.reserve(9);
  for (int i = 0; i < 9; ++i) {
    threads.emplace_back([&, i] {
      WorkspaceStore& store = i % 2 == 0 ? workspaces() : other->workspaces();
      const std::string name = absl::StrCat("n", i);
      absl::Status status;
      if (i % 3 == 0) {
        status = store.PutFile(Key("w"), File(name, 'a', 10));
      } else if (i % 3 == 1) {
        status = store.FindOrCreateUpload(Upload(name, name, 'b', 10)).status();
      } else {
        status = store.CreateWorkspace(Key(name), "", "").status();
      }
      EXPECT_TRUE(status.ok() || ReasonOf(status) == v1::QUOTA_EXCEEDED) << status;
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  ASSERT_OK_AND_ASSIGN(const ProjectUsage usage, workspaces().Usage(kProject));
  EXPECT_EQ(usage.bytes, 30);
  EXPECT_EQ(usage.files + usage.uploads, 3);
  EXPECT_EQ(usage.workspaces, 3);
}

// ---- Projects ---------------------------------------------------------------------------------------------------------------

TEST_P(WorkspaceStoreConformance, ContentIsKnownToTheProjectThatHasIt) {
  const std::string a(64, 'a');
  ASSERT_OK(workspaces().PutFile(Key("w"), File("a", 'a', 5)));
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u1", "b", 'b', 5)));
  EXPECT_TRUE(*workspaces().HasContent(kProject, a, 5));
  EXPECT_FALSE(*workspaces().HasContent(kProject, a, 6));
  EXPECT_FALSE(*workspaces().HasContent(kProject, std::string(64, 'b'), 5));  // not yet
  EXPECT_FALSE(*workspaces().HasContent("q", a, 5));
  ASSERT_OK(workspaces().DeleteFile(Key("w"), "a"));
  EXPECT_FALSE(*workspaces().HasContent(kProject, a, 5));
}

TEST_P(WorkspaceStoreConformance, WhatOthersHaveDoesNotExist) {
  const WorkspaceKey theirs{"q", "theirs"};
  const WorkspaceKey mine = Key("theirs");  // of the same name, not there
  const WorkspaceKey none = Key("none");
  ASSERT_OK(workspaces().CreateWorkspace(theirs, "", "r1"));
  ASSERT_OK(workspaces().PutFile(theirs, File("secret")));
  UploadRow upload = Upload("u1", "up");
  upload.workspace = theirs;
  ASSERT_OK_AND_ASSIGN(upload, workspaces().FindOrCreateUpload(upload));

  auto same = [](const auto& a, const auto& b) {
    EXPECT_FALSE(StatusOf(a).ok());
    EXPECT_EQ(TextOf(a, "theirs"), TextOf(b, "none"));
  };
  WorkspaceStore& store = workspaces();
  same(store.GetWorkspace(mine), store.GetWorkspace(none));
  same(store.DeleteWorkspace(mine), store.DeleteWorkspace(none));
  same(store.GetFile(mine, "secret"), store.GetFile(none, "secret"));
  same(store.ListFiles(mine, 0, ""), store.ListFiles(none, 0, ""));
  same(store.Snapshot(mine, "", 10), store.Snapshot(none, "", 10));
  same(store.PutFile(mine, File("secret")), store.PutFile(none, File("secret")));
  same(store.DeleteFile(mine, "secret"), store.DeleteFile(none, "secret"));
  same(store.GetUpload(mine, "u1"), store.GetUpload(none, "u1"));
  auto upload_to = [](const WorkspaceKey& workspace) {
    UploadRow row = Upload("u1", "up");
    row.workspace = workspace;
    return row;
  };
  same(store.FindOrCreateUpload(upload_to(mine)), store.FindOrCreateUpload(upload_to(none)));
  same(store.FinishUpload(upload_to(mine)), store.FinishUpload(upload_to(none)));
  same(store.SetUploadVerified(upload_to(mine)), store.SetUploadVerified(upload_to(none)));
  EXPECT_OK(store.DeleteUpload(mine, "u1"));
  ASSERT_OK_AND_ASSIGN(const Page<WorkspaceRow> page, store.ListWorkspaces(kProject, 0, ""));
  ASSERT_EQ(page.rows.size(), 1);
  EXPECT_EQ(page.rows[0].id, "w");

  // The name is free, with the same request id too, and what is done there is done there only.
  ASSERT_OK(store.CreateWorkspace(mine, "", "r1"));
  EXPECT_REASON(store.GetFile(mine, "secret"), FILE_NOT_FOUND);
  EXPECT_EQ(TextOf(store.GetUpload(mine, "u1"), "u1"), TextOf(store.GetUpload(mine, "u9"), "u9"));
  EXPECT_EQ(TextOf(store.FinishUpload(upload_to(mine)), ""), TextOf(store.GetUpload(mine, "u1"), ""));
  EXPECT_OK(store.DeleteUpload(mine, "u1"));
  ASSERT_OK(store.PutFile(mine, File("secret", 'b')));
  ASSERT_OK(store.DeleteFile(mine, "secret"));
  ASSERT_OK(store.DeleteWorkspace(mine));
  ASSERT_OK_AND_ASSIGN(const FileRow file, store.GetFile(theirs, "secret"));
  EXPECT_EQ(file.sha256, std::string(64, 'a'));
  EXPECT_OK(store.GetUpload(theirs, "u1"));

  // Page tokens are of one project.
  for (const char* project : {kProject, "q"}) {
    for (const char* id : {"x1", "x2"}) {
      ASSERT_OK(store.CreateWorkspace({project, id}, "", ""));
      ASSERT_OK(store.PutFile({project, "x1"}, File(id)));
    }
  }
  const std::string workspaces_token = store.ListWorkspaces("q", 1, "")->next_page_token;
  const std::string files_token = store.ListFiles({"q", "x1"}, 1, "")->next_page_token;
  EXPECT_REASON(store.ListWorkspaces(kProject, 1, workspaces_token), PAGE_TOKEN_INVALID);
  EXPECT_EQ(TextOf(store.ListWorkspaces(kProject, 1, workspaces_token), ""), TextOf(store.ListWorkspaces(kProject, 1, "x"), ""));
  EXPECT_REASON(store.ListFiles(Key("x1"), 1, files_token), PAGE_TOKEN_INVALID);
}

// ---- Housekeeping -----------------------------------------------------------------------------------------------------------

TEST_P(WorkspaceStoreConformance, OnlyUnreferencedContentIsRemoved) {
  const std::string a(64, 'a');
  auto removed = [this](const std::string& sha256) {
    bool called = false;
    absl::StatusOr<bool> removed = workspaces().RemoveUnreferenced(sha256, [&] {
      called = true;
      return absl::OkStatus();
    });
    EXPECT_OK(removed);
    EXPECT_EQ(called, *removed);
    return called;
  };
  EXPECT_TRUE(removed(a));
  ASSERT_OK(workspaces().CreateWorkspace({"q", "w"}, "", ""));
  ASSERT_OK(workspaces().PutFile({"q", "w"}, File("a", 'a')));
  EXPECT_FALSE(removed(a));
  EXPECT_TRUE(removed(std::string(64, 'b')));
  ASSERT_OK(workspaces().DeleteFile({"q", "w"}, "a"));
  EXPECT_TRUE(removed(a));

  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u1")));
  EXPECT_FALSE(removed(a));
  ASSERT_OK(workspaces().DeleteUpload(Key("w"), "u1"));
  EXPECT_TRUE(removed(a));
  ASSERT_OK(workspaces().PutFile({"q", "w"}, File("a", 'a')));
  ASSERT_OK(workspaces().DeleteWorkspace({"q", "w"}));
  EXPECT_TRUE(removed(a));

  // What an operation is to read, until it has ended, in whatever way.
  JobStore& jobs = handle_->jobs();
  Job job = NewJob("o1");
  for (const char* path : {"m", "n"}) {  // the same content twice
    v1::File& input = *job.metadata.add_inputs();
    input.set_name(absl::StrCat("workspaces/w/files/", path));
    input.set_sha256(a);
  }
  auto create = [&] {  // with the file gone as soon as the job is there
    ASSERT_OK(workspaces().PutFile(Key("w"), File("m", 'a')));
    ASSERT_OK(jobs.Create(job, ""));
    ASSERT_OK(workspaces().DeleteFile(Key("w"), "m"));
  };
  create();
  EXPECT_FALSE(removed(a));
  ASSERT_OK(jobs.Claim({"worker"}));
  EXPECT_FALSE(removed(a));
  ASSERT_OK(jobs.Requeue("o1", 1, /*failed=*/true));
  EXPECT_FALSE(removed(a));
  ASSERT_OK(jobs.Claim({"worker"}));
  ASSERT_OK(jobs.Finish("o1", 2, {.state = v1::OperationMetadata::SUCCEEDED, .response = google::protobuf::Any()}));
  EXPECT_TRUE(removed(a));
  job.id = "o2";
  create();
  ASSERT_OK(jobs.RequestCancel(kProject, "o2"));
  EXPECT_TRUE(removed(a));
  job.id = "o3";
  create();
  ASSERT_OK(jobs.Claim({"worker"}));
  ASSERT_OK(jobs.RequestCancel(kProject, "o3"));
  EXPECT_FALSE(removed(a));
  ASSERT_OK(jobs.Requeue("o3", 1, /*failed=*/true));
  EXPECT_TRUE(removed(a));

  EXPECT_REASON(workspaces().RemoveUnreferenced(a, [] { return MakeError(v1::STORAGE_ERROR, "no"); }), STORAGE_ERROR);
}

TEST_P(WorkspaceStoreConformance, NothingComesToReferToContentThatIsBeingRemoved) {
  std::unique_ptr<StoreHandle> other = harness_->Open(clock_, quotas_);
  std::atomic<bool> begun = false;
  std::atomic<bool> linked = false;
  std::thread writer;
  ASSERT_OK(workspaces().RemoveUnreferenced(std::string(64, 'a'), [&] {
    writer = std::thread([&] {
      begun = true;
      EXPECT_OK(other->workspaces().PutFile(Key("w"), File("a", 'a')));
      linked = true;
    });
    while (!begun) {
      std::this_thread::yield();
    }
    for (int i = 0; i < 100; ++i) {  // as long as many commits take
      EXPECT_REASON(other->workspaces().GetFile(Key("w"), "a"), FILE_NOT_FOUND);
    }
    EXPECT_FALSE(linked);
    return absl::OkStatus();
  }));
  writer.join();
  EXPECT_OK(workspaces().GetFile(Key("w"), "a"));
}

TEST_P(WorkspaceStoreConformance, OldUploadsAreGivenUp) {
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u1", "a", 'a', 10)));
  ASSERT_OK(workspaces().CreateWorkspace({"q", "w"}, "", ""));
  UploadRow theirs = Upload("u2", "a", 'a', 10);
  theirs.workspace = {"q", "w"};
  ASSERT_OK(workspaces().FindOrCreateUpload(theirs));
  clock_.Advance(absl::Seconds(1));
  const absl::Time now = clock_.Now();
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u3", "c", 'a', 100)));
  ASSERT_OK(workspaces().FindOrCreateUpload(Upload("u4", "a", 'a', 10)));  // u1, begun before
  EXPECT_TRUE(*workspaces().UploadExists("u1"));
  EXPECT_TRUE(*workspaces().UploadExists("u2"));
  EXPECT_FALSE(*workspaces().UploadExists("u4"));
  Reopen();
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> inactive, workspaces().DeleteUploadsBefore(now, {"u1"}, 10));
  EXPECT_THAT(inactive, testing::UnorderedElementsAre("u2"));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> ids, workspaces().DeleteUploadsBefore(now, {}, 10));
  EXPECT_THAT(ids, testing::UnorderedElementsAre("u1"));
  EXPECT_FALSE(*workspaces().UploadExists("u1"));
  EXPECT_FALSE(*workspaces().UploadExists("u2"));
  EXPECT_TRUE(*workspaces().UploadExists("u3"));
  EXPECT_REASON(workspaces().GetUpload(Key("w"), "u1"), UPLOAD_NOT_FOUND);
  EXPECT_EQ(UsageOf(kProject), "100 bytes, 0 files, 1 uploads, 1 workspaces, 0 pending, 0 running");
  EXPECT_EQ(UsageOf("q"), "0 bytes, 0 files, 0 uploads, 1 workspaces, 0 pending, 0 running");
}

TEST_P(WorkspaceStoreConformance, OldUploadsAreGivenUpInBatches) {
  const std::vector<std::string> begun = {"u3", "u1", "u5", "u2", "u4", "u6", "u7"};
  for (const std::string& id : begun) {
    ASSERT_OK(workspaces().FindOrCreateUpload(Upload(id, id, 'a', 10)));
    clock_.Advance(absl::Seconds(id == "u1" ? 0 : 1));
  }
  const std::set<std::string> active = {"u3", "u1", "u5", "u7"};
  for (const std::vector<std::string>& expected : std::vector<std::vector<std::string>>{{"u2", "u4"}, {"u6"}, {}}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<std::string> ids, workspaces().DeleteUploadsBefore(clock_.Now(), active, 2));
    EXPECT_EQ(ids, expected);
  }
  EXPECT_EQ(UsageOf(kProject), "40 bytes, 0 files, 4 uploads, 1 workspaces, 0 pending, 0 running");
}

TEST_P(WorkspaceStoreConformance, WorkspacesWithManyFilesAreDeletedToo) {
  constexpr int kFiles = 1'100;  // more than one transaction deletes
  ASSERT_OK(workspaces().CreateWorkspace(Key("v"), "", ""));
  ASSERT_OK(workspaces().PutFile(Key("v"), File("a")));
  std::vector<OutputFile> outputs;
  outputs.reserve(kFiles);
  for (int i = 0; i < kFiles; ++i) {
    outputs.push_back({.path = absl::StrCat("f/", i), .sha256 = std::string(64, 'b'), .size_bytes = 2});
  }
  JobStore& jobs = handle_->jobs();
  auto fill = [&](const std::string& workspace, const std::string& id) {
    ASSERT_OK(workspaces().CreateWorkspace(Key(workspace), "", ""));
    ASSERT_OK(workspaces().PutFile(Key(workspace), File("a")));
    Job job = NewJob(id);
    job.metadata.set_workspace("workspaces/" + workspace);
    ASSERT_OK(jobs.Create(job, ""));
    ASSERT_OK(jobs.Claim({"worker"}));
    ASSERT_OK(
        jobs.Finish(id, 1, {.state = v1::OperationMetadata::SUCCEEDED, .response = google::protobuf::Any(), .outputs = outputs}));
  };
  fill("big", "o1");
  ASSERT_OK(workspaces().DeleteWorkspace(Key("big")));
  EXPECT_REASON(workspaces().GetWorkspace(Key("big")), WORKSPACE_NOT_FOUND);
  EXPECT_EQ(UsageOf(kProject), "5 bytes, 1 files, 0 uploads, 2 workspaces, 0 pending, 0 running");

  // Unused for long: the small one with the one that nobody ever used, the big one alone.
  clock_.Advance(absl::Seconds(1));
  fill("big", "o2");
  clock_.Advance(absl::Seconds(1));
  ASSERT_OK_AND_ASSIGN(std::vector<WorkspaceKey> deleted, workspaces().DeleteIdleWorkspaces(clock_.Now(), 10));
  EXPECT_THAT(deleted, testing::UnorderedElementsAre(Key("v"), Key("w")));
  ASSERT_OK_AND_ASSIGN(deleted, workspaces().DeleteIdleWorkspaces(clock_.Now(), 10));
  EXPECT_THAT(deleted, ElementsAre(Key("big")));
  EXPECT_EQ(UsageOf(kProject), "0 bytes, 0 files, 0 uploads, 0 workspaces, 0 pending, 0 running");
}

TEST_P(WorkspaceStoreConformance, WorkspacesThatNobodyUsesAreDeleted) {
  JobStore& jobs = handle_->jobs();
  // One workspace for each kind of use, all of them in use before; "w" stays unused.
  const std::vector<std::string> used = {"put", "delete", "begin", "finish", "discard", "accept", "end", "cancel", "made"};
  for (const std::string& id : used) {
    if (id != "made") {
      ASSERT_OK(workspaces().CreateWorkspace(Key(id), "", ""));
      ASSERT_OK(workspaces().PutFile(Key(id), File("a")));
    }
  }
  auto upload_to = [](const std::string& id) {
    UploadRow row = Upload(absl::StrCat("u", id));
    row.workspace = Key(id);
    return row;
  };
  auto job_in = [](const std::string& id) {
    Job job = NewJob(id);
    job.metadata.set_workspace(absl::StrCat("workspaces/", id));
    return job;
  };
  ASSERT_OK(workspaces().FindOrCreateUpload(upload_to("finish")));
  ASSERT_OK(workspaces().FindOrCreateUpload(upload_to("discard")));
  ASSERT_OK(workspaces().FindOrCreateUpload(upload_to("w")));
  ASSERT_OK(jobs.Create(job_in("end"), ""));
  ASSERT_OK(jobs.Claim({"worker"}));
  ASSERT_OK(jobs.Create(job_in("cancel"), ""));
  clock_.Advance(absl::Hours(1));
  const absl::Time since = clock_.Now();
  ASSERT_OK(workspaces().PutFile(Key("put"), File("b")));
  ASSERT_OK(workspaces().DeleteFile(Key("delete"), "a"));
  ASSERT_OK(workspaces().FindOrCreateUpload(upload_to("begin")));
  ASSERT_OK(workspaces().FinishUpload(upload_to("finish")));
  ASSERT_OK(workspaces().DeleteUpload(Key("discard"), "udiscard"));
  ASSERT_OK(jobs.Create(job_in("accept"), ""));
  ASSERT_OK(jobs.RequestCancel(kProject, "accept"));
  ASSERT_OK(jobs.Finish("end", 1, {.state = v1::OperationMetadata::SUCCEEDED, .response = google::protobuf::Any()}));
  ASSERT_OK(jobs.RequestCancel(kProject, "cancel"));
  ASSERT_OK(workspaces().CreateWorkspace(Key("made"), "", ""));
  // To look is no use, nor is housekeeping.
  ASSERT_OK(workspaces().GetWorkspace(Key("w")));
  ASSERT_OK(workspaces().Snapshot(Key("w"), "", 10));
  ASSERT_OK(workspaces().DeleteUploadsBefore(since - absl::Minutes(1), {}, 10));

  ASSERT_OK_AND_ASSIGN(std::vector<WorkspaceKey> deleted, workspaces().DeleteIdleWorkspaces(since, 100));
  EXPECT_THAT(deleted, ElementsAre(Key("w")));
  EXPECT_REASON(workspaces().GetWorkspace(Key("w")), WORKSPACE_NOT_FOUND);
  for (const std::string& id : used) {
    EXPECT_OK(workspaces().GetWorkspace(Key(id)));
  }

  // Not while an operation is unfinished, however old it is; the longest unused first.
  ASSERT_OK(jobs.Create(job_in("put"), ""));
  clock_.Advance(absl::Hours(1));
  ASSERT_OK(workspaces().PutFile(Key("delete"), File("b")));
  clock_.Advance(absl::Hours(1));
  ASSERT_OK_AND_ASSIGN(deleted, workspaces().DeleteIdleWorkspaces(clock_.Now(), 7));
  EXPECT_EQ(deleted.size(), 7);
  EXPECT_OK(workspaces().GetWorkspace(Key("put")));
  EXPECT_OK(workspaces().GetWorkspace(Key("delete")));
  ASSERT_OK_AND_ASSIGN(deleted, workspaces().DeleteIdleWorkspaces(clock_.Now(), 7));
  EXPECT_THAT(deleted, ElementsAre(Key("delete")));
  ASSERT_OK_AND_ASSIGN(deleted, workspaces().DeleteIdleWorkspaces(clock_.Now(), 7));
  EXPECT_THAT(deleted, IsEmpty());
  EXPECT_EQ(UsageOf(kProject), "10 bytes, 2 files, 0 uploads, 1 workspaces, 1 pending, 0 running");
}

TEST_P(WorkspaceStoreConformance, KilledWhileWritingNothingAcknowledgedIsLostOrTorn) {
  handle_.reset();  // no connection is carried over the fork
  std::vector<std::string> said = RunAndKill(40, [this](const std::function<void(const std::string&)>& say) {
    std::unique_ptr<StoreHandle> handle = harness_->Open(clock_, quotas_);
    for (int i = 0;; ++i) {
      absl::StatusOr<UploadRow> upload =
          handle->workspaces().FindOrCreateUpload(Upload(absl::StrCat("u", i), absl::StrCat("f", i)));
      if (!upload.ok() || !handle->workspaces().FinishUpload(*upload).ok()) {
        return;
      }
      say(upload->path);
    }
  });
  Reopen();
  for (const std::string& path : said) {
    EXPECT_OK(workspaces().GetFile(Key("w"), path));
  }
  // The one after the last may be finished or not, but not half.
  for (size_t i = 0; i <= said.size(); ++i) {
    EXPECT_NE(
        workspaces().GetFile(Key("w"), absl::StrCat("f", i)).ok() && workspaces().GetUpload(Key("w"), absl::StrCat("u", i)).ok(),
        true);
  }
}

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_WORKSPACES_WORKSPACE_STORE_CONFORMANCE_H_
