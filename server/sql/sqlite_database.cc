#include "server/sql/sqlite_database.h"

#include <sqlite3.h>

#include <cerrno>
#include <filesystem>
#include <unordered_map>
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
  const bool busy = (code & 0xff) == SQLITE_BUSY || (code & 0xff) == SQLITE_LOCKED;
  const bool full =
      (code & 0xff) == SQLITE_FULL || ((code & 0xff) == SQLITE_IOERR && (system_error == ENOSPC || system_error == EDQUOT));
  return MakeError(full   ? v1::STORAGE_FULL
                   : busy ? v1::STORAGE_UNAVAILABLE
                          : v1::STORAGE_ERROR,
                   absl::StrCat("database ", path, ": ", database == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(database),
                                " (SQLite code ", code, ")", full ? "; free space there and try again" : ""));
}

}  // namespace

class SqliteConnection final : public Connection {
 public:
  // `synchronous` is a value of PRAGMA synchronous.
  static absl::StatusOr<std::unique_ptr<SqliteConnection>> Open(const std::string& path, const std::string& synchronous);
  ~SqliteConnection() override;
  SqliteConnection(const SqliteConnection&) = delete;
  SqliteConnection& operator=(const SqliteConnection&) = delete;

  using Connection::Execute;
  using Connection::Query;
  absl::StatusOr<Statement> Query(const std::string& sql, const std::vector<SqlValue>& values) override;
  absl::StatusOr<int64_t> Execute(const std::string& sql, const std::vector<SqlValue>& values) override;
  absl::Status ExecuteScript(const std::string& sql) override;

  // BEGIN `mode`, body, COMMIT; or ROLLBACK where any of them failed.
  absl::Status Transact(const std::string& mode, absl::FunctionRef<absl::Status(Connection&)> body);

 private:
  // A prepared statement with its parameters bound.
  class PreparedRows final : public Statement::Rows {
   public:
    PreparedRows(SqliteConnection& connection, std::string sql, sqlite3_stmt* statement)
        : connection_(connection), sql_(std::move(sql)), statement_(statement) {}
    PreparedRows(const PreparedRows&) = delete;
    PreparedRows& operator=(const PreparedRows&) = delete;
    ~PreparedRows() override;
    absl::StatusOr<bool> Step() override;
    bool IsNull(int column) const override { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
    int64_t Integer(int column) const override { return sqlite3_column_int64(statement_, column); }
    std::string Bytes(int column) const override;

   private:
    SqliteConnection& connection_;
    std::string sql_;
    sqlite3_stmt* statement_;
  };

  SqliteConnection(sqlite3* database, std::string path) : database_(database), path_(std::move(path)) {}
  absl::Status Error(int code) const { return SqliteError(code, database_, path_); }
  void ForgetIdleStatements();

  sqlite3* database_;
  const std::string path_;
  std::unordered_map<std::string, sqlite3_stmt*> idle_statements_;
};

SqliteConnection::PreparedRows::~PreparedRows() {
  sqlite3_reset(statement_);  // repeats the error of the last step, which was reported then
  sqlite3_clear_bindings(statement_);
  if (connection_.idle_statements_.size() >= kMaxPrepared) {
    connection_.ForgetIdleStatements();
  }
  if (!connection_.idle_statements_.emplace(std::move(sql_), statement_).second) {
    sqlite3_finalize(statement_);
  }
}

absl::StatusOr<bool> SqliteConnection::PreparedRows::Step() {
  int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) {
    return true;
  }
  if (code == SQLITE_DONE) {
    return false;
  }
  return connection_.Error(code);
}

std::string SqliteConnection::PreparedRows::Bytes(int column) const {
  const void* bytes = sqlite3_column_blob(statement_, column);
  return bytes == nullptr ? std::string()
                          : std::string(static_cast<const char*>(bytes), sqlite3_column_bytes(statement_, column));
}

absl::StatusOr<std::unique_ptr<SqliteConnection>> SqliteConnection::Open(const std::string& path,
                                                                         const std::string& synchronous) {
  sqlite3* database = nullptr;
  // Our mutexes see to it that no connection is used by two threads at once.
  int code = sqlite3_open_v2(path.c_str(), &database,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  std::unique_ptr<SqliteConnection> connection(new SqliteConnection(database, path));
  if (code != SQLITE_OK) {
    return connection->Error(code);
  }
  sqlite3_busy_timeout(database, kBusyTimeoutMs);
  MP_RETURN_IF_ERROR(connection->ExecuteScript(absl::StrCat(
      "PRAGMA journal_mode=WAL; PRAGMA journal_size_limit=67108864; PRAGMA foreign_keys=ON; PRAGMA synchronous=", synchronous)));
  return connection;
}

SqliteConnection::~SqliteConnection() {
  ForgetIdleStatements();
  sqlite3_close(database_);
}

void SqliteConnection::ForgetIdleStatements() {
  for (auto& [sql, statement] : idle_statements_) {
    sqlite3_finalize(statement);
  }
  idle_statements_.clear();
}

absl::StatusOr<Statement> SqliteConnection::Query(const std::string& sql, const std::vector<SqlValue>& values) {
  sqlite3_stmt* prepared = nullptr;
  if (auto idle = idle_statements_.extract(sql); !idle.empty()) {
    prepared = idle.mapped();
  } else if (int code = sqlite3_prepare_v3(database_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                                           &prepared, nullptr);
             code != SQLITE_OK) {
    return Error(code);
  }
  Statement statement(std::make_unique<PreparedRows>(*this, sql, prepared));
  for (size_t i = 0; i < values.size(); ++i) {
    if (int code = Bind(prepared, static_cast<int>(i) + 1, values[i]); code != SQLITE_OK) {
      return Error(code);
    }
  }
  return statement;
}

absl::StatusOr<int64_t> SqliteConnection::Execute(const std::string& sql, const std::vector<SqlValue>& values) {
  MP_ASSIGN_OR_RETURN(Statement statement, Query(sql, values));
  bool row = true;
  while (row) {
    MP_ASSIGN_OR_RETURN(row, statement.Step());
  }
  return sqlite3_changes64(database_);
}

absl::Status SqliteConnection::ExecuteScript(const std::string& sql) {
  int code = sqlite3_exec(database_, sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(code);
}

absl::Status SqliteConnection::Transact(const std::string& mode, absl::FunctionRef<absl::Status(Connection&)> body) {
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

namespace {

class SqliteDialect final : public SchemaDialect {
 public:
  absl::StatusOr<int64_t> Version(Connection& connection) const override {
    MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("PRAGMA user_version"));
    MP_RETURN_IF_ERROR(statement.Step().status());
    return statement.Integer(0);
  }
  absl::Status SetVersion(Connection& connection, int64_t version) const override {
    return connection.ExecuteScript(absl::StrCat("PRAGMA user_version=", version));
  }
  std::string Translate(const std::string& migration) const override { return migration; }
};

}  // namespace

SqliteDatabase::SqliteDatabase(std::string path) : path_(std::move(path)) {}

SqliteDatabase::~SqliteDatabase() = default;

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path,
                                                                     absl::Span<const std::string> migrations) {
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase(path));
  // Two processes that turn a new file to write-ahead logging at the same time get "database is locked" at once, whatever the
  // timeout is: they take turns here.
  MP_ASSIGN_OR_RETURN(UniqueFd opening, LockFile(absl::StrCat(path, ".lock")));
  MP_ASSIGN_OR_RETURN(database->durable_writer_, SqliteConnection::Open(path, "FULL"));
  MP_ASSIGN_OR_RETURN(database->relaxed_writer_, SqliteConnection::Open(path, "NORMAL"));
  MP_ASSIGN_OR_RETURN(database->observer_, SqliteConnection::Open(path, "NORMAL"));
  MP_RETURN_IF_ERROR(Migrate(*database, SqliteDialect(), migrations, path));
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  MP_RETURN_IF_ERROR(SyncFolder(folder.empty() ? "." : folder.string()));
  return database;
}

absl::Status SqliteDatabase::Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) {
  std::lock_guard<std::mutex> lock(write_mutex_);
  SqliteConnection& connection = durability == Durability::kPowerLoss ? *durable_writer_ : *relaxed_writer_;
  return connection.Transact("IMMEDIATE", body);
}

absl::Status SqliteDatabase::Read(absl::FunctionRef<absl::Status(Connection&)> body) {
  std::unique_ptr<SqliteConnection> connection;
  {
    std::lock_guard<std::mutex> lock(read_mutex_);
    if (!idle_readers_.empty()) {
      connection = std::move(idle_readers_.back());
      idle_readers_.pop_back();
    }
  }
  if (connection == nullptr) {
    MP_ASSIGN_OR_RETURN(connection, SqliteConnection::Open(path_, "NORMAL"));
    MP_RETURN_IF_ERROR(connection->ExecuteScript("PRAGMA query_only=ON"));
  }
  absl::Status status = connection->Transact("DEFERRED", body);
  std::lock_guard<std::mutex> lock(read_mutex_);
  idle_readers_.push_back(std::move(connection));
  return status;
}

absl::StatusOr<uint64_t> SqliteDatabase::Version() {
  std::lock_guard<std::mutex> lock(version_mutex_);
  MP_ASSIGN_OR_RETURN(Statement statement, observer_->Query("PRAGMA data_version"));
  MP_RETURN_IF_ERROR(statement.Step().status());
  return static_cast<uint64_t>(statement.Integer(0));
}

}  // namespace modelpress::server
