#include "client/cpp/client.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "client/cpp/call_guard.h"
#include "client/cpp/sha256.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace modelpress::client {
namespace {

using google::longrunning::Operation;
using google::longrunning::Operations;

constexpr int kPageSize = 1000;

// gRPC retries unary calls by itself (with jitter); streams are resumed by hand, since they must not begin anew.
constexpr char kServiceConfig[] = R"({
  "methodConfig": [
    {
      "name": [
        {"service": "modelpress.v1.Workspaces"},
        {"service": "modelpress.v1.Compression"},
        {"service": "google.longrunning.Operations"}
      ],
      "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.2s",
        "maxBackoff": "3s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
      }
    },
    {
      "name": [
        {"service": "modelpress.v1.Workspaces", "method": "UploadBytes"},
        {"service": "modelpress.v1.Workspaces", "method": "DownloadFile"}
      ]
    }
  ]
})";

// All items of a paged list. `call` answers one page.
template <typename Item, typename Request, typename Call, typename Items>
absl::StatusOr<std::vector<Item>> ListAll(Request request, const Call& call, const Items& items) {
  std::vector<Item> all;
  request.set_page_size(kPageSize);
  do {
    auto page = call(request);
    if (!page.ok()) {
      return page.status();
    }
    all.insert(all.end(), items(*page).begin(), items(*page).end());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return all;
}

absl::Status Interrupted() { return absl::CancelledError("interrupted"); }

}  // namespace

std::string NewUuid() {
  absl::BitGen random;
  auto high = absl::Uniform<uint64_t>(random);
  auto low = absl::Uniform<uint64_t>(random);
  return absl::StrFormat("%08x-%04x-4%03x-%04x-%012x", high >> 32, high >> 16 & 0xFFFF, high & 0xFFF,
                         (low >> 48 & 0x3FFF) | 0x8000, low & 0xFFFFFFFFFFFF);
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(Options options) {
  if (options.target.empty()) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID,
                      "the target is empty; give the server's address as HOST:PORT");
  }
  if (options.credentials == nullptr) {
    MPC_ASSIGN_OR_RETURN(options.credentials, MakeCredentials(options.target, options.connection));
  }
  if (!options.random) {
    options.random = [] { return absl::Uniform(absl::BitGen(), 0.0, 1.0); };
  }
  if (!options.new_uuid) {
    options.new_uuid = NewUuid;
  }
  std::unique_ptr<Client> client(new Client(std::move(options)));
  MPC_RETURN_IF_ERROR(client->Connected());
  return client;
}

Client::Client(Options options)
    : options_(std::move(options)),
      identity_(options_.connection, IsLoopback(options_.target), [] { return absl::Uniform<uint64_t>(absl::BitGen()); }) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 1);
  // A server that restarts is found again soon.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(absl::ToInt64Milliseconds(options_.retry.max_backoff)));
  // Its own connection, so that one client's trouble is not another one's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (IsLoopback(options_.target)) {  // or gRPC would go by the proxy of http_proxy, which is another machine
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  }
  if (!options_.connection.tls_server_name.empty()) {
    arguments.SetSslTargetNameOverride(options_.connection.tls_server_name);
  }
  channel_ = grpc::CreateCustomChannel(options_.target, options_.credentials, arguments);
  workspaces_ = v1::Workspaces::NewStub(channel_);
  compression_ = v1::Compression::NewStub(channel_);
  operations_ = Operations::NewStub(channel_);
}

absl::Status Client::Connected() {
  if (channel_->WaitForConnected(absl::ToChronoTime(absl::Now() + options_.connect_timeout))) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat("no modelpress server answers at ", options_.target,
                   "; check the address (--target, MODELPRESS_TARGET), that the server runs, and that "
                   "both sides use TLS and trust each other's certificates (--tls, --tls-ca), or neither"));
}

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Client::Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                      const Request& request, const std::stop_token& stop, absl::Duration extra_time) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options_.call_timeout + extra_time));
  MPC_RETURN_IF_ERROR(identity_.Prepare(context));
  StopGuard guard(context, stop);
  Response response;
  absl::Status status = guard.Explain(FromGrpc((stub.*method)(&context, request, &response)));
  if (!status.ok()) {
    return status;
  }
  return response;
}

// ---- workspaces and files ---------------------------------------------------------------------------------------------------

absl::StatusOr<v1::Workspace> Client::CreateWorkspace(const std::string& workspace_id) {
  v1::CreateWorkspaceRequest request;
  request.set_workspace_id(workspace_id);
  request.set_request_id(options_.new_uuid());
  return Call(*workspaces_, &v1::Workspaces::StubInterface::CreateWorkspace, request);
}

absl::StatusOr<v1::Workspace> Client::GetWorkspace(const std::string& name) {
  v1::GetWorkspaceRequest request;
  request.set_name(name);
  return Call(*workspaces_, &v1::Workspaces::StubInterface::GetWorkspace, request);
}

absl::StatusOr<std::vector<v1::Workspace>> Client::ListWorkspaces() {
  return ListAll<v1::Workspace>(
      v1::ListWorkspacesRequest(),
      [this](const auto& request) { return Call(*workspaces_, &v1::Workspaces::StubInterface::ListWorkspaces, request); },
      [](const auto& page) -> auto& { return page.workspaces(); });
}

absl::Status Client::DeleteWorkspace(const std::string& name) {
  v1::DeleteWorkspaceRequest request;
  request.set_name(name);
  return Call(*workspaces_, &v1::Workspaces::StubInterface::DeleteWorkspace, request).status();
}

absl::StatusOr<v1::File> Client::GetFile(const std::string& name) {
  v1::GetFileRequest request;
  request.set_name(name);
  return Call(*workspaces_, &v1::Workspaces::StubInterface::GetFile, request);
}

absl::StatusOr<std::vector<v1::File>> Client::ListFiles(const std::string& workspace) {
  v1::ListFilesRequest first;
  first.set_parent(workspace);
  return ListAll<v1::File>(
      first, [this](const auto& request) { return Call(*workspaces_, &v1::Workspaces::StubInterface::ListFiles, request); },
      [](const auto& page) -> auto& { return page.files(); });
}

absl::Status Client::DeleteFile(const std::string& name) {
  v1::DeleteFileRequest request;
  request.set_name(name);
  return Call(*workspaces_, &v1::Workspaces::StubInterface::DeleteFile, request).status();
}

// ---- transfer ---------------------------------------------------------------------------------------------------------------

absl::Status Client::Pause(const absl::Status& failure, Backoff& backoff, const std::stop_token& stop) {
  std::optional<absl::Duration> pause = backoff.Next();
  if (!pause.has_value()) {
    return WithNote(failure, "gave up after several attempts");
  }
  return WaitFor(*pause, stop) ? absl::OkStatus() : Interrupted();
}

absl::StatusOr<v1::Upload> Client::Upload(const std::string& local_path, const std::string& name,
                                          const TransferOptions& options) {
  MPC_ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(local_path));
  Sha256 hash;
  std::string bytes;
  for (uint64_t offset = 0; offset < file.size(); offset += bytes.size()) {
    MPC_RETURN_IF_ERROR(file.ReadAt(offset, std::min(options_.chunk_bytes, file.size() - offset), bytes));
    hash.Update(bytes);
    if (options.stop.stop_requested()) {
      return Interrupted();
    }
  }

  v1::StartUploadRequest start;
  start.set_file(name);
  start.set_size_bytes(file.size());
  start.set_sha256(hash.Finish());
  auto begin = [&] { return Call(*workspaces_, &v1::Workspaces::StubInterface::StartUpload, start); };
  MPC_ASSIGN_OR_RETURN(v1::Upload upload, begin());
  Backoff backoff(options_.retry, options_.random);
  while (!upload.complete()) {
    const uint64_t before = upload.committed_size();
    absl::Status status = SendBytes(file, upload, options);
    if (status.ok() && upload.complete()) {
      break;
    }
    if (status.ok()) {
      status = absl::UnavailableError("the server ended the upload before all bytes were there");
    }
    // Another process that sends the same file moves the offset or ends the upload; both go on from what is there.
    const std::string reason = DetailsOf(status).reason;
    if (!absl::IsUnavailable(status) && reason != v1::Reason_Name(v1::UPLOAD_OFFSET_MISMATCH) &&
        reason != v1::Reason_Name(v1::UPLOAD_NOT_FOUND)) {
      return status;
    }
    v1::GetUploadRequest get;
    get.set_name(upload.name());
    absl::StatusOr<v1::Upload> current = Call(*workspaces_, &v1::Workspaces::StubInterface::GetUpload, get);
    if (absl::IsNotFound(current.status())) {
      current = begin();  // the upload ended while the stream broke; this says how, or begins anew
    }
    if (current.ok()) {
      upload = *std::move(current);
    } else if (!absl::IsUnavailable(current.status())) {
      return current.status();
    }
    if (upload.committed_size() > before) {
      backoff.Reset();
    }
    if (!upload.complete()) {
      MPC_RETURN_IF_ERROR(Pause(status, backoff, options.stop));
    }
  }
  if (options.progress) {
    options.progress(upload.size_bytes(), upload.size_bytes());
  }
  return upload;
}

absl::Status Client::SendBytes(const InputFile& file, v1::Upload& upload, const TransferOptions& options) {
  grpc::ClientContext context;
  MPC_RETURN_IF_ERROR(identity_.Prepare(context));
  StopGuard stop_guard(context, options.stop);
  IdleGuard idle_guard(context, options_.idle_timeout);
  v1::Upload answer;
  auto writer = workspaces_->UploadBytes(&context, &answer);
  absl::Status local;
  v1::UploadBytesRequest request;
  request.set_upload(upload.name());
  uint64_t offset = upload.committed_size();
  do {  // at least one message: it names the upload, and completes an empty file
    request.set_offset(offset);
    local = file.ReadAt(offset, std::min(options_.chunk_bytes, file.size() - offset), *request.mutable_data());
    if (!local.ok()) {
      context.TryCancel();
      break;
    }
    if (!writer->Write(request)) {
      break;  // Finish says why
    }
    idle_guard.Touch();
    offset += request.data().size();
    request.clear_upload();
    if (options.progress) {
      options.progress(offset, file.size());
    }
  } while (offset < file.size());
  writer->WritesDone();
  absl::Status status = stop_guard.Explain(idle_guard.Explain(FromGrpc(writer->Finish())));
  if (!local.ok()) {
    return local;
  }
  if (status.ok()) {
    upload = std::move(answer);
  }
  return status;
}

struct Client::Reception {
  v1::DownloadFileRequest request;
  StagedFile& file;
  Sha256 hash = {};
  uint64_t received = 0;
  std::optional<v1::File> announced = {};  // from the first message of the first stream
  bool complete() const { return announced.has_value() && received == announced->size_bytes(); }
};

absl::StatusOr<v1::File> Client::Download(const std::string& name, const std::string& sha256, StagedFile& file,
                                          const TransferOptions& options) {
  Reception reception{.request = {}, .file = file};
  reception.request.set_name(name);
  reception.request.set_sha256(sha256);
  Backoff backoff(options_.retry, options_.random);
  for (;;) {
    const uint64_t before = reception.received;
    absl::Status status = ReceiveBytes(reception, options);
    if (reception.complete() && (status.ok() || absl::IsUnavailable(status))) {
      break;
    }
    if (status.ok()) {
      status = absl::UnavailableError("the server ended the download before all bytes were there");
    }
    if (!absl::IsUnavailable(status)) {
      return status;
    }
    if (reception.received > before) {
      backoff.Reset();
    }
    MPC_RETURN_IF_ERROR(Pause(status, backoff, options.stop));
  }
  if (reception.hash.Finish() != reception.announced->sha256()) {
    return LocalError(absl::StatusCode::kDataLoss, v1::DIGEST_MISMATCH,
                      "the downloaded bytes do not have the SHA-256 that the server announced; download again", name);
  }
  MPC_RETURN_IF_ERROR(file.Finish());
  return *reception.announced;
}

absl::Status Client::ReceiveBytes(Reception& reception, const TransferOptions& options) {
  grpc::ClientContext context;
  MPC_RETURN_IF_ERROR(identity_.Prepare(context));
  StopGuard stop_guard(context, options.stop);
  IdleGuard idle_guard(context, options_.idle_timeout);
  reception.request.set_offset(reception.received);
  auto reader = workspaces_->DownloadFile(&context, reception.request);
  absl::Status local;
  v1::DownloadFileResponse response;
  while (local.ok() && reader->Read(&response)) {
    idle_guard.Touch();
    if (!reception.announced.has_value()) {
      reception.announced = response.file();
      reception.request.set_sha256(response.file().sha256());  // what a later stream must still be
    }
    if (response.data().size() > reception.announced->size_bytes() - reception.received) {
      local = absl::DataLossError(absl::StrCat(reception.request.name(), ": the server sent more bytes than it announced"));
      break;
    }
    local = reception.file.Append(response.data());
    reception.hash.Update(response.data());
    reception.received += response.data().size();
    if (options.progress) {
      options.progress(reception.received, reception.announced->size_bytes());
    }
  }
  if (!local.ok()) {
    context.TryCancel();
  }
  absl::Status status = stop_guard.Explain(idle_guard.Explain(FromGrpc(reader->Finish())));
  return local.ok() ? status : local;
}

// ---- compression and operations ---------------------------------------------------------------------------------------------

template <typename Request>
absl::StatusOr<Operation> Client::Start(grpc::Status (v1::Compression::StubInterface::*method)(grpc::ClientContext*,
                                                                                               const Request&, Operation*),
                                        Request request) {
  if (request.options().request_id().empty()) {
    request.mutable_options()->set_request_id(options_.new_uuid());
  }
  return Call(*compression_, method, request);
}

absl::StatusOr<Operation> Client::CreateQuantConfig(v1::CreateQuantConfigRequest request) {
  return Start(&v1::Compression::StubInterface::CreateQuantConfig, std::move(request));
}

absl::StatusOr<Operation> Client::QuantizePreprocess(v1::QuantizePreprocessRequest request) {
  return Start(&v1::Compression::StubInterface::QuantizePreprocess, std::move(request));
}

absl::StatusOr<Operation> Client::QuantizeModel(v1::QuantizeModelRequest request) {
  return Start(&v1::Compression::StubInterface::QuantizeModel, std::move(request));
}

absl::StatusOr<Operation> Client::Calibrate(v1::CalibrateRequest request) {
  return Start(&v1::Compression::StubInterface::Calibrate, std::move(request));
}

absl::StatusOr<Operation> Client::SaveModel(v1::SaveModelRequest request) {
  return Start(&v1::Compression::StubInterface::SaveModel, std::move(request));
}

absl::StatusOr<Operation> Client::CreatePruneRetrainModel(v1::CreatePruneRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::CreatePruneRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::RestorePruneRetrainModel(v1::RestorePruneRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::RestorePruneRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::AutoChannelPruneSearch(v1::AutoChannelPruneSearchRequest request) {
  return Start(&v1::Compression::StubInterface::AutoChannelPruneSearch, std::move(request));
}

absl::StatusOr<Operation> Client::CreateQuantRetrainConfig(v1::CreateQuantRetrainConfigRequest request) {
  return Start(&v1::Compression::StubInterface::CreateQuantRetrainConfig, std::move(request));
}

absl::StatusOr<Operation> Client::CreateQuantRetrainModel(v1::CreateQuantRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::CreateQuantRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::RestoreQuantRetrainModel(v1::RestoreQuantRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::RestoreQuantRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::SaveQuantRetrainModel(v1::SaveQuantRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::SaveQuantRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::CreateCompressedRetrainModel(v1::CreateCompressedRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::CreateCompressedRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::RestoreCompressedRetrainModel(v1::RestoreCompressedRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::RestoreCompressedRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::SaveCompressedRetrainModel(v1::SaveCompressedRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::SaveCompressedRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::SavePruneRetrainModel(v1::SavePruneRetrainModelRequest request) {
  return Start(&v1::Compression::StubInterface::SavePruneRetrainModel, std::move(request));
}

absl::StatusOr<Operation> Client::GetOperation(const std::string& name) {
  google::longrunning::GetOperationRequest request;
  request.set_name(name);
  return Call(*operations_, &Operations::StubInterface::GetOperation, request);
}

absl::StatusOr<std::vector<Operation>> Client::ListOperations(const std::string& filter) {
  google::longrunning::ListOperationsRequest first;
  first.set_name("operations");
  first.set_filter(filter);
  return ListAll<Operation>(
      first, [this](const auto& request) { return Call(*operations_, &Operations::StubInterface::ListOperations, request); },
      [](const auto& page) -> auto& { return page.operations(); });
}

absl::Status Client::CancelOperation(const std::string& name) {
  google::longrunning::CancelOperationRequest request;
  request.set_name(name);
  return Call(*operations_, &Operations::StubInterface::CancelOperation, request).status();
}

absl::Status Client::DeleteOperation(const std::string& name) {
  google::longrunning::DeleteOperationRequest request;
  request.set_name(name);
  return Call(*operations_, &Operations::StubInterface::DeleteOperation, request).status();
}

absl::StatusOr<Operation> Client::WaitOperation(const std::string& name, const WaitOptions& options) {
  const absl::Time deadline = absl::Now() + options.timeout;
  Backoff backoff(options_.retry, options_.random);
  google::longrunning::WaitOperationRequest request;
  request.set_name(name);
  for (;;) {
    const absl::Time begin = absl::Now();
    const absl::Duration poll = std::clamp(deadline - begin, absl::ZeroDuration(), options_.poll_interval);
    request.mutable_timeout()->set_seconds(absl::ToInt64Seconds(poll));
    request.mutable_timeout()->set_nanos(static_cast<int>(absl::ToInt64Nanoseconds(poll % absl::Seconds(1))));
    absl::StatusOr<Operation> operation =
        Call(*operations_, &Operations::StubInterface::WaitOperation, request, options.stop, poll);
    if (operation.ok()) {
      backoff.Reset();
      if (options.progress) {
        options.progress(*operation);
      }
      if (operation->done()) {
        return operation;
      }
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat(name, " is not finished yet; it goes on"));
      }
      // A server may answer before the poll is over; it is not asked faster for that.
      if (!WaitFor(begin + poll - absl::Now(), options.stop)) {
        return Interrupted();
      }
    } else if (absl::IsUnavailable(operation.status())) {
      MPC_RETURN_IF_ERROR(Pause(operation.status(), backoff, options.stop));
    } else {
      return operation.status();
    }
  }
}

v1::OperationMetadata MetadataOf(const Operation& operation) {
  v1::OperationMetadata metadata;
  if (!operation.metadata().UnpackTo(&metadata)) {
    metadata.Clear();
  }
  return metadata;
}

}  // namespace modelpress::client
