// The client library: every call of the service, made safe to use over an unreliable network. Unary calls are retried by
// gRPC, uploads and downloads go on where they broke off; only UNAVAILABLE is tried again, a bounded number of times.
// Errors keep the server's details (status.h). local_calls.h builds the documented functions on local paths on top of it.
#ifndef MODELPRESS_CLIENT_CPP_CLIENT_H_
#define MODELPRESS_CLIENT_CPP_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cpp/connection.h"
#include "client/cpp/local_file.h"
#include "client/cpp/retry.h"
#include "client/cpp/status.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"
#include "modelpress/v1/compression.grpc.pb.h"
#include "modelpress/v1/operations.pb.h"
#include "modelpress/v1/workspaces.grpc.pb.h"

namespace modelpress::client {

// A random UUID of version 4, as the service takes them for request_id.
std::string NewUuid();

struct TransferOptions {
  // Bytes there and bytes in all; begins at the committed size where a transfer goes on.
  std::function<void(uint64_t done, uint64_t total)> progress = {};
  std::stop_token stop = {};  // ends the transfer with CANCELLED; an upload stays resumable
};

struct WaitOptions {
  std::function<void(const google::longrunning::Operation&)> progress = {};  // after every poll
  std::stop_token stop = {};                          // ends the waiting with CANCELLED; the operation goes on
  absl::Duration timeout = absl::InfiniteDuration();  // DEADLINE_EXCEEDED when it is over; the operation goes on
};

// Thread-safe. Names are resource names as in workspaces.proto.
class Client {
 public:
  struct Options {
    std::string target = "localhost:50051";
    ConnectionOptions connection = {};
    // Unset: as `connection` says, by default plaintext for a loopback target, else TLS with the system's root certificates.
    std::shared_ptr<grpc::ChannelCredentials> credentials = {};
    absl::Duration connect_timeout = absl::Seconds(5);
    absl::Duration call_timeout = absl::Seconds(30);   // of a unary call with its retries
    absl::Duration idle_timeout = absl::Seconds(120);  // a stream without a byte for so long counts as broken
    absl::Duration poll_interval = absl::Seconds(1);   // of waiting for an operation
    uint64_t chunk_bytes = uint64_t{1} << 20;
    RetryPolicy retry = {};                      // of streams and of waiting
    std::function<double()> random = {};         // uniform in [0, 1), thread-safe; unset: a random generator
    std::function<std::string()> new_uuid = {};  // thread-safe; unset: NewUuid
  };

  // UNAVAILABLE if no server answers within connect_timeout; INVALID_ARGUMENT for an empty target.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(Options options);

  // ---- workspaces. An empty id lets the server choose.
  absl::StatusOr<v1::Workspace> CreateWorkspace(const std::string& workspace_id);
  absl::StatusOr<v1::Workspace> GetWorkspace(const std::string& name);
  absl::StatusOr<std::vector<v1::Workspace>> ListWorkspaces();
  absl::Status DeleteWorkspace(const std::string& name);

  // ---- files
  absl::StatusOr<v1::File> GetFile(const std::string& name);
  absl::StatusOr<std::vector<v1::File>> ListFiles(const std::string& workspace);
  absl::Status DeleteFile(const std::string& name);

  // Sends a local file to the workspace file `name`. Bytes that the server has already, from whatever caller, are not sent.
  absl::StatusOr<v1::Upload> Upload(const std::string& local_path, const std::string& name, const TransferOptions& options);
  // Fetches the workspace file `name` into `file`, complete and verified (DATA_LOSS if the bytes do not have the SHA-256
  // that the server announced), but not yet committed. A non-empty `sha256` pins the content (FILE_CHANGED).
  absl::StatusOr<v1::File> Download(const std::string& name, const std::string& sha256, StagedFile& file,
                                    const TransferOptions& options);

  // ---- compression. An empty options.request_id is filled in, so that a retry cannot start a second operation.
  absl::StatusOr<google::longrunning::Operation> CreateQuantConfig(v1::CreateQuantConfigRequest request);
  absl::StatusOr<google::longrunning::Operation> QuantizePreprocess(v1::QuantizePreprocessRequest request);
  absl::StatusOr<google::longrunning::Operation> QuantizeModel(v1::QuantizeModelRequest request);
  absl::StatusOr<google::longrunning::Operation> Calibrate(v1::CalibrateRequest request);
  absl::StatusOr<google::longrunning::Operation> SaveModel(v1::SaveModelRequest request);
  absl::StatusOr<google::longrunning::Operation> CreatePruneRetrainModel(v1::CreatePruneRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> RestorePruneRetrainModel(v1::RestorePruneRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> AutoChannelPruneSearch(v1::AutoChannelPruneSearchRequest request);
  absl::StatusOr<google::longrunning::Operation> CreateQuantRetrainConfig(v1::CreateQuantRetrainConfigRequest request);
  absl::StatusOr<google::longrunning::Operation> CreateQuantRetrainModel(v1::CreateQuantRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> RestoreQuantRetrainModel(v1::RestoreQuantRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> SaveQuantRetrainModel(v1::SaveQuantRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> CreateCompressedRetrainModel(v1::CreateCompressedRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> RestoreCompressedRetrainModel(v1::RestoreCompressedRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> SaveCompressedRetrainModel(v1::SaveCompressedRetrainModelRequest request);
  absl::StatusOr<google::longrunning::Operation> SavePruneRetrainModel(v1::SavePruneRetrainModelRequest request);

  // ---- operations
  absl::StatusOr<google::longrunning::Operation> GetOperation(const std::string& name);
  // `filter` as in operations.proto.
  absl::StatusOr<std::vector<google::longrunning::Operation>> ListOperations(const std::string& filter);
  absl::Status CancelOperation(const std::string& name);
  absl::Status DeleteOperation(const std::string& name);
  // Returns the finished operation, whether it succeeded or failed.
  absl::StatusOr<google::longrunning::Operation> WaitOperation(const std::string& name, const WaitOptions& options);

 private:
  explicit Client(Options options);
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request, const std::stop_token& stop = {}, absl::Duration extra_time = {});
  template <typename Request>
  absl::StatusOr<google::longrunning::Operation> Start(grpc::Status (v1::Compression::StubInterface::*method)(
                                                           grpc::ClientContext*, const Request&, google::longrunning::Operation*),
                                                       Request request);
  absl::Status Connected();
  // One stream each, from where `upload` or `file` stands; UNAVAILABLE if it is worth another one.
  absl::Status SendBytes(const InputFile& file, v1::Upload& upload, const TransferOptions& options);
  struct Reception;
  absl::Status ReceiveBytes(Reception& reception, const TransferOptions& options);
  // Waits before another attempt after `failure`; returns why there is none.
  static absl::Status Pause(const absl::Status& failure, Backoff& backoff, const std::stop_token& stop);

  Options options_;
  CallIdentity identity_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Workspaces::StubInterface> workspaces_;
  std::unique_ptr<v1::Compression::StubInterface> compression_;
  std::unique_ptr<google::longrunning::Operations::StubInterface> operations_;
};

// The metadata of a compression operation; empty if the server sent none.
v1::OperationMetadata MetadataOf(const google::longrunning::Operation& operation);

// What a finished operation answers: its error, or the response.
template <typename Response>
absl::StatusOr<Response> ResponseOf(const google::longrunning::Operation& operation) {
  if (operation.has_error()) {
    return FromRpc(operation.error());
  }
  Response response;
  if (!operation.done() || !operation.response().UnpackTo(&response)) {
    return absl::InternalError("the server sent an operation without the response of this call");
  }
  return response;
}

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_CLIENT_H_
