#include "server/sql/postgres_database.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/sql/schema.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"
#include "tests/server/sql/postgres_server.h"

namespace modelpress::server {
namespace {

// Counts calls and waits for them; long enough for any machine, so that a hint that never comes fails the test.
class Hints {
 public:
  std::function<void()> listener() {
    return [this] {
      {
        std::lock_guard lock(mutex_);
        ++count_;
      }
      came_.notify_all();
    };
  }
  int count() {
    std::lock_guard lock(mutex_);
    return count_;
  }
  bool AwaitMoreThan(int count) {
    std::unique_lock lock(mutex_);
    return came_.wait_for(lock, std::chrono::seconds(60), [&] { return count_ > count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  int count_ = 0;
};

class PostgresDatabaseTest : public testing::Test {
 protected:
  static absl::StatusOr<int64_t> Ask(Database& database, const std::string& sql, const std::vector<SqlValue>& values = {}) {
    int64_t answer = -1;
    MP_RETURN_IF_ERROR(database.Read([&](Connection& connection) -> absl::Status {
      MP_ASSIGN_OR_RETURN(Statement statement, connection.Query(sql, values));
      MP_RETURN_IF_ERROR(statement.Step().status());
      answer = statement.Integer(0);
      return absl::OkStatus();
    }));
    return answer;
  }
  static absl::Status Insert(Database& database, int64_t value, Durability durability = Durability::kPowerLoss) {
    return database.Write(durability, [&](Connection& connection) {
      return connection.Execute("INSERT INTO t (a) VALUES (?1)", {value}).status();
    });
  }
  std::unique_ptr<PostgresDatabase> Open() {
    auto database = PostgresDatabase::Open(database_.url(), first_);
    EXPECT_OK(database);
    return database.ok() ? *std::move(database) : nullptr;
  }
  // Ends the connections of `database_` but that which asks.
  void EndConnections() {
    PostgresServer::Shared().Run(absl::StrCat(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '", database_.name(), "'"));
  }

  TestPostgresDatabase database_;
  const std::vector<std::string> first_ = {"CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT"};
};

TEST_F(PostgresDatabaseTest, MigratesStepByStepAndKeepsTheRows) {
  {
    std::unique_ptr<PostgresDatabase> database = Open();
    ASSERT_OK(Insert(*database, 7));
  }
  std::vector<std::string> second = first_;
  second.push_back("ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 3");
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<PostgresDatabase> database, PostgresDatabase::Open(database_.url(), second));
    EXPECT_EQ(*Ask(*database, "SELECT a + b FROM t"), 10);
    EXPECT_EQ(*Ask(*database, "SELECT version FROM schema_version"), 2);
  }
  EXPECT_REASON(PostgresDatabase::Open(database_.url(), first_), STORAGE_ERROR);  // made by a newer program
}

TEST_F(PostgresDatabaseTest, AFailedMigrationChangesNothing) {
  std::vector<std::string> broken = first_;
  broken.push_back("ALTER TABLE t ADD COLUMN b INTEGER; SELECT no_such_function()");
  EXPECT_REASON(PostgresDatabase::Open(database_.url(), broken), STORAGE_ERROR);
  std::unique_ptr<PostgresDatabase> database = Open();
  EXPECT_EQ(*Ask(*database, "SELECT count(*) FROM information_schema.columns WHERE table_name = 't'"), 1);
}

TEST_F(PostgresDatabaseTest, ManyMayOpenANewDatabaseAtOnce) {
  std::vector<std::thread> threads;
  threads.reserve(6);
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([this] { EXPECT_OK(OpenDatabase(database_.url())); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST_F(PostgresDatabaseTest, EveryKindOfValueComesBackAsItWas) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) {
    bytes.push_back(static_cast<char>(i));
  }
  const std::string text = "Größe 'x' \\x41 ?1 $1 \n";
  ASSERT_OK_AND_ASSIGN(
      std::unique_ptr<PostgresDatabase> database,
      PostgresDatabase::Open(
          database_.url(),
          std::vector<std::string>{"CREATE TABLE v (k INTEGER PRIMARY KEY AUTOINCREMENT, i INTEGER, t TEXT, b BLOB) STRICT"}));
  int64_t key = 0;
  ASSERT_OK(database->Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement statement, connection.Query("INSERT INTO v (i, t, b) VALUES (?1, ?2, ?3) RETURNING k",
                                                              {INT64_MIN, text, SqlBlob{bytes}}));
    MP_RETURN_IF_ERROR(statement.Step().status());
    key = statement.Integer(0);
    MP_ASSIGN_OR_RETURN(int64_t inserted,
                        connection.Execute("INSERT INTO v (i, t, b) VALUES (?1, ?2, ?3), (?4, '?1', ?5)",
                                           {std::monostate(), std::monostate(), std::monostate(), INT64_MAX, SqlBlob{}}));
    EXPECT_EQ(inserted, 2);
    return absl::OkStatus();
  }));
  EXPECT_EQ(key, 1);
  ASSERT_OK(database->Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement row, connection.Query("SELECT i, t, b FROM v ORDER BY k"));
    EXPECT_TRUE(*row.Step());
    EXPECT_EQ(row.Integer(0), INT64_MIN);
    EXPECT_EQ(row.Bytes(1), text);
    EXPECT_EQ(row.Bytes(2), bytes);
    EXPECT_TRUE(*row.Step());
    for (int column = 0; column < 3; ++column) {
      EXPECT_TRUE(row.IsNull(column));
      EXPECT_EQ(row.Bytes(column), "");
      EXPECT_EQ(row.Integer(column), 0);
    }
    EXPECT_TRUE(*row.Step());
    EXPECT_EQ(row.Integer(0), INT64_MAX);
    EXPECT_EQ(row.Bytes(1), "?1");
    EXPECT_FALSE(row.IsNull(2));
    EXPECT_EQ(row.Bytes(2), "");
    EXPECT_FALSE(*row.Step());
    return absl::OkStatus();
  }));
  EXPECT_EQ(*Ask(*database, "SELECT SUM(k) FROM v"), 6);  // which has another type than k
  // A text that would be cut off, or that is none, is refused.
  for (const std::string& bad : {std::string("a\0b", 3), std::string("\xff\xfe")}) {
    EXPECT_REASON(Ask(*database, "SELECT COUNT(*) FROM v WHERE t = ?1", {bad}), REQUEST_INVALID);
  }
}

TEST_F(PostgresDatabaseTest, TextIsOrderedByItsBytes) {
  ASSERT_OK_AND_ASSIGN(
      std::unique_ptr<PostgresDatabase> database,
      PostgresDatabase::Open(database_.url(), std::vector<std::string>{"CREATE TABLE w (t TEXT PRIMARY KEY) STRICT"}));
  std::vector<std::string> words = {"b", "A", "a", "B", "ä", "a/b", "a.b", "a0", "a b", "_"};
  ASSERT_OK(database->Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    for (const std::string& word : words) {
      MP_RETURN_IF_ERROR(connection.Execute("INSERT INTO w VALUES (?1)", {word}).status());
    }
    return absl::OkStatus();
  }));
  std::vector<std::string> read;
  ASSERT_OK(database->Read([&](Connection& connection) -> absl::Status {
    MP_ASSIGN_OR_RETURN(Statement row, connection.Query("SELECT t FROM w ORDER BY t"));
    while (*row.Step()) {
      read.push_back(row.Bytes(0));
    }
    return absl::OkStatus();
  }));
  std::ranges::sort(words);
  EXPECT_EQ(read, words);
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM w WHERE t > ?1", {"a/"}), 5);  // a/b a0 b ä: and not what English puts there
}

TEST_F(PostgresDatabaseTest, AFailedTransactionChangesNothing) {
  std::unique_ptr<PostgresDatabase> database = Open();
  absl::Status status = database->Write(Durability::kProcessCrash, [](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(connection.Execute("INSERT INTO t VALUES (?1)", {int64_t{1}}).status());
    return absl::AbortedError("changed my mind");
  });
  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 0);
  // Nor one whose body keeps an error to itself.
  status = database->Write(Durability::kProcessCrash, [](Connection& connection) -> absl::Status {
    EXPECT_OK(connection.Execute("INSERT INTO t VALUES (?1)", {int64_t{1}}));
    EXPECT_REASON(connection.Execute("INSERT INTO t VALUES (?1)", {int64_t{1}}), STORAGE_ERROR);
    return absl::OkStatus();
  });
  EXPECT_REASON(status, STORAGE_ERROR);
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 0);
  EXPECT_OK(Insert(*database, 1));
}

TEST_F(PostgresDatabaseTest, ReadersCannotWrite) {
  std::unique_ptr<PostgresDatabase> database = Open();
  EXPECT_REASON(database->Read([](Connection& c) { return c.ExecuteScript("INSERT INTO t VALUES (1)"); }), STORAGE_ERROR);
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 0);
}

TEST_F(PostgresDatabaseTest, AReaderSeesOneMomentAndWaitsForNoWriter) {
  std::unique_ptr<PostgresDatabase> database = Open();
  ASSERT_OK(database->Write(Durability::kProcessCrash, [&](Connection& writer) -> absl::Status {
    MP_RETURN_IF_ERROR(writer.ExecuteScript("INSERT INTO t VALUES (1)"));
    EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 0);  // in the middle of the writer's transaction
    return absl::OkStatus();
  }));
  ASSERT_OK(database->Read([&](Connection& reader) -> absl::Status {
    auto count = [&reader]() -> absl::StatusOr<int64_t> {
      MP_ASSIGN_OR_RETURN(Statement statement, reader.Query("SELECT COUNT(*) FROM t"));
      MP_RETURN_IF_ERROR(statement.Step().status());
      return statement.Integer(0);
    };
    EXPECT_EQ(*count(), 1);
    MP_RETURN_IF_ERROR(Insert(*database, 2));
    EXPECT_EQ(*count(), 1);
    return absl::OkStatus();
  }));
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 2);
}

// What looks first and then writes loses nothing, though many do it at once in several processes.
TEST_F(PostgresDatabaseTest, WritersComeOneAfterTheOther) {
  constexpr int kPerThread = 25;
  std::unique_ptr<PostgresDatabase> first = Open();
  std::unique_ptr<PostgresDatabase> second = Open();
  ASSERT_OK(Insert(*first, 0));
  std::vector<std::thread> threads;
  for (PostgresDatabase* database : {first.get(), second.get(), first.get(), second.get()}) {
    threads.emplace_back([database] {
      for (int i = 0; i < kPerThread; ++i) {
        EXPECT_OK(database->Write(i % 2 == 0 ? Durability::kPowerLoss : Durability::kProcessCrash,
                                  [](Connection& connection) -> absl::Status {
                                    int64_t value = 0;
                                    {
                                      MP_ASSIGN_OR_RETURN(Statement row, connection.Query("SELECT a FROM t"));
                                      MP_RETURN_IF_ERROR(row.Step().status());
                                      value = row.Integer(0);
                                    }
                                    return connection.Execute("UPDATE t SET a = ?1", {value + 1}).status();
                                  }));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(*Ask(*first, "SELECT a FROM t"), 4 * kPerThread);
}

TEST_F(PostgresDatabaseTest, VersionChangesWithEveryCommitOfOthers) {
  std::unique_ptr<PostgresDatabase> here = Open();
  std::unique_ptr<PostgresDatabase> there = Open();
  ASSERT_OK_AND_ASSIGN(uint64_t version, here->Version());
  for (int64_t i = 0; i < 20; ++i) {
    ASSERT_OK(Insert(*there, i, i % 2 == 0 ? Durability::kPowerLoss : Durability::kProcessCrash));
    ASSERT_OK_AND_ASSIGN(uint64_t now, here->Version());
    EXPECT_NE(now, version) << i;
    version = now;
    EXPECT_EQ(*here->Version(), version);
  }
  // Also when a transaction that began before another ends after it.
  const std::string other = database_.name();
  ASSERT_OK(there->Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(connection.ExecuteScript("INSERT INTO t VALUES (100)"));
    PostgresServer::Shared().Run("INSERT INTO t VALUES (101)", other);  // nobody of ours: takes no lock
    MP_ASSIGN_OR_RETURN(version, here->Version());
    return absl::OkStatus();
  }));
  EXPECT_NE(*here->Version(), version);
}

TEST_F(PostgresDatabaseTest, DurableChangesWakeWhoeverListens) {
  std::unique_ptr<PostgresDatabase> here = Open();
  std::unique_ptr<PostgresDatabase> there = Open();
  Hints hints;
  {
    std::unique_ptr<Subscription> subscription = here->Subscribe(hints.listener());
    ASSERT_TRUE(hints.AwaitMoreThan(0));  // once when it listens
    int before = hints.count();
    ASSERT_OK(Insert(*there, 1));
    EXPECT_TRUE(hints.AwaitMoreThan(before));
    // After the loss of its connection it listens again, and says so, because some may have been missed.
    before = hints.count();
    EndConnections();
    ASSERT_TRUE(hints.AwaitMoreThan(before));
    before = hints.count();
    ASSERT_OK(Insert(*there, 2));
    EXPECT_TRUE(hints.AwaitMoreThan(before));
  }
  const int last = hints.count();
  ASSERT_OK(Insert(*there, 3));
  ASSERT_OK(Insert(*there, 4));
  EXPECT_EQ(hints.count(), last);
}

TEST_F(PostgresDatabaseTest, ConnectionsThatDiedWhileIdleAreReplaced) {
  std::unique_ptr<PostgresDatabase> database = Open();
  for (int64_t i = 0; i < 3; ++i) {
    EndConnections();
    EXPECT_OK(Insert(*database, i));
    EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), i + 1);
  }
}

TEST_F(PostgresDatabaseTest, AConnectionLostInTheMiddleUndoesTheTransaction) {
  std::unique_ptr<PostgresDatabase> database = Open();
  int runs = 0;
  absl::Status status = database->Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    ++runs;
    MP_RETURN_IF_ERROR(connection.ExecuteScript("INSERT INTO t VALUES (1)"));
    EndConnections();
    return connection.ExecuteScript("INSERT INTO t VALUES (2)");
  });
  EXPECT_REASON(status, STORAGE_UNAVAILABLE);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 0);
  // Lost before COMMIT was sent: this time the outcome could be known, but the caller is told that it is not.
  status = database->Write(Durability::kPowerLoss, [&](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(connection.ExecuteScript("INSERT INTO t VALUES (1)"));
    EndConnections();
    return absl::OkStatus();
  });
  EXPECT_REASON(status, STORAGE_UNAVAILABLE);
  EXPECT_NE(status.message().find("unknown"), absl::string_view::npos) << status;
  EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), 0);
  EXPECT_OK(Insert(*database, 1));
}

// Every change that was reported done is there after the server was killed, and the processes go on without being started again.
TEST_F(PostgresDatabaseTest, TheServerMayBeKilledAndStartedAgain) {
  std::unique_ptr<PostgresDatabase> database = Open();
  std::atomic<bool> stop = false;
  std::atomic<int64_t> inserted = 0;
  int64_t unknown = 0;
  std::thread writer([&] {
    for (int64_t i = 0; !stop; ++i) {
      absl::Status status = Insert(*database, i);
      if (status.ok()) {
        ++inserted;
      } else {
        EXPECT_REASON(status, STORAGE_UNAVAILABLE);
        unknown += status.message().find("unknown") != absl::string_view::npos ? 1 : 0;
      }
    }
  });
  for (int kills = 0; kills < 3; ++kills) {
    const int64_t before = inserted;
    while (inserted < before + 20) {
      std::this_thread::yield();
    }
    PostgresServer::Shared().Kill();
    PostgresServer::Shared().Restart();
  }
  stop = true;
  writer.join();
  ASSERT_OK_AND_ASSIGN(int64_t rows, Ask(*database, "SELECT COUNT(*) FROM t"));
  EXPECT_GE(rows, inserted);
  EXPECT_LE(rows, inserted + unknown);
}

TEST_F(PostgresDatabaseTest, AFullDiskIsToldApartAndLosesNothing) {
  std::unique_ptr<SmallDisk> disk = SmallDisk::Mount(size_t{32} << 20);
  if (disk == nullptr) {
    GTEST_SKIP() << "needs CAP_SYS_ADMIN to mount a small file system";
  }
  const PostgresServer& server = PostgresServer::Shared();
  const std::string folder = disk->path() + "/tablespace";
  ASSERT_TRUE(server.MakeFolder(folder));
  const std::string name = database_.name() + "_small";
  server.Run(absl::StrCat("CREATE TABLESPACE ", name, " LOCATION '", folder, "'"));
  server.Run(absl::StrCat("CREATE DATABASE ", name, " TABLESPACE ", name));
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<PostgresDatabase> database,
                         PostgresDatabase::Open(server.Url(name), std::vector<std::string>{"CREATE TABLE t (a BLOB)"}));
    auto insert = [&database] {
      return database->Write(Durability::kPowerLoss, [](Connection& connection) {
        return connection.Execute("INSERT INTO t VALUES (?1)", {SqlBlob{TestBytes(100'000)}}).status();
      });
    };
    ASSERT_OK(insert());
    disk->Fill();
    int64_t rows = 1;
    absl::Status status;
    while ((status = insert()).ok() && rows < 1000) {
      ++rows;
    }
    EXPECT_REASON(status, STORAGE_FULL);
    EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), rows);
    disk->Free();
    EXPECT_OK(insert());
    EXPECT_EQ(*Ask(*database, "SELECT COUNT(*) FROM t"), rows + 1);
  }
  server.Run(absl::StrCat("DROP DATABASE ", name, " WITH (FORCE)"));
  server.Run(absl::StrCat("DROP TABLESPACE ", name));
}

TEST_F(PostgresDatabaseTest, WhatCannotBeOpenedIsSaidClearlyAndWithoutThePassword) {
  absl::Status status = PostgresDatabase::Open("postgresql://me:secret@localhost:1/modelpress", first_).status();
  EXPECT_REASON(status, STORAGE_UNAVAILABLE);
  EXPECT_NE(status.message().find("postgresql://me@localhost:1/modelpress"), absl::string_view::npos) << status;
  EXPECT_EQ(status.message().find("secret"), absl::string_view::npos) << status;
  EXPECT_REASON(PostgresDatabase::Open("postgresql://%zz/modelpress", first_), REQUEST_INVALID);
  EXPECT_REASON(OpenDatabase(PostgresServer::Shared().Url("no_such_database")), STORAGE_UNAVAILABLE);
  const std::string latin = database_.name() + "_latin";
  const PostgresServer& server = PostgresServer::Shared();
  server.Run(absl::StrCat("CREATE DATABASE ", latin, " TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C' ENCODING 'LATIN1'"));
  EXPECT_REASON(OpenDatabase(server.Url(latin)), STORAGE_ERROR);
  server.Run(absl::StrCat("DROP DATABASE ", latin, " WITH (FORCE)"));
}

}  // namespace
}  // namespace modelpress::server
