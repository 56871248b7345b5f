// The tables of the server's one database, for the stores over it.
#ifndef MODELPRESS_SERVER_SQL_SCHEMA_H_
#define MODELPRESS_SERVER_SQL_SCHEMA_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/quotas.h"
#include "server/base/workspace_key.h"
#include "server/sql/database.h"

namespace modelpress::server {

// Opens the database at `location` and brings its schema up to date. "postgresql://..." is that of a server, which exists;
// anything else the path of a SQLite file, which is made if missing, in a folder that exists.
absl::StatusOr<std::unique_ptr<Database>> OpenDatabase(const std::string& location);

// The version of the schema that this program makes and knows.
int SchemaVersion();

// What several stores ask, inside a transaction of theirs.

// WORKSPACE_NOT_FOUND unless the workspace exists.
absl::Status RequireWorkspace(Connection& connection, const WorkspaceKey& workspace);

// Writes down that the workspace was used, by which it came to hold so many bytes and files more (less).
absl::Status UseWorkspace(Connection& connection, const WorkspaceKey& workspace, int64_t bytes, int64_t files, absl::Time now);

// True if a file of the project has this content.
absl::StatusOr<bool> HasContent(Connection& connection, const std::string& project, const std::string& sha256,
                                uint64_t size_bytes);

// The size of the file that has the name now; nullopt: none.
absl::StatusOr<std::optional<int64_t>> FileSize(Connection& connection, const WorkspaceKey& workspace, const std::string& path);

// QUOTA_EXCEEDED if the project has no room for `growth` bytes more. Nothing that shrinks is refused.
absl::Status RequireBytes(Connection& connection, const Quotas& quotas, const std::string& project, int64_t growth);

// Points `path` to the content. Whether there is room for it is to be asked before.
absl::Status LinkFile(Connection& connection, const WorkspaceKey& workspace, const std::string& path, const std::string& sha256,
                      uint64_t size_bytes, absl::Time update_time);

// What a mutating call of a project with a `request_id` led to. Remembered until JobStore::ForgetRequests.
enum class RequestKind { kOperation = 1, kWorkspace = 2 };  // each kind has its own ids; stored

// The resource that `request_id` led to before; "" if it is new (or empty). REQUEST_ID_REUSED if `fingerprint` (whatever makes
// two requests the same) differs from then.
absl::StatusOr<std::string> FindRequest(Connection& connection, const std::string& project, RequestKind kind,
                                        const std::string& request_id, const std::string& fingerprint);
// Remembers that a new `request_id` led to `resource`; nothing if it is empty.
absl::Status RememberRequest(Connection& connection, const std::string& project, RequestKind kind, const std::string& request_id,
                             const std::string& fingerprint, const std::string& resource, absl::Time now);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SQL_SCHEMA_H_
