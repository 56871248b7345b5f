#include "server/config/check.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "server/auth/access_control.h"
#include "server/auth/options.h"
#include "server/auth/tls.h"
#include "server/backup/read_only_sqlite.h"
#include "server/base/clock.h"
#include "server/base/posix.h"
#include "server/config/settings.h"
#include "server/metrics/metrics.h"
#include "server/sql/postgres_database.h"
#include "server/sql/schema.h"
#include "server/worker/isolation.h"

namespace modelpress::server {
namespace {

using Findings = std::vector<Finding>;

std::string Reason(int error) { return std::generic_category().message(error); }

// nullopt: it is not there.
std::optional<struct stat> Look(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0 ? std::optional(info) : std::nullopt;
}

void CheckFolders(const std::string& data_folder, Findings& findings) {
  const std::optional<struct stat> data = Look(data_folder);
  if (!data.has_value()) {
    const std::string parent = std::filesystem::absolute(data_folder).lexically_normal().parent_path().string();
    if (access(parent.c_str(), W_OK | X_OK) != 0) {
      findings.push_back({true, absl::StrCat("data_dir ", data_folder, " does not exist and cannot be made: ", Reason(errno))});
    } else {
      findings.push_back({false, absl::StrCat("data_dir ", data_folder, " does not exist yet; it will be made")});
    }
    return;
  }
  if (!S_ISDIR(data->st_mode)) {
    findings.push_back({true, absl::StrCat("data_dir ", data_folder, " is not a folder")});
    return;
  }
  for (const char* name : {"", "/blobs", "/uploads", "/scratch"}) {
    const std::string folder = data_folder + name;
    const std::optional<struct stat> info = Look(folder);
    if (!info.has_value()) {
      continue;  // made at the start
    }
    if (access(folder.c_str(), R_OK | W_OK | X_OK) != 0) {
      findings.push_back({true, absl::StrCat("cannot write to ", folder, ": ", Reason(errno))});
    } else if (info->st_dev != data->st_dev) {
      findings.push_back({true, absl::StrCat(folder, " lies on another file system than ", data_folder,
                                             "; files are renamed from one into the other, so it must be one")});
    }
  }
}

absl::StatusOr<int64_t> StoredVersion(const std::string& location) {
  if (PostgresDatabase::IsUrl(location)) {
    return PostgresDatabase::StoredVersion(location);
  }
  MP_ASSIGN_OR_RETURN(ReadOnlySqlite database, ReadOnlySqlite::Open(location));
  return database.SchemaVersion();
}

void CheckDatabase(const std::string& location, Findings& findings) {
  if (!PostgresDatabase::IsUrl(location) && !Look(location).has_value()) {
    return;  // made at the start
  }
  const absl::StatusOr<int64_t> version = StoredVersion(location);
  const std::string name = MaskPassword(location);
  if (!version.ok()) {
    findings.push_back({true, std::string(version.status().message())});
  } else if (*version > SchemaVersion()) {
    findings.push_back({true, absl::StrCat("database ", name, " has schema version ", *version, ", later than ", SchemaVersion(),
                                           ", which this program knows; start a later version of it")});
  } else if (*version < SchemaVersion()) {
    findings.push_back({false, absl::StrCat("database ", name, " has schema version ", *version, "; the next start brings it to ",
                                            SchemaVersion(), ", after which earlier versions of this program cannot use it")});
  }
}

void CheckAddress(const std::string& setting, const std::string& address, Findings& findings) {
  if (address.empty()) {
    return;
  }
  const size_t colon = address.rfind(':');
  absl::string_view host(address.data(), colon == std::string::npos ? address.size() : colon);
  absl::ConsumePrefix(&host, "[");
  absl::ConsumeSuffix(&host, "]");
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  if (port.empty() || host.empty()) {
    findings.push_back({true, absl::StrCat(setting, " '", address, "' is not of the form HOST:PORT")});
    return;
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int code = getaddrinfo(std::string(host).c_str(), port.c_str(), &hints, &list);
  if (code != 0) {
    findings.push_back({true, absl::StrCat(setting, " '", address, "' cannot be resolved: ", gai_strerror(code))});
    return;
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(list, freeaddrinfo);
  // Bound without being listened on. That the port is in use is no mistake: the server that the file is for may be running.
  int error = 0;
  bool in_use = false;
  for (const addrinfo* entry = addresses.get(); entry != nullptr; entry = entry->ai_next) {
    const UniqueFd socket_fd(socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, entry->ai_protocol));
    if (bind(socket_fd.get(), entry->ai_addr, entry->ai_addrlen) == 0) {
      return;
    }
    error = errno;
    in_use = in_use || error == EADDRINUSE;
  }
  findings.push_back({!in_use, absl::StrCat(setting, " '", address, "': ", Reason(in_use ? EADDRINUSE : error))});
}

void CheckLimits(const DaemonOptions& options, Findings& findings) {
  const auto memory = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t wanted = options.worker.limits.memory_bytes * static_cast<uint64_t>(options.workers);
  if (wanted > memory) {
    findings.push_back(
        {false, absl::StrCat(options.workers, " workers with ", options.worker.limits.memory_bytes >> 20,
                             " MiB each may take more than the ", memory >> 20, " MiB of memory of this machine")});
  }
  if (options.workers > 0 && options.worker.limits.memory_bytes == 0) {
    findings.push_back({false, "child_memory_limit_mb is 0: one operation may take all memory of this machine"});
  }
  if (options.drain_timeout > options.worker.max_execution) {
    findings.push_back({false, "drain_timeout_s is longer than max_execution_s: a stop may take that long"});
  }
}

// Reads the files as a start does.
void CheckSecurity(const DaemonOptions& options, Findings& findings) {
  if (options.listen.empty()) {
    return;
  }
  const absl::Status exposure =
      CheckExposure(options.listen, IsLoopback(options.listen), options.insecure_plaintext, options.tls, options.auth);
  if (!exposure.ok()) {
    findings.push_back({true, std::string(exposure.message())});
    return;
  }
  const SystemClock clock;
  Metrics metrics;
  if (const absl::Status callers = AccessControl::Open(options.auth, clock, metrics).status(); !callers.ok()) {
    findings.push_back({true, std::string(callers.message())});
  }
  if (options.tls.enabled()) {
    if (const absl::Status tls = TlsCredentials::Open(options.tls, clock, metrics).status(); !tls.ok()) {
      findings.push_back({true, std::string(tls.message())});
    }
  }
}

void CheckWhatIsolates(const DaemonOptions& options, Findings& findings) {
  if (options.workers == 0) {
    return;
  }
  Metrics metrics;
  if (const absl::Status isolation = CheckIsolation(options.worker.executable, options.worker.isolation, metrics);
      !isolation.ok()) {
    findings.push_back({true, std::string(isolation.message())});
  }
}

}  // namespace

std::vector<Finding> CheckOptions(const DaemonOptions& options) {
  Findings findings;
  CheckFolders(options.data_folder, findings);
  CheckDatabase(options.database.empty() ? options.data_folder + "/modelpress.db" : options.database, findings);
  CheckAddress("listen", options.listen, findings);
  CheckAddress("metrics_listen", options.metrics_listen, findings);
  CheckAddress("health_listen", options.health_listen, findings);
  CheckSecurity(options, findings);
  CheckWhatIsolates(options, findings);
  CheckLimits(options, findings);
  return findings;
}

}  // namespace modelpress::server
