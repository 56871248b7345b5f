#include "server/workspaces/sql_workspace_store.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/base/page_token.h"
#include "server/sql/schema.h"

namespace modelpress::server {
namespace {

// So many files one transaction deletes with their workspaces, about: nobody else can change anything meanwhile.
constexpr int64_t kFilesAtOnce = 1'000;

constexpr char kSelectFile[] = "SELECT path, sha256, size_bytes, update_time FROM files WHERE project = ?1 AND workspace = ?2";
constexpr char kSelectUpload[] =
    "SELECT id, project, workspace, path, sha256, size_bytes, verified FROM uploads WHERE project = ?1 AND workspace = ?2";

WorkspaceRow ReadWorkspace(const Statement& row) { return {row.Bytes(0), absl::FromUnixMicros(row.Integer(1))}; }

FileRow ReadFile(const Statement& row) {
  return {row.Bytes(0), row.Bytes(1), static_cast<uint64_t>(row.Integer(2)), absl::FromUnixMicros(row.Integer(3))};
}

UploadRow ReadUpload(const Statement& row) {
  return {row.Bytes(0), {row.Bytes(1), row.Bytes(2)},          row.Bytes(3),
          row.Bytes(4), static_cast<uint64_t>(row.Integer(5)), row.Integer(6) != 0};
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

// The one number that `sql` selects.
absl::StatusOr<int64_t> ReadInteger(Connection& connection, const std::string& sql, const std::vector<SqlValue>& values) {
  MP_ASSIGN_OR_RETURN(Statement statement, connection.Query(sql, values));
  MP_RETURN_IF_ERROR(statement.Step().status());
  return statement.Integer(0);
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

absl::StatusOr<WorkspaceRow> ReadWorkspaceByKey(Connection& connection, const WorkspaceKey& workspace) {
  MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
  MP_ASSIGN_OR_RETURN(std::vector<WorkspaceRow> rows,
                      ReadRows<WorkspaceRow>(connection, "SELECT id, create_time FROM workspaces WHERE project = ?1 AND id = ?2",
                                             {workspace.project, workspace.id}, ReadWorkspace));
  return std::move(rows.front());
}

absl::StatusOr<UploadRow> ReadUploadById(Connection& connection, const WorkspaceKey& workspace, const std::string& id) {
  MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
  MP_ASSIGN_OR_RETURN(std::vector<UploadRow> rows, ReadRows<UploadRow>(connection, absl::StrCat(kSelectUpload, " AND id = ?3"),
                                                                       {workspace.project, workspace.id, id}, ReadUpload));
  if (rows.empty()) {
    return MakeError(v1::UPLOAD_NOT_FOUND, absl::StrCat("there is no unfinished upload workspaces/", workspace.id, "/uploads/",
                                                        id, "; start it again, which sends nothing that is here already"));
  }
  return std::move(rows.front());
}

absl::Status ForgetUpload(Connection& connection, const UploadRow& upload, absl::Time now) {
  MP_RETURN_IF_ERROR(connection.Execute("DELETE FROM uploads WHERE id = ?1", {upload.id}).status());
  return UseWorkspace(connection, upload.workspace, -static_cast<int64_t>(upload.size_bytes), 0, now);
}

// Deletes up to kFilesAtOnce files. Returns their sizes.
absl::StatusOr<std::vector<int64_t>> DeleteSomeFiles(Connection& connection, const WorkspaceKey& workspace) {
  return ReadRows<int64_t>(connection,
                           "DELETE FROM files WHERE project = ?1 AND workspace = ?2 AND path IN (SELECT path FROM files"
                           " WHERE project = ?1 AND workspace = ?2 ORDER BY path LIMIT ?3) RETURNING size_bytes",
                           {workspace.project, workspace.id, kFilesAtOnce}, [](const Statement& row) { return row.Integer(0); });
}

absl::Status FileNotFound(const WorkspaceKey& workspace, const std::string& path) {
  return MakeError(v1::FILE_NOT_FOUND, absl::StrCat("there is no such file in workspaces/", workspace.id), {.file = path});
}

}  // namespace

absl::StatusOr<WorkspaceRow> SqlWorkspaceStore::CreateWorkspace(const WorkspaceKey& wanted, const std::string& fallback_id,
                                                                const std::string& request_id) {
  WorkspaceRow workspace;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    const absl::Time now = clock_.Now();
    MP_ASSIGN_OR_RETURN(std::string name,
                        FindRequest(connection, wanted.project, RequestKind::kWorkspace, request_id, wanted.id));
    if (name.empty()) {
      name = wanted.id.empty() ? fallback_id : wanted.id;
      MP_ASSIGN_OR_RETURN(int64_t inserted,
                          connection.Execute("INSERT INTO workspaces (project, id, create_time, use_time) VALUES (?1, ?2, ?3, ?3)"
                                             " ON CONFLICT DO NOTHING",
                                             {wanted.project, name, absl::ToUnixMicros(now)}));
      if (inserted == 0) {
        return MakeError(v1::WORKSPACE_EXISTS, absl::StrCat("workspaces/", name, " exists already; choose another id, or none"));
      }
      if (const int limit = quotas_.Of(wanted.project).workspaces; limit > 0) {
        MP_ASSIGN_OR_RETURN(const int64_t count,
                            ReadInteger(connection, "SELECT COUNT(*) FROM workspaces WHERE project = ?1", {wanted.project}));
        if (count > limit) {  // with the new one
          return QuotaExceeded("workspaces", limit, count - 1, 1);
        }
      }
      MP_RETURN_IF_ERROR(RememberRequest(connection, wanted.project, RequestKind::kWorkspace, request_id, wanted.id, name, now));
    }
    MP_ASSIGN_OR_RETURN(workspace, ReadWorkspaceByKey(connection, {wanted.project, name}));
    return absl::OkStatus();
  }));
  return workspace;
}

absl::StatusOr<WorkspaceRow> SqlWorkspaceStore::GetWorkspace(const WorkspaceKey& workspace) {
  WorkspaceRow row;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(row, ReadWorkspaceByKey(connection, workspace));
    return absl::OkStatus();
  }));
  return row;
}

absl::StatusOr<Page<WorkspaceRow>> SqlWorkspaceStore::ListWorkspaces(const std::string& project, int page_size,
                                                                     const std::string& page_token) {
  const std::string scope = absl::StrCat("projects/", project, "/workspaces");
  MP_ASSIGN_OR_RETURN(const int size, ResolvePageSize(page_size));
  std::string after;
  if (!page_token.empty()) {
    MP_ASSIGN_OR_RETURN(after, DecodePageToken(scope, page_token));
  }
  Page<WorkspaceRow> page;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(
        std::vector<WorkspaceRow> rows,
        ReadRows<WorkspaceRow>(connection,
                               "SELECT id, create_time FROM workspaces WHERE project = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
                               {project, after, static_cast<int64_t>(size) + 1}, ReadWorkspace));
    page = MakePage(std::move(rows), size, scope, &WorkspaceRow::id);
    return absl::OkStatus();
  }));
  return page;
}

absl::Status SqlWorkspaceStore::DeleteWorkspace(const WorkspaceKey& workspace) {
  bool deleted = false;
  const auto delete_portion = [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    {
      // PENDING, RUNNING, CANCELLING
      MP_ASSIGN_OR_RETURN(
          Statement statement,
          connection.Query("SELECT id FROM jobs WHERE project = ?1 AND workspace = ?2 AND state IN (1, 2, 3) LIMIT 1",
                           {workspace.project, workspace.id}));
      MP_ASSIGN_OR_RETURN(bool busy, statement.Step());
      if (busy) {
        return MakeError(v1::WORKSPACE_BUSY, absl::StrCat("workspaces/", workspace.id, " is in use by operations/",
                                                          statement.Bytes(0), "; cancel it or wait for its end"));
      }
    }
    MP_ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, DeleteSomeFiles(connection, workspace));
    if (sizes.size() == static_cast<size_t>(kFilesAtOnce)) {  // there may be more
      return UseWorkspace(connection, workspace, -std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), -kFilesAtOnce,
                          clock_.Now());
    }
    deleted = true;
    return connection.Execute("DELETE FROM workspaces WHERE project = ?1 AND id = ?2", {workspace.project, workspace.id})
        .status();  // uploads go with it
  };
  while (!deleted) {
    MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, delete_portion));
  }
  return absl::OkStatus();
}

absl::StatusOr<FileRow> SqlWorkspaceStore::GetFile(const WorkspaceKey& workspace, const std::string& path) {
  FileRow file;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(std::vector<FileRow> rows, ReadRows<FileRow>(connection, absl::StrCat(kSelectFile, " AND path = ?3"),
                                                                     {workspace.project, workspace.id, path}, ReadFile));
    if (rows.empty()) {
      return FileNotFound(workspace, path);
    }
    file = std::move(rows.front());
    return absl::OkStatus();
  }));
  return file;
}

absl::StatusOr<Page<FileRow>> SqlWorkspaceStore::ListFiles(const WorkspaceKey& workspace, int page_size,
                                                           const std::string& page_token) {
  const std::string scope = absl::StrCat("projects/", workspace.project, "/workspaces/", workspace.id, "/files");
  MP_ASSIGN_OR_RETURN(const int size, ResolvePageSize(page_size));
  std::string after;
  if (!page_token.empty()) {
    MP_ASSIGN_OR_RETURN(after, DecodePageToken(scope, page_token));
  }
  Page<FileRow> page;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(std::vector<FileRow> rows,
                        ReadRows<FileRow>(connection, absl::StrCat(kSelectFile, " AND path > ?3 ORDER BY path LIMIT ?4"),
                                          {workspace.project, workspace.id, after, static_cast<int64_t>(size) + 1}, ReadFile));
    page = MakePage(std::move(rows), size, scope, &FileRow::path);
    return absl::OkStatus();
  }));
  return page;
}

absl::StatusOr<std::vector<FileRow>> SqlWorkspaceStore::Snapshot(const WorkspaceKey& workspace, const std::string& folder,
                                                                 int max_files) {
  // Paths that begin with "FOLDER/" are those from "FOLDER/" up to before "FOLDER0": '0' follows '/'.
  std::string range = folder.empty() ? " AND ?3 = ?4" : " AND path >= ?3 AND path < ?4";
  std::string first = folder.empty() ? "" : absl::StrCat(folder, "/");
  std::string end = folder.empty() ? "" : absl::StrCat(folder, "0");
  std::vector<FileRow> files;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(
        files, ReadRows<FileRow>(connection, absl::StrCat(kSelectFile, range, " ORDER BY path LIMIT ?5"),
                                 {workspace.project, workspace.id, first, end, static_cast<int64_t>(max_files) + 1}, ReadFile));
    return absl::OkStatus();
  }));
  if (files.size() > static_cast<size_t>(std::max(max_files, 0))) {
    return MakeError(v1::MODEL_LIMIT, absl::StrCat("workspaces/", workspace.id, "/files/", first, " holds more than ", max_files,
                                                   " files; keep models and calibration data in folders of their own"));
  }
  return files;
}

absl::Status SqlWorkspaceStore::PutFile(const WorkspaceKey& workspace, const FileRow& file) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(const std::optional<int64_t> before, FileSize(connection, workspace, file.path));
    MP_RETURN_IF_ERROR(
        RequireBytes(connection, quotas_, workspace.project, static_cast<int64_t>(file.size_bytes) - before.value_or(0)));
    return LinkFile(connection, workspace, file.path, file.sha256, file.size_bytes, clock_.Now());
  });
}

absl::Status SqlWorkspaceStore::DeleteFile(const WorkspaceKey& workspace, const std::string& path) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, workspace));
    MP_ASSIGN_OR_RETURN(const std::optional<int64_t> size, FileSize(connection, workspace, path));
    if (!size.has_value()) {
      return FileNotFound(workspace, path);
    }
    MP_RETURN_IF_ERROR(connection
                           .Execute("DELETE FROM files WHERE project = ?1 AND workspace = ?2 AND path = ?3",
                                    {workspace.project, workspace.id, path})
                           .status());
    return UseWorkspace(connection, workspace, -*size, -1, clock_.Now());
  });
}

absl::StatusOr<bool> SqlWorkspaceStore::HasContent(const std::string& project, const std::string& sha256, uint64_t size_bytes) {
  bool found = false;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(found, server::HasContent(connection, project, sha256, size_bytes));
    return absl::OkStatus();
  }));
  return found;
}

absl::StatusOr<UploadRow> SqlWorkspaceStore::FindOrCreateUpload(const UploadRow& upload) {
  UploadRow found;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(RequireWorkspace(connection, upload.workspace));
    const auto size = static_cast<int64_t>(upload.size_bytes);
    const absl::Time now = clock_.Now();
    MP_ASSIGN_OR_RETURN(const int64_t inserted,
                        connection.Execute("INSERT INTO uploads (id, project, workspace, path, sha256, size_bytes, create_time)"
                                           " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
                                           " ON CONFLICT (project, workspace, path, sha256, size_bytes) DO NOTHING",
                                           {upload.id, upload.workspace.project, upload.workspace.id, upload.path, upload.sha256,
                                            size, absl::ToUnixMicros(now)}));
    if (inserted > 0) {
      MP_RETURN_IF_ERROR(RequireBytes(connection, quotas_, upload.workspace.project, size));
      MP_RETURN_IF_ERROR(UseWorkspace(connection, upload.workspace, size, 0, now));
    }
    MP_ASSIGN_OR_RETURN(
        std::vector<UploadRow> rows,
        ReadRows<UploadRow>(connection, absl::StrCat(kSelectUpload, " AND path = ?3 AND sha256 = ?4 AND size_bytes = ?5"),
                            {upload.workspace.project, upload.workspace.id, upload.path, upload.sha256, size}, ReadUpload));
    found = std::move(rows.front());
    return absl::OkStatus();
  }));
  return found;
}

absl::StatusOr<UploadRow> SqlWorkspaceStore::GetUpload(const WorkspaceKey& workspace, const std::string& id) {
  UploadRow upload;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(upload, ReadUploadById(connection, workspace, id));
    return absl::OkStatus();
  }));
  return upload;
}

absl::Status SqlWorkspaceStore::SetUploadVerified(const UploadRow& upload) {
  return database_.Write(Durability::kProcessCrash, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(ReadUploadById(connection, upload.workspace, upload.id).status());
    return connection.Execute("UPDATE uploads SET verified = 1 WHERE id = ?1", {upload.id}).status();
  });
}

absl::Status SqlWorkspaceStore::FinishUpload(const UploadRow& upload) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(UploadRow stored, ReadUploadById(connection, upload.workspace, upload.id));
    MP_RETURN_IF_ERROR(ForgetUpload(connection, stored, clock_.Now()));
    // Room for it was made when the upload began.
    return LinkFile(connection, stored.workspace, stored.path, stored.sha256, stored.size_bytes, clock_.Now());
  });
}

absl::Status SqlWorkspaceStore::DeleteUpload(const WorkspaceKey& workspace, const std::string& id) {
  return database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::vector<UploadRow> rows,
                        ReadRows<UploadRow>(connection, absl::StrCat(kSelectUpload, " AND id = ?3"),
                                            {workspace.project, workspace.id, id}, ReadUpload));
    return rows.empty() ? absl::OkStatus() : ForgetUpload(connection, rows.front(), clock_.Now());
  });
}

absl::StatusOr<ProjectUsage> SqlWorkspaceStore::Usage(const std::string& project) {
  ProjectUsage usage;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    {
      MP_ASSIGN_OR_RETURN(Statement statement,
                          connection.Query("SELECT bytes, files FROM workspaces WHERE project = ?1", {project}));
      while (true) {
        MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
        if (!row) {
          break;
        }
        usage.bytes += static_cast<uint64_t>(statement.Integer(0));
        usage.files += statement.Integer(1);
        ++usage.workspaces;
      }
    }
    MP_ASSIGN_OR_RETURN(usage.uploads, ReadInteger(connection, "SELECT COUNT(*) FROM uploads WHERE project = ?1", {project}));
    MP_ASSIGN_OR_RETURN(usage.pending,
                        ReadInteger(connection, "SELECT COUNT(*) FROM jobs WHERE state = 1 AND project = ?1", {project}));
    MP_ASSIGN_OR_RETURN(usage.running,
                        ReadInteger(connection, "SELECT COUNT(*) FROM jobs WHERE state IN (2, 3) AND project = ?1", {project}));
    return absl::OkStatus();
  }));
  return usage;
}

absl::StatusOr<bool> SqlWorkspaceStore::RemoveUnreferenced(const std::string& sha256, absl::FunctionRef<absl::Status()> remove) {
  bool removed = false;
  bool referenced = false;
  const auto look = [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement statement,
                        connection.Query("SELECT 1 FROM files WHERE sha256 = ?1 UNION ALL SELECT 1 FROM uploads WHERE sha256 = ?1"
                                         " UNION ALL SELECT 1 FROM job_inputs WHERE sha256 = ?1 LIMIT 1",
                                         {sha256}));
    MP_ASSIGN_OR_RETURN(referenced, statement.Step());
    return absl::OkStatus();
  };
  MP_RETURN_IF_ERROR(database_.Read(look));  // takes no lock: most content is referred to
  if (referenced) {
    return false;
  }
  MP_RETURN_IF_ERROR(database_.Write(Durability::kProcessCrash, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(look(connection));
    if (!referenced) {
      MP_RETURN_IF_ERROR(remove());
      removed = true;
    }
    return absl::OkStatus();
  }));
  return removed;
}

absl::StatusOr<std::vector<std::string>> SqlWorkspaceStore::DeleteUploadsBefore(absl::Time begun_before,
                                                                                const std::set<std::string>& active, int limit) {
  // Found without holding anybody up: there may be any number of active ones.
  std::vector<std::string> found;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    int64_t last_time = INT64_MIN;
    std::string last_id;
    while (true) {
      MP_ASSIGN_OR_RETURN(
          Statement statement,
          connection.Query("SELECT create_time, id FROM uploads WHERE create_time < ?1 AND (create_time, id) > (?2, ?3)"
                           " ORDER BY create_time, id LIMIT ?4",
                           {absl::ToUnixMicros(begun_before), last_time, last_id, static_cast<int64_t>(limit)}));
      int rows = 0;
      while (found.size() < static_cast<size_t>(limit)) {
        MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
        if (!row) {
          break;
        }
        ++rows;
        last_time = statement.Integer(0);
        last_id = statement.Bytes(1);
        if (!active.contains(last_id)) {
          found.push_back(last_id);
        }
      }
      if (rows < limit || found.size() == static_cast<size_t>(limit)) {
        return absl::OkStatus();
      }
    }
  }));
  std::vector<std::string> ids;
  if (found.empty()) {
    return ids;
  }
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    for (const std::string& id : found) {
      MP_ASSIGN_OR_RETURN(
          const std::vector<UploadRow> rows,
          ReadRows<UploadRow>(
              connection,
              "DELETE FROM uploads WHERE id = ?1 RETURNING id, project, workspace, path, sha256, size_bytes, verified", {id},
              ReadUpload));
      for (const UploadRow& row : rows) {  // none if it ended meanwhile
        MP_RETURN_IF_ERROR(connection
                               .Execute("UPDATE workspaces SET bytes = bytes - ?3 WHERE project = ?1 AND id = ?2",
                                        {row.workspace.project, row.workspace.id, static_cast<int64_t>(row.size_bytes)})
                               .status());
        ids.push_back(row.id);
      }
    }
    return absl::OkStatus();
  }));
  return ids;
}

absl::StatusOr<bool> SqlWorkspaceStore::UploadExists(const std::string& id) {
  bool found = false;
  MP_RETURN_IF_ERROR(database_.Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT 1 FROM uploads WHERE id = ?1", {id}));
    MP_ASSIGN_OR_RETURN(found, statement.Step());
    return absl::OkStatus();
  }));
  return found;
}

absl::StatusOr<std::vector<WorkspaceKey>> SqlWorkspaceStore::DeleteIdleWorkspaces(absl::Time unused_since, int limit) {
  struct IdleWorkspace {
    WorkspaceKey key;
    int64_t files;
  };
  std::vector<WorkspaceKey> deleted;
  MP_RETURN_IF_ERROR(database_.Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(
        const std::vector<IdleWorkspace> idle,
        ReadRows<IdleWorkspace>(
            connection,
            "SELECT project, id, files FROM workspaces WHERE use_time < ?1"
            " AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.project = workspaces.project AND jobs.workspace = workspaces.id"
            " AND jobs.state IN (1, 2, 3)) ORDER BY use_time LIMIT ?2",
            {absl::ToUnixMicros(unused_since), static_cast<int64_t>(limit)},
            [](const Statement& row) { return IdleWorkspace{{row.Bytes(0), row.Bytes(1)}, row.Integer(2)}; }));
    int64_t files = 0;
    for (const IdleWorkspace& workspace : idle) {
      files += workspace.files;
      if (files > kFilesAtOnce && !deleted.empty()) {
        break;
      }
      MP_RETURN_IF_ERROR(
          connection.Execute("DELETE FROM workspaces WHERE project = ?1 AND id = ?2", {workspace.key.project, workspace.key.id})
              .status());
      deleted.push_back(workspace.key);
    }
    return absl::OkStatus();
  }));
  return deleted;
}

}  // namespace modelpress::server
