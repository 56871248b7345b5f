// modelpressd: one binary, five roles. docs/server.md.
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage_config.h"
#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "grpc/support/log.h"
#include "server/auth/credentials_file.h"
#include "server/daemon/daemon.h"
#include "server/daemon/health_probe.h"
#include "server/log/log.h"
#include "server/worker/run.h"

ABSL_FLAG(std::string, data_dir, "", "serve, work: folder for database, files and scratch space; made if missing");
ABSL_FLAG(
    std::string, database, "",
    "serve, work: postgresql://... of a server that several machines share, or the path of a SQLite file; empty: modelpress.db "
    "in --data_dir");
ABSL_FLAG(
    std::string, listen, "localhost:50051",
    "serve: address of the gRPC services; port 0 picks one. On other than loopback addresses give --tls_cert and --tls_key, "
    "and --credentials_file or --jwks_file");
ABSL_FLAG(bool, insecure_plaintext, false,
          "serve: allow plaintext on any address, where a mesh or proxy protects the connection; without --credentials_file or "
          "--jwks_file anyone who reaches it may do everything");
ABSL_FLAG(std::string, tls_cert, "",
          "serve: PEM file with the certificate chain of the server, its own first; reread when it changes");
ABSL_FLAG(std::string, tls_key, "", "serve: PEM file with the private key; reread when it changes");
ABSL_FLAG(std::string, tls_client_ca, "",
          "serve: PEM file with what the certificates of clients must lead to; reread when it changes");
ABSL_FLAG(bool, tls_client_certificate_optional, false,
          "serve: with --tls_client_ca, let clients in without a certificate too; they need a token");
ABSL_FLAG(
    std::string, credentials_file, "",
    "serve: hashed tokens and names of client certificates (server/auth/credentials.proto as text); reread when it changes");
ABSL_FLAG(std::string, jwks_file, "", "serve: JSON Web Key Set of those who issue JWTs; reread when it changes");
ABSL_FLAG(std::string, jwt_issuer, "", "serve: `iss` that a JWT must have");
ABSL_FLAG(std::string, jwt_audience, "", "serve: `aud` that a JWT must contain");
ABSL_FLAG(std::string, jwt_project_claim, "project", "serve: claim of a JWT with the caller's project");
ABSL_FLAG(std::string, jwt_role_claim, "role", "serve: claim of a JWT with the caller's role: reader, writer or admin");
ABSL_FLAG(bool, anonymous, false,
          "serve: everybody who reaches the server may do everything, on other than loopback addresses too");
ABSL_FLAG(bool, reflection, false, "serve: gRPC reflection, for tools like grpcurl; on loopback addresses it is always on");
ABSL_FLAG(std::string, health_listen, "",
          "serve, work: address for probes: grpc.health.v1.Health alone, over plaintext, without credentials; empty: off");
ABSL_FLAG(std::string, metrics_listen, "localhost:9464", "serve, work: address of Prometheus metrics over HTTP; empty: off");
ABSL_FLAG(std::string, port_file, "", "serve: file to write the gRPC port to once calls are taken");
ABSL_FLAG(int, workers, 1, "serve, work: operations worked on at a time by this process; serve takes 0 where others work");
ABSL_FLAG(int, threads_per_operation, 0, "threads of one operation; 0: the processors shared out among the workers");
ABSL_FLAG(int64_t, child_memory_limit_mb, 0, "memory that one operation may allocate, in MiB; 0: no limit");
ABSL_FLAG(int64_t, child_cpu_limit_s, 0, "CPU time of one operation, in seconds over all threads; 0: no limit");
ABSL_FLAG(int64_t, child_file_limit_mb, 0, "size of one output file, in MiB; 0: no limit");
ABSL_FLAG(int64_t, child_disk_limit_mb, 0, "size of all output files of one operation, in MiB; 0: no limit");
ABSL_FLAG(
    std::string, isolation, "best_effort",
    "serve, work: require (start only if engine processes can be isolated completely), best_effort (warn of what is missing) "
    "or off");
ABSL_FLAG(std::string, child_user, "",
          "serve, work: name or id of the user that engine processes become where the server is root; empty: 65534 (nobody)");
ABSL_FLAG(double, max_execution_s, 86400, "time of one attempt at an operation, in seconds; caps execution_timeout of calls");
ABSL_FLAG(double, lease_s, 10, "time after which an operation is taken from a worker that cannot be heard of, in seconds");
ABSL_FLAG(double, drain_timeout_s, 30, "time that calls and operations get to end after SIGTERM, in seconds");
ABSL_FLAG(double, housekeeping_interval_s, 60, "serve, work: time between rounds of housekeeping, in seconds");
ABSL_FLAG(double, workspace_ttl_h, 0, "workspaces in which nothing happened for so many hours are removed; 0: never");
ABSL_FLAG(double, operation_ttl_h, 720, "operations that ended so many hours ago are forgotten; 0: never");
ABSL_FLAG(double, upload_ttl_h, 168, "uploads to which nothing came for so many hours are given up; 0: never");
ABSL_FLAG(double, blob_grace_s, 3600, "contents that nothing refers to are removed after so many seconds");
ABSL_FLAG(bool, admission, true, "start operations only where memory and disk are expected to suffice");
ABSL_FLAG(int64_t, min_free_disk_mb, 256, "space on the file system of --data_dir that operations leave free, in MiB");
ABSL_FLAG(std::string, log_format, "json", "json (one object per line) or text");
ABSL_FLAG(std::string, target, "localhost:50051", "health: address of the server to ask");
ABSL_FLAG(std::string, tls_ca, "", "health: PEM file with what the server's certificate must lead to; empty: plaintext");
ABSL_FLAG(std::string, principal, "", "create-token: name of the caller");
ABSL_FLAG(std::string, project, "", "create-token: project that the caller works in");
ABSL_FLAG(std::string, role, "", "create-token: reader, writer or admin");
ABSL_FLAG(double, expire_in_h, 0, "create-token: hours that the token is good for; 0: for ever");

namespace modelpress::server {
namespace {

constexpr char kUsage[] = R"(usage: modelpressd ROLE [FLAGS]

  serve    the gRPC services, and workers in the same process
  work     workers only, for the queue in --data_dir
  run      one operation; started by workers
  health   asks the server at --target: exit code 0 if it serves, else 1
  create-token  makes a token: prints it, which happens only once, and below it the entry for --credentials_file

A second SIGTERM or SIGINT ends the process without waiting. Exit codes: 0 ended on request, 1 could not start, 64 wrong usage.

Flags:
)";
constexpr int kExitUsage = 64;

void PrintHelp() {
  std::cout << kUsage;
  std::vector<absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (absl::EndsWith(flag->Filename(), "server/main.cc")) {
      flags.push_back(flag);
    }
  }
  std::ranges::sort(flags, {}, [](const absl::CommandLineFlag* flag) { return std::string(flag->Name()); });
  for (const absl::CommandLineFlag* flag : flags) {
    std::cout << "  --" << flag->Name() << "=" << flag->DefaultValue() << "\n        " << flag->Help() << "\n";
  }
}

int UsageError(absl::string_view message) {
  std::cerr << "modelpressd: " << message << "; see modelpressd --help\n";
  return kExitUsage;
}

absl::Status SetHousekeeping(HousekeepingOptions& options) {
  options.interval = absl::Seconds(absl::GetFlag(FLAGS_housekeeping_interval_s));
  options.workspace_ttl = absl::Hours(absl::GetFlag(FLAGS_workspace_ttl_h));
  options.operation_ttl = absl::Hours(absl::GetFlag(FLAGS_operation_ttl_h));
  options.upload_ttl = absl::Hours(absl::GetFlag(FLAGS_upload_ttl_h));
  options.blob_grace = absl::Seconds(absl::GetFlag(FLAGS_blob_grace_s));
  if (options.interval < absl::Seconds(1)) {
    return absl::InvalidArgumentError("--housekeeping_interval_s must be 1 or more");
  }
  for (const absl::Duration age : {options.workspace_ttl, options.operation_ttl, options.upload_ttl, options.blob_grace}) {
    if (age < absl::ZeroDuration()) {
      return absl::InvalidArgumentError("the --..._ttl_h flags and --blob_grace_s must not be negative");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DaemonOptions> OptionsFromFlags(absl::string_view role) {
  auto require = [](bool condition, absl::string_view message) {
    return condition ? absl::OkStatus() : absl::InvalidArgumentError(message);
  };
  DaemonOptions options;
  options.data_folder = absl::GetFlag(FLAGS_data_dir);
  options.database = absl::GetFlag(FLAGS_database);
  options.listen = role == "serve" ? absl::GetFlag(FLAGS_listen) : "";
  options.insecure_plaintext = absl::GetFlag(FLAGS_insecure_plaintext);
  options.tls = {.cert = absl::GetFlag(FLAGS_tls_cert),
                 .key = absl::GetFlag(FLAGS_tls_key),
                 .client_ca = absl::GetFlag(FLAGS_tls_client_ca),
                 .client_certificate_optional = absl::GetFlag(FLAGS_tls_client_certificate_optional)};
  options.auth = {.credentials_file = absl::GetFlag(FLAGS_credentials_file),
                  .jwks_file = absl::GetFlag(FLAGS_jwks_file),
                  .jwt_issuer = absl::GetFlag(FLAGS_jwt_issuer),
                  .jwt_audience = absl::GetFlag(FLAGS_jwt_audience),
                  .jwt_project_claim = absl::GetFlag(FLAGS_jwt_project_claim),
                  .jwt_role_claim = absl::GetFlag(FLAGS_jwt_role_claim),
                  .anonymous = absl::GetFlag(FLAGS_anonymous)};
  options.reflection = absl::GetFlag(FLAGS_reflection);
  options.health_listen = absl::GetFlag(FLAGS_health_listen);
  options.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.workers = absl::GetFlag(FLAGS_workers);
  options.drain_timeout = absl::Seconds(absl::GetFlag(FLAGS_drain_timeout_s));
  options.worker.lease = absl::Seconds(absl::GetFlag(FLAGS_lease_s));
  options.worker.max_execution = absl::Seconds(absl::GetFlag(FLAGS_max_execution_s));
  const int threads = absl::GetFlag(FLAGS_threads_per_operation);
  const int processors = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  options.worker.threads_per_operation = threads > 0 ? threads : std::max(1, processors / std::max(1, options.workers));
  const int64_t memory_mb = absl::GetFlag(FLAGS_child_memory_limit_mb);
  const int64_t cpu_s = absl::GetFlag(FLAGS_child_cpu_limit_s);
  const int64_t file_mb = absl::GetFlag(FLAGS_child_file_limit_mb);
  MP_RETURN_IF_ERROR(require(!options.data_folder.empty(), "--data_dir is needed"));
  MP_RETURN_IF_ERROR(require(role == "work" || !options.listen.empty(), "--listen must not be empty"));
  MP_RETURN_IF_ERROR(require(options.workers >= (role == "work" ? 1 : 0), "--workers is too small"));
  MP_RETURN_IF_ERROR(require(threads >= 0, "--threads_per_operation must not be negative"));
  const int64_t disk_mb = absl::GetFlag(FLAGS_child_disk_limit_mb);
  MP_ASSIGN_OR_RETURN(options.worker.isolation.mode, ParseIsolationMode(absl::GetFlag(FLAGS_isolation)));
  MP_ASSIGN_OR_RETURN(options.worker.isolation.user, ResolveChildUser(absl::GetFlag(FLAGS_child_user)));
  MP_RETURN_IF_ERROR(
      require(memory_mb >= 0 && cpu_s >= 0 && file_mb >= 0 && disk_mb >= 0, "the --child_..._limit flags must not be negative"));
  MP_RETURN_IF_ERROR(require(options.worker.lease >= absl::Milliseconds(100), "--lease_s must be 0.1 or more"));
  MP_RETURN_IF_ERROR(require(options.worker.max_execution > absl::ZeroDuration(), "--max_execution_s must be positive"));
  MP_RETURN_IF_ERROR(require(options.drain_timeout >= absl::ZeroDuration(), "--drain_timeout_s must not be negative"));
  MP_RETURN_IF_ERROR(SetHousekeeping(options.housekeeping));
  const int64_t reserve_mb = absl::GetFlag(FLAGS_min_free_disk_mb);
  MP_RETURN_IF_ERROR(require(reserve_mb >= 0, "--min_free_disk_mb must not be negative"));
  options.admission = {.enabled = absl::GetFlag(FLAGS_admission), .min_free_disk_bytes = static_cast<uint64_t>(reserve_mb) << 20};
  options.worker.limits = {.memory_bytes = static_cast<uint64_t>(memory_mb) << 20,
                           .cpu_seconds = static_cast<uint64_t>(cpu_s),
                           .file_bytes = static_cast<uint64_t>(file_mb) << 20,
                           .disk_bytes = static_cast<uint64_t>(disk_mb) << 20};
  return options;
}

// Complete or not there at all, whenever it is read.
absl::Status WritePortFile(const std::string& path, int port) {
  const std::string temporary = path + ".tmp";
  std::ofstream(temporary) << port << "\n";
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write --port_file=", path, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

void LogGrpc(gpr_log_func_args* args) {
  const auto severity = args->severity == GPR_LOG_SEVERITY_ERROR ? absl::LogSeverity::kWarning : absl::LogSeverity::kInfo;
  LOG(LEVEL(severity)).AtLocation(args->file, args->line) << "gRPC: " << args->message;
}

int RunDaemon(absl::string_view role) {
  const std::string format = absl::GetFlag(FLAGS_log_format);
  if (format != "json" && format != "text") {
    return UsageError("--log_format is json or text");
  }
  const absl::StatusOr<DaemonOptions> options = OptionsFromFlags(role);
  if (!options.ok()) {
    return UsageError(options.status().message());
  }
  // Before any thread starts, so that all inherit it: signals to stop are taken by sigwait below and nowhere else; no code runs
  // in a handler.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  const LogOutput log(format == "json" ? LogOutput::Format::kJson : LogOutput::Format::kText, STDERR_FILENO);
  gpr_set_log_function(LogGrpc);
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(*options);
  if (!daemon.ok()) {
    LOG(ERROR) << "cannot start: " << daemon.status().message();
    return 1;
  }
  const std::string port_file = absl::GetFlag(FLAGS_port_file);
  if (role == "serve") {
    LOG(INFO) << "modelpressd " << MODELPRESS_VERSION << " serves on port " << (*daemon)->port()
              << " (--listen=" << options->listen << "), data in " << options->data_folder;
    if (absl::Status written = port_file.empty() ? absl::OkStatus() : WritePortFile(port_file, (*daemon)->port());
        !written.ok()) {
      LOG(ERROR) << "cannot start: " << written.message();
      return 1;
    }
  } else {
    LOG(INFO) << "modelpressd " << MODELPRESS_VERSION << " works on the queue in " << options->data_folder;
  }
  if ((*daemon)->health_port() != 0) {
    LOG(INFO) << "health on port " << (*daemon)->health_port() << " (--health_listen=" << options->health_listen << ")";
  }
  if ((*daemon)->metrics_port() != 0) {
    LOG(INFO) << "metrics on port " << (*daemon)->metrics_port() << " (--metrics_listen=" << options->metrics_listen << ")";
  }
  int signal = 0;
  sigwait(&stop_signals, &signal);
  pthread_sigmask(SIG_UNBLOCK, &stop_signals, nullptr);
  LOG(INFO) << "stopping on SIG" << sigabbrev_np(signal) << ", within " << absl::FormatDuration(options->drain_timeout);
  (*daemon)->Stop();
  daemon->reset();
  LOG(INFO) << "stopped";
  return 0;
}

int RunHealth() {
  std::string tls_ca;
  if (const std::string path = absl::GetFlag(FLAGS_tls_ca); !path.empty()) {
    std::ostringstream pem;
    pem << std::ifstream(path).rdbuf();
    tls_ca = pem.str();
    if (tls_ca.empty()) {
      return UsageError(absl::StrCat("--tls_ca=", path, " cannot be read or is empty"));
    }
  }
  const absl::Status serving = ProbeHealth(absl::GetFlag(FLAGS_target), absl::Seconds(5), tls_ca);
  if (!serving.ok()) {
    std::cerr << "modelpressd: " << serving.message() << "\n";
  }
  return serving.ok() ? 0 : 1;
}

int RunCreateToken() {
  const double hours = absl::GetFlag(FLAGS_expire_in_h);
  if (!(hours >= 0)) {
    return UsageError("--expire_in_h must not be negative");
  }
  const absl::StatusOr<NewToken> made =
      CreateToken(absl::GetFlag(FLAGS_principal), absl::GetFlag(FLAGS_project), absl::GetFlag(FLAGS_role),
                  hours == 0 ? absl::InfiniteFuture() : absl::Now() + absl::Hours(hours));
  if (!made.ok()) {
    return UsageError(made.status().message());
  }
  std::cout << made->token << "\n" << made->entry;
  return 0;
}

int Main(int argc, char** argv) {
  // Descriptors 0 to 2 must not become files of ours.
  while (true) {
    const int fd = open("/dev/null", O_RDWR);
    if (fd > STDERR_FILENO) {
      close(fd);
      break;
    }
  }
  // Without a look at flags: it must start quickly.
  if (argc == 2 && absl::string_view(argv[1]) == "run") {
    return RunChild();
  }
  const std::vector<absl::string_view> words(argv + 1, argv + argc);
  if (std::ranges::find(words, "--help") != words.end() || std::ranges::find(words, "-h") != words.end()) {
    PrintHelp();
    return 0;
  }
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return absl::StrCat("modelpressd ", MODELPRESS_VERSION, "\n"); };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> positional = absl::ParseCommandLine(argc, argv);
  if (positional.size() != 2) {
    return UsageError("give one role: serve, work, health or create-token");
  }
  const absl::string_view role = positional[1];
  if (role == "serve" || role == "work") {
    return RunDaemon(role);
  }
  if (role == "health") {
    return RunHealth();
  }
  if (role == "create-token") {
    return RunCreateToken();
  }
  return UsageError(absl::StrCat("no such role: ", role));
}

}  // namespace
}  // namespace modelpress::server

int main(int argc, char** argv) { return modelpress::server::Main(argc, argv); }
