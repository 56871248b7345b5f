// modelpressd: one binary with the roles of a server. docs/server.md.
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "server/auth/credentials_file.h"
#include "server/backup/backup.h"
#include "server/base/clock.h"
#include "server/base/posix.h"
#include "server/config/check.h"
#include "server/config/command_line.h"
#include "server/config/load.h"
#include "server/config/options.h"
#include "server/daemon/daemon.h"
#include "server/daemon/health_probe.h"
#include "server/log/log.h"
#include "server/sql/postgres_database.h"
#include "server/worker/run.h"

namespace modelpress::server {
namespace {

constexpr int kExitUsage = 64;
constexpr char kTarget[] = "target";
constexpr char kFor[] = "for";
constexpr char kBackupDir[] = "backup_dir";
constexpr char kVerify[] = "verify";
constexpr char kTlsCa[] = "tls_ca";
constexpr char kPrincipal[] = "principal";
constexpr char kProject[] = "project";
constexpr char kRole[] = "role";
constexpr char kExpireInHours[] = "expire_in_h";

const std::vector<Command>& Commands() {
  static const auto* const commands = new std::vector<Command>{
      {.name = "serve", .help = "the gRPC services, and workers in the same process"},
      {.name = "work", .help = "workers only, for the queue in --data_dir"},
      {.name = "run", .help = "one operation; started by workers", .takes_settings = false},
      {.name = "check-config",
       .help = "prints the settings in force and checks them: exit code 0 if a daemon would start, else 1; warnings to stderr",
       .flags = {{.name = kFor, .help = "command to check them for: serve or work", .standard = "serve"}}},
      {.name = "backup",
       .help = "brings a backup of --data_dir up to date, while a server runs or not",
       .flags =
           {{.name = kBackupDir, .help = "folder of the backup; made if missing", .standard = ""},
            {.name = kVerify, .help = "only read the backup, whole, and compare digests", .standard = "false", .is_bool = true}}},
      {.name = "restore",
       .help = "makes a new --data_dir of a backup",
       .flags = {{.name = kBackupDir, .help = "folder of the backup", .standard = ""}}},
      {.name = "health",
       .help = "asks a server whether it serves: exit code 0 if it does, else 1",
       .takes_settings = false,
       .flags = {{.name = kTarget, .help = "address of the server to ask", .standard = "localhost:50051"},
                 {.name = kTlsCa,
                  .help = "PEM file with what the server's certificate must lead to; empty: plaintext",
                  .standard = ""}}},
      {.name = "create-token",
       .help = "makes a token: prints it, which happens only once, and below it the entry for --credentials_file",
       .takes_settings = false,
       .flags = {{.name = kPrincipal, .help = "name of the caller", .standard = ""},
                 {.name = kProject, .help = "project that the caller works in", .standard = ""},
                 {.name = kRole, .help = "reader, writer or admin", .standard = ""},
                 {.name = kExpireInHours, .help = "hours that the token is good for; 0: for ever", .standard = "0"}}},
  };
  return *commands;
}

void PrintHelp() {
  std::cout << "usage: modelpressd COMMAND [--FLAG=VALUE]...\n\n"
            << CommandHelp(Commands()) << R"(
--help and --version do what they say.
Settings come from flags, else from environment variables (MODELPRESSD_ and the flag's name in capitals), else from the file that
--config=FILE (or MODELPRESSD_CONFIG) names, in which the words in brackets below are messages of protobuf's text format.
A second SIGTERM or SIGINT ends the process without waiting. Exit codes: 0 ended on request, 1 could not start, 64 wrong usage.
)" << SettingsHelp();
}

int UsageError(absl::string_view message) {
  std::cerr << "modelpressd: " << message << "; see modelpressd --help\n";
  return kExitUsage;
}

std::vector<std::string> Environment() {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    entries.emplace_back(*entry);
  }
  return entries;
}

absl::StatusOr<LoadedConfig> Load(const CommandLine& line) { return LoadConfig(line.settings, Environment(), line.config_file); }

int CheckConfig(const CommandLine& line) {
  const std::string& role = line.flags.at(kFor);
  if (role != "serve" && role != "work") {
    return UsageError(absl::StrCat("--", kFor, " is serve or work"));
  }
  const absl::StatusOr<LoadedConfig> loaded = Load(line);
  if (!loaded.ok()) {
    std::cerr << "error: " << loaded.status().message() << "\n";
    return 1;
  }
  std::cout << PrintConfig(*loaded);
  const absl::StatusOr<DaemonOptions> options =
      ToDaemonOptions(loaded->config, role == "work" ? DaemonRole::kWork : DaemonRole::kServe);
  if (!options.ok()) {
    std::cerr << "error: " << options.status().message() << "\n";
    return 1;
  }
  int exit_code = 0;
  for (const Finding& finding : CheckOptions(*options)) {
    std::cerr << (finding.is_error ? "error: " : "warning: ") << finding.text << "\n";
    exit_code = finding.is_error ? 1 : exit_code;
  }
  return exit_code;
}

// `backup` and `restore`.
int CopyData(const CommandLine& line) {
  const absl::StatusOr<LoadedConfig> loaded = Load(line);
  if (!loaded.ok()) {
    return UsageError(loaded.status().message());
  }
  const std::string& data_folder = loaded->config.storage().data_dir();
  const std::string& backup_folder = line.flags.at(kBackupDir);
  const std::string& database = loaded->config.storage().database();
  if (PostgresDatabase::IsUrl(database)) {
    return UsageError("the backup of a PostgreSQL database is pg_dump's, see docs/server.md; leave --database out");
  }
  const bool verify = line.command == "backup" && line.flags.at(kVerify) == "true";
  if (backup_folder.empty() || (data_folder.empty() && !verify)) {
    return UsageError(absl::StrCat("--", kBackupDir, verify ? " is needed" : " and --data_dir are needed"));
  }
  const absl::StatusOr<BackupSummary> summary = verify ? VerifyBackup(backup_folder)
                                                : line.command == "restore"
                                                    ? RestoreBackup(backup_folder, data_folder)
                                                    : Backup(data_folder, database, backup_folder, SystemClock());
  if (!summary.ok()) {
    std::cerr << "modelpressd: " << summary.status().message() << "\n";
    return 1;
  }
  std::cout << summary->blobs << " contents of " << summary->bytes << " bytes, of which " << summary->copied_blobs << " of "
            << summary->copied_bytes << " bytes were copied\n";
  return 0;
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

// Says that a message has bytes that are no UTF-8, which any caller and any child can send.
void LogProtobuf(google::protobuf::LogLevel level, const char* file, int line, const std::string& message) {
  const auto severity = level == google::protobuf::LOGLEVEL_INFO ? absl::LogSeverity::kInfo : absl::LogSeverity::kWarning;
  LOG(LEVEL(severity)).AtLocation(file, line) << "protobuf: " << message;
}

int RunDaemon(const CommandLine& line) {
  const absl::StatusOr<LoadedConfig> loaded = Load(line);
  if (!loaded.ok()) {
    return UsageError(loaded.status().message());
  }
  const ServerConfig& config = loaded->config;
  const DaemonRole role = line.command == "work" ? DaemonRole::kWork : DaemonRole::kServe;
  const absl::StatusOr<DaemonOptions> options = ToDaemonOptions(config, role);
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

  const LogOutput log(config.observation().log_format() == "json" ? LogOutput::Format::kJson : LogOutput::Format::kText,
                      STDERR_FILENO);
  gpr_set_log_function(LogGrpc);
  google::protobuf::SetLogHandler(LogProtobuf);
  RaiseDescriptorLimit();  // every connection and every transfer has some
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(*options);
  if (!daemon.ok()) {
    LOG(ERROR) << "cannot start: " << daemon.status().message();
    return 1;
  }
  if (role == DaemonRole::kServe) {
    LOG(INFO) << "modelpressd " << MODELPRESS_VERSION << " serves on port " << (*daemon)->port()
              << " (--listen=" << options->listen << "), data in " << options->data_folder;
  } else {
    LOG(INFO) << "modelpressd " << MODELPRESS_VERSION << " works on the queue in " << options->data_folder;
  }
  if ((*daemon)->health_port() != 0) {
    LOG(INFO) << "health on port " << (*daemon)->health_port() << " (--health_listen=" << options->health_listen << ")";
  }
  if ((*daemon)->metrics_port() != 0) {
    LOG(INFO) << "metrics on port " << (*daemon)->metrics_port() << " (--metrics_listen=" << options->metrics_listen << ")";
  }
  // Last, so that whoever waits for it finds the other ports in the log.
  if (const std::string& port_file = config.rpc().port_file(); role == DaemonRole::kServe && !port_file.empty()) {
    if (absl::Status written = WritePortFile(port_file, (*daemon)->port()); !written.ok()) {
      LOG(ERROR) << "cannot start: " << written.message();
      return 1;
    }
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

int RunHealth(const CommandLine& line) {
  const std::string& path = line.flags.at(kTlsCa);
  std::string tls_ca;
  if (!path.empty()) {
    std::ostringstream pem;
    pem << std::ifstream(path).rdbuf();
    tls_ca = pem.str();
    if (tls_ca.empty()) {
      return UsageError(absl::StrCat("--", kTlsCa, "=", path, " cannot be read or is empty"));
    }
  }
  const absl::Status serving = ProbeHealth(line.flags.at(kTarget), absl::Seconds(5), tls_ca);
  if (!serving.ok()) {
    std::cerr << "modelpressd: " << serving.message() << "\n";
  }
  return serving.ok() ? 0 : 1;
}

int RunCreateToken(const CommandLine& line) {
  double hours = 0;
  if (!absl::SimpleAtod(line.flags.at(kExpireInHours), &hours) || !(hours >= 0)) {
    return UsageError(absl::StrCat("--", kExpireInHours, " must be a number of hours, not negative"));
  }
  const absl::StatusOr<NewToken> made =
      CreateToken(line.flags.at(kPrincipal), line.flags.at(kProject), line.flags.at(kRole),
                  hours == 0 ? absl::InfiniteFuture() : SystemClock().Now() + absl::Hours(hours));
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
  // Without a look at settings: it must start quickly, and those of its worker are not its.
  if (argc == 2 && absl::string_view(argv[1]) == "run") {
    return RunChild();
  }
  const absl::StatusOr<CommandLine> line = ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), Commands());
  if (!line.ok()) {
    return UsageError(line.status().message());
  }
  if (line->help) {
    PrintHelp();
    return 0;
  }
  if (line->version) {
    std::cout << "modelpressd " << MODELPRESS_VERSION << "\n";
    return 0;
  }
  if (line->command == "serve" || line->command == "work") {
    return RunDaemon(*line);
  }
  if (line->command == "health") {
    return RunHealth(*line);
  }
  if (line->command == "create-token") {
    return RunCreateToken(*line);
  }
  if (line->command == "check-config") {
    return CheckConfig(*line);
  }
  if (line->command == "backup" || line->command == "restore") {
    return CopyData(*line);
  }
  return RunChild();  // `run` in unusual company
}

}  // namespace
}  // namespace modelpress::server

int main(int argc, char** argv) { return modelpress::server::Main(argc, argv); }
