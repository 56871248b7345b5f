#include "server/base/sqlite.h"

#include <sqlite3.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

// How long a writer waits for one of another process. Transactions take milliseconds, so a longer wait means a stuck disk.
constexpr int kBusyTimeoutMs = 30'000;

int Bind(sqlite3_stmt* statement, int index, const SqlValue& value) {
  struct Binder {
    sqlite3_stmt* statement;
    int index;
    int operator()(std::monostate) const { return sqlite3_bind_null(statement, index); }
    int operator()(int64_t number) const { return sqlite3_bind_int64(statement, index, number); }
    int operator()(const std::string& text) const {
      return sqlite3_bind_text64(statement, index, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    }
    int operator()(const SqlBlob& blob) const {
      return sqlite3_bind_blob64(statement, index, blob.bytes.data(), blob.bytes.size(), SQLITE_TRANSIENT);
    }
  };
  return std::visit(Binder{statement, index}, value);
}

absl::Status SqliteError(int code, sqlite3* database, const std::string& path) {
  int system_error = database == nullptr ? 0 : sqlite3_system_errno(database);
  bool full =
      (code & 0xff) == SQLITE_FULL || ((code & 0xff) == SQLITE_IOERR && (system_error == ENOSPC || system_error == EDQUOT));
  return MakeError(full ? v1::STORAGE_FULL : v1::STORAGE_ERROR,
                   absl::StrCat("database ", path, ": ", database == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(database),
                                " (SQLite code ", code, ")", full ? "; free space there and try again" : ""));
}

}  // namespace

// ---- Statement --------------------------------------------------------------------------------------------------------------

Statement::Statement(Connection& connection, std::string sql, sqlite3_stmt* statement)
    : connection_(connection), sql_(std::move(sql)), statement_(statement) {}

Statement::Statement(Statement&& other) noexcept
    : connection_(other.connection_), sql_(std::move(other.sql_)), statement_(std::exchange(other.statement_, nullptr)) {}

Statement::~Statement() {
  if (statement_ == nullptr) {
    return;
  }
  sqlite3_reset(statement_);  // repeats the error of the last step, which was reported then
  sqlite3_clear_bindings(statement_);
  if (!connection_.idle_statements_.emplace(std::move(sql_), statement_).second) {
    sqlite3_finalize(statement_);
  }
}

absl::StatusOr<bool> Statement::Step() {
  int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) {
    return true;
  }
  if (code == SQLITE_DONE) {
    return false;
  }
  return connection_.Error(code);
}

bool Statement::IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

int64_t Statement::Integer(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Statement::Bytes(int column) const {
  const void* bytes = sqlite3_column_blob(statement_, column);
  return bytes == nullptr ? std::string()
                          : std::string(static_cast<const char*>(bytes), sqlite3_column_bytes(statement_, column));
}

// ---- Connection -------------------------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const std::string& path, const std::string& synchronous) {
  sqlite3* database = nullptr;
  // Our mutexes see to it that no connection is used by two threads at once.
  int code = sqlite3_open_v2(path.c_str(), &database,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  std::unique_ptr<Connection> connection(new Connection(database, path));
  if (code != SQLITE_OK) {
    return connection->Error(code);
  }
  sqlite3_busy_timeout(database, kBusyTimeoutMs);
  MP_RETURN_IF_ERROR(connection->ExecuteScript(absl::StrCat(
      "PRAGMA journal_mode=WAL; PRAGMA journal_size_limit=67108864; PRAGMA foreign_keys=ON; PRAGMA synchronous=", synchronous)));
  return connection;
}

Connection::~Connection() {
  for (auto& [sql, statement] : idle_statements_) {
    sqlite3_finalize(statement);
  }
  sqlite3_close(database_);
}

absl::Status Connection::Error(int code) const { return SqliteError(code, database_, path_); }

absl::StatusOr<Statement> Connection::Query(const std::string& sql, const std::vector<SqlValue>& values) {
  sqlite3_stmt* prepared = nullptr;
  if (auto idle = idle_statements_.extract(sql); !idle.empty()) {
    prepared = idle.mapped();
  } else if (int code = sqlite3_prepare_v3(database_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                                           &prepared, nullptr);
             code != SQLITE_OK) {
    return Error(code);
  }
  Statement statement(*this, sql, prepared);
  for (size_t i = 0; i < values.size(); ++i) {
    if (int code = Bind(prepared, static_cast<int>(i) + 1, values[i]); code != SQLITE_OK) {
      return Error(code);
    }
  }
  return statement;
}

absl::StatusOr<int64_t> Connection::Execute(const std::string& sql, const std::vector<SqlValue>& values) {
  MP_ASSIGN_OR_RETURN(Statement statement, Query(sql, values));
  bool row = true;
  while (row) {
    MP_ASSIGN_OR_RETURN(row, statement.Step());
  }
  return sqlite3_changes64(database_);
}

absl::Status Connection::ExecuteScript(const std::string& sql) {
  int code = sqlite3_exec(database_, sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(code);
}

int64_t Connection::LastInsertRowid() const { return sqlite3_last_insert_rowid(database_); }

absl::Status Connection::Transact(const std::string& mode, absl::FunctionRef<absl::Status(Connection&)> body) {
  MP_RETURN_IF_ERROR(Execute(absl::StrCat("BEGIN ", mode)).status());
  absl::Status status = body(*this);
  if (status.ok()) {
    status = Execute("COMMIT").status();
  }
  // A full disk, for one, has SQLite roll back by itself.
  if (!status.ok() && sqlite3_get_autocommit(database_) == 0) {
    if (absl::Status undone = Execute("ROLLBACK").status(); !undone.ok()) {
      return undone;
    }
  }
  return status;
}

// ---- Database ---------------------------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path, absl::Span<const std::string> migrations) {
  std::unique_ptr<Database> database(new Database(path));
  // Two processes that turn a new file to write-ahead logging at the same time get "database is locked" at once, whatever the
  // timeout is: they take turns here.
  MP_ASSIGN_OR_RETURN(UniqueFd opening, LockFile(absl::StrCat(path, ".lock")));
  MP_ASSIGN_OR_RETURN(database->durable_writer_, Connection::Open(path, "FULL"));
  MP_ASSIGN_OR_RETURN(database->relaxed_writer_, Connection::Open(path, "NORMAL"));
  MP_ASSIGN_OR_RETURN(database->observer_, Connection::Open(path, "NORMAL"));
  MP_RETURN_IF_ERROR(database->Migrate(migrations));
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  MP_RETURN_IF_ERROR(SyncFolder(folder.empty() ? "." : folder.string()));
  return database;
}

absl::Status Database::Migrate(absl::Span<const std::string> migrations) {
  int64_t version = 0;
  auto read_version = [&version](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("PRAGMA user_version"));
    MP_RETURN_IF_ERROR(statement.Step().status());
    version = statement.Integer(0);
    return absl::OkStatus();
  };
  MP_RETURN_IF_ERROR(Read(read_version));
  while (version < static_cast<int64_t>(migrations.size())) {
    MP_RETURN_IF_ERROR(Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
      MP_RETURN_IF_ERROR(connection.ExecuteScript(migrations[version]));
      return connection.ExecuteScript(absl::StrCat("PRAGMA user_version=", version + 1));
    }));
    ++version;
  }
  if (version > static_cast<int64_t>(migrations.size())) {
    return MakeError(v1::STORAGE_ERROR,
                     absl::StrCat("database ", path_, " has schema version ", version, ", this program knows up to ",
                                  migrations.size(), "; start the program that made it, or a newer one"));
  }
  return absl::OkStatus();
}

absl::Status Database::Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) {
  std::lock_guard<std::mutex> lock(write_mutex_);
  Connection& connection = durability == Durability::kPowerLoss ? *durable_writer_ : *relaxed_writer_;
  return connection.Transact("IMMEDIATE", body);
}

absl::Status Database::Read(absl::FunctionRef<absl::Status(Connection&)> body) {
  std::unique_ptr<Connection> connection;
  {
    std::lock_guard<std::mutex> lock(read_mutex_);
    if (!idle_readers_.empty()) {
      connection = std::move(idle_readers_.back());
      idle_readers_.pop_back();
    }
  }
  if (connection == nullptr) {
    MP_ASSIGN_OR_RETURN(connection, Connection::Open(path_, "NORMAL"));
    MP_RETURN_IF_ERROR(connection->ExecuteScript("PRAGMA query_only=ON"));
  }
  absl::Status status = connection->Transact("DEFERRED", body);
  std::lock_guard<std::mutex> lock(read_mutex_);
  idle_readers_.push_back(std::move(connection));
  return status;
}

absl::StatusOr<uint64_t> Database::Version() {
  std::lock_guard<std::mutex> lock(version_mutex_);
  MP_ASSIGN_OR_RETURN(Statement statement, observer_->Query("PRAGMA data_version"));
  MP_RETURN_IF_ERROR(statement.Step().status());
  return static_cast<uint64_t>(statement.Integer(0));
}

}  // namespace modelpress::server
