#include "server/log/trace.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "server/base/random.h"

namespace modelpress::server {
namespace {

constexpr size_t kTraceIdSize = 32;
constexpr size_t kSpanIdSize = 16;
constexpr size_t kHeaderSize = 2 + 1 + kTraceIdSize + 1 + kSpanIdSize + 1 + 2;
constexpr int kSampled = 1;  // bit of the flags

int HexValue(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

bool IsHex(absl::string_view text) {
  return std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsId(absl::string_view text) {
  return IsHex(text) && std::ranges::any_of(text, [](char c) { return c != '0'; });
}

std::string NewSpanId() {
  // All zeros would be no id; one bit of 64 is no loss.
  return absl::StrCat(absl::Hex(RandomBits()[0] | 1, absl::kZeroPad16));
}

std::string NewTraceId() {
  const std::array<uint64_t, 2> random = RandomBits();
  return absl::StrCat(absl::Hex(random[0], absl::kZeroPad16), absl::Hex(random[1] | 1, absl::kZeroPad16));
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(absl::string_view header) {
  if (header.size() < kHeaderSize || header[2] != '-' || header[35] != '-' || header[52] != '-') {
    return std::nullopt;
  }
  const absl::string_view version = header.substr(0, 2);
  const absl::string_view trace_id = header.substr(3, kTraceIdSize);
  const absl::string_view span_id = header.substr(36, kSpanIdSize);
  const absl::string_view flags = header.substr(53, 2);
  const absl::string_view rest = header.substr(kHeaderSize);
  const bool rest_is_legal = version == "00" ? rest.empty() : rest.empty() || rest.front() == '-';
  if (!IsHex(version) || version == "ff" || !IsId(trace_id) || !IsId(span_id) || !IsHex(flags) || !rest_is_legal) {
    return std::nullopt;
  }
  return TraceContext{
      .trace_id = std::string(trace_id), .span_id = std::string(span_id), .sampled = (HexValue(flags[1]) & kSampled) != 0};
}

std::string FormatTraceparent(const TraceContext& context) {
  return absl::StrCat("00-", context.trace_id, "-", context.span_id, context.sampled ? "-01" : "-00");
}

TraceContext ContinueTrace(absl::string_view header) {
  TraceContext context = ParseTraceparent(header).value_or(TraceContext{.trace_id = NewTraceId()});
  context.span_id = NewSpanId();
  return context;
}

LogFields TraceFields(absl::string_view header) {
  const std::optional<TraceContext> context = ParseTraceparent(header);
  return context.has_value() ? LogFields{{"trace_id", context->trace_id}, {"span_id", context->span_id}} : LogFields();
}

}  // namespace modelpress::server
