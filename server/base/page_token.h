// Pages of lists by the rules of AIP-158.
#ifndef MODELPRESS_SERVER_BASE_PAGE_TOKEN_H_
#define MODELPRESS_SERVER_BASE_PAGE_TOKEN_H_

#include <string>

#include "absl/status/statusor.h"

namespace modelpress::server {

// How many rows a page has: 0 asks for 50, more than 1,000 gives 1,000. REQUEST_INVALID if negative.
absl::StatusOr<int> ResolvePageSize(int page_size);

// The token that goes on behind the row with key `last_key` of the list `scope`. The scope names the list and all its filters, so
// that a token given back with other ones is found out.
std::string EncodePageToken(const std::string& scope, const std::string& last_key);

// The key in `token`. PAGE_TOKEN_INVALID if the token was not made by EncodePageToken for this scope.
absl::StatusOr<std::string> DecodePageToken(const std::string& scope, const std::string& token);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_PAGE_TOKEN_H_
