#include "server/sql/postgres_database.h"

#include <endian.h>
#include <libpq-fe.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Of the writers of modelpress in one database.
constexpr char kTakeWriterLock[] = "SELECT pg_advisory_xact_lock(7885631859322810995)";  // "modelprs"
constexpr char kListen[] = "LISTEN modelpress";
constexpr char kNotify[] = "NOTIFY modelpress";

constexpr absl::Duration kReconnect = absl::Seconds(1);

struct ResultDeleter {
  void operator()(PGresult* result) const { PQclear(result); }
};
using Result = std::unique_ptr<PGresult, ResultDeleter>;

// libpq's messages end in a line break and may have several lines.
std::string OneLine(absl::string_view text) {
  return absl::StrReplaceAll(absl::StripAsciiWhitespace(text), {{"\n\t", " "}, {"\n", "; "}});
}

absl::Status Unavailable(absl::string_view name, absl::string_view what) {
  return MakeError(v1::STORAGE_UNAVAILABLE, absl::StrCat("database ", name, ": ", what, "; try again"));
}

// https://www.postgresql.org/docs/current/errcodes-appendix.html
v1::Reason ReasonOfState(absl::string_view state) {
  if (state == "53100") {  // disk_full
    return v1::STORAGE_FULL;
  }
  if (state == "22021") {  // character_not_in_repertoire
    return v1::REQUEST_INVALID;
  }
  if (absl::StartsWith(state, "08") || absl::StartsWith(state, "53") ||  // connection, resources
      absl::StartsWith(state, "57") || absl::StartsWith(state, "40") ||  // shutdown and timeout, deadlock
      state == "55P03" || state == "25P03") {                            // lock timeout, idle in transaction
    return v1::STORAGE_UNAVAILABLE;
  }
  return v1::STORAGE_ERROR;
}

// "postgresql://USER@HOST:PORT/DATABASE"; REQUEST_INVALID.
absl::StatusOr<std::string> NameOf(const std::string& url) {
  char* error = nullptr;
  PQconninfoOption* const options = PQconninfoParse(url.c_str(), &error);
  if (options == nullptr) {
    std::string reason = error == nullptr ? "out of memory" : OneLine(error);
    PQfreemem(error);
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("the database is no connection URI of PostgreSQL: ", reason));
  }
  std::string user;
  std::string host;
  std::string port;
  std::string database;
  std::string socket;
  for (const PQconninfoOption* option = options; option->keyword != nullptr; ++option) {
    const absl::string_view keyword = option->keyword;
    const std::string value = option->val == nullptr ? "" : option->val;
    if (keyword == "user") {
      user = absl::StrCat(value, value.empty() ? "" : "@");
    } else if (keyword == "host") {
      (absl::StartsWith(value, "/") ? socket : host) = value;
    } else if (keyword == "port") {
      port = absl::StrCat(value.empty() ? "" : ":", value);
    } else if (keyword == "dbname") {
      database = value;
    }
  }
  PQconninfoFree(options);
  return absl::StrCat("postgresql://", user, host, port, "/", database, socket.empty() ? "" : "?host=", socket);
}

// ?1 -> $1, but for what stands in quotes.
std::string DollarParameters(const std::string& sql) {
  std::string result = sql;
  bool quoted = false;
  for (char& c : result) {
    quoted ^= c == '\'';
    if (c == '?' && !quoted) {
      c = '$';
    }
  }
  return result;
}

// The parameters of one statement as libpq takes them, in PostgreSQL's binary format: lengths count, so that a NUL in a text is
// refused by the server and cuts nothing off.
class Parameters {
 public:
  explicit Parameters(const std::vector<SqlValue>& values) {
    bytes_.reserve(values.size());
    for (const SqlValue& value : values) {
      Add(value);
    }
    for (const std::string& bytes : bytes_) {
      lengths.push_back(static_cast<int>(bytes.size()));
      formats.push_back(1);
    }
    for (size_t i = 0; i < bytes_.size(); ++i) {
      pointers.push_back(types[i] == 0 ? nullptr : bytes_[i].data());
    }
  }

  std::vector<Oid> types;  // 0 for NULL: the server finds out
  std::vector<const char*> pointers;
  std::vector<int> lengths;
  std::vector<int> formats;

 private:
  // pg_type.dat
  static constexpr Oid kBytea = 17;
  static constexpr Oid kInt8 = 20;
  static constexpr Oid kText = 25;

  void Add(const SqlValue& value) {
    if (const auto* number = std::get_if<int64_t>(&value)) {
      const uint64_t big_endian = htobe64(static_cast<uint64_t>(*number));
      bytes_.emplace_back(reinterpret_cast<const char*>(&big_endian), sizeof(big_endian));
      types.push_back(kInt8);
    } else if (const auto* text = std::get_if<std::string>(&value)) {
      bytes_.push_back(*text);
      types.push_back(kText);
    } else if (const auto* blob = std::get_if<SqlBlob>(&value)) {
      bytes_.push_back(blob->bytes);
      types.push_back(kBytea);
    } else {
      bytes_.emplace_back();
      types.push_back(0);
    }
  }

  std::vector<std::string> bytes_;
};

// All rows are here when the statement has run. In text format, which all types of numbers share: SUM of a BIGINT is NUMERIC.
class ResultRows final : public Statement::Rows {
 public:
  explicit ResultRows(Result result) : result_(std::move(result)), count_(PQntuples(result_.get())) {}

  absl::StatusOr<bool> Step() override { return ++row_ < count_; }
  bool IsNull(int column) const override { return PQgetisnull(result_.get(), row_, column) == 1; }
  int64_t Integer(int column) const override {
    int64_t number = 0;
    return absl::SimpleAtoi(Text(column), &number) ? number : 0;
  }
  std::string Bytes(int column) const override {
    constexpr Oid kBytea = 17;
    if (PQftype(result_.get(), column) != kBytea) {
      return std::string(Text(column));
    }
    size_t size = 0;
    unsigned char* const bytes =
        PQunescapeBytea(reinterpret_cast<const unsigned char*>(PQgetvalue(result_.get(), row_, column)), &size);
    std::string value(reinterpret_cast<const char*>(bytes), size);
    PQfreemem(bytes);
    return value;
  }

 private:
  absl::string_view Text(int column) const {
    return {PQgetvalue(result_.get(), row_, column), static_cast<size_t>(PQgetlength(result_.get(), row_, column))};
  }

  Result result_;
  int count_;
  int row_ = -1;
};

}  // namespace

class PostgresConnection final : public Connection {
 public:
  static absl::StatusOr<std::unique_ptr<PostgresConnection>> Open(const std::string& url, const std::string& name);
  ~PostgresConnection() override { PQfinish(connection_); }
  PostgresConnection(const PostgresConnection&) = delete;
  PostgresConnection& operator=(const PostgresConnection&) = delete;

  using Connection::Execute;
  using Connection::Query;
  absl::StatusOr<Statement> Query(const std::string& sql, const std::vector<SqlValue>& values) override;
  absl::StatusOr<int64_t> Execute(const std::string& sql, const std::vector<SqlValue>& values) override;
  absl::Status ExecuteScript(const std::string& sql) override { return Script(sql).status(); }

  // Ends the transaction. An error has undone it, but for the loss of the connection.
  absl::Status Commit(const std::string& commit);
  // Undoes the transaction if there is one; false if the connection is of no use any more.
  bool Rollback();
  bool lost() const { return silent_ || PQstatus(connection_) == CONNECTION_BAD; }

  // Waits until a NOTIFY came (true) or `stop` is readable (false).
  absl::StatusOr<bool> AwaitNotification(int stop);

 private:
  PostgresConnection(PGconn* connection, std::string name) : connection_(connection), name_(std::move(name)) {}
  absl::StatusOr<Result> Script(const std::string& sql);
  absl::StatusOr<Result> Run(const std::string& sql, const std::vector<SqlValue>& values);
  // What the server answers to the commands just sent (`sent` is what the PQsend function returned): the last result, or the
  // first error.
  absl::StatusOr<Result> Receive(int sent);
  absl::Status Lost(absl::string_view reason) const;
  absl::Status Error(const PGresult* result) const;

  PGconn* const connection_;
  const std::string name_;
  bool silent_ = false;  // no answer in time: nobody knows what comes next
  // SQL and types of the parameters -> name of the prepared statement.
  std::unordered_map<std::string, std::string> prepared_;
};

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresConnection::Open(const std::string& url, const std::string& name) {
  // Those before "dbname" are defaults, that after it is not to be changed by the URL.
  const std::string connect_timeout = absl::StrCat(absl::ToInt64Seconds(PostgresDatabase::kConnect));
  const std::string unacknowledged = absl::StrCat(absl::ToInt64Milliseconds(PostgresDatabase::kLock));
  const std::array<const char*, 9> keywords = {"application_name",
                                               "connect_timeout",
                                               "keepalives_idle",
                                               "keepalives_interval",
                                               "keepalives_count",
                                               "tcp_user_timeout",
                                               "dbname",
                                               "client_encoding",
                                               nullptr};
  const std::array<const char*, 9> values = {
      "modelpress", connect_timeout.c_str(), "15", "5", "3", unacknowledged.c_str(), url.c_str(), "UTF8", nullptr};
  std::unique_ptr<PostgresConnection> connection(
      new PostgresConnection(PQconnectdbParams(keywords.data(), values.data(), /*expand_dbname=*/1), name));
  PGconn* const raw = connection->connection_;
  if (PQstatus(raw) != CONNECTION_OK) {
    return Unavailable(name, OneLine(PQerrorMessage(raw)));
  }
  PQsetNoticeProcessor(raw, [](void*, const char* message) { LOG(WARNING) << "PostgreSQL: " << OneLine(message); }, nullptr);
  if (PQsetnonblocking(raw, 1) != 0) {
    return connection->Lost(PQerrorMessage(raw));
  }
  constexpr int kOldestVersion = 130'000;  // pg_current_snapshot
  if (PQserverVersion(raw) < kOldestVersion) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("database ", name, " is of PostgreSQL ", PQserverVersion(raw) / 10'000,
                                                     "; 13 or later is needed"));
  }
  if (absl::string_view encoding = absl::NullSafeStringView(PQparameterStatus(raw, "server_encoding")); encoding != "UTF8") {
    return MakeError(v1::STORAGE_ERROR,
                     absl::StrCat("database ", name, " has the encoding ", encoding, "; make it with ENCODING 'UTF8'"));
  }
  MP_RETURN_IF_ERROR(connection->ExecuteScript(absl::StrCat(
      "SET client_min_messages = warning; SET lock_timeout = ", absl::ToInt64Milliseconds(PostgresDatabase::kLock),
      "; SET statement_timeout = ", absl::ToInt64Milliseconds(PostgresDatabase::kStatement),
      "; SET idle_in_transaction_session_timeout = ", absl::ToInt64Milliseconds(PostgresDatabase::kIdleInTransaction))));
  return connection;
}

absl::Status PostgresConnection::Lost(absl::string_view reason) const {
  return Unavailable(name_, absl::StrCat("the connection was lost: ", OneLine(reason)));
}

absl::Status PostgresConnection::Error(const PGresult* result) const {
  const char* const state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  if (state == nullptr) {
    return Lost(PQresultErrorMessage(result));
  }
  const v1::Reason reason = ReasonOfState(state);
  return MakeError(reason, absl::StrCat("database ", name_, ": ", OneLine(PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY)),
                                        " (SQLSTATE ", state, ")",
                                        reason == v1::STORAGE_FULL          ? "; free space there and try again"
                                        : reason == v1::STORAGE_UNAVAILABLE ? "; try again"
                                                                            : ""));
}

absl::StatusOr<Result> PostgresConnection::Receive(int sent) {
  if (sent == 0) {
    return Lost(PQerrorMessage(connection_));
  }
  const SteadyClock::time_point deadline = SteadyClock::now() + absl::ToChronoMilliseconds(PostgresDatabase::kAnswer);
  Result last;
  while (true) {
    int unsent = PQflush(connection_);
    while (unsent == 1 || PQisBusy(connection_) == 1) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - SteadyClock::now()).count();
      pollfd socket = {PQsocket(connection_), static_cast<short>(unsent == 1 ? POLLIN | POLLOUT : POLLIN), 0};
      const int ready = left <= 0 ? 0 : poll(&socket, 1, static_cast<int>(left));
      if (ready == 0) {
        silent_ = true;
        return Unavailable(name_, absl::StrCat("no answer in ", absl::FormatDuration(PostgresDatabase::kAnswer)));
      }
      if (ready < 0 && errno != EINTR) {
        silent_ = true;
        return Lost(std::strerror(errno));
      }
      if (PQconsumeInput(connection_) == 0) {
        silent_ = true;
        return Lost(PQerrorMessage(connection_));
      }
      unsent = PQflush(connection_);
    }
    Result result(PQgetResult(connection_));
    if (result == nullptr) {
      break;
    }
    if (last == nullptr || PQresultStatus(last.get()) != PGRES_FATAL_ERROR) {
      last = std::move(result);
    }
  }
  if (last == nullptr) {
    return Lost("no answer");
  }
  if (PQresultStatus(last.get()) == PGRES_COMMAND_OK || PQresultStatus(last.get()) == PGRES_TUPLES_OK) {
    return last;
  }
  return Error(last.get());
}

absl::StatusOr<Result> PostgresConnection::Script(const std::string& sql) {
  return Receive(PQsendQuery(connection_, sql.c_str()));
}

absl::StatusOr<Result> PostgresConnection::Run(const std::string& sql, const std::vector<SqlValue>& values) {
  const Parameters parameters(values);
  const int count = static_cast<int>(values.size());
  const std::string key = absl::StrCat(
      sql, ";", absl::string_view(reinterpret_cast<const char*>(parameters.types.data()), parameters.types.size() * sizeof(Oid)));
  auto prepared = prepared_.find(key);
  if (prepared == prepared_.end()) {
    if (prepared_.size() >= kMaxPrepared) {
      MP_RETURN_IF_ERROR(ExecuteScript("DEALLOCATE ALL"));
      prepared_.clear();
    }
    const std::string name = absl::StrCat("s", prepared_.size());
    MP_RETURN_IF_ERROR(
        Receive(PQsendPrepare(connection_, name.c_str(), DollarParameters(sql).c_str(), count, parameters.types.data()))
            .status());
    prepared = prepared_.emplace(key, name).first;
  }
  return Receive(PQsendQueryPrepared(connection_, prepared->second.c_str(), count, parameters.pointers.data(),
                                     parameters.lengths.data(), parameters.formats.data(), /*resultFormat=*/0));
}

absl::StatusOr<Statement> PostgresConnection::Query(const std::string& sql, const std::vector<SqlValue>& values) {
  MP_ASSIGN_OR_RETURN(Result result, Run(sql, values));
  return Statement(std::make_unique<ResultRows>(std::move(result)));
}

absl::StatusOr<int64_t> PostgresConnection::Execute(const std::string& sql, const std::vector<SqlValue>& values) {
  MP_ASSIGN_OR_RETURN(Result result, Run(sql, values));
  int64_t changed = 0;
  return absl::SimpleAtoi(PQcmdTuples(result.get()), &changed) ? changed : 0;
}

absl::Status PostgresConnection::Commit(const std::string& commit) {
  absl::StatusOr<Result> result = Script(commit);
  if (!result.ok() && lost()) {
    return Unavailable(name_,
                       absl::StrCat("the connection was lost while the change was committed, whether it was made is unknown: ",
                                    result.status().message()));
  }
  MP_RETURN_IF_ERROR(result.status());
  // A transaction in which a statement has failed is undone by COMMIT, which is no error.
  if (absl::string_view(PQcmdStatus(result->get())) != "COMMIT") {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("database ", name_, ": the transaction was undone: a statement had failed"));
  }
  return absl::OkStatus();
}

bool PostgresConnection::Rollback() {
  return !lost() && (PQtransactionStatus(connection_) == PQTRANS_IDLE || ExecuteScript("ROLLBACK").ok());
}

absl::StatusOr<bool> PostgresConnection::AwaitNotification(int stop) {
  bool notified = false;
  while (true) {
    while (PGnotify* const notification = PQnotifies(connection_)) {
      PQfreemem(notification);
      notified = true;
    }
    if (notified) {
      return true;
    }
    std::array<pollfd, 2> files = {pollfd{PQsocket(connection_), POLLIN, 0}, pollfd{stop, POLLIN, 0}};
    if (poll(files.data(), files.size(), -1) < 0 && errno != EINTR) {
      return Lost(std::strerror(errno));
    }
    if (files[1].revents != 0) {
      return false;
    }
    if (files[0].revents != 0 && PQconsumeInput(connection_) == 0) {
      return Lost(PQerrorMessage(connection_));
    }
  }
}

// ---- Subscriptions ----------------------------------------------------------------------------------------------------------

namespace {

// A thread with a connection that listens.
class Listener final : public Subscription {
 public:
  // `stop` is an eventfd(2).
  Listener(std::function<absl::StatusOr<std::unique_ptr<PostgresConnection>>()> connect, std::function<void()> changed,
           UniqueFd stop)
      : connect_(std::move(connect)), changed_(std::move(changed)), stop_(std::move(stop)), thread_([this] { Loop(); }) {}

  // Waits for a connection that is being made, kConnect at most.
  ~Listener() override {
    eventfd_write(stop_.get(), 1);
    thread_.join();
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

 private:
  bool StoppedWithin(absl::Duration timeout) const {
    pollfd file = {stop_.get(), POLLIN, 0};
    return poll(&file, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout))) == 1;
  }

  // Until it is stopped, or the connection is lost.
  absl::Status Listen() {
    MP_ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection, connect_());
    MP_RETURN_IF_ERROR(connection->ExecuteScript(kListen));
    bool notified = true;  // perhaps, before it listened
    while (notified) {
      changed_();
      MP_ASSIGN_OR_RETURN(notified, connection->AwaitNotification(stop_.get()));
    }
    return absl::OkStatus();
  }

  void Loop() {
    do {
      if (absl::Status status = Listen(); !status.ok()) {
        LOG_EVERY_N_SEC(WARNING, 10) << "changes by other processes are found by polling only: " << status.message();
      }
    } while (!StoppedWithin(kReconnect));
  }

  const std::function<absl::StatusOr<std::unique_ptr<PostgresConnection>>()> connect_;
  const std::function<void()> changed_;
  const UniqueFd stop_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Subscription> PostgresDatabase::Subscribe(std::function<void()> changed) {
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (stop.get() < 0) {
    LOG(WARNING) << "changes by other processes are found by polling only: " << std::strerror(errno);
    return nullptr;
  }
  return std::make_unique<Listener>([this] { return Connect(); }, std::move(changed), std::move(stop));
}

// ---- Connections ------------------------------------------------------------------------------------------------------------

PostgresDatabase::Pool::Pool(int capacity) : free_(capacity) {}

PostgresDatabase::Pool::~Pool() = default;

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresDatabase::Pool::Take() {
  std::unique_lock lock(mutex_);
  if (!given_.wait_for(lock, absl::ToChronoMilliseconds(kLock), [this] { return free_ > 0; })) {
    return MakeError(v1::STORAGE_UNAVAILABLE,
                     absl::StrCat("no connection to the database became free in ", absl::FormatDuration(kLock), "; try again"));
  }
  --free_;
  std::unique_ptr<PostgresConnection> connection;
  if (!idle_.empty()) {
    connection = std::move(idle_.back());
    idle_.pop_back();
  }
  return connection;
}

void PostgresDatabase::Pool::Give(std::unique_ptr<PostgresConnection> connection) {
  {
    std::lock_guard lock(mutex_);
    ++free_;
    if (connection != nullptr) {
      idle_.push_back(std::move(connection));
    }
  }
  given_.notify_one();
}

void PostgresDatabase::Pool::CloseIdle() {
  std::vector<std::unique_ptr<PostgresConnection>> closing;
  std::lock_guard lock(mutex_);
  closing.swap(idle_);
}

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresDatabase::Connect() {
  MP_ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection, PostgresConnection::Open(url_, name_));
  ++connections_made_;
  return connection;
}

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresDatabase::Begin(Pool& pool, const std::string& begin) {
  MP_ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection, pool.Take());
  absl::Status status;
  if (connection != nullptr) {
    status = connection->ExecuteScript(begin);
    if (status.ok()) {
      return connection;
    }
    if (connection->lost()) {  // some time ago, with all that were idle then
      connection.reset();
      pool.CloseIdle();
    }
  }
  if (connection == nullptr) {
    absl::StatusOr<std::unique_ptr<PostgresConnection>> made = Connect();
    status = made.status();
    if (made.ok()) {
      connection = *std::move(made);
      status = connection->ExecuteScript(begin);
      if (status.ok()) {
        return connection;
      }
    }
  }
  pool.Give(connection != nullptr && connection->Rollback() ? std::move(connection) : nullptr);
  return status;
}

// ---- Schema -----------------------------------------------------------------------------------------------------------------

namespace {

class PostgresDialect final : public SchemaDialect {
 public:
  absl::StatusOr<int64_t> Version(Connection& connection) const override {
    {
      MP_ASSIGN_OR_RETURN(Statement row, connection.Query("SELECT to_regclass('schema_version')::text"));
      MP_RETURN_IF_ERROR(row.Step().status());
      if (row.IsNull(0)) {
        return 0;
      }
    }
    MP_ASSIGN_OR_RETURN(Statement row, connection.Query("SELECT version FROM schema_version"));
    MP_RETURN_IF_ERROR(row.Step().status());
    return row.Integer(0);
  }
  absl::Status SetVersion(Connection& connection, int64_t version) const override {
    return connection.ExecuteScript(
        absl::StrCat("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL); DELETE FROM schema_version;"
                     " INSERT INTO schema_version VALUES (",
                     version, ")"));
  }
  std::string Translate(const std::string& migration) const override {
    return absl::StrReplaceAll(migration,
                               {{"INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"},
                                {"INTEGER", "BIGINT"},
                                {"TEXT", "TEXT COLLATE \"C\""},
                                {"BLOB", "BYTEA"},
                                {") STRICT, WITHOUT ROWID", ")"},
                                {") STRICT", ")"}});
  }
};

}  // namespace

// ---- Database ---------------------------------------------------------------------------------------------------------------

bool PostgresDatabase::IsUrl(absl::string_view location) {
  return absl::StartsWith(location, "postgresql://") || absl::StartsWith(location, "postgres://");
}

PostgresDatabase::PostgresDatabase(std::string url, std::string name) : url_(std::move(url)), name_(std::move(name)) {}

PostgresDatabase::~PostgresDatabase() = default;

absl::StatusOr<std::unique_ptr<PostgresDatabase>> PostgresDatabase::Open(const std::string& url,
                                                                         absl::Span<const std::string> migrations) {
  MP_ASSIGN_OR_RETURN(std::string name, NameOf(url));
  std::unique_ptr<PostgresDatabase> database(new PostgresDatabase(url, std::move(name)));
  MP_RETURN_IF_ERROR(Migrate(*database, PostgresDialect(), migrations, database->name_));
  database->WarnOfForgetfulServer();
  return database;
}

absl::StatusOr<int64_t> PostgresDatabase::StoredVersion(const std::string& url) {
  MP_ASSIGN_OR_RETURN(std::string name, NameOf(url));
  PostgresDatabase database(url, std::move(name));
  int64_t version = 0;
  MP_RETURN_IF_ERROR(database.Read([&version](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(version, PostgresDialect().Version(connection));
    return absl::OkStatus();
  }));
  return version;
}

void PostgresDatabase::WarnOfForgetfulServer() {
  const absl::Status status = Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement row,
                        connection.Query("SELECT current_setting('fsync'), current_setting('synchronous_commit')"));
    MP_RETURN_IF_ERROR(row.Step().status());
    if (row.Bytes(0) == "off" || row.Bytes(1) == "off") {
      LOG(WARNING) << "database " << name_ << " has fsync=" << row.Bytes(0) << " and synchronous_commit=" << row.Bytes(1)
                   << ": a power failure may lose what callers were told that happened";
    }
    return absl::OkStatus();
  });
  if (!status.ok()) {
    LOG(WARNING) << status.message();
  }
}

absl::Status PostgresDatabase::Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) {
  const bool durable = durability == Durability::kPowerLoss;
  MP_ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection,
                      Begin(writer_, absl::StrCat("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; ", kTakeWriterLock,
                                                  durable ? "" : "; SET LOCAL synchronous_commit = off")));
  absl::Status status = body(*connection);
  if (status.ok()) {
    status = connection->Commit(durable ? absl::StrCat(kNotify, "; COMMIT") : "COMMIT");
  }
  writer_.Give(connection->Rollback() ? std::move(connection) : nullptr);
  return status;
}

absl::Status PostgresDatabase::Read(absl::FunctionRef<absl::Status(Connection&)> body) {
  MP_ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection,
                      Begin(readers_, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"));
  const absl::Status status = body(*connection);
  readers_.Give(connection->Rollback() ? std::move(connection) : nullptr);
  return status;
}

// The text of a snapshot is "XMIN:XMAX:ids between them that run". Every writer has an id, and the moment its change becomes
// visible is that in which the id leaves the snapshot: from the list, or because XMAX passes it. XMAX never goes back and the
// list for one XMAX only gets shorter, so no text comes twice, whoever writes. After a crash the server may give out ids again
// that belonged to commits which it forgot (kProcessCrash); but then all connections are new.
absl::StatusOr<uint64_t> PostgresDatabase::Version() {
  std::string snapshot;
  MP_RETURN_IF_ERROR(Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement row, connection.Query("SELECT pg_current_snapshot()::text"));
    MP_RETURN_IF_ERROR(row.Step().status());
    snapshot = row.Bytes(0);
    return absl::OkStatus();
  }));
  return absl::HashOf(snapshot, connections_made_.load());
}

}  // namespace modelpress::server
