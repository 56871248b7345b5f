// SQLite with RAII and statuses.
//
// The journal is a write-ahead log. A commit is a write(2) to it, which the kernel completes whatever becomes of the process:
// kill -9 loses nothing either way. At power failure the log is cut at the last commit that was synced; a commit syncs itself
// and everything before it (kPowerLoss: one fdatasync(2)) or waits for the next one that does (kProcessCrash).
#ifndef MODELPRESS_SERVER_SQL_SQLITE_DATABASE_H_
#define MODELPRESS_SERVER_SQL_SQLITE_DATABASE_H_

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/sql/database.h"

namespace modelpress::server {

class SqliteConnection;

// A database file on a file system of this machine.
class SqliteDatabase final : public Database {
 public:
  // Opens or makes the file, whose folder exists, and runs the migrations that are missing.
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path, absl::Span<const std::string> migrations);
  ~SqliteDatabase() override;

  absl::Status Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) override;
  absl::Status Read(absl::FunctionRef<absl::Status(Connection&)> body) override;
  absl::StatusOr<uint64_t> Version() override;  // touches shared memory only
  absl::Duration poll_interval() const override { return absl::Milliseconds(20); }
  std::unique_ptr<Subscription> Subscribe(std::function<void()> /*changed*/) override { return nullptr; }

 private:
  explicit SqliteDatabase(std::string path);

  const std::string path_;
  // One mutex for both: threads of this process queue here, not in SQLite's polling for the lock of the file.
  std::mutex write_mutex_;
  std::unique_ptr<SqliteConnection> durable_writer_;  // synchronous=FULL
  std::unique_ptr<SqliteConnection> relaxed_writer_;  // synchronous=NORMAL
  std::mutex read_mutex_;
  std::vector<std::unique_ptr<SqliteConnection>> idle_readers_;
  // PRAGMA data_version tells a connection of changes by all others; this one never writes, so it hears of all.
  std::mutex version_mutex_;
  std::unique_ptr<SqliteConnection> observer_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SQL_SQLITE_DATABASE_H_
