#ifndef MODELPRESS_SERVER_BACKUP_READ_ONLY_SQLITE_H_
#define MODELPRESS_SERVER_BACKUP_READ_ONLY_SQLITE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;

namespace modelpress::server {

// A SQLite file as it is, whatever the version of its schema: unlike Database, it never makes or migrates anything. Other
// processes may use the file at the same time. Errors: STORAGE_ERROR, STORAGE_FULL.
class ReadOnlySqlite {
 public:
  // STORAGE_ERROR if there is no file at `path`.
  static absl::StatusOr<ReadOnlySqlite> Open(const std::string& path);

  // The first column of all rows.
  absl::StatusOr<std::vector<std::string>> Column(const std::string& sql);
  // Number of the schema (PRAGMA user_version).
  absl::StatusOr<int> SchemaVersion();
  // STORAGE_ERROR where the file contradicts itself.
  absl::Status CheckIntegrity();
  // Writes the state of one moment to a new file, which nobody waits for but the caller, and makes it durable.
  absl::Status CopyTo(const std::string& path);

 private:
  struct Close {
    void operator()(sqlite3* database) const;
  };
  ReadOnlySqlite(sqlite3* database, std::string path) : database_(database), path_(std::move(path)) {}
  absl::Status Error(int code) const;

  std::unique_ptr<sqlite3, Close> database_;
  std::string path_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BACKUP_READ_ONLY_SQLITE_H_
