#ifndef MODELPRESS_SERVER_AUTH_TRACE_CONTEXT_H_
#define MODELPRESS_SERVER_AUTH_TRACE_CONTEXT_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace modelpress::server {

// The metadata `traceparent` of W3C Trace Context (level 1, section 3.2) as version 00; nullopt if it is not valid. Of a later
// version the parts that 00 has are kept, as section 4.3 there wants it.
std::optional<std::string> ParseTraceparent(absl::string_view text);

// One with random ids, not sampled.
std::string NewTraceparent();

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_TRACE_CONTEXT_H_
