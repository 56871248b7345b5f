#include "server/log/log.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "absl/base/log_severity.h"
#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink_registry.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace modelpress::server {
namespace {

LogFields& ThreadFields() {
  thread_local LogFields fields;
  return fields;
}

std::string FormatLogTime(absl::Time time) { return absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", time, absl::UTCTimeZone()); }

class FdSink final : public absl::LogSink {
 public:
  FdSink(LogOutput::Format format, int fd) : format_(format), fd_(fd) {}
  void Send(const absl::LogEntry& entry) override {
    std::string line = format_ == LogOutput::Format::kJson ? LogEntryAsJson(entry) : LogEntryAsText(entry);
    line += '\n';
    // Nothing can be done about a log that cannot be written.
    [[maybe_unused]] const ssize_t written = write(fd_, line.data(), line.size());
  }

 private:
  const LogOutput::Format format_;
  const int fd_;
};

}  // namespace

ScopedLogFields::ScopedLogFields(LogFields fields) : outer_count_(ThreadFields().size()) {
  for (auto& field : fields) {
    ThreadFields().push_back(std::move(field));
  }
}

ScopedLogFields::~ScopedLogFields() { ThreadFields().resize(outer_count_); }

std::string LogEntryAsJson(const absl::LogEntry& entry) {
  nlohmann::ordered_json json;
  json["time"] = FormatLogTime(entry.timestamp());
  json["severity"] = absl::LogSeverityName(entry.log_severity());
  json["message"] = std::string(entry.text_message());
  json["file"] = std::string(entry.source_basename());
  json["line"] = entry.source_line();
  for (const auto& [key, value] : ThreadFields()) {
    json[key] = value;
  }
  // A child may write anything to its stderr: bytes that are no UTF-8 become U+FFFD.
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string LogEntryAsText(const absl::LogEntry& entry) {
  std::string text =
      absl::StrCat(FormatLogTime(entry.timestamp()), " ", absl::LogSeverityName(entry.log_severity()), " ", entry.text_message());
  const char* separator = " (";
  for (const auto& [key, value] : ThreadFields()) {
    absl::StrAppend(&text, separator, key, "=", value);
    separator = ", ";
  }
  return ThreadFields().empty() ? text : text + ")";
}

LogOutput::LogOutput(Format format, int fd) : sink_(std::make_unique<FdSink>(format, fd)) {
  absl::InitializeLog();
  absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfinity);
  absl::AddLogSink(sink_.get());
}

LogOutput::~LogOutput() { absl::RemoveLogSink(sink_.get()); }

}  // namespace modelpress::server
