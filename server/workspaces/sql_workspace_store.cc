#include "server/workspaces/sql_workspace_store.h"

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/base/page_token.h"
#include "server/sql/schema.h"

namespace modelpress::server {
namespace {

constexpr char kSelectFile[] = "SELECT path, sha256, size_bytes, update_time FROM files WHERE workspace = ?1";
constexpr char kSelectUpload[] = "SELECT id, workspace, path, sha256, size_bytes FROM uploads WHERE workspace = ?1";

WorkspaceRow ReadWorkspace(const Statement& row) { return {row.Bytes(0), absl::FromUnixMicros(row.Integer(1))}; }

FileRow ReadFile(const Statement& row) {
  return {row.Bytes(0), row.Bytes(1), static_cast<uint64_t>(row.Integer(2)), absl::FromUnixMicros(row.Integer(3))};
}

UploadRow ReadUpload(const Statement& row) {
  return {row.Bytes(0), row.Bytes(1), row.Bytes(2), row.Bytes(3), static_cast<uint64_t>(row.Integer(4))};
}

template <typename Row>
absl::StatusOr<std::vector<Row>> ReadRows(Connection& connection, const std::string& sql, const std::vector<SqlValue>& values,
                                          absl::FunctionRef<Row(const Statement&)> read) {
  MP_ASSIGN_OR_RETURN(Statement statement, connection.Query(sql, values));
  std::vector<Row> rows;
  while (true) {
    MP_ASSIGN_OR_RETURN(bool row, statement.Step());
    if (!row) {
      return rows;
    }
    rows.push_back(read(statement));
  }
}

// Cuts the row that was read beyond the page and says where the next one begins.
template <typename Row>
Page<Row> MakePage(std::vector<Row> rows, int size, const std::string& scope, std::string Row::* key) {
  Page<Row> page{std::move(rows), ""};
  if (page.rows.size() > static_cast<size_t>(size)) {
    page.rows.resize(size);
    page.next_page_token = EncodePageToken(scope, page.rows.back().*key);
  }
  return page;
}

absl::StatusOr<WorkspaceRow> ReadWorkspaceById(Connection& connection, const std::string& id) {
  MP_RETURN_IF_ERROR(RequireWorkspace(connection, id));
  MP_ASSIGN_OR_RETURN(
      std::vector<WorkspaceRow> rows,
      ReadRows<WorkspaceRow>(connection, "SELECT id, create_time FROM workspaces WHERE id = ?1", {id}, ReadWorkspace));
  return std::move(rows.front());
}

absl::StatusOr<UploadRow> ReadUploadById(Connection& connection, const std::string& workspace, const std::string& id) {
  MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
  MP_ASSIGN_OR_RETURN(std::vector<UploadRow> rows,
                      ReadRows<UploadRow>(connection, absl::StrCat(kSelectUpload, " AND id = ?2"), {workspace, id}, ReadUpload));
  if (rows.empty()) {
    return MakeError(v1::UPLOAD_NOT_FOUND, absl::StrCat("there is no unfinished upload workspaces/", workspace, "/uploads/", id,
                                                        "; start it again, which sends nothing that is here already"));
  }
  return std::move(rows.front());
}

absl::Status FileNotFound(const std::string& workspace, const std::string& path) {
  return MakeError(v1::FILE_NOT_FOUND, absl::StrCat("there is no such file in workspaces/", workspace), {.file = path});
}

}  // namespace

absl::StatusOr<WorkspaceRow> SqlWorkspaceStore::CreateWorkspace(const std::string& id, const std::string& fallback_id,
                                                                   const std::string& request_id) {
  WorkspaceRow workspace;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    const absl::Time now = clock_.Now();
    MP_ASSIGN_OR_RETURN(std::string name, FindRequest(connection, RequestKind::kWorkspace, request_id, id, now));
    if (name.empty()) {
      name = id.empty() ? fallback_id : id;
      MP_ASSIGN_OR_RETURN(int64_t inserted,
                          connection.Execute("INSERT INTO workspaces (id, create_time) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                                             {name, absl::ToUnixMicros(now)}));
      if (inserted == 0) {
        return MakeError(v1::WORKSPACE_EXISTS, absl::StrCat("workspaces/", name, " exists already; choose another id, or none"));
      }
      MP_RETURN_IF_ERROR(RememberRequest(connection, RequestKind::kWorkspace, request_id, id, name, now));
    }
    MP_ASSIGN_OR_RETURN(workspace, ReadWorkspaceById(connection, name));
    return absl::OkStatus();
  }));
  return workspace;
}

absl::StatusOr<WorkspaceRow> SqlWorkspaceStore::GetWorkspace(const std::string& id) {
  WorkspaceRow workspace;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(workspace, ReadWorkspaceById(connection, id));
    return absl::OkStatus();
  }));
  return workspace;
}

absl::StatusOr<Page<WorkspaceRow>> SqlWorkspaceStore::ListWorkspaces(int page_size, const std::string& page_token) {
  const std::string scope = "workspaces";
  MP_ASSIGN_OR_RETURN(const int size, ResolvePageSize(page_size));
  std::string after;
  if (!page_token.empty()) {
    MP_ASSIGN_OR_RETURN(after, DecodePageToken(scope, page_token));
  }
  Page<WorkspaceRow> page;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(
        std::vector<WorkspaceRow> rows,
        ReadRows<WorkspaceRow>(connection, "SELECT id, create_time FROM workspaces WHERE id > ?1 ORDER BY id LIMIT ?2",
                               {after, static_cast<int64_t>(size) + 1}, ReadWorkspace));
    page = MakePage(std::move(rows), size, scope, &WorkspaceRow::id);
    return absl::OkStatus();
  }));
  return page;
}

absl::Status SqlWorkspaceStore::DeleteWorkspace(const std::string& id) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, id));
    {
      // PENDING, RUNNING, CANCELLING
      MP_ASSIGN_OR_RETURN(Statement statement,
                          connection.Query("SELECT id FROM jobs WHERE workspace = ?1 AND state IN (1, 2, 3) LIMIT 1", {id}));
      MP_ASSIGN_OR_RETURN(bool busy, statement.Step());
      if (busy) {
        return MakeError(v1::WORKSPACE_BUSY, absl::StrCat("workspaces/", id, " is in use by operations/", statement.Bytes(0),
                                                          "; cancel it or wait for its end"));
      }
    }
    return connection.Execute("DELETE FROM workspaces WHERE id = ?1", {id}).status();  // files and uploads go with it
  });
}

absl::StatusOr<FileRow> SqlWorkspaceStore::GetFile(const std::string& workspace, const std::string& path) {
  FileRow file;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(std::vector<FileRow> rows,
                        ReadRows<FileRow>(connection, absl::StrCat(kSelectFile, " AND path = ?2"), {workspace, path}, ReadFile));
    if (rows.empty()) {
      return FileNotFound(workspace, path);
    }
    file = std::move(rows.front());
    return absl::OkStatus();
  }));
  return file;
}

absl::StatusOr<Page<FileRow>> SqlWorkspaceStore::ListFiles(const std::string& workspace, int page_size,
                                                              const std::string& page_token) {
  const std::string scope = absl::StrCat("workspaces/", workspace, "/files");
  MP_ASSIGN_OR_RETURN(const int size, ResolvePageSize(page_size));
  std::string after;
  if (!page_token.empty()) {
    MP_ASSIGN_OR_RETURN(after, DecodePageToken(scope, page_token));
  }
  Page<FileRow> page;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(std::vector<FileRow> rows,
                        ReadRows<FileRow>(connection, absl::StrCat(kSelectFile, " AND path > ?2 ORDER BY path LIMIT ?3"),
                                          {workspace, after, static_cast<int64_t>(size) + 1}, ReadFile));
    page = MakePage(std::move(rows), size, scope, &FileRow::path);
    return absl::OkStatus();
  }));
  return page;
}

absl::StatusOr<std::vector<FileRow>> SqlWorkspaceStore::Snapshot(const std::string& workspace, const std::string& folder,
                                                                    int max_files) {
  // Paths that begin with "FOLDER/" are those from "FOLDER/" up to before "FOLDER0": '0' follows '/'.
  std::string range = folder.empty() ? " AND ?2 = ?3" : " AND path >= ?2 AND path < ?3";
  std::string first = folder.empty() ? "" : absl::StrCat(folder, "/");
  std::string end = folder.empty() ? "" : absl::StrCat(folder, "0");
  std::vector<FileRow> files;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(files, ReadRows<FileRow>(connection, absl::StrCat(kSelectFile, range, " ORDER BY path LIMIT ?4"),
                                                 {workspace, first, end, static_cast<int64_t>(max_files) + 1}, ReadFile));
    return absl::OkStatus();
  }));
  if (files.size() > static_cast<size_t>(std::max(max_files, 0))) {
    return MakeError(v1::MODEL_LIMIT, absl::StrCat("workspaces/", workspace, "/files/", first, " holds more than ", max_files,
                                                   " files; keep models and calibration data in folders of their own"));
  }
  return files;
}

absl::Status SqlWorkspaceStore::PutFile(const std::string& workspace, const FileRow& file) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    return LinkFile(connection, workspace, file.path, file.sha256, file.size_bytes, clock_.Now());
  });
}

absl::Status SqlWorkspaceStore::DeleteFile(const std::string& workspace, const std::string& path) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(int64_t deleted,
                        connection.Execute("DELETE FROM files WHERE workspace = ?1 AND path = ?2", {workspace, path}));
    return deleted == 0 ? FileNotFound(workspace, path) : absl::OkStatus();
  });
}

absl::StatusOr<UploadRow> SqlWorkspaceStore::FindOrCreateUpload(const UploadRow& upload) {
  UploadRow found;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, upload.workspace));
    const auto size = static_cast<int64_t>(upload.size_bytes);
    MP_RETURN_IF_ERROR(connection
                           .Execute("INSERT INTO uploads (id, workspace, path, sha256, size_bytes) VALUES (?1, ?2, ?3, ?4, ?5)"
                                    " ON CONFLICT (workspace, path, sha256, size_bytes) DO NOTHING",
                                    {upload.id, upload.workspace, upload.path, upload.sha256, size})
                           .status());
    MP_ASSIGN_OR_RETURN(
        std::vector<UploadRow> rows,
        ReadRows<UploadRow>(connection, absl::StrCat(kSelectUpload, " AND path = ?2 AND sha256 = ?3 AND size_bytes = ?4"),
                            {upload.workspace, upload.path, upload.sha256, size}, ReadUpload));
    found = std::move(rows.front());
    return absl::OkStatus();
  }));
  return found;
}

absl::StatusOr<UploadRow> SqlWorkspaceStore::GetUpload(const std::string& workspace, const std::string& id) {
  UploadRow upload;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(upload, ReadUploadById(connection, workspace, id));
    return absl::OkStatus();
  }));
  return upload;
}

absl::Status SqlWorkspaceStore::FinishUpload(const UploadRow& upload) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(UploadRow stored, ReadUploadById(connection, upload.workspace, upload.id));
    MP_RETURN_IF_ERROR(LinkFile(connection, stored.workspace, stored.path, stored.sha256, stored.size_bytes, clock_.Now()));
    return connection.Execute("DELETE FROM uploads WHERE id = ?1", {stored.id}).status();
  });
}

absl::Status SqlWorkspaceStore::DeleteUpload(const std::string& workspace, const std::string& id) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    return connection.Execute("DELETE FROM uploads WHERE workspace = ?1 AND id = ?2", {workspace, id}).status();
  });
}

}  // namespace modelpress::server
