// SQL over one of two databases: SQLite (a file of this machine) or PostgreSQL (a server that many machines share). The stores
// are written once, in the SQL that both understand:
// - parameters are ?1, ?2, ...; integers have 64 bits; text is UTF-8 without NUL and ordered by its bytes;
// - INSERT ... RETURNING and ON CONFLICT ... DO, which both have; no INSERT OR REPLACE, no rowid, no function of one of them
// only;
// - tables are made by migrations in SQLite's words, which the PostgreSQL driver replaces (postgres_database.h).
//
// Errors: STORAGE_FULL (no space or quota), STORAGE_UNAVAILABLE (the database is locked, cannot be reached or was lost in the
// middle; try again), REQUEST_INVALID (text that PostgreSQL cannot hold), STORAGE_ERROR (anything else). Callers avoid constraint
// errors by looking first, inside the transaction.
#ifndef MODELPRESS_SERVER_SQL_DATABASE_H_
#define MODELPRESS_SERVER_SQL_DATABASE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace modelpress::server {

// What a parameter of a statement may be: NULL, integer, text, bytes.
struct SqlBlob {
  std::string bytes;
};
using SqlValue = std::variant<std::monostate, int64_t, std::string, SqlBlob>;

// The rows that a statement gives. Must end before the transaction it runs in and before its connection.
class Statement {
 public:
  // What a driver implements.
  class Rows {
   public:
    virtual ~Rows() = default;
    virtual absl::StatusOr<bool> Step() = 0;
    virtual bool IsNull(int column) const = 0;
    virtual int64_t Integer(int column) const = 0;
    virtual std::string Bytes(int column) const = 0;
  };
  explicit Statement(std::unique_ptr<Rows> rows) : rows_(std::move(rows)) {}

  // Goes to the next row; false: there is none.
  absl::StatusOr<bool> Step() { return rows_->Step(); }

  // Columns of the current row, from 0.
  bool IsNull(int column) const { return rows_->IsNull(column); }
  int64_t Integer(int column) const { return rows_->Integer(column); }  // 0 for NULL
  std::string Bytes(int column) const { return rows_->Bytes(column); }  // of text or bytes; "" for NULL

 private:
  std::unique_ptr<Rows> rows_;
};

// So many prepared statements a connection keeps at most: they take memory, PostgreSQL's that of the server.
inline constexpr size_t kMaxPrepared = 256;

// One connection, in a transaction. Used by one thread at a time.
class Connection {
 public:
  virtual ~Connection() = default;

  // Prepares `sql` (or takes it from the cache) and binds `values` to its parameters ?1, ?2, ... It runs at the first Step() or
  // before.
  virtual absl::StatusOr<Statement> Query(const std::string& sql, const std::vector<SqlValue>& values) = 0;
  absl::StatusOr<Statement> Query(const std::string& sql) { return Query(sql, {}); }
  // Runs a statement to its end. Returns the number of rows that an INSERT, UPDATE or DELETE changed.
  virtual absl::StatusOr<int64_t> Execute(const std::string& sql, const std::vector<SqlValue>& values) = 0;
  absl::StatusOr<int64_t> Execute(const std::string& sql) { return Execute(sql, {}); }
  // Runs several statements without parameters.
  virtual absl::Status ExecuteScript(const std::string& sql) = 0;
};

// What a transaction must survive once it is committed. It survives the end of any process of ours either way; and what is lost
// is always the newest and never torn, so a kPowerLoss commit never survives without those that it builds on.
enum class Durability {
  // Power failure: whatever a caller was told that happened.
  kPowerLoss,
  // No more than the end of our processes: what may be forgotten at any time while they run on, as progress. SQLite forgets it
  // when the machine dies, PostgreSQL when the server does. It is no change that others are told of (Database::Subscribe).
  kProcessCrash,
};

// Calls to the listener have ended when this is destroyed.
class Subscription {
 public:
  virtual ~Subscription() = default;
};

// A database, which several processes may use at the same time, by any number of threads of this one. Writers come one after the
// other, over all processes, so what a writer has looked at stays as it is until its end; readers see the state before and wait
// for nobody.
class Database {
 public:
  virtual ~Database() = default;

  // Runs `body` in a transaction that no other writer overlaps. It is committed if `body` returns OK, else undone. `body` runs at
  // most once. An error means that nothing was changed, but for one: if the connection to a server is lost while it commits,
  // STORAGE_UNAVAILABLE says that the outcome is unknown.
  virtual absl::Status Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) = 0;
  // Runs `body` in a transaction that sees the state of one moment and must not write.
  virtual absl::Status Read(absl::FunctionRef<absl::Status(Connection&)> body) = 0;

  // Another number whenever any connection of any process has committed a change since; sometimes also without a change. Cheap
  // enough to ask every poll_interval().
  virtual absl::StatusOr<uint64_t> Version() = 0;
  virtual absl::Duration poll_interval() const = 0;
  // Has `changed` called, on a thread of the database's, soon after a change of any process that survives a power failure. A hint
  // that saves waiting for the next poll: some may be missed, others come for nothing. nullptr where polling is all there is.
  virtual std::unique_ptr<Subscription> Subscribe(std::function<void()> changed) = 0;
};

// How a database keeps the number of its schema, and what it calls things.
class SchemaDialect {
 public:
  virtual ~SchemaDialect() = default;
  virtual absl::StatusOr<int64_t> Version(Connection& connection) const = 0;  // 0 in a new database
  virtual absl::Status SetVersion(Connection& connection, int64_t version) const = 0;
  // A migration, which is in SQLite's words, in this database's.
  virtual std::string Translate(const std::string& migration) const = 0;
};

// Brings the schema from its version to migrations.size(), one step per transaction: `migrations[i]` leads from version i to i
// + 1. Several processes may do so at the same time. STORAGE_ERROR if the version is later than `migrations` know. `name` is that
// of the database in messages.
absl::Status Migrate(Database& database, const SchemaDialect& dialect, absl::Span<const std::string> migrations,
                     absl::string_view name);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SQL_DATABASE_H_
