#ifndef MODELPRESS_SERVER_WORKSPACES_SQL_WORKSPACE_STORE_H_
#define MODELPRESS_SERVER_WORKSPACES_SQL_WORKSPACE_STORE_H_

#include <string>
#include <vector>

#include "server/base/clock.h"
#include "server/sql/database.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

// Workspaces in a database of OpenDatabase(), the same as that of the jobs. Thread-safe. Every change survives a power failure.
class SqlWorkspaceStore final : public WorkspaceStore {
 public:
  // Both must outlive the store.
  SqlWorkspaceStore(Database& database, const Clock& clock) : database_(database), clock_(clock) {}

  absl::StatusOr<WorkspaceRow> CreateWorkspace(const std::string& id, const std::string& fallback_id,
                                               const std::string& request_id) override;
  absl::StatusOr<WorkspaceRow> GetWorkspace(const std::string& id) override;
  absl::StatusOr<Page<WorkspaceRow>> ListWorkspaces(int page_size, const std::string& page_token) override;
  absl::Status DeleteWorkspace(const std::string& id) override;
  absl::StatusOr<FileRow> GetFile(const std::string& workspace, const std::string& path) override;
  absl::StatusOr<Page<FileRow>> ListFiles(const std::string& workspace, int page_size, const std::string& page_token) override;
  absl::StatusOr<std::vector<FileRow>> Snapshot(const std::string& workspace, const std::string& folder, int max_files) override;
  absl::Status PutFile(const std::string& workspace, const FileRow& file) override;
  absl::Status DeleteFile(const std::string& workspace, const std::string& path) override;
  absl::StatusOr<UploadRow> FindOrCreateUpload(const UploadRow& upload) override;
  absl::StatusOr<UploadRow> GetUpload(const std::string& workspace, const std::string& id) override;
  absl::Status FinishUpload(const UploadRow& upload) override;
  absl::Status DeleteUpload(const std::string& workspace, const std::string& id) override;

 private:
  Database& database_;
  const Clock& clock_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKSPACES_SQL_WORKSPACE_STORE_H_
