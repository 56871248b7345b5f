#ifndef MODELPRESS_SERVER_RPC_WORKSPACES_SERVICE_H_
#define MODELPRESS_SERVER_RPC_WORKSPACES_SERVICE_H_

#include <cstdint>
#include <string>

#include "modelpress/v1/workspaces.grpc.pb.h"
#include "server/base/clock.h"
#include "server/blobs/blob_store.h"
#include "server/metrics/metrics.h"
#include "server/rpc/calls.h"
#include "server/rpc/limits.h"
#include "server/rpc/stream_places.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

// What the calls of one upload or download need. All must outlive the service.
struct TransferContext {
  WorkspaceStore& workspaces;
  BlobStore& blobs;
  Calls& calls;
  Metrics& metrics;
  // Uploads leave so much of the file system with this folder free, which the database may need: STORAGE_FULL.
  std::string data_folder;
  uint64_t min_free_disk_bytes = 0;
};

// Workspaces, files, uploads, downloads.
class WorkspacesService final : public v1::Workspaces::CallbackService {
 public:
  WorkspacesService(const TransferContext& context, IdGenerator& ids) : context_(context), ids_(ids) {}

  grpc::ServerUnaryReactor* CreateWorkspace(grpc::CallbackServerContext* context, const v1::CreateWorkspaceRequest* request,
                                            v1::Workspace* response) override;
  grpc::ServerUnaryReactor* GetWorkspace(grpc::CallbackServerContext* context, const v1::GetWorkspaceRequest* request,
                                         v1::Workspace* response) override;
  grpc::ServerUnaryReactor* ListWorkspaces(grpc::CallbackServerContext* context, const v1::ListWorkspacesRequest* request,
                                           v1::ListWorkspacesResponse* response) override;
  grpc::ServerUnaryReactor* DeleteWorkspace(grpc::CallbackServerContext* context, const v1::DeleteWorkspaceRequest* request,
                                            google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* GetFile(grpc::CallbackServerContext* context, const v1::GetFileRequest* request,
                                    v1::File* response) override;
  grpc::ServerUnaryReactor* ListFiles(grpc::CallbackServerContext* context, const v1::ListFilesRequest* request,
                                      v1::ListFilesResponse* response) override;
  grpc::ServerUnaryReactor* DeleteFile(grpc::CallbackServerContext* context, const v1::DeleteFileRequest* request,
                                       google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* StartUpload(grpc::CallbackServerContext* context, const v1::StartUploadRequest* request,
                                        v1::Upload* response) override;
  grpc::ServerUnaryReactor* GetUpload(grpc::CallbackServerContext* context, const v1::GetUploadRequest* request,
                                      v1::Upload* response) override;
  grpc::ServerReadReactor<v1::UploadBytesRequest>* UploadBytes(grpc::CallbackServerContext* context,
                                                               v1::Upload* response) override;
  grpc::ServerWriteReactor<v1::DownloadFileResponse>* DownloadFile(grpc::CallbackServerContext* context,
                                                                   const v1::DownloadFileRequest* request) override;

 private:
  TransferContext context_;
  IdGenerator& ids_;
  StreamPlaces uploads_{kMaxOpenUploads};
  StreamPlaces downloads_{kMaxOpenDownloads};
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_WORKSPACES_SERVICE_H_
