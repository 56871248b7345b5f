#include "server/worker/run_limits.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "server/worker/run_protocol.h"

namespace modelpress::server {
namespace {

constexpr size_t kMaxStage = 64;
constexpr int kMaxWarnings = 1000;
constexpr size_t kMaxWarning = 4096;
constexpr size_t kMaxError = 64 << 10;    // with its details; what the engine makes ends at some 10 KiB
constexpr size_t kMaxResponse = 3 << 20;  // goes to callers in one gRPC message
constexpr size_t kMaxReport = 1 << 20;    // the same, and kept in the database
constexpr int kMaxOutputs = 100'000;
constexpr size_t kMaxLine = 2048;
constexpr double kLinesAtOnce = 500;
constexpr double kLinesPerSecond = 5;

// At most `size` bytes, without cutting a character of UTF-8 in two.
void Cut(std::string& text, size_t size) {
  if (text.size() > size) {
    while (size > 0 && (static_cast<uint8_t>(text[size]) & 0xC0) == 0x80) {
      --size;
    }
    text.resize(size);
  }
}

absl::Status LimitResult(RunResult& result) {
  if (result.error().ByteSizeLong() > kMaxError) {
    return absl::DataLossError("an error is over 64 KiB long");
  }
  if (result.response().ByteSizeLong() > kMaxResponse) {
    return absl::DataLossError("a response is over 3 MiB long");
  }
  const std::string& type_url = result.response().type_url();
  const auto* type =
      google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(type_url.substr(type_url.rfind('/') + 1));
  if (type != nullptr) {  // else it is never parsed
    if (absl::Status count = CheckFieldCount(result.response().value(), *type); !count.ok()) {
      return count;
    }
  }
  if (result.outputs_size() > kMaxOutputs) {
    return absl::DataLossError(absl::StrCat(result.outputs_size(), " output files"));
  }
  if (const size_t size = result.report().size(); size > kMaxReport) {
    result.clear_report();
    result.add_warnings(absl::StrCat("the report is not kept: it has ", size, " bytes, over 1 MiB"));
  }
  if (const int count = result.warnings_size(); count > kMaxWarnings) {
    result.mutable_warnings()->DeleteSubrange(kMaxWarnings - 1, count - kMaxWarnings + 1);
    result.add_warnings(absl::StrCat(count - kMaxWarnings + 1, " more warnings are not kept"));
  }
  for (std::string& warning : *result.mutable_warnings()) {
    Cut(warning, kMaxWarning);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LimitEvent(RunEvent& event) {
  if (event.has_progress()) {
    Cut(*event.mutable_progress()->mutable_stage(), kMaxStage);
  }
  return event.has_result() ? LimitResult(*event.mutable_result()) : absl::OkStatus();
}

std::optional<std::string> LogLimiter::Take(absl::string_view line, absl::Time now) {
  allowance_ = refilled_.has_value() ? allowance_ + kLinesPerSecond * absl::ToDoubleSeconds(now - *refilled_) : kLinesAtOnce;
  allowance_ = std::min(allowance_, kLinesAtOnce);
  refilled_ = now;
  if (allowance_ < 1) {
    ++dropped_;
    return std::nullopt;
  }
  allowance_ -= 1;
  std::string text(line);
  Cut(text, kMaxLine);
  std::ranges::replace_if(text, [](char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); }, '?');
  return text;
}

}  // namespace modelpress::server
