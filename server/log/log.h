// Log output of the daemon: absl's LOG() as one JSON object per line for machines, or as text for terminals.
#ifndef MODELPRESS_SERVER_LOG_LOG_H_
#define MODELPRESS_SERVER_LOG_LOG_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/log/log_sink.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace modelpress::server {

using LogValue = std::variant<std::string, int64_t, double>;
using LogFields = std::vector<std::pair<std::string, LogValue>>;

// Adds fields to every entry that this thread logs while it lives: ScopedLogFields fields({{"operation", id}}). Names of the
// entry's own fields (LogEntryAsJson) must not be used.
class ScopedLogFields {
 public:
  explicit ScopedLogFields(LogFields fields);
  ~ScopedLogFields();
  ScopedLogFields(const ScopedLogFields&) = delete;
  ScopedLogFields& operator=(const ScopedLogFields&) = delete;

 private:
  size_t outer_count_;
};

// One entry as JSON without line end: time (RFC 3339, UTC), severity (INFO, WARNING, ERROR, CRITICAL), message, file, line, and
// this thread's fields. `suppressed` (if not 0): how many entries like it were left out before.
std::string LogEntryAsJson(const absl::LogEntry& entry, int64_t suppressed = 0);
// The same for people: "2026-01-31T12:00:00.123Z INFO message (operation=o1)". Control characters are escaped, so that whatever
// callers' texts hold, an entry is one line and a terminal does as it did.
std::string LogEntryAsText(const absl::LogEntry& entry, int64_t suppressed = 0);

// Keeps errors that repeat from filling the disk: of the warnings and errors of one source line, so many per window get through.
// Thread-safe.
class RepeatLimiter {
 public:
  static constexpr int kPerWindow = 20;
  static constexpr absl::Duration kWindow = absl::Minutes(1);

  // Whether the entry is to be written: the number of those left out since the last one that was; nullopt: it is left out.
  std::optional<int64_t> Admit(absl::LogSeverity severity, absl::string_view file, int line, absl::Time time);

 private:
  struct Window {
    absl::Time begin;
    int written = 0;
    int64_t suppressed = 0;
  };
  std::mutex mutex_;
  std::map<std::pair<std::string, int>, Window> windows_;  // as many as there are LOG()s
};

// While it lives, everything logged goes to `fd`, each entry with one write(2), and nothing to absl's own stderr output. One per
// process.
class LogOutput {
 public:
  enum class Format { kJson, kText };
  LogOutput(Format format, int fd);
  ~LogOutput();
  LogOutput(const LogOutput&) = delete;
  LogOutput& operator=(const LogOutput&) = delete;

 private:
  std::unique_ptr<absl::LogSink> sink_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_LOG_LOG_H_
