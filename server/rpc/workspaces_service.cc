#include "server/rpc/workspaces_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/base/posix.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"
#include "server/rpc/unary.h"

namespace modelpress::server {
namespace {

constexpr size_t kMaxUploadMessage = 2 << 20;
constexpr size_t kDownloadMessage = 1 << 20;
constexpr uint64_t kMaxFileSize = uint64_t{1} << 46;  // no sum of them comes near the end of 64 bits

v1::Upload UploadProto(const UploadRow& row, uint64_t committed_size, bool complete) {
  v1::Upload upload;
  upload.set_name(FormatUploadName(row.workspace.id, row.id));
  upload.set_file(FormatFileName(row.workspace.id, row.path));
  upload.set_size_bytes(row.size_bytes);
  upload.set_sha256(row.sha256);
  upload.set_committed_size(committed_size);
  upload.set_complete(complete);
  return upload;
}

// The state of a stored upload. It is completed here where the project has the content in a file already, and where a stop of the
// server fell between storing the content that was sent and naming it. What only others have is to be sent like anything else: to
// know a digest is not to have the content, and nobody learns by offering one what others have.
absl::StatusOr<v1::Upload> Look(const TransferContext& context, const UploadRow& row) {
  MP_ASSIGN_OR_RETURN(bool here, context.workspaces.HasContent(row.workspace.project, row.sha256, row.size_bytes));
  if (!here && row.verified) {
    MP_ASSIGN_OR_RETURN(here, context.blobs.Keep({row.sha256, row.size_bytes}));
  }
  if (here) {
    MP_RETURN_IF_ERROR(context.workspaces.FinishUpload(row));
    MP_RETURN_IF_ERROR(context.blobs.DiscardUpload(row.id));
    return UploadProto(row, row.size_bytes, /*complete=*/true);
  }
  MP_ASSIGN_OR_RETURN(const uint64_t committed_size, context.blobs.CommittedSize(row.id));
  return UploadProto(row, committed_size, /*complete=*/false);
}

absl::Status RequireDisk(const TransferContext& context) {
  MP_ASSIGN_OR_RETURN(const DiskSpace disk, DiskSpaceOf(context.data_folder));
  return disk.free_bytes >= context.min_free_disk_bytes
             ? absl::OkStatus()
             : MakeError(v1::STORAGE_FULL, "the server's disk is almost full; free space there and try again");
}

// A stream of bytes that is under way: its caller was let in and has one of the places; both end with it.
class Transfer {
 public:
  // `busy`: the error where the project has as many as it may.
  Transfer(Calls& calls, const grpc::ServerContextBase& call, Role needed, StreamPlaces& places, v1::Reason busy)
      : calls_(calls), places_(places), caller_(calls.Enter(call, needed)), status_(caller_.status()) {
    if (status_.ok() && !places_.Enter(caller_->project)) {
      status_ = MakeError(busy, "as many transfers are under way as the project may have now; try again in a moment");
    }
  }
  ~Transfer() {
    if (status_.ok()) {
      places_.Leave(caller_->project);
    }
    if (caller_.ok()) {
      calls_.Leave();
    }
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  const absl::Status& status() const { return status_; }
  const std::string& project() const { return caller_->project; }

 private:
  Calls& calls_;
  StreamPlaces& places_;
  const absl::StatusOr<Caller> caller_;
  absl::Status status_;
};

// One UploadBytes stream. Reactions of gRPC and tasks of the executor alternate: one message is read, stored, then the next is
// asked for, so that memory holds one message per stream and only one thread at a time touches the state.
class UploadReactor final : public grpc::ServerReadReactor<v1::UploadBytesRequest> {
 public:
  UploadReactor(const TransferContext& context, const grpc::ServerContextBase& call, StreamPlaces& places, v1::Upload* response)
      : context_(context), transfer_(context.calls, call, Role::kWriter, places, v1::UPLOAD_BUSY), response_(response) {
    if (transfer_.status().ok()) {
      StartRead(&message_);
    } else {
      Finish(ToGrpcStatus(transfer_.status()));
    }
  }

  void OnReadDone(bool ok) override {
    context_.calls.RunTransfer([this, ok] { ok ? Take() : End(); });
  }
  void OnDone() override { delete this; }

 private:
  void Take() {
    absl::StatusOr<bool> complete = Store();
    if (!complete.ok()) {
      writer_.reset();  // before the caller can ask for the committed size
      Finish(ToGrpcStatus(complete.status()));
    } else if (*complete) {
      End();
    } else {
      StartRead(&message_);
    }
  }

  // The caller has sent everything, or has gone: the answer tells where to go on.
  void End() {
    if (writer_ != nullptr) {
      *response_ = UploadProto(row_, writer_->committed_size(), /*complete=*/false);
      writer_.reset();
    } else if (complete_) {
      *response_ = UploadProto(row_, row_.size_bytes, /*complete=*/true);
    } else {
      Finish(ToGrpcStatus(
          MakeError(v1::REQUEST_INVALID, "the stream ended before its first message named the upload", {.field = "upload"})));
      return;
    }
    Finish(grpc::Status::OK);
  }

  absl::Status Open() {
    MP_ASSIGN_OR_RETURN(const UploadName name, ParseUploadName(message_.upload(), "upload"));
    MP_ASSIGN_OR_RETURN(row_, context_.workspaces.GetUpload({transfer_.project(), name.workspace}, name.upload));
    absl::StatusOr<std::unique_ptr<BlobWriter>> writer = context_.blobs.OpenWriter(row_.id, {row_.sha256, row_.size_bytes});
    if (absl::IsFailedPrecondition(writer.status())) {
      // Most often the caller's own stream of a moment ago, whose end has not come through yet.
      return MakeError(v1::UPLOAD_BUSY,
                       absl::StrCat("another stream still writes ", message_.upload(), "; try again in a moment"),
                       {.field = "upload"});
    }
    MP_ASSIGN_OR_RETURN(writer_, std::move(writer));
    return absl::OkStatus();
  }

  // Stores the message; true when the file is complete.
  absl::StatusOr<bool> Store() {
    if (writer_ == nullptr) {
      MP_RETURN_IF_ERROR(Open());
    } else if (!message_.upload().empty() && message_.upload() != FormatUploadName(row_.workspace.id, row_.id)) {
      return MakeError(v1::REQUEST_INVALID, "a stream carries one upload; open another for the next", {.field = "upload"});
    }
    const uint64_t committed = writer_->committed_size();
    if (message_.offset() != committed) {
      return WithMetadata(MakeError(v1::UPLOAD_OFFSET_MISMATCH,
                                    absl::StrCat("offset ", message_.offset(), " was sent, ", committed,
                                                 " bytes are committed; go on from there"),
                                    {.field = "offset"}),
                          "committed_size", absl::StrCat(committed));
    }
    const std::string& data = message_.data();
    if (data.size() > kMaxUploadMessage) {
      return MakeError(v1::REQUEST_INVALID,
                       absl::StrCat("a message carries ", data.size(), " bytes; at most ", kMaxUploadMessage, " are allowed"),
                       {.field = "data"});
    }
    if (data.size() > row_.size_bytes - committed) {
      return MakeError(v1::DIGEST_MISMATCH,
                       absl::StrCat("more bytes were sent than the announced ", row_.size_bytes, "; start the upload anew"),
                       {.field = "data", .file = row_.path});
    }
    MP_RETURN_IF_ERROR(RequireDisk(context_));
    MP_RETURN_IF_ERROR(writer_->Append(data));
    context_.metrics.Uploaded(data.size());
    if (writer_->committed_size() < row_.size_bytes) {
      return false;
    }
    if (writer_->Verify().ok()) {
      MP_RETURN_IF_ERROR(context_.workspaces.SetUploadVerified(row_));
    }
    if (absl::Status finished = writer_->Finish(); !finished.ok()) {
      if (ReasonOf(finished) == v1::DIGEST_MISMATCH) {
        MP_RETURN_IF_ERROR(context_.workspaces.DeleteUpload(row_.workspace, row_.id));
      }
      return AtPlace(finished, {.file = row_.path});
    }
    MP_RETURN_IF_ERROR(context_.workspaces.FinishUpload(row_));
    writer_.reset();
    complete_ = true;
    return true;
  }

  const TransferContext context_;
  const Transfer transfer_;  // ends last
  v1::Upload* const response_;
  v1::UploadBytesRequest message_;
  UploadRow row_;
  std::unique_ptr<BlobWriter> writer_;
  bool complete_ = false;
};

// One DownloadFile stream: one message is read from the disk and sent, then the next, so that a slow reader costs one message of
// memory.
class DownloadReactor final : public grpc::ServerWriteReactor<v1::DownloadFileResponse> {
 public:
  DownloadReactor(const TransferContext& context, const grpc::ServerContextBase& call, StreamPlaces& places,
                  const v1::DownloadFileRequest* request)
      : context_(context), transfer_(context.calls, call, Role::kReader, places, v1::DOWNLOAD_BUSY) {
    if (!transfer_.status().ok()) {
      Finish(ToGrpcStatus(transfer_.status()));
      return;
    }
    context_.calls.RunTransfer([this, request] {
      if (absl::Status status = Open(*request); !status.ok()) {
        Finish(ToGrpcStatus(status));
      } else {
        Send();
      }
    });
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {  // the caller has gone
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the stream was broken off"));
      return;
    }
    context_.metrics.Downloaded(message_.data().size());
    message_.clear_file();
    context_.calls.RunTransfer([this] { offset_ == end_ ? Finish(grpc::Status::OK) : Send(); });
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Open(const v1::DownloadFileRequest& request) {
    MP_ASSIGN_OR_RETURN(const FileName name, ParseFileName(request.name(), "name"));
    MP_ASSIGN_OR_RETURN(const FileRow row, context_.workspaces.GetFile({transfer_.project(), name.workspace}, name.path));
    if (!request.sha256().empty() && request.sha256() != row.sha256) {
      return WithMetadata(
          MakeError(v1::FILE_CHANGED, absl::StrCat("the file's SHA-256 is ", row.sha256, " now; begin from offset 0"),
                    {.field = "sha256", .file = name.path}),
          "sha256", row.sha256);
    }
    if (request.offset() > row.size_bytes) {
      return MakeError(
          v1::RANGE_INVALID,
          absl::StrCat("offset ", request.offset(), " is behind the end of the file, which has ", row.size_bytes, " bytes"),
          {.field = "offset", .file = name.path});
    }
    MP_ASSIGN_OR_RETURN(reader_, context_.blobs.Open(row.sha256));
    const uint64_t rest = row.size_bytes - request.offset();
    offset_ = request.offset();
    end_ = offset_ + (request.length() == 0 ? rest : std::min(rest, request.length()));
    *message_.mutable_file() = ToProto(name.workspace, row);
    return absl::OkStatus();
  }

  void Send() {
    std::string& data = *message_.mutable_data();
    data.resize(std::min<uint64_t>(kDownloadMessage, end_ - offset_));
    absl::StatusOr<size_t> size = reader_->ReadAt(offset_, absl::MakeSpan(data));
    if (!size.ok() || *size != data.size()) {
      Finish(ToGrpcStatus(size.ok() ? MakeError(v1::STORAGE_ERROR, "the stored content is shorter than it was") : size.status()));
      return;
    }
    offset_ += *size;
    StartWrite(&message_);
  }

  const TransferContext context_;
  const Transfer transfer_;  // ends last
  std::unique_ptr<BlobReader> reader_;
  uint64_t offset_ = 0;
  uint64_t end_ = 0;
  v1::DownloadFileResponse message_;
};

}  // namespace

grpc::ServerUnaryReactor* WorkspacesService::CreateWorkspace(grpc::CallbackServerContext* context,
                                                             const v1::CreateWorkspaceRequest* request, v1::Workspace* response) {
  return ServeUnary(context, context_.calls, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    if (!request->workspace_id().empty()) {
      MP_RETURN_IF_ERROR(CheckWorkspaceId(request->workspace_id(), "workspace_id"));
    }
    MP_RETURN_IF_ERROR(CheckRequestId(request->request_id(), "request_id"));
    MP_ASSIGN_OR_RETURN(const WorkspaceRow row, context_.workspaces.CreateWorkspace({caller.project, request->workspace_id()},
                                                                                    ids_.NewId(), request->request_id()));
    *response = ToProto(row);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* WorkspacesService::GetWorkspace(grpc::CallbackServerContext* context,
                                                          const v1::GetWorkspaceRequest* request, v1::Workspace* response) {
  return ServeUnary(context, context_.calls, Role::kReader, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::string id, ParseWorkspaceName(request->name(), "name"));
    MP_ASSIGN_OR_RETURN(const WorkspaceRow row, context_.workspaces.GetWorkspace({caller.project, id}));
    *response = ToProto(row);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* WorkspacesService::ListWorkspaces(grpc::CallbackServerContext* context,
                                                            const v1::ListWorkspacesRequest* request,
                                                            v1::ListWorkspacesResponse* response) {
  return ServeUnary(context, context_.calls, Role::kReader, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const Page<WorkspaceRow> page,
                        context_.workspaces.ListWorkspaces(caller.project, request->page_size(), request->page_token()));
    for (const WorkspaceRow& row : page.rows) {
      *response->add_workspaces() = ToProto(row);
    }
    response->set_next_page_token(page.next_page_token);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* WorkspacesService::DeleteWorkspace(grpc::CallbackServerContext* context,
                                                             const v1::DeleteWorkspaceRequest* request,
                                                             google::protobuf::Empty*) {
  return ServeUnary(context, context_.calls, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::string id, ParseWorkspaceName(request->name(), "name"));
    return context_.workspaces.DeleteWorkspace({caller.project, id});
  });
}

grpc::ServerUnaryReactor* WorkspacesService::GetFile(grpc::CallbackServerContext* context, const v1::GetFileRequest* request,
                                                     v1::File* response) {
  return ServeUnary(context, context_.calls, Role::kReader, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const FileName name, ParseFileName(request->name(), "name"));
    MP_ASSIGN_OR_RETURN(const FileRow row, context_.workspaces.GetFile({caller.project, name.workspace}, name.path));
    *response = ToProto(name.workspace, row);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* WorkspacesService::ListFiles(grpc::CallbackServerContext* context, const v1::ListFilesRequest* request,
                                                       v1::ListFilesResponse* response) {
  return ServeUnary(context, context_.calls, Role::kReader, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::string workspace, ParseWorkspaceName(request->parent(), "parent"));
    MP_ASSIGN_OR_RETURN(const Page<FileRow> page,
                        context_.workspaces.ListFiles({caller.project, workspace}, request->page_size(), request->page_token()));
    for (const FileRow& row : page.rows) {
      *response->add_files() = ToProto(workspace, row);
    }
    response->set_next_page_token(page.next_page_token);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* WorkspacesService::DeleteFile(grpc::CallbackServerContext* context,
                                                        const v1::DeleteFileRequest* request, google::protobuf::Empty*) {
  return ServeUnary(context, context_.calls, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const FileName name, ParseFileName(request->name(), "name"));
    return context_.workspaces.DeleteFile({caller.project, name.workspace}, name.path);
  });
}

grpc::ServerUnaryReactor* WorkspacesService::StartUpload(grpc::CallbackServerContext* context,
                                                         const v1::StartUploadRequest* request, v1::Upload* response) {
  return ServeUnary(context, context_.calls, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const FileName name, ParseFileName(request->file(), "file"));
    MP_RETURN_IF_ERROR(CheckSha256(request->sha256(), "sha256"));
    if (request->size_bytes() > kMaxFileSize) {
      return MakeError(
          v1::REQUEST_INVALID,
          absl::StrCat("a file of ", request->size_bytes(), " bytes was announced; at most ", kMaxFileSize, " are allowed"),
          {.field = "size_bytes"});
    }
    MP_RETURN_IF_ERROR(RequireDisk(context_));
    const WorkspaceKey workspace{caller.project, name.workspace};
    MP_ASSIGN_OR_RETURN(const UploadRow row, context_.workspaces.FindOrCreateUpload({.id = ids_.NewId(),
                                                                                     .workspace = workspace,
                                                                                     .path = name.path,
                                                                                     .sha256 = request->sha256(),
                                                                                     .size_bytes = request->size_bytes()}));
    absl::StatusOr<v1::Upload> upload = Look(context_, row);
    if (ReasonOf(upload.status()) == v1::UPLOAD_NOT_FOUND) {  // another call has ended it since it was found
      const absl::StatusOr<FileRow> file = context_.workspaces.GetFile(workspace, name.path);
      if (file.ok() && file->sha256 == row.sha256 && file->size_bytes == row.size_bytes) {
        upload = UploadProto(row, row.size_bytes, /*complete=*/true);
      }
    }
    MP_ASSIGN_OR_RETURN(*response, std::move(upload));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* WorkspacesService::GetUpload(grpc::CallbackServerContext* context, const v1::GetUploadRequest* request,
                                                       v1::Upload* response) {
  return ServeUnary(context, context_.calls, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const UploadName name, ParseUploadName(request->name(), "name"));
    MP_ASSIGN_OR_RETURN(const UploadRow row, context_.workspaces.GetUpload({caller.project, name.workspace}, name.upload));
    MP_ASSIGN_OR_RETURN(*response, Look(context_, row));
    return absl::OkStatus();
  });
}

grpc::ServerReadReactor<v1::UploadBytesRequest>* WorkspacesService::UploadBytes(grpc::CallbackServerContext* context,
                                                                                v1::Upload* response) {
  return new UploadReactor(context_, *context, uploads_, response);
}

grpc::ServerWriteReactor<v1::DownloadFileResponse>* WorkspacesService::DownloadFile(grpc::CallbackServerContext* context,
                                                                                    const v1::DownloadFileRequest* request) {
  return new DownloadReactor(context_, *context, downloads_, request);
}

}  // namespace modelpress::server
