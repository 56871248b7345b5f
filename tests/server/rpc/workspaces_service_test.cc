#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "server/blobs/directory_blob_store.h"
#include "server/rpc/limits.h"
#include "server/sql/schema.h"
#include "server/workspaces/sql_workspace_store.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

// Bytes that no two offsets share.
std::string Content(size_t size, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(random());
  }
  return bytes;
}

class WorkspacesServiceTest : public DaemonFixture {
 protected:
  WorkspacesServiceTest() {
    Start(Options());
    MakeWorkspace("w");
  }

  std::string Get(const std::string& file) {
    v1::DownloadFileRequest request;
    request.set_name(file);
    std::string content;
    const grpc::Status status = Download(request, &content);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return content;
  }
  v1::Upload GetUpload(const std::string& name) {
    grpc::ClientContext context;
    v1::GetUploadRequest request;
    request.set_name(name);
    v1::Upload upload;
    const grpc::Status status = workspaces_->GetUpload(&context, request, &upload);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return upload;
  }
};

TEST_F(WorkspacesServiceTest, FilesRoundTrip) {
  for (const size_t size : {0, 1, 1 << 20, (3 << 20) + 17}) {
    const std::string content = Content(size);
    const std::string name = absl::StrCat("workspaces/w/files/d/f", size);
    PutFile(name, content);
    EXPECT_EQ(Get(name), content);
  }
  grpc::ClientContext list;
  v1::ListFilesRequest request;
  request.set_parent("workspaces/w");
  request.set_page_size(3);
  v1::ListFilesResponse page;
  ASSERT_TRUE(workspaces_->ListFiles(&list, request, &page).ok());
  EXPECT_EQ(page.files_size(), 3);
  EXPECT_FALSE(page.next_page_token().empty());
  EXPECT_EQ(page.files(0).sha256(), Sha256Hex(""));

  grpc::ClientContext remove;
  v1::DeleteFileRequest file;
  file.set_name("workspaces/w/files/d/f1");
  google::protobuf::Empty empty;
  ASSERT_TRUE(workspaces_->DeleteFile(&remove, file, &empty).ok());
  grpc::ClientContext again;
  EXPECT_EQ(ReasonOf(workspaces_->DeleteFile(&again, file, &empty)), "FILE_NOT_FOUND");
}

TEST_F(WorkspacesServiceTest, WorkspaceIsListedAndDeleted) {
  grpc::ClientContext list;
  v1::ListWorkspacesResponse page;
  ASSERT_TRUE(workspaces_->ListWorkspaces(&list, {}, &page).ok());
  ASSERT_EQ(page.workspaces_size(), 1);
  EXPECT_EQ(page.workspaces(0).name(), "workspaces/w");
  grpc::ClientContext remove;
  v1::DeleteWorkspaceRequest request;
  request.set_name("workspaces/w");
  google::protobuf::Empty empty;
  ASSERT_TRUE(workspaces_->DeleteWorkspace(&remove, request, &empty).ok());
  grpc::ClientContext get;
  v1::GetWorkspaceRequest name;
  name.set_name("workspaces/w");
  v1::Workspace workspace;
  EXPECT_EQ(ReasonOf(workspaces_->GetWorkspace(&get, name, &workspace)), "WORKSPACE_NOT_FOUND");
}

TEST_F(WorkspacesServiceTest, ServerChoosesIdOnceForARequestId) {
  v1::CreateWorkspaceRequest request;
  request.set_request_id("123e4567-e89b-12d3-a456-426614174000");
  std::string name;
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    v1::Workspace workspace;
    ASSERT_TRUE(workspaces_->CreateWorkspace(&context, request, &workspace).ok());
    EXPECT_TRUE(name.empty() || name == workspace.name());
    name = workspace.name();
  }
}

TEST_F(WorkspacesServiceTest, UploadGoesOnAtAnyByteAndAcrossRestart) {
  const std::string content = Content(2'500'000);
  const std::string name = "workspaces/w/files/big";
  std::mt19937 random(7);
  v1::Upload upload = StartUpload(name, content);
  EXPECT_EQ(upload.committed_size(), 0);
  for (int i = 0; i < 4; ++i) {
    const size_t end = upload.committed_size() + random() % (content.size() - upload.committed_size() - 1);
    v1::Upload answer;
    const grpc::Status status = SendBytes(upload, content, end, &answer);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_FALSE(answer.complete());
    EXPECT_EQ(answer.committed_size(), end);
    if (i == 2) {
      Stop();
      Start(Options());
    }
    // Another process finds the same upload by its content.
    EXPECT_EQ(StartUpload(name, content).name(), upload.name());
    upload = GetUpload(upload.name());
    EXPECT_EQ(upload.committed_size(), end);
  }
  v1::Upload answer;
  ASSERT_TRUE(SendBytes(upload, content, content.size(), &answer).ok());
  EXPECT_TRUE(answer.complete());
  EXPECT_EQ(Get(name), content);
}

TEST_F(WorkspacesServiceTest, KnownContentIsNotSentAgain) {
  const std::string content = Content(1000);
  PutFile("workspaces/w/files/a", content);
  MakeWorkspace("v");
  EXPECT_TRUE(StartUpload("workspaces/v/files/b", content).complete());
  EXPECT_EQ(Get("workspaces/v/files/b"), content);
}

// What another process on the same data folder can do, for any project.
class Beside {
 public:
  explicit Beside(const std::string& folder) {
    absl::StatusOr<std::unique_ptr<Database>> database = OpenDatabase(folder + "/data/modelpress.db");
    absl::StatusOr<std::unique_ptr<DirectoryBlobStore>> blobs = DirectoryBlobStore::OpenFolder(folder + "/data");
    EXPECT_OK(database);
    EXPECT_OK(blobs);
    database_ = *std::move(database);
    blobs_ = *std::move(blobs);
    workspaces_.emplace(*database_, clock_, quotas_);
  }
  WorkspaceStore& workspaces() { return *workspaces_; }
  BlobStore& blobs() { return *blobs_; }

 private:
  const SystemClock clock_;
  const Quotas quotas_;
  std::unique_ptr<Database> database_;
  std::unique_ptr<BlobStore> blobs_;
  std::optional<SqlWorkspaceStore> workspaces_;
};

TEST_F(WorkspacesServiceTest, WhatOnlyOthersHaveIsToBeSent) {
  const std::string content = Content(1000);
  const BlobInfo blob{Sha256Hex(content), content.size()};
  {
    Beside beside(folder_);
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<BlobWriter> writer, beside.blobs().OpenWriter("uother", blob));
    ASSERT_OK(writer->Append(absl::MakeConstSpan(content)));
    ASSERT_OK(writer->Finish());
    ASSERT_OK(beside.workspaces().CreateWorkspace({"other", "w"}, "", ""));
    ASSERT_OK(beside.workspaces().PutFile({"other", "w"}, {.path = "a", .sha256 = blob.sha256, .size_bytes = content.size()}));
  }
  const v1::Upload known_to_others = StartUpload("workspaces/w/files/a", content);
  const v1::Upload unknown = StartUpload("workspaces/w/files/b", Content(1000, 2));
  for (const v1::Upload& upload : {known_to_others, unknown, GetUpload(known_to_others.name()), GetUpload(unknown.name())}) {
    EXPECT_FALSE(upload.complete());
    EXPECT_EQ(upload.committed_size(), 0);
  }
  v1::Upload answer;
  ASSERT_TRUE(SendBytes(known_to_others, content, 500, &answer).ok());
  EXPECT_FALSE(GetUpload(known_to_others.name()).complete());
  // Bytes of the right number that are not the content prove nothing.
  EXPECT_EQ(ReasonOf(SendBytes(answer, content.substr(0, 500) + std::string(500, 'x'), 1000, &answer)), "DIGEST_MISMATCH");
  EXPECT_FALSE(StartUpload("workspaces/w/files/a", content).complete());
  PutFile("workspaces/w/files/a", content);
  EXPECT_EQ(Get("workspaces/w/files/a"), content);
  EXPECT_TRUE(StartUpload("workspaces/w/files/c", content).complete());  // the project has it now
}

TEST_F(WorkspacesServiceTest, AStopBetweenStoringAndNamingIsMadeUpFor) {
  const std::string content = Content(1000);
  const v1::Upload upload = StartUpload("workspaces/w/files/a", content);
  Beside beside(folder_);
  const std::string id = upload.name().substr(upload.name().rfind('/') + 1);
  ASSERT_OK_AND_ASSIGN(const UploadRow row, beside.workspaces().GetUpload({"default", "w"}, id));
  {
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<BlobWriter> writer, beside.blobs().OpenWriter(id, {row.sha256, row.size_bytes}));
    ASSERT_OK(writer->Append(absl::MakeConstSpan(content)));
    ASSERT_OK(writer->Verify());
    ASSERT_OK(beside.workspaces().SetUploadVerified(row));
    EXPECT_FALSE(GetUpload(upload.name()).complete());
    EXPECT_EQ(GetUpload(upload.name()).committed_size(), content.size());
    ASSERT_OK(writer->Finish());
  }
  const v1::Upload completed = GetUpload(upload.name());
  EXPECT_TRUE(completed.complete());
  EXPECT_EQ(completed.committed_size(), content.size());
  EXPECT_EQ(Get("workspaces/w/files/a"), content);
}

TEST_F(WorkspacesServiceTest, CallsThatEndOneUploadTogetherAllFindItComplete) {
  const std::string content = Content(1000);
  constexpr int kCalls = 16;
  PutFile("workspaces/w/files/known", content);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::thread> calls;
    calls.reserve(kCalls);
    for (int i = 0; i < kCalls; ++i) {
      calls.emplace_back([&] { EXPECT_TRUE(StartUpload(absl::StrCat("workspaces/w/files/", round), content).complete()); });
    }
    for (std::thread& call : calls) {
      call.join();
    }
  }
}

TEST_F(WorkspacesServiceTest, NoFileIsLargerThanTheServerCanCount) {
  for (const uint64_t size : {(uint64_t{1} << 46) + 1, uint64_t{1} << 63, UINT64_MAX}) {
    grpc::ClientContext context;
    v1::StartUploadRequest request;
    request.set_file("workspaces/w/files/a");
    request.set_size_bytes(size);
    request.set_sha256(std::string(64, 'a'));
    v1::Upload upload;
    const grpc::Status status = workspaces_->StartUpload(&context, request, &upload);
    EXPECT_EQ(ReasonOf(status), "REQUEST_INVALID");
    EXPECT_EQ(MetadataOf(status, "field"), "size_bytes");
  }
}

TEST_F(WorkspacesServiceTest, QuotasAreToldWithTheirNumbers) {
  Stop();
  DaemonOptions options = Options();
  options.quotas = Quotas({.bytes = 1000, .workspaces = 2}, {});
  Start(options);
  PutFile("workspaces/w/files/a", Content(600));
  grpc::ClientContext start;
  v1::StartUploadRequest request;
  request.set_file("workspaces/w/files/b");
  request.set_size_bytes(401);
  request.set_sha256(Sha256Hex("b"));
  v1::Upload upload;
  const grpc::Status refused = workspaces_->StartUpload(&start, request, &upload);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(refused), "QUOTA_EXCEEDED");
  EXPECT_EQ(MetadataOf(refused, "quota"), "bytes");
  EXPECT_EQ(MetadataOf(refused, "limit"), "1000");
  EXPECT_EQ(MetadataOf(refused, "used"), "600");
  PutFile("workspaces/w/files/b", Content(400));
  MakeWorkspace("v");
  grpc::ClientContext create;
  v1::CreateWorkspaceRequest third;
  v1::Workspace workspace;
  EXPECT_EQ(MetadataOf(workspaces_->CreateWorkspace(&create, third, &workspace), "quota"), "workspaces");
}

TEST_F(WorkspacesServiceTest, WrongOffsetTellsTheRightOne) {
  const std::string content = Content(1000);
  v1::Upload upload = StartUpload("workspaces/w/files/a", content);
  v1::Upload answer;
  ASSERT_TRUE(SendBytes(upload, content, 300, &answer).ok());
  upload.set_committed_size(200);
  const grpc::Status status = SendBytes(upload, content, 500, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(ReasonOf(status), "UPLOAD_OFFSET_MISMATCH");
  EXPECT_EQ(MetadataOf(status, "committed_size"), "300");
  EXPECT_EQ(GetUpload(upload.name()).committed_size(), 300);
}

TEST_F(WorkspacesServiceTest, WrongBytesAreDiscarded) {
  std::string content = Content(1000);
  const v1::Upload upload = StartUpload("workspaces/w/files/a", content);
  content[500] ^= 1;
  v1::Upload answer;
  const grpc::Status status = SendBytes(upload, content, content.size(), &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ReasonOf(status), "DIGEST_MISMATCH");
  grpc::ClientContext context;
  v1::GetFileRequest request;
  request.set_name("workspaces/w/files/a");
  v1::File file;
  EXPECT_EQ(ReasonOf(workspaces_->GetFile(&context, request, &file)), "FILE_NOT_FOUND");
  content[500] ^= 1;
  EXPECT_EQ(StartUpload("workspaces/w/files/a", content).committed_size(), 0);
  PutFile("workspaces/w/files/a", content);
}

TEST_F(WorkspacesServiceTest, MoreBytesThanAnnouncedAreRefused) {
  const std::string content = Content(1000);
  const v1::Upload upload = StartUpload("workspaces/w/files/a", content);
  v1::Upload answer;
  EXPECT_EQ(ReasonOf(SendBytes(upload, content + "x", content.size() + 1, &answer)), "DIGEST_MISMATCH");
}

TEST_F(WorkspacesServiceTest, SecondStreamOfAnUploadIsToldToWait) {
  const std::string content = Content(1000);
  const v1::Upload upload = StartUpload("workspaces/w/files/a", content);
  grpc::ClientContext context;
  v1::Upload first_answer;
  auto first = workspaces_->UploadBytes(&context, &first_answer);
  v1::UploadBytesRequest message;
  message.set_upload(upload.name());
  message.set_data(content.substr(0, 10));
  ASSERT_TRUE(first->Write(message));
  while (GetUpload(upload.name()).committed_size() != 10) {
  }
  v1::Upload answer;
  v1::Upload second = upload;
  second.set_committed_size(10);
  const grpc::Status status = SendBytes(second, content, 20, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(status), "UPLOAD_BUSY");
  first->WritesDone();
  EXPECT_TRUE(first->Finish().ok());
  EXPECT_TRUE(SendBytes(second, content, content.size(), &answer).ok());
  EXPECT_TRUE(answer.complete());
}

TEST_F(WorkspacesServiceTest, TakesSoManyUploadsAtATime) {
  struct Stream {
    grpc::ClientContext context;
    v1::Upload answer;
    std::unique_ptr<grpc::ClientWriter<v1::UploadBytesRequest>> writer;
  };
  auto open = [this] {
    auto stream = std::make_unique<Stream>();
    stream->writer = workspaces_->UploadBytes(&stream->context, &stream->answer);
    return stream;
  };
  auto refused = [&open] {
    const auto stream = open();
    stream->writer->WritesDone();
    return ReasonOf(stream->writer->Finish()) == "UPLOAD_BUSY";
  };
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < kMaxOpenUploads / 2; ++i) {  // what one project gets
    const std::string file = absl::StrCat("workspaces/w/files/", i);
    const std::string content = Content(1000 + i);
    v1::UploadBytesRequest message;
    message.set_upload(StartUpload(file, content).name());
    message.set_data(content.substr(0, 1));
    streams.push_back(open());
    ASSERT_TRUE(streams.back()->writer->Write(message));
    while (StartUpload(file, content).committed_size() == 0) {  // until it has arrived
    }
  }
  EXPECT_TRUE(refused());
  for (const auto& stream : streams) {
    stream->writer->WritesDone();
    EXPECT_TRUE(stream->writer->Finish().ok());
  }
  while (refused()) {  // until all are gone
  }
  PutFile("workspaces/w/files/a", Content(1000));
}

TEST_F(WorkspacesServiceTest, TakesSoManyDownloadsAtATime) {
  PutFile("workspaces/w/files/a", Content(4 << 20));
  // So that streams do not end without being read: windows stay as small as they begin.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
  const auto slow = v1::Workspaces::NewStub(Connected(
      grpc::CreateCustomChannel(absl::StrCat("localhost:", daemon_->port()), grpc::InsecureChannelCredentials(), arguments)));
  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::DownloadFileResponse>> reader;
  };
  v1::DownloadFileRequest request;
  request.set_name("workspaces/w/files/a");
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < kMaxOpenDownloads / 2; ++i) {  // what one project gets; nobody reads to the end
    streams.push_back(std::make_unique<Stream>());
    streams.back()->reader = slow->DownloadFile(&streams.back()->context, request);
    v1::DownloadFileResponse first;
    ASSERT_TRUE(streams.back()->reader->Read(&first));
  }
  std::string content;
  EXPECT_EQ(ReasonOf(Download(request, &content)), "DOWNLOAD_BUSY");
  for (const auto& stream : streams) {
    stream->context.TryCancel();
    EXPECT_EQ(stream->reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  grpc::Status status;
  do {  // until all are gone
    status = Download(request, &content);
  } while (ReasonOf(status) == "DOWNLOAD_BUSY");
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(WorkspacesServiceTest, UploadsLeaveDiskToTheDatabase) {
  const std::string content = Content(1000);
  const v1::Upload begun = StartUpload("workspaces/w/files/a", content);
  v1::Upload answer;
  ASSERT_TRUE(SendBytes(begun, content, 10, &answer).ok());
  Stop();
  DaemonOptions options = Options();
  options.admission.min_free_disk_bytes = UINT64_MAX;
  Start(options);
  EXPECT_EQ(ReasonOf(SendBytes(GetUpload(begun.name()), content, content.size(), &answer)), "STORAGE_FULL");
  grpc::ClientContext context;
  v1::StartUploadRequest request;
  request.set_file("workspaces/w/files/b");
  request.set_sha256(Sha256Hex(content));
  request.set_size_bytes(content.size());
  EXPECT_EQ(ReasonOf(workspaces_->StartUpload(&context, request, &answer)), "STORAGE_FULL");
  Stop();
  Start(Options());
  ASSERT_TRUE(SendBytes(GetUpload(begun.name()), content, content.size(), &answer).ok());
  EXPECT_EQ(Get("workspaces/w/files/a"), content);
}

TEST_F(WorkspacesServiceTest, PathsStayInside) {
  for (const char* file : {"workspaces/w/files/../x", "workspaces/w/files//etc/passwd", "workspaces/w/files/a/../../b"}) {
    grpc::ClientContext context;
    v1::StartUploadRequest request;
    request.set_file(file);
    request.set_sha256(Sha256Hex(""));
    v1::Upload upload;
    const grpc::Status status = workspaces_->StartUpload(&context, request, &upload);
    EXPECT_EQ(ReasonOf(status), "NAME_INVALID") << file;
    EXPECT_EQ(MetadataOf(status, "field"), "file");
  }
}

TEST_F(WorkspacesServiceTest, DownloadsTakeRanges) {
  const std::string content = Content((2 << 20) + 100);
  PutFile("workspaces/w/files/a", content);
  v1::DownloadFileRequest request;
  request.set_name("workspaces/w/files/a");
  std::string got;
  v1::File file;
  for (const auto& [offset, length] : {std::pair<uint64_t, uint64_t>{0, 1},
                                       {1, 0},
                                       {1 << 20, 5},
                                       {content.size(), 0},
                                       {content.size() - 3, 10},
                                       {7, (1 << 20) + 1}}) {
    request.set_offset(offset);
    request.set_length(length);
    ASSERT_TRUE(Download(request, &got, &file).ok());
    EXPECT_EQ(got, content.substr(offset, length == 0 ? std::string::npos : length)) << offset << " " << length;
    EXPECT_EQ(file.size_bytes(), content.size());
  }
  request.set_offset(content.size() + 1);
  EXPECT_EQ(ReasonOf(Download(request, &got)), "RANGE_INVALID");
  request.set_offset(0);
  request.set_sha256(std::string(64, '0'));
  EXPECT_EQ(ReasonOf(Download(request, &got)), "FILE_CHANGED");
}

}  // namespace
}  // namespace modelpress::server
