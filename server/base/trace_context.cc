#include "server/base/trace_context.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace modelpress::server {
namespace {

bool IsHexOf(absl::string_view text, size_t size) {
  return text.size() == size &&
         std::ranges::all_of(text, [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) { return text.find_first_not_of('0') == absl::string_view::npos; }

}  // namespace

std::string TraceId(const std::string& traceparent) {
  // version - trace id - parent id - flags; later versions may add parts.
  const std::vector<absl::string_view> parts = absl::StrSplit(traceparent, '-');
  const bool legal = parts.size() >= 4 && IsHexOf(parts[0], 2) && parts[0] != "ff" && (parts[0] != "00" || parts.size() == 4) &&
                     IsHexOf(parts[1], 32) && !IsZero(parts[1]) && IsHexOf(parts[2], 16) && !IsZero(parts[2]) &&
                     IsHexOf(parts[3], 2);
  return legal ? std::string(parts[1]) : "";
}

}  // namespace modelpress::server
