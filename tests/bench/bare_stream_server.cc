// What the service's transfers and polls are compared with: gRPC alone. The same RPCs and messages over the same callback API,
// but uploads are discarded, downloads come from memory, and GetOperation answers an empty message.
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>

#include "google/longrunning/operations.grpc.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "modelpress/v1/workspaces.grpc.pb.h"

namespace modelpress {
namespace {

constexpr uint64_t kMessageBytes = 1 << 20;

class UploadReactor final : public grpc::ServerReadReactor<v1::UploadBytesRequest> {
 public:
  explicit UploadReactor(v1::Upload* response) : response_(response) { StartRead(&message_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      received_ += message_.data().size();
      StartRead(&message_);
    } else {
      response_->set_committed_size(received_);
      response_->set_complete(true);
      Finish(grpc::Status::OK);
    }
  }
  void OnDone() override { delete this; }

 private:
  v1::Upload* response_;
  v1::UploadBytesRequest message_;
  uint64_t received_ = 0;
};

class DownloadReactor final : public grpc::ServerWriteReactor<v1::DownloadFileResponse> {
 public:
  explicit DownloadReactor(uint64_t size) : left_(size) {
    message_.mutable_file()->set_size_bytes(size);
    message_.set_data(std::string(kMessageBytes, 'x'));
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      message_.clear_file();
      Next();
    } else {
      Finish(grpc::Status::CANCELLED);
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    if (left_ == 0) {
      Finish(grpc::Status::OK);
      return;
    }
    message_.mutable_data()->resize(std::min(left_, kMessageBytes));
    left_ -= message_.data().size();
    StartWrite(&message_);
  }

  v1::DownloadFileResponse message_;
  uint64_t left_;
};

class Transfers final : public v1::Workspaces::CallbackService {
 public:
  grpc::ServerReadReactor<v1::UploadBytesRequest>* UploadBytes(grpc::CallbackServerContext*, v1::Upload* response) override {
    return new UploadReactor(response);
  }
  // `length` bytes, whatever the name.
  grpc::ServerWriteReactor<v1::DownloadFileResponse>* DownloadFile(grpc::CallbackServerContext*,
                                                                   const v1::DownloadFileRequest* request) override {
    return new DownloadReactor(request->length());
  }
};

class Polls final : public google::longrunning::Operations::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context, const google::longrunning::GetOperationRequest*,
                                         google::longrunning::Operation*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

}  // namespace
}  // namespace modelpress

// Serves until it is terminated; prints the port first.
int main() {
  modelpress::Transfers transfers;
  modelpress::Polls polls;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("localhost:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&transfers);
  builder.RegisterService(&polls);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    std::cerr << "bare_stream_server: cannot listen\n";
    return 1;
  }
  std::cout << port << std::endl;
  server->Wait();
  return 0;
}
