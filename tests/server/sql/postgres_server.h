// A real PostgreSQL server for tests.
#ifndef MODELPRESS_TESTS_SERVER_SQL_POSTGRES_SERVER_H_
#define MODELPRESS_TESTS_SERVER_SQL_POSTGRES_SERVER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/server/base/test_folder.h"

namespace modelpress::server {

// A cluster of its own in a temporary folder, reached by a Unix socket there. It runs as user postgres where this process is
// root, ends with this process however that ends, and does not sync: no test here has its machine lose power. Its locale orders
// text otherwise than by bytes.
class PostgresServer {
 public:
  // Needs the programs of PostgreSQL in /usr/lib/postgresql/*/bin. nullptr, with a failure of the test, if it does not start.
  static std::unique_ptr<PostgresServer> Start();
  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  // The one server of this test binary, started at its first use.
  static PostgresServer& Shared();

  // The URL of a database of this server.
  std::string Url(const std::string& database) const;
  // Runs a statement without rows, or returns the first column of the first; a failure of the test if it fails.
  std::string Run(const std::string& sql, const std::string& database = "postgres") const;
  // An empty folder that the server may write to; false if it cannot be made.
  bool MakeFolder(const std::string& path) const;

  // kill -9. Its other processes find out and end by themselves.
  void Kill();
  // Starts it again and waits until it takes connections.
  void Restart();

 private:
  PostgresServer();
  pid_t Spawn(const std::string& program, const std::vector<std::string>& arguments) const;

  TestFolder folder_;
  std::string programs_;
  uid_t user_ = 0;
  gid_t group_ = 0;
  pid_t process_ = -1;
};

// A fresh database of PostgresServer::Shared(), gone with the object.
class TestPostgresDatabase {
 public:
  TestPostgresDatabase();
  ~TestPostgresDatabase();
  TestPostgresDatabase(const TestPostgresDatabase&) = delete;
  TestPostgresDatabase& operator=(const TestPostgresDatabase&) = delete;
  const std::string& name() const { return name_; }
  std::string url() const { return PostgresServer::Shared().Url(name_); }

 private:
  std::string name_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_SQL_POSTGRES_SERVER_H_
