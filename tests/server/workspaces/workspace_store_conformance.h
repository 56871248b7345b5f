// What every driver of WorkspaceStore must do. A driver's test includes this once and instantiates WorkspaceStoreConformance with
// a factory of its harness.
#ifndef MODELPRESS_TESTS_SERVER_WORKSPACES_WORKSPACE_STORE_CONFORMANCE_H_
#define MODELPRESS_TESTS_SERVER_WORKSPACES_WORKSPACE_STORE_CONFORMANCE_H_

#include <algorithm>
#include <atomic>
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
  clock_.Advance(absl::Hours(24) - absl::Seconds(1));
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
