// SQLite with RAII and statuses. Every error is STORAGE_FULL (no space or quota) or STORAGE_ERROR (anything else); callers avoid
// constraint errors by looking first, inside the transaction.
#ifndef MODELPRESS_SERVER_BASE_SQLITE_H_
#define MODELPRESS_SERVER_BASE_SQLITE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

struct sqlite3;
struct sqlite3_stmt;

namespace modelpress::server {

// What a parameter of a statement may be: NULL, INTEGER, TEXT, BLOB.
struct SqlBlob {
  std::string bytes;
};
using SqlValue = std::variant<std::monostate, int64_t, std::string, SqlBlob>;

// A prepared statement with its parameters bound. Must end before the transaction it runs in and before its connection.
class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  // Goes to the next row; false: there is none.
  absl::StatusOr<bool> Step();

  // Columns of the current row, from 0.
  bool IsNull(int column) const;
  int64_t Integer(int column) const;    // 0 for NULL
  std::string Bytes(int column) const;  // of TEXT or BLOB; "" for NULL

 private:
  friend class Connection;
  Statement(class Connection& connection, std::string sql, sqlite3_stmt* statement);

  Connection& connection_;
  std::string sql_;
  sqlite3_stmt* statement_;
};

// One connection. Used by one thread at a time.
class Connection {
 public:
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Prepares `sql` (or takes it from the cache) and binds `values` to its parameters ?1, ?2, ...
  absl::StatusOr<Statement> Query(const std::string& sql, const std::vector<SqlValue>& values = {});
  // Runs a statement to its end. Returns the number of rows that an INSERT, UPDATE or DELETE changed.
  absl::StatusOr<int64_t> Execute(const std::string& sql, const std::vector<SqlValue>& values = {});
  // Runs several statements without parameters.
  absl::Status ExecuteScript(const std::string& sql);
  int64_t LastInsertRowid() const;

 private:
  friend class Database;
  friend class Statement;
  Connection(sqlite3* database, std::string path) : database_(database), path_(std::move(path)) {}
  // `synchronous` is a value of PRAGMA synchronous.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const std::string& path, const std::string& synchronous);
  absl::Status Error(int code) const;
  // BEGIN `mode`, body, COMMIT; or ROLLBACK where any of them failed.
  absl::Status Transact(const std::string& mode, absl::FunctionRef<absl::Status(Connection&)> body);

  sqlite3* database_;
  const std::string path_;
  std::unordered_map<std::string, sqlite3_stmt*> idle_statements_;
};

// What a transaction must survive once it is committed.
//
// The journal is a write-ahead log. A commit is a write(2) to it, which the kernel completes whatever becomes of the process:
// kill -9 loses nothing either way. At power failure the log is cut at the last commit that was synced; a commit syncs itself
// and everything before it (kPowerLoss) or waits for the next one that does (kProcessCrash). So what is lost is always the
// newest and never torn, and a kPowerLoss commit never survives without those that it builds on.
enum class Durability {
  kPowerLoss,     // one fdatasync(2) per commit: whatever a caller was told that happened
  kProcessCrash,  // none: what dies with the machine anyhow, as leases and progress
};

// A database file, which several processes may use at the same time, by any number of threads of this one.
// Writers come one after the other; readers see the state before and wait for nobody.
class Database {
 public:
  // Opens or makes the file. `migrations[i]` brings the schema from version i to i + 1; those still missing are run, each in a
  // transaction. STORAGE_ERROR if the file is of a later version than `migrations` know.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, absl::Span<const std::string> migrations);

  // Runs `body` in a transaction that no other writer overlaps. It is committed if `body` returns OK, else undone.
  absl::Status Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body);
  // Runs `body` in a transaction that sees the state of one moment and must not write.
  absl::Status Read(absl::FunctionRef<absl::Status(Connection&)> body);
  // Another number whenever any connection of any process has committed a change since. Touches shared memory only.
  absl::StatusOr<uint64_t> Version();

 private:
  explicit Database(std::string path) : path_(std::move(path)) {}
  absl::Status Migrate(absl::Span<const std::string> migrations);

  const std::string path_;
  // One mutex for both: threads of this process queue here, not in SQLite's polling for the lock of the file.
  std::mutex write_mutex_;
  std::unique_ptr<Connection> durable_writer_;  // synchronous=FULL
  std::unique_ptr<Connection> relaxed_writer_;  // synchronous=NORMAL
  std::mutex read_mutex_;
  std::vector<std::unique_ptr<Connection>> idle_readers_;
  // PRAGMA data_version tells a connection of changes by all others; this one never writes, so it hears of all.
  std::mutex version_mutex_;
  std::unique_ptr<Connection> observer_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_SQLITE_H_
