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
    const std::optional<int64_t> suppressed =
        limiter_.Admit(entry.log_severity(), entry.source_filename(), entry.source_line(), entry.timestamp());
    if (!suppressed.has_value()) {
      return;
    }
    std::string line =
        format_ == LogOutput::Format::kJson ? LogEntryAsJson(entry, *suppressed) : LogEntryAsText(entry, *suppressed);
    line += '\n';
    // Nothing can be done about a log that cannot be written.
    [[maybe_unused]] const ssize_t written = write(fd_, line.data(), line.size());
  }

 private:
  const LogOutput::Format format_;
  const int fd_;
  RepeatLimiter limiter_;
};

// As Google Cloud, Datadog and others take them without being told.
absl::string_view SeverityName(absl::LogSeverity severity) {
  return severity == absl::LogSeverity::kFatal ? "CRITICAL" : absl::LogSeverityName(severity);
}

// Every C0 and C1 control character (the latter in UTF-8) as \xNN.
std::string EscapeControls(absl::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const unsigned char next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    if (byte == 0xc2 && next >= 0x80 && next < 0xa0) {
      absl::StrAppend(&escaped, "\\x", absl::Hex(next, absl::kZeroPad2));
      ++i;
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&escaped, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      escaped += text[i];
    }
  }
  return escaped;
}

std::string ValueText(const LogValue& value) {
  return std::visit([](const auto& typed) { return absl::StrCat(typed); }, value);
}

}  // namespace

ScopedLogFields::ScopedLogFields(LogFields fields) : outer_count_(ThreadFields().size()) {
  for (auto& field : fields) {
    ThreadFields().push_back(std::move(field));
  }
}

ScopedLogFields::~ScopedLogFields() { ThreadFields().resize(outer_count_); }

std::string LogEntryAsJson(const absl::LogEntry& entry, int64_t suppressed) {
  nlohmann::ordered_json json;
  json["time"] = FormatLogTime(entry.timestamp());
  json["severity"] = std::string(SeverityName(entry.log_severity()));
  json["message"] = std::string(entry.text_message());
  json["file"] = std::string(entry.source_basename());
  json["line"] = entry.source_line();
  if (suppressed > 0) {
    json["suppressed"] = suppressed;
  }
  for (const auto& [key, value] : ThreadFields()) {
    std::visit([&json, &key](const auto& typed) { json[key] = typed; }, value);
  }
  // A child may write anything to its stderr: bytes that are no UTF-8 become U+FFFD.
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string LogEntryAsText(const absl::LogEntry& entry, int64_t suppressed) {
  std::string fields;
  auto add = [&fields](absl::string_view key, absl::string_view value) {
    absl::StrAppend(&fields, fields.empty() ? " (" : ", ", key, "=", value);
  };
  if (suppressed > 0) {
    add("suppressed", absl::StrCat(suppressed));
  }
  for (const auto& [key, value] : ThreadFields()) {
    add(key, ValueText(value));
  }
  return EscapeControls(absl::StrCat(FormatLogTime(entry.timestamp()), " ", SeverityName(entry.log_severity()), " ",
                                     entry.text_message(), fields, fields.empty() ? "" : ")"));
}

std::optional<int64_t> RepeatLimiter::Admit(absl::LogSeverity severity, absl::string_view file, int line, absl::Time time) {
  if (severity < absl::LogSeverity::kWarning || severity == absl::LogSeverity::kFatal) {
    return 0;
  }
  std::lock_guard lock(mutex_);
  Window& window = windows_.try_emplace({std::string(file), line}, Window{time}).first->second;
  if (time - window.begin >= kWindow || time < window.begin) {
    window.begin = time;
    window.written = 0;
  }
  if (window.written >= kPerWindow) {
    ++window.suppressed;
    return std::nullopt;
  }
  ++window.written;
  return std::exchange(window.suppressed, 0);
}

LogOutput::LogOutput(Format format, int fd) : sink_(std::make_unique<FdSink>(format, fd)) {
  static std::once_flag once;  // of the process; absl aborts at the second time
  std::call_once(once, absl::InitializeLog);
  absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfinity);
  absl::AddLogSink(sink_.get());
}

LogOutput::~LogOutput() { absl::RemoveLogSink(sink_.get()); }

}  // namespace modelpress::server
