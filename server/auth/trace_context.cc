#include "server/auth/trace_context.h"

#include <openssl/rand.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace modelpress::server {
namespace {

constexpr size_t kTraceparent = 55;  // version-trace_id-parent_id-flags: 2, 32, 16 and 2 hex digits
constexpr size_t kTraceId = 16;      // bytes
constexpr size_t kSpanId = 8;        // bytes

bool IsLowerHex(absl::string_view text) {
  return std::ranges::all_of(text, [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) { return text.find_first_not_of('0') == absl::string_view::npos; }

}  // namespace

std::optional<std::string> ParseTraceparent(absl::string_view text) {
  if (text.size() < kTraceparent || text[2] != '-' || text[35] != '-' || text[52] != '-') {
    return std::nullopt;
  }
  const absl::string_view version = text.substr(0, 2);
  const absl::string_view trace_id = text.substr(3, 32);
  const absl::string_view parent_id = text.substr(36, 16);
  const absl::string_view flags = text.substr(53, 2);
  const bool right_end = text.size() == kTraceparent || (version != "00" && text[kTraceparent] == '-');
  const bool valid = right_end && version != "ff" && IsLowerHex(version) && IsLowerHex(trace_id) && IsLowerHex(parent_id) &&
                     IsLowerHex(flags) && !IsZero(trace_id) && !IsZero(parent_id);
  return valid ? std::optional(absl::StrCat("00-", trace_id, "-", parent_id, "-", flags)) : std::nullopt;
}

std::string NewTraceparent() {
  std::string ids(kTraceId + kSpanId, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(ids.data()), static_cast<int>(ids.size())) != 1) {
    ids.assign(ids.size(), '\1');  // legal; a system without random numbers serves no TLS either
  }
  const std::string hex = absl::BytesToHexString(ids);
  return absl::StrCat("00-", hex.substr(0, 2 * kTraceId), "-", hex.substr(2 * kTraceId), "-00");
}

}  // namespace modelpress::server
