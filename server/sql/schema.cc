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
          use_time INTEGER NOT NULL,          -- a file or upload came, changed or went, or an operation was accepted or ended
          files INTEGER NOT NULL DEFAULT 0,
          bytes INTEGER NOT NULL DEFAULT 0,   -- of its files, and announced by its uploads
          PRIMARY KEY (project, id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX workspaces_by_use ON workspaces (use_time);

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
        CREATE INDEX files_by_content ON files (sha256, project, size_bytes);  -- has the project it, has anybody it

        CREATE TABLE uploads (
          id TEXT PRIMARY KEY,
          project TEXT NOT NULL,
          workspace TEXT NOT NULL,
          path TEXT NOT NULL,
          sha256 TEXT NOT NULL,
          size_bytes INTEGER NOT NULL,
          create_time INTEGER NOT NULL,
          verified INTEGER NOT NULL DEFAULT 0,  -- 1: bytes with that digest were sent
          UNIQUE (project, workspace, path, sha256, size_bytes),
          FOREIGN KEY (project, workspace) REFERENCES workspaces (project, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX uploads_by_content ON uploads (sha256);
        CREATE INDEX uploads_by_time ON uploads (create_time);

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
          progress BLOB,  -- Progress
          memory_bytes INTEGER NOT NULL,  -- JobCost
          disk_bytes INTEGER NOT NULL,
          cache_key TEXT,
          trace_parent TEXT
        ) STRICT;
        CREATE INDEX jobs_by_state ON jobs (state, project, sequence);            -- claim, quotas, leases, list
        CREATE INDEX jobs_by_project ON jobs (project, sequence);                 -- list
        CREATE INDEX jobs_by_workspace ON jobs (project, workspace, sequence);    -- list, busy
        CREATE INDEX jobs_by_method ON jobs (method, state);                      -- count
        CREATE INDEX jobs_by_cache_key ON jobs (project, cache_key, sequence) WHERE state = 4;  -- results to be used again
        CREATE INDEX jobs_by_end ON jobs (end_time) WHERE end_time IS NOT NULL;   -- retention

        -- What unfinished jobs are to read.
        CREATE TABLE job_inputs (
          sha256 TEXT NOT NULL,
          sequence INTEGER NOT NULL REFERENCES jobs (sequence) ON DELETE CASCADE,
          PRIMARY KEY (sequence, sha256)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX job_inputs_by_content ON job_inputs (sha256);

        CREATE TABLE job_payloads (
          sequence INTEGER PRIMARY KEY REFERENCES jobs (sequence) ON DELETE CASCADE,
          request BLOB NOT NULL,  -- Any
          details BLOB NOT NULL,  -- OperationMetadata: the fields that have no column in jobs
          response BLOB,          -- Any
          error BLOB              -- google.rpc.Status
        ) STRICT;

        CREATE TABLE requests (
          sequence INTEGER PRIMARY KEY AUTOINCREMENT,
          project TEXT NOT NULL,
          kind INTEGER NOT NULL,
          request_id TEXT NOT NULL,
          fingerprint TEXT NOT NULL,
          resource TEXT NOT NULL,
          create_time INTEGER NOT NULL,
          UNIQUE (project, kind, request_id)
        ) STRICT;
        CREATE INDEX requests_by_time ON requests (create_time);
      )sql",
      R"sql(
        -- Order of acceptance in the project, for page tokens: `sequence` would tell a project how much others do.
        ALTER TABLE jobs ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
        UPDATE jobs SET number = sequence;
        CREATE INDEX jobs_by_number ON jobs (project, number);
        CREATE INDEX jobs_by_project_id ON jobs (project, id);  -- finds a project's job without coming across another's

        CREATE TABLE job_numbers (
          project TEXT PRIMARY KEY,
          last INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        INSERT INTO job_numbers (project, last) SELECT project, MAX(sequence) FROM jobs GROUP BY project;
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

int SchemaVersion() { return static_cast<int>(Migrations().size()); }

absl::Status RequireWorkspace(Connection& connection, const WorkspaceKey& workspace) {
  MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT 1 FROM workspaces WHERE project = ?1 AND id = ?2",
                                                            {workspace.project, workspace.id}));
  MP_ASSIGN_OR_RETURN(bool found, statement.Step());
  if (!found) {
    return MakeError(v1::WORKSPACE_NOT_FOUND, absl::StrCat("there is no workspace workspaces/", workspace.id));
  }
  return absl::OkStatus();
}

absl::Status UseWorkspace(Connection& connection, const WorkspaceKey& workspace, int64_t bytes, int64_t files, absl::Time now) {
  return connection
      .Execute("UPDATE workspaces SET bytes = bytes + ?3, files = files + ?4, use_time = ?5 WHERE project = ?1 AND id = ?2",
               {workspace.project, workspace.id, bytes, files, absl::ToUnixMicros(now)})
      .status();
}

absl::StatusOr<bool> HasContent(Connection& connection, const std::string& project, const std::string& sha256,
                                uint64_t size_bytes) {
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("SELECT 1 FROM files WHERE sha256 = ?1 AND project = ?2 AND size_bytes = ?3 LIMIT 1",
                                       {sha256, project, static_cast<int64_t>(size_bytes)}));
  return statement.Step();
}

absl::StatusOr<std::optional<int64_t>> FileSize(Connection& connection, const WorkspaceKey& workspace, const std::string& path) {
  MP_ASSIGN_OR_RETURN(Statement statement,
                      connection.Query("SELECT size_bytes FROM files WHERE project = ?1 AND workspace = ?2 AND path = ?3",
                                       {workspace.project, workspace.id, path}));
  MP_ASSIGN_OR_RETURN(const bool found, statement.Step());
  return found ? std::optional<int64_t>(statement.Integer(0)) : std::nullopt;
}

absl::Status RequireBytes(Connection& connection, const Quotas& quotas, const std::string& project, int64_t growth) {
  const uint64_t limit = quotas.Of(project).bytes;
  if (limit == 0 || growth <= 0) {
    return absl::OkStatus();
  }
  uint64_t used = 0;
  MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("SELECT bytes FROM workspaces WHERE project = ?1", {project}));
  while (true) {
    MP_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) {
      break;
    }
    used += static_cast<uint64_t>(statement.Integer(0));
  }
  const auto wanted = static_cast<uint64_t>(growth);
  return used > limit || wanted > limit - used ? QuotaExceeded("bytes", limit, used, wanted) : absl::OkStatus();
}

absl::Status LinkFile(Connection& connection, const WorkspaceKey& workspace, const std::string& path, const std::string& sha256,
                      uint64_t size_bytes, absl::Time update_time) {
  MP_ASSIGN_OR_RETURN(const std::optional<int64_t> before, FileSize(connection, workspace, path));
  MP_RETURN_IF_ERROR(UseWorkspace(connection, workspace, static_cast<int64_t>(size_bytes) - before.value_or(0),
                                  before.has_value() ? 0 : 1, update_time));
  return connection
      .Execute(
          "INSERT INTO files (project, workspace, path, sha256, size_bytes, update_time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
          " ON CONFLICT (project, workspace, path) DO UPDATE SET sha256 = excluded.sha256,"
          " size_bytes = excluded.size_bytes, update_time = excluded.update_time",
          {workspace.project, workspace.id, path, sha256, static_cast<int64_t>(size_bytes), absl::ToUnixMicros(update_time)})
      .status();
}

absl::StatusOr<std::string> FindRequest(Connection& connection, const std::string& project, RequestKind kind,
                                        const std::string& request_id, const std::string& fingerprint) {
  if (request_id.empty()) {
    return std::string();
  }
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
