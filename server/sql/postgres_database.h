// PostgreSQL (13 or later) over libpq.
//
// - Writers: every write transaction first takes one advisory lock, so that there is one writer at a time over all processes,
//   exactly as with SQLite: code that looks first and then writes is right without retries. What that gives up is that several
//   writers share one flush of the log, which is no matter where an operation takes seconds. The transaction is READ COMMITTED,
//   so that its statements see what the writer before committed; a snapshot of the transaction would be from before the lock.
// - Durability::kProcessCrash: SET LOCAL synchronous_commit = off.
// - Nothing waits for ever: timeouts for connecting, for locks, for statements and for the server's answer. A process of ours
// that
//   stops in the middle of a transaction (SIGSTOP, a lost network) has it undone by the server after kIdleInTransaction.
// - The connection is lost (server killed, restarted, moved): STORAGE_UNAVAILABLE, and the next use connects again. Where a
//   transaction finds that its idle connection had died before it began, it is begun again on a new one. It never is once its
//   body has run: what the body did to its caller's variables is not ours to repeat, and the outcome of a COMMIT that was sent is
//   unknown.
// - Changes: pg_current_snapshot() is polled; NOTIFY wakes sooner.
//
// Connections per process: one for writers, up to kReaders, one per Subscribe(). They keep session state (prepared statements,
// LISTEN), so a pooler in between must pool sessions, not transactions.
#ifndef MODELPRESS_SERVER_SQL_POSTGRES_DATABASE_H_
#define MODELPRESS_SERVER_SQL_POSTGRES_DATABASE_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/sql/database.h"

namespace modelpress::server {

class PostgresConnection;

class PostgresDatabase final : public Database {
 public:
  static constexpr absl::Duration kConnect = absl::Seconds(10);
  static constexpr absl::Duration kLock = absl::Seconds(30);
  static constexpr absl::Duration kStatement = absl::Seconds(60);  // with the wait for locks
  static constexpr absl::Duration kAnswer = absl::Seconds(75);     // the server is silent: longer than it takes for a statement
  static constexpr absl::Duration kIdleInTransaction = absl::Seconds(10);
  static constexpr int kReaders = 4;

  // True for "postgresql://..." and "postgres://...".
  static bool IsUrl(absl::string_view location);

  // `url` is a connection URI of libpq (https://www.postgresql.org/docs/current/libpq-connect.html): the database exists, has the
  // encoding UTF8 and lets its role make tables. Runs the migrations that are missing, in SQLite's words, of which INTEGER,
  // INTEGER PRIMARY KEY AUTOINCREMENT, BLOB, TEXT, STRICT and WITHOUT ROWID are replaced. REQUEST_INVALID if `url` is none.
  static absl::StatusOr<std::unique_ptr<PostgresDatabase>> Open(const std::string& url, absl::Span<const std::string> migrations);
  ~PostgresDatabase() override;

  // The version of the schema at `url`, 0 in a new database; nothing is made or changed.
  static absl::StatusOr<int64_t> StoredVersion(const std::string& url);

  absl::Status Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) override;
  absl::Status Read(absl::FunctionRef<absl::Status(Connection&)> body) override;
  absl::StatusOr<uint64_t> Version() override;
  absl::Duration poll_interval() const override { return absl::Seconds(1); }
  std::unique_ptr<Subscription> Subscribe(std::function<void()> changed) override;

 private:
  // At most `capacity` connections, made when needed. Thread-safe.
  class Pool {
   public:
    explicit Pool(int capacity);
    ~Pool();
    // An idle connection, or nullptr for the right to make one. STORAGE_UNAVAILABLE if all are in use for kLock.
    absl::StatusOr<std::unique_ptr<PostgresConnection>> Take();
    // Gives back what was taken, or nullptr if it broke.
    void Give(std::unique_ptr<PostgresConnection> connection);
    void CloseIdle();

   private:
    std::mutex mutex_;
    std::condition_variable given_;
    int free_;
    std::vector<std::unique_ptr<PostgresConnection>> idle_;
  };

  PostgresDatabase(std::string url, std::string name);
  absl::StatusOr<std::unique_ptr<PostgresConnection>> Connect();
  // An open transaction on a connection of `pool`, begun by the statements `begin`.
  absl::StatusOr<std::unique_ptr<PostgresConnection>> Begin(Pool& pool, const std::string& begin);
  void WarnOfForgetfulServer();

  const std::string url_;
  const std::string name_;  // for messages: without password
  Pool writer_{1};
  Pool readers_{kReaders};
  std::atomic<uint64_t> connections_made_ = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SQL_POSTGRES_DATABASE_H_
