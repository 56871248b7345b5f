#include "server/sql/schema.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/sql/postgres_database.h"
#include "server/sql/sqlite_database.h"

namespace modelpress::server {
namespace {

// In SQLite's words (server/sql/database.h). Times are microseconds since 1970, states the numbers of OperationMetadata.State,
// messages their serialized bytes. A step that was ever released is never edited: a change is a new step.
const std::vector<std::string>& Migrations() {
  static const auto* const steps = new std::vector<std::string>{
      R"sql(
        -- Every project has ids of its own: nobody can find out by choosing one what others have.
        CREATE TABLE workspaces (
          project TEXT NOT NULL,
          id TEXT NOT NULL,
          create_time INTEGER NOT NULL,
          PRIMARY KEY (project, id)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE files (
          project TEXT NOT NULL,
          workspace TEXT NOT NULL,
          path TEXT NOT NULL,
          sha256 TEXT NOT NULL,
          size_bytes INTEGER NOT NULL,
          update_time INTEGER NOT NULL,
          PRIMARY KEY (project, workspace, path),
          FOREIGN KEY (project, workspace) REFERENCES workspaces (project, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX files_by_content ON files (sha256, project);  -- has the project it, has anybody it

        CREATE TABLE uploads (
          id TEXT PRIMARY KEY,
          project TEXT NOT NULL,
          workspace TEXT NOT NULL,
          path TEXT NOT NULL,
          sha256 TEXT NOT NULL,
          size_bytes INTEGER NOT NULL,
          UNIQUE (project, workspace, path, sha256, size_bytes),
          FOREIGN KEY (project, workspace) REFERENCES workspaces (project, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;

        -- What changes often is kept apart from the payloads, so that a heartbeat writes one page.
        CREATE TABLE jobs (
          sequence INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of acceptance
          id TEXT NOT NULL UNIQUE,
          project TEXT NOT NULL,
          workspace TEXT NOT NULL,  -- id; a finished job may outlive it
          method TEXT NOT NULL,
          state INTEGER NOT NULL,
          attempt INTEGER NOT NULL,
          failures INTEGER NOT NULL DEFAULT 0,
          create_time INTEGER NOT NULL,
          start_time INTEGER,
          end_time INTEGER,
          lease_owner TEXT,
          beats INTEGER NOT NULL DEFAULT 0,  -- heartbeats of all attempts: whoever sees it stand still for the lease's time takes over
          progress BLOB  -- Progress
        ) STRICT;
        CREATE INDEX jobs_by_state ON jobs (state, sequence);          -- claim, leases, list
        CREATE INDEX jobs_by_project ON jobs (project, sequence);                 -- list
        CREATE INDEX jobs_by_workspace ON jobs (project, workspace, sequence);    -- list, busy
        CREATE INDEX jobs_by_method ON jobs (method, state);           -- count

        CREATE TABLE job_payloads (
          sequence INTEGER PRIMARY KEY REFERENCES jobs (sequence) ON DELETE CASCADE,
          request BLOB NOT NULL,  -- Any
          details BLOB NOT NULL,  -- OperationMetadata: the fields that have no column in jobs
          response BLOB,          -- Any
          error BLOB              -- google.rpc.Status
        ) STRICT;

        CREATE TABLE requests (
          project TEXT NOT NULL,
          kind INTEGER NOT NULL,
          request_id TEXT NOT NULL,
          fingerprint TEXT NOT NULL,
          resource TEXT NOT NULL,
          create_time INTEGER NOT NULL,
          PRIMARY KEY (project, kind, request_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX requests_by_time ON requests (create_time);
      )sql",
  };
  return *steps;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Database>> OpenDatabase(const std::string& location) {
  if (PostgresDatabase::IsUrl(location)) {
    return PostgresDatabase::Open(location, Migrations());
  }
  return SqliteDatabase::Open(location, Migrations());
}

absl::Status RequireWorkspace(Connection& connection, const WorkspaceKey& workspace) {
  MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT 1 FROM workspaces WHERE project = ?1 AND id = ?2",
                                                            {workspace.project, workspace.id}));
  MP_ASSIGN_OR_RETURN(bool found, statement.Step());
  if (!found) {
    return MakeError(v1::WORKSPACE_NOT_FOUND, absl::StrCat("there is no workspace workspaces/", workspace.id));
  }
  return absl::OkStatus();
}

absl::Status LinkFile(Connection& connection, const WorkspaceKey& workspace, const std::string& path, const std::string& sha256,
                      uint64_t size_bytes, absl::Time update_time) {
  return connection
      .Execute(
          "INSERT INTO files (project, workspace, path, sha256, size_bytes, update_time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
          " ON CONFLICT (project, workspace, path) DO UPDATE SET sha256 = excluded.sha256,"
          " size_bytes = excluded.size_bytes, update_time = excluded.update_time",
          {workspace.project, workspace.id, path, sha256, static_cast<int64_t>(size_bytes), absl::ToUnixMicros(update_time)})
      .status();
}

absl::StatusOr<std::string> FindRequest(Connection& connection, const std::string& project, RequestKind kind,
                                        const std::string& request_id, const std::string& fingerprint, absl::Time now) {
  if (request_id.empty()) {
    return std::string();
  }
  MP_RETURN_IF_ERROR(
      connection.Execute("DELETE FROM requests WHERE create_time < ?1", {absl::ToUnixMicros(now - kRequestIdLifetime)}).status());
  MP_ASSIGN_OR_RETURN(
      Statement statement,
      connection.Query("SELECT fingerprint, resource FROM requests WHERE project = ?1 AND kind = ?2 AND request_id = ?3",
                       {project, static_cast<int64_t>(kind), request_id}));
  MP_ASSIGN_OR_RETURN(bool found, statement.Step());
  if (!found) {
    return std::string();
  }
  if (statement.Bytes(0) != fingerprint) {
    return MakeError(
        v1::REQUEST_ID_REUSED,
        absl::StrCat("request_id '", request_id, "' came before with another request; every request needs an id of its own"),
        {.field = "request_id"});
  }
  return statement.Bytes(1);
}

absl::Status RememberRequest(Connection& connection, const std::string& project, RequestKind kind, const std::string& request_id,
                             const std::string& fingerprint, const std::string& resource, absl::Time now) {
  if (request_id.empty()) {
    return absl::OkStatus();
  }
  return connection
      .Execute(
          "INSERT INTO requests (project, kind, request_id, fingerprint, resource, create_time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
          {project, static_cast<int64_t>(kind), request_id, fingerprint, resource, absl::ToUnixMicros(now)})
      .status();
}

}  // namespace modelpress::server
