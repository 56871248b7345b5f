#include "server/sql/sqlite_database.h"

#include <sqlite3.h>

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/sql/schema.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

class SqliteDatabaseTest : public testing::Test {
 protected:
  std::string Path() const { return folder_.path() + "/test.db"; }
  static int64_t Ask(Database& database, const std::string& sql) {
    int64_t answer = -1;
    EXPECT_OK(database.Read([&](Connection& connection) -> absl::Status {
      MP_ASSIGN_OR_RETURN(Statement statement, connection.Query(sql));
      MP_RETURN_IF_ERROR(statement.Step().status());
      answer = statement.Integer(0);
      return absl::OkStatus();
    }));
    return answer;
  }

  TestFolder folder_;
  const std::vector<std::string> first_ = {"CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT"};
};

TEST_F(SqliteDatabaseTest, MigratesStepByStepAndKeepsTheRows) {
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), first_));
    ASSERT_OK(database->Write(Durability::kPowerLoss, [](Connection& c) { return c.ExecuteScript("INSERT INTO t VALUES (7)"); }));
  }
  std::vector<std::string> second = first_;
  second.push_back("ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 3");
  {
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), second));
    EXPECT_EQ(Ask(*database, "SELECT a + b FROM t"), 10);
    EXPECT_EQ(Ask(*database, "PRAGMA user_version"), 2);
  }
  EXPECT_REASON(SqliteDatabase::Open(Path(), first_), STORAGE_ERROR);  // made by a newer program
}

TEST_F(SqliteDatabaseTest, AFailedMigrationChangesNothing) {
  std::vector<std::string> broken = first_;
  broken.push_back("ALTER TABLE t ADD COLUMN b INTEGER; SELECT no_such_function()");
  EXPECT_REASON(SqliteDatabase::Open(Path(), broken), STORAGE_ERROR);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), first_));
  EXPECT_EQ(Ask(*database, "SELECT COUNT(*) FROM pragma_table_info('t')"), 1);
}

TEST_F(SqliteDatabaseTest, AFailedTransactionChangesNothing) {
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), first_));
  absl::Status status = database->Write(Durability::kProcessCrash, [](Connection& connection) -> absl::Status {
    MP_RETURN_IF_ERROR(connection.Execute("INSERT INTO t VALUES (?1)", {int64_t{1}}).status());
    return absl::AbortedError("changed my mind");
  });
  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_EQ(Ask(*database, "SELECT COUNT(*) FROM t"), 0);
}

TEST_F(SqliteDatabaseTest, ReadersCannotWrite) {
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), first_));
  EXPECT_REASON(database->Read([](Connection& c) { return c.ExecuteScript("INSERT INTO t VALUES (1)"); }), STORAGE_ERROR);
}

TEST_F(SqliteDatabaseTest, AReaderSeesOneMomentAndWaitsForNoWriter) {
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), first_));
  ASSERT_OK(database->Write(Durability::kProcessCrash, [&](Connection& writer) -> absl::Status {
    MP_RETURN_IF_ERROR(writer.ExecuteScript("INSERT INTO t VALUES (1)"));
    EXPECT_EQ(Ask(*database, "SELECT COUNT(*) FROM t"), 0);  // in the middle of the writer's transaction
    return absl::OkStatus();
  }));
  ASSERT_OK(database->Read([&](Connection& reader) -> absl::Status {
    auto count = [&reader]() -> absl::StatusOr<int64_t> {
      MP_ASSIGN_OR_RETURN(Statement statement, reader.Query("SELECT COUNT(*) FROM t"));
      MP_RETURN_IF_ERROR(statement.Step().status());
      return statement.Integer(0);
    };
    EXPECT_EQ(*count(), 1);
    MP_RETURN_IF_ERROR(
        database->Write(Durability::kProcessCrash, [](Connection& c) { return c.ExecuteScript("INSERT INTO t VALUES (2)"); }));
    EXPECT_EQ(*count(), 1);
    return absl::OkStatus();
  }));
  EXPECT_EQ(Ask(*database, "SELECT COUNT(*) FROM t"), 2);
}

TEST_F(SqliteDatabaseTest, NotEveryStatementThatEverRanIsKept) {
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::Open(Path(), first_));
  auto memory_after = [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      EXPECT_EQ(Ask(*database, absl::StrCat("SELECT ", i)), i);
    }
    return sqlite3_memory_used();
  };
  constexpr int kMany = 20 * static_cast<int>(kMaxPrepared);
  const sqlite3_int64 full = memory_after(0, kMany);
  EXPECT_LE(memory_after(kMany, 2 * kMany), full + full / 10);
}

TEST_F(SqliteDatabaseTest, ManyMayOpenANewFileAtOnce) {
  std::vector<std::thread> threads;
  threads.reserve(6);
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([this] { EXPECT_OK(OpenDatabase(Path())); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST_F(SqliteDatabaseTest, WhatIsNoDatabaseIsToldApart) {
  WriteTestFile(Path(), TestBytes(10'000));
  EXPECT_REASON(OpenDatabase(Path()), STORAGE_ERROR);
  EXPECT_REASON(OpenDatabase(folder_.path() + "/no/such/folder.db"), STORAGE_ERROR);
}

}  // namespace
}  // namespace modelpress::server
