// Workspaces, the files in them (names that point to blobs) and unfinished uploads. Every change is durable when the call
// returns.
#ifndef MODELPRESS_SERVER_WORKSPACES_WORKSPACE_STORE_H_
#define MODELPRESS_SERVER_WORKSPACES_WORKSPACE_STORE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/workspace_key.h"

namespace modelpress::server {

struct WorkspaceRow {
  std::string id;
  absl::Time create_time;
};

struct FileRow {
  std::string path;  // in the workspace
  std::string sha256;
  uint64_t size_bytes = 0;
  absl::Time update_time;
};

struct UploadRow {
  std::string id;
  WorkspaceKey workspace;
  std::string path;
  std::string sha256;
  uint64_t size_bytes = 0;
};

template <typename Row>
struct Page {
  std::vector<Row> rows;
  std::string next_page_token;  // empty: the last page
};

class WorkspaceStore {
 public:
  virtual ~WorkspaceStore() = default;

  // WORKSPACE_EXISTS. A `request_id` that came before gives the workspace of that time (REQUEST_ID_REUSED if the id is another;
  // an empty id asks for `fallback_id`).
  virtual absl::StatusOr<WorkspaceRow> CreateWorkspace(const WorkspaceKey& workspace, const std::string& fallback_id,
                                                       const std::string& request_id) = 0;
  virtual absl::StatusOr<WorkspaceRow> GetWorkspace(const WorkspaceKey& workspace) = 0;  // WORKSPACE_NOT_FOUND
  virtual absl::StatusOr<Page<WorkspaceRow>> ListWorkspaces(const std::string& project, int page_size,
                                                            const std::string& page_token) = 0;
  // WORKSPACE_NOT_FOUND, WORKSPACE_BUSY (an unfinished operation uses it).
  virtual absl::Status DeleteWorkspace(const WorkspaceKey& workspace) = 0;

  // All of these but DeleteUpload: WORKSPACE_NOT_FOUND.
  virtual absl::StatusOr<FileRow> GetFile(const WorkspaceKey& workspace, const std::string& path) = 0;  // FILE_NOT_FOUND
  virtual absl::StatusOr<Page<FileRow>> ListFiles(const WorkspaceKey& workspace, int page_size,
                                                  const std::string& page_token) = 0;
  // Every file in `folder` ("" is the whole workspace; "a/b": paths that begin with "a/b/"), as of one moment. MODEL_LIMIT over
  // `max_files`.
  virtual absl::StatusOr<std::vector<FileRow>> Snapshot(const WorkspaceKey& workspace, const std::string& folder,
                                                        int max_files) = 0;
  virtual absl::Status PutFile(const WorkspaceKey& workspace, const FileRow& file) = 0;
  virtual absl::Status DeleteFile(const WorkspaceKey& workspace, const std::string& path) = 0;  // FILE_NOT_FOUND

  // The unfinished upload with the same workspace, path, size and digest, or a new one with `upload.id`.
  virtual absl::StatusOr<UploadRow> FindOrCreateUpload(const UploadRow& upload) = 0;
  virtual absl::StatusOr<UploadRow> GetUpload(const WorkspaceKey& workspace, const std::string& id) = 0;  // UPLOAD_NOT_FOUND
  // Points the name to the content and forgets the upload, both or neither. UPLOAD_NOT_FOUND.
  virtual absl::Status FinishUpload(const UploadRow& upload) = 0;
  virtual absl::Status DeleteUpload(const WorkspaceKey& workspace,
                                    const std::string& id) = 0;  // no error if it is gone, or its workspace
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKSPACES_WORKSPACE_STORE_H_
