// The tables of the server's one database, for the stores over it.
#ifndef MODELPRESS_SERVER_SQL_SCHEMA_H_
#define MODELPRESS_SERVER_SQL_SCHEMA_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/workspace_key.h"
#include "server/sql/database.h"

namespace modelpress::server {

// Opens the database at `location` and brings its schema up to date. "postgresql://..." is that of a server, which exists;
// anything else the path of a SQLite file, which is made if missing, in a folder that exists.
absl::StatusOr<std::unique_ptr<Database>> OpenDatabase(const std::string& location);

// What several stores ask, inside a transaction of theirs.

// WORKSPACE_NOT_FOUND unless the workspace exists.
absl::Status RequireWorkspace(Connection& connection, const WorkspaceKey& workspace);

// Points `path` to the content.
absl::Status LinkFile(Connection& connection, const WorkspaceKey& workspace, const std::string& path, const std::string& sha256,
                      uint64_t size_bytes, absl::Time update_time);

// What a mutating call of a project with a `request_id` led to. Remembered for kRequestIdLifetime.
inline constexpr absl::Duration kRequestIdLifetime = absl::Hours(24);
enum class RequestKind { kOperation = 1, kWorkspace = 2 };  // each kind has its own ids; stored

// The resource that `request_id` led to before; "" if it is new (or empty). REQUEST_ID_REUSED if `fingerprint` (whatever makes
// two requests the same) differs from then. Forgets ids that are older than kRequestIdLifetime.
absl::StatusOr<std::string> FindRequest(Connection& connection, const std::string& project, RequestKind kind,
                                        const std::string& request_id, const std::string& fingerprint, absl::Time now);
// Remembers that a new `request_id` led to `resource`; nothing if it is empty.
absl::Status RememberRequest(Connection& connection, const std::string& project, RequestKind kind, const std::string& request_id,
                             const std::string& fingerprint, const std::string& resource, absl::Time now);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SQL_SCHEMA_H_
