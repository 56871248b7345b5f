#include "tests/server/sql/postgres_server.h"

#include <fcntl.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

namespace modelpress::server {
namespace {

constexpr auto kStartLimit = std::chrono::seconds(60);

std::string FindPrograms() {
  std::vector<std::string> folders;
  std::error_code ignored;
  for (const auto& version : std::filesystem::directory_iterator("/usr/lib/postgresql", ignored)) {
    if (std::filesystem::exists(version.path() / "bin/postgres")) {
      folders.push_back((version.path() / "bin").string());
    }
  }
  return folders.empty() ? "" : *std::ranges::max_element(folders);
}

}  // namespace

PostgresServer::PostgresServer() : programs_(FindPrograms()), user_(geteuid()), group_(getegid()) {
  if (user_ == 0) {
    if (const passwd* postgres = getpwnam("postgres"); postgres != nullptr) {
      user_ = postgres->pw_uid;
      group_ = postgres->pw_gid;
    }
  }
}

pid_t PostgresServer::Spawn(const std::string& program, const std::vector<std::string>& arguments) const {
  const std::string path = absl::StrCat(programs_, "/", program);
  const std::string log = absl::StrCat(folder_.path(), "/", program, ".log");
  std::vector<char*> words = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) {
    words.push_back(const_cast<char*>(argument.c_str()));
  }
  words.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    const int output = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    if ((geteuid() == 0 && (setgroups(0, nullptr) != 0 || setgid(group_) != 0 || setuid(user_) != 0)) || chdir("/") != 0) {
      _exit(126);
    }
    prctl(PR_SET_PDEATHSIG, SIGQUIT);  // an immediate shutdown
    if (getppid() == parent) {
      execv(path.c_str(), words.data());
    }
    _exit(127);
  }
  return child;
}

std::unique_ptr<PostgresServer> PostgresServer::Start() {
  std::unique_ptr<PostgresServer> server(new PostgresServer());
  if (server->programs_.empty() || server->user_ == 0) {
    ADD_FAILURE() << "PostgreSQL (/usr/lib/postgresql/*/bin/postgres) and, for root, a user postgres are needed";
    return nullptr;
  }
  const std::string& folder = server->folder_.path();
  if (server->user_ != geteuid() && chown(folder.c_str(), server->user_, server->group_) != 0) {
    ADD_FAILURE() << "cannot give " << folder << " to user " << server->user_;
    return nullptr;
  }
  const pid_t initdb =
      server->Spawn("initdb", {"--pgdata", folder + "/data", "--username=postgres", "--auth=trust", "--encoding=UTF8",
                               "--locale=C", "--locale-provider=icu", "--icu-locale=en-US", "--no-sync"});
  int status = 0;
  if (waitpid(initdb, &status, 0) != initdb || status != 0) {
    ADD_FAILURE() << "initdb failed:\n" << ReadTestFile(folder + "/initdb.log");
    return nullptr;
  }
  server->Restart();
  return server->process_ < 0 ? nullptr : std::move(server);
}

PostgresServer::~PostgresServer() {
  if (process_ > 0) {
    kill(process_, SIGQUIT);
    waitpid(process_, nullptr, 0);
  }
}

PostgresServer& PostgresServer::Shared() {
  static const std::unique_ptr<PostgresServer> server = Start();
  if (server == nullptr) {
    std::abort();
  }
  return *server;
}

std::string PostgresServer::Url(const std::string& database) const {
  return absl::StrCat("postgresql://postgres@/", database, "?host=", absl::StrReplaceAll(folder_.path(), {{"/", "%2F"}}));
}

std::string PostgresServer::Run(const std::string& sql, const std::string& database) const {
  PGconn* const connection = PQconnectdb(Url(database).c_str());
  PGresult* const result = PQexec(connection, sql.c_str());
  const ExecStatusType status = PQresultStatus(result);
  EXPECT_TRUE(status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK) << sql << ": " << PQerrorMessage(connection);
  std::string value = PQntuples(result) > 0 ? PQgetvalue(result, 0, 0) : "";
  PQclear(result);
  PQfinish(connection);
  return value;
}

bool PostgresServer::MakeFolder(const std::string& path) const {
  return mkdir(path.c_str(), 0700) == 0 && chown(path.c_str(), user_, group_) == 0;
}

void PostgresServer::Kill() {
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  process_ = -1;
}

void PostgresServer::Restart() {
  const auto deadline = std::chrono::steady_clock::now() + kStartLimit;
  while (PQping(Url("postgres").c_str()) != PQPING_OK) {
    // Until the last process of a killed server has ended, a new one ends at once.
    if (process_ < 0 || waitpid(process_, nullptr, WNOHANG) == process_) {
      process_ =
          Spawn("postgres", {"-D", folder_.path() + "/data", "-k", folder_.path(), "-c", "listen_addresses=", "-c", "fsync=off",
                             "-c", "full_page_writes=off", "-c", "shared_buffers=16MB", "-c", "autovacuum=off"});
    }
    if (std::chrono::steady_clock::now() > deadline) {
      ADD_FAILURE() << "the server does not start:\n" << ReadTestFile(folder_.path() + "/postgres.log");
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

TestPostgresDatabase::TestPostgresDatabase() {
  const PostgresServer& server = PostgresServer::Shared();
  name_ = absl::StrCat("test", server.Run("SELECT max(oid) FROM pg_database"));
  server.Run(absl::StrCat("CREATE DATABASE ", name_));
}

TestPostgresDatabase::~TestPostgresDatabase() {
  PostgresServer::Shared().Run(absl::StrCat("DROP DATABASE IF EXISTS ", name_, " WITH (FORCE)"));
}

}  // namespace modelpress::server
