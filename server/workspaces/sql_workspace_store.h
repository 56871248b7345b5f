#ifndef MODELPRESS_SERVER_WORKSPACES_SQL_WORKSPACE_STORE_H_
#define MODELPRESS_SERVER_WORKSPACES_SQL_WORKSPACE_STORE_H_

#include <set>
#include <string>
#include <vector>

#include "server/base/clock.h"
#include "server/base/quotas.h"
#include "server/sql/database.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

// Workspaces in a database of OpenDatabase(), the same as that of the jobs. Thread-safe. Every change survives a power failure
// but SetUploadVerified: without it bytes are sent again at worst.
class SqlWorkspaceStore final : public WorkspaceStore {
 public:
  // All must outlive the store.
  SqlWorkspaceStore(Database& database, const Clock& clock, const Quotas& quotas)
      : database_(database), clock_(clock), quotas_(quotas) {}

  absl::StatusOr<WorkspaceRow> CreateWorkspace(const WorkspaceKey& workspace, const std::string& fallback_id,
                                               const std::string& request_id) override;
  absl::StatusOr<WorkspaceRow> GetWorkspace(const WorkspaceKey& workspace) override;
  absl::StatusOr<Page<WorkspaceRow>> ListWorkspaces(const std::string& project, int page_size,
                                                    const std::string& page_token) override;
  absl::Status DeleteWorkspace(const WorkspaceKey& workspace) override;
  absl::StatusOr<FileRow> GetFile(const WorkspaceKey& workspace, const std::string& path) override;
  absl::StatusOr<Page<FileRow>> ListFiles(const WorkspaceKey& workspace, int page_size, const std::string& page_token) override;
  absl::StatusOr<std::vector<FileRow>> Snapshot(const WorkspaceKey& workspace, const std::string& folder, int max_files) override;
  absl::Status PutFile(const WorkspaceKey& workspace, const FileRow& file) override;
  absl::Status DeleteFile(const WorkspaceKey& workspace, const std::string& path) override;
  absl::StatusOr<bool> HasContent(const std::string& project, const std::string& sha256, uint64_t size_bytes) override;
  absl::StatusOr<UploadRow> FindOrCreateUpload(const UploadRow& upload) override;
  absl::StatusOr<UploadRow> GetUpload(const WorkspaceKey& workspace, const std::string& id) override;
  absl::Status SetUploadVerified(const UploadRow& upload) override;
  absl::Status FinishUpload(const UploadRow& upload) override;
  absl::Status DeleteUpload(const WorkspaceKey& workspace, const std::string& id) override;
  absl::StatusOr<ProjectUsage> Usage(const std::string& project) override;
  absl::StatusOr<bool> RemoveUnreferenced(const std::string& sha256, absl::FunctionRef<absl::Status()> remove) override;
  absl::StatusOr<std::vector<std::string>> DeleteUploadsBefore(absl::Time begun_before, const std::set<std::string>& active,
                                                               int limit) override;
  absl::StatusOr<bool> UploadExists(const std::string& id) override;
  absl::StatusOr<std::vector<WorkspaceKey>> DeleteIdleWorkspaces(absl::Time unused_since, int limit) override;

 private:
  Database& database_;
  const Clock& clock_;
  const Quotas& quotas_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKSPACES_SQL_WORKSPACE_STORE_H_
