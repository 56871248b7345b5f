// Workspaces, the files in them (names that point to blobs) and unfinished uploads. Every change is durable when the call
// returns.
#ifndef MODELPRESS_SERVER_WORKSPACES_WORKSPACE_STORE_H_
#define MODELPRESS_SERVER_WORKSPACES_WORKSPACE_STORE_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
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
  bool verified = false;  // bytes with this size and digest were sent: the caller has them for certain
};

// What a project has at one moment.
struct ProjectUsage {
  uint64_t bytes = 0;  // as ProjectQuota::bytes counts them
  int64_t files = 0;
  int64_t uploads = 0;  // unfinished
  int64_t workspaces = 0;
  int64_t pending = 0;  // operations
  int64_t running = 0;  // operations, those that are being cancelled included
};

template <typename Row>
struct Page {
  std::vector<Row> rows;
  std::string next_page_token;  // empty: the last page
};

class WorkspaceStore {
 public:
  virtual ~WorkspaceStore() = default;

  // WORKSPACE_EXISTS, QUOTA_EXCEEDED. A `request_id` that came before gives the workspace of that time (REQUEST_ID_REUSED if the
  // id is another; an empty id asks for `fallback_id`).
  virtual absl::StatusOr<WorkspaceRow> CreateWorkspace(const WorkspaceKey& workspace, const std::string& fallback_id,
                                                       const std::string& request_id) = 0;
  virtual absl::StatusOr<WorkspaceRow> GetWorkspace(const WorkspaceKey& workspace) = 0;  // WORKSPACE_NOT_FOUND
  virtual absl::StatusOr<Page<WorkspaceRow>> ListWorkspaces(const std::string& project, int page_size,
                                                            const std::string& page_token) = 0;
  // WORKSPACE_NOT_FOUND, WORKSPACE_BUSY (an unfinished operation uses it). One with very many files loses them little by little,
  // so that nobody else has to wait for all of it: where that fails on the way, or meets an operation that was accepted
  // meanwhile, it is left without some of them.
  virtual absl::Status DeleteWorkspace(const WorkspaceKey& workspace) = 0;

  // All of these but DeleteUpload: WORKSPACE_NOT_FOUND.
  virtual absl::StatusOr<FileRow> GetFile(const WorkspaceKey& workspace, const std::string& path) = 0;  // FILE_NOT_FOUND
  virtual absl::StatusOr<Page<FileRow>> ListFiles(const WorkspaceKey& workspace, int page_size,
                                                  const std::string& page_token) = 0;
  // Every file in `folder` ("" is the whole workspace; "a/b": paths that begin with "a/b/"), as of one moment. MODEL_LIMIT over
  // `max_files`.
  virtual absl::StatusOr<std::vector<FileRow>> Snapshot(const WorkspaceKey& workspace, const std::string& folder,
                                                        int max_files) = 0;
  // QUOTA_EXCEEDED, by the difference to the content that the name had before.
  virtual absl::Status PutFile(const WorkspaceKey& workspace, const FileRow& file) = 0;
  virtual absl::Status DeleteFile(const WorkspaceKey& workspace, const std::string& path) = 0;  // FILE_NOT_FOUND

  // True if a file of the project, in any workspace, has this content. What others have makes no difference, to the time that it
  // takes neither.
  virtual absl::StatusOr<bool> HasContent(const std::string& project, const std::string& sha256, uint64_t size_bytes) = 0;

  // The unfinished upload with the same workspace, path, size and digest, or a new one with `upload.id`: QUOTA_EXCEEDED if the
  // project has no room for all of its bytes.
  virtual absl::StatusOr<UploadRow> FindOrCreateUpload(const UploadRow& upload) = 0;
  virtual absl::StatusOr<UploadRow> GetUpload(const WorkspaceKey& workspace, const std::string& id) = 0;  // UPLOAD_NOT_FOUND
  // Stores that the bytes sent have the announced size and digest. From here on the content's being in the blob store completes
  // the upload, whoever stored it. UPLOAD_NOT_FOUND.
  virtual absl::Status SetUploadVerified(const UploadRow& upload) = 0;
  // Points the name to the content and forgets the upload, both or neither. UPLOAD_NOT_FOUND.
  virtual absl::Status FinishUpload(const UploadRow& upload) = 0;
  virtual absl::Status DeleteUpload(const WorkspaceKey& workspace,
                                    const std::string& id) = 0;  // no error if it is gone, or its workspace

  // For metrics and tests.
  virtual absl::StatusOr<ProjectUsage> Usage(const std::string& project) = 0;

  // For housekeeping, over all projects. None of them counts as a use of a workspace.

  // If no file, no unfinished upload and no input of an unfinished operation has the content: calls `remove` and returns true, or
  // its error. Nothing comes to refer to the content before `remove` has returned; it must be quick and not use the stores. After
  // an error that is not that of `remove` the hold on the database may have been lost while it ran: what it did is to be undone.
  virtual absl::StatusOr<bool> RemoveUnreferenced(const std::string& sha256, absl::FunctionRef<absl::Status()> remove) = 0;
  // Forgets up to `limit` uploads that began before `begun_before` and are unfinished, those that began first first, but not
  // those whose id is in `active`: their bytes still come. Returns the ids of the forgotten, for the bytes to be discarded.
  virtual absl::StatusOr<std::vector<std::string>> DeleteUploadsBefore(absl::Time begun_before,
                                                                       const std::set<std::string>& active, int limit) = 0;
  // Whether there is an unfinished upload with this id, in any workspace.
  virtual absl::StatusOr<bool> UploadExists(const std::string& id) = 0;
  // Deletes up to `limit` workspaces, with all that is in them, that have no unfinished operation and in which since
  // `unused_since` no file or upload came, changed or went and no operation was accepted or ended. Returns them: fewer than there
  // are if they hold many files, but one at least.
  virtual absl::StatusOr<std::vector<WorkspaceKey>> DeleteIdleWorkspaces(absl::Time unused_since, int limit) = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKSPACES_WORKSPACE_STORE_H_
