// Log output of the daemon: absl's LOG() as one JSON object per line for machines, or as text for terminals.
#ifndef MODELPRESS_SERVER_LOG_LOG_H_
#define MODELPRESS_SERVER_LOG_LOG_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/log_sink.h"

namespace modelpress::server {

using LogFields = std::vector<std::pair<std::string, std::string>>;

// Adds fields to every entry that this thread logs while it lives: ScopedLogFields fields({{"operation", id}}).
class ScopedLogFields {
 public:
  explicit ScopedLogFields(LogFields fields);
  ~ScopedLogFields();
  ScopedLogFields(const ScopedLogFields&) = delete;
  ScopedLogFields& operator=(const ScopedLogFields&) = delete;

 private:
  size_t outer_count_;
};

// One entry as JSON without line end: time (RFC 3339, UTC), severity, message, file, line, and this thread's fields.
std::string LogEntryAsJson(const absl::LogEntry& entry);
// The same for people: "2026-01-31T12:00:00.123Z INFO message (operation=o1)".
std::string LogEntryAsText(const absl::LogEntry& entry);

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
