#include "server/base/quotas.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::server {
namespace {

absl::string_view Advice(absl::string_view quota) {
  if (quota == "bytes") {
    return "delete files or workspaces that are needed no more";
  }
  return quota == "pending" ? "wait for some of them to end" : "delete one that is needed no more";
}

}  // namespace

absl::Status QuotaExceeded(absl::string_view quota, uint64_t limit, uint64_t used, uint64_t wanted) {
  return WithMetadata(
      WithMetadata(WithMetadata(MakeError(v1::QUOTA_EXCEEDED,
                                          absl::StrCat("the project's quota of ", quota, " is ", limit, ", of which ", used,
                                                       " are used, and this needs ", wanted, " more; ", Advice(quota),
                                                       ", or ask the server's operator for a larger quota")),
                                "quota", quota),
                   "limit", absl::StrCat(limit)),
      "used", absl::StrCat(used));
}

}  // namespace modelpress::server
