#include "server/base/page_token.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/base/sha256.h"

namespace modelpress::server {
namespace {

constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 1000;
constexpr size_t kCheckSize = 16;  // hex digits; finds mistakes, keeps no secret

std::string Check(const std::string& scope, const std::string& key) {
  return Sha256Hex(absl::StrCat(scope.size(), ":", scope, key)).substr(0, kCheckSize);
}

}  // namespace

absl::StatusOr<int> ResolvePageSize(int page_size) {
  if (page_size < 0) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("page size ", page_size, " is negative; 0 means ", kDefaultPageSize),
                     {.field = "page_size"});
  }
  return page_size == 0 ? kDefaultPageSize : std::min(page_size, kMaxPageSize);
}

std::string EncodePageToken(const std::string& scope, const std::string& last_key) {
  return absl::WebSafeBase64Escape(absl::StrCat(Check(scope, last_key), last_key));
}

absl::StatusOr<std::string> DecodePageToken(const std::string& scope, const std::string& token) {
  std::string bytes;
  if (!absl::WebSafeBase64Unescape(token, &bytes) || bytes.size() < kCheckSize ||
      bytes.substr(0, kCheckSize) != Check(scope, bytes.substr(kCheckSize))) {
    return MakeError(
        v1::PAGE_TOKEN_INVALID,
        "page_token is not one that this list gave; take next_page_token of the page before and leave the filter as it was",
        {.field = "page_token"});
  }
  return bytes.substr(kCheckSize);
}

}  // namespace modelpress::server
