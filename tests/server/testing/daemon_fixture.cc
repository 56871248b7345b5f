#include "tests/server/testing/daemon_fixture.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "server/base/sha256.h"

namespace modelpress::server {
namespace {

std::string MakeTemporaryFolder() {
  std::string path = ::testing::TempDir() + "/modelpress-XXXXXX";
  return mkdtemp(path.data());
}

}  // namespace

DaemonFixture::DaemonFixture() : folder_(MakeTemporaryFolder()) {}

DaemonFixture::~DaemonFixture() {
  Stop();
  std::filesystem::remove_all(folder_);
}

DaemonOptions DaemonFixture::Options() const {
  const char* bin = std::getenv("MODELPRESS_BIN_DIR");
  DaemonOptions options;
  options.data_folder = folder_ + "/data";
  options.listen = "localhost:0";
  options.metrics_listen = "";
  options.workers = 0;
  options.drain_timeout = absl::Seconds(5);
  options.worker.executable = absl::StrCat(bin == nullptr ? "." : bin, "/modelpressd");
  return options;
}

void DaemonFixture::Start(const DaemonOptions& options) {
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  channel_ = grpc::CreateChannel(absl::StrCat("localhost:", daemon_->port()), grpc::InsecureChannelCredentials());
  workspaces_ = v1::Workspaces::NewStub(channel_);
  compression_ = v1::Compression::NewStub(channel_);
  operations_ = google::longrunning::Operations::NewStub(channel_);
  if (!options.tls.enabled()) {
    Connected(channel_);
  }
}

std::shared_ptr<grpc::Channel> DaemonFixture::Connected(std::shared_ptr<grpc::Channel> channel) {
  EXPECT_TRUE(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(30)));
  return channel;
}

void DaemonFixture::Stop() {
  if (daemon_ != nullptr) {
    daemon_->Stop();
    daemon_.reset();
  }
}

void DaemonFixture::MakeWorkspace(const std::string& id) {
  grpc::ClientContext context;
  v1::CreateWorkspaceRequest request;
  request.set_workspace_id(id);
  v1::Workspace workspace;
  const grpc::Status status = workspaces_->CreateWorkspace(&context, request, &workspace);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(workspace.name(), "workspaces/" + id);
}

v1::Upload DaemonFixture::StartUpload(const std::string& file, const std::string& content) {
  grpc::ClientContext context;
  v1::StartUploadRequest request;
  request.set_file(file);
  request.set_size_bytes(content.size());
  request.set_sha256(Sha256Hex(content));
  v1::Upload upload;
  const grpc::Status status = workspaces_->StartUpload(&context, request, &upload);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return upload;
}

grpc::Status DaemonFixture::SendBytes(const v1::Upload& upload, const std::string& content, size_t end, v1::Upload* answer) {
  constexpr size_t kPiece = 1 << 20;
  grpc::ClientContext context;
  auto stream = workspaces_->UploadBytes(&context, answer);
  v1::UploadBytesRequest message;
  message.set_upload(upload.name());
  size_t offset = upload.committed_size();
  do {
    message.set_offset(offset);
    message.set_data(content.substr(offset, std::min(kPiece, end - offset)));
    offset += message.data().size();
  } while (stream->Write(message) && offset < end);
  stream->WritesDone();
  return stream->Finish();
}

void DaemonFixture::PutFile(const std::string& file, const std::string& content) {
  v1::Upload upload = StartUpload(file, content);
  if (!upload.complete()) {
    const grpc::Status status = SendBytes(upload, content, content.size(), &upload);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  ASSERT_TRUE(upload.complete());
}

grpc::Status DaemonFixture::Download(const v1::DownloadFileRequest& request, std::string* content, v1::File* file) {
  grpc::ClientContext context;
  auto stream = workspaces_->DownloadFile(&context, request);
  v1::DownloadFileResponse message;
  content->clear();
  while (stream->Read(&message)) {
    if (message.has_file() && file != nullptr) {
      *file = message.file();
    }
    *content += message.data();
  }
  return stream->Finish();
}

google::longrunning::Operation DaemonFixture::Wait(const std::string& operation, int seconds) {
  grpc::ClientContext context;
  google::longrunning::WaitOperationRequest request;
  request.set_name(operation);
  request.mutable_timeout()->set_seconds(seconds);
  google::longrunning::Operation answer;
  const grpc::Status status = operations_->WaitOperation(&context, request, &answer);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return answer;
}

google::rpc::Status DetailsOf(const grpc::Status& status) {
  google::rpc::Status rpc;
  EXPECT_TRUE(rpc.ParseFromString(status.error_details()));
  EXPECT_EQ(rpc.code(), static_cast<int>(status.error_code()));
  return rpc;
}

std::string ReasonOf(const google::rpc::Status& status) {
  for (const google::protobuf::Any& detail : status.details()) {
    if (google::rpc::ErrorInfo info; detail.UnpackTo(&info)) {
      return info.reason();
    }
  }
  return "";
}

std::string MetadataOf(const grpc::Status& status, const std::string& key) {
  const google::rpc::Status details = DetailsOf(status);
  for (const google::protobuf::Any& detail : details.details()) {
    if (google::rpc::ErrorInfo info; detail.UnpackTo(&info)) {
      return info.metadata().contains(key) ? info.metadata().at(key) : "";
    }
  }
  return "";
}

v1::OperationMetadata MetadataOf(const google::longrunning::Operation& operation) {
  v1::OperationMetadata metadata;
  EXPECT_TRUE(operation.metadata().UnpackTo(&metadata));
  return metadata;
}

}  // namespace modelpress::server
