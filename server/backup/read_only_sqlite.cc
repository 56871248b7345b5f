#include "server/backup/read_only_sqlite.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

constexpr int kBusyTimeoutMs = 30'000;

struct Finalize {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};

}  // namespace

void ReadOnlySqlite::Close::operator()(sqlite3* database) const { sqlite3_close_v2(database); }

absl::Status ReadOnlySqlite::Error(int code) const {
  return MakeError((code & 0xff) == SQLITE_FULL ? v1::STORAGE_FULL : v1::STORAGE_ERROR,
                   absl::StrCat("database ", path_, ": ", sqlite3_errmsg(database_.get()), " (SQLite code ", code, ")"));
}

absl::StatusOr<ReadOnlySqlite> ReadOnlySqlite::Open(const std::string& path) {
  if (access(path.c_str(), R_OK) != 0) {
    return ErrnoError(errno, "read", path);
  }
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &handle, SQLITE_OPEN_READONLY | SQLITE_OPEN_EXRESCODE, nullptr);
  ReadOnlySqlite database(handle, path);
  if (code != SQLITE_OK) {
    return database.Error(code);
  }
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  return database;
}

absl::StatusOr<std::vector<std::string>> ReadOnlySqlite::Column(const std::string& sql) {
  sqlite3_stmt* handle = nullptr;
  if (const int code = sqlite3_prepare_v2(database_.get(), sql.c_str(), -1, &handle, nullptr); code != SQLITE_OK) {
    return Error(code);
  }
  const std::unique_ptr<sqlite3_stmt, Finalize> statement(handle);
  std::vector<std::string> values;
  while (true) {
    const int code = sqlite3_step(handle);
    if (code == SQLITE_DONE) {
      return values;
    }
    if (code != SQLITE_ROW) {
      return Error(code);
    }
    const unsigned char* const text = sqlite3_column_text(handle, 0);
    values.emplace_back(text == nullptr ? "" : reinterpret_cast<const char*>(text));
  }
}

absl::StatusOr<int> ReadOnlySqlite::SchemaVersion() {
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> rows, Column("PRAGMA user_version"));
  int version = 0;
  return rows.size() == 1 && absl::SimpleAtoi(rows.front(), &version)
             ? absl::StatusOr<int>(version)
             : MakeError(v1::STORAGE_ERROR, absl::StrCat("database ", path_, " has no schema version"));
}

absl::Status ReadOnlySqlite::CheckIntegrity() {
  MP_ASSIGN_OR_RETURN(const std::vector<std::string> rows, Column("PRAGMA integrity_check(1)"));
  return rows == std::vector<std::string>{"ok"}
             ? absl::OkStatus()
             : MakeError(v1::STORAGE_ERROR, absl::StrCat("database ", path_, " is damaged: ", rows.empty() ? "" : rows.front()));
}

absl::Status ReadOnlySqlite::CopyTo(const std::string& path) {
  const std::string quoted = absl::StrReplaceAll(path, {{"'", "''"}});
  MP_RETURN_IF_ERROR(Column(absl::StrCat("VACUUM INTO '", quoted, "'")).status());
  MP_ASSIGN_OR_RETURN(const UniqueFd file, OpenFile(path, O_RDONLY));
  return fsync(file.get()) == 0 ? absl::OkStatus() : ErrnoError(errno, "sync", path);
}

}  // namespace modelpress::server
