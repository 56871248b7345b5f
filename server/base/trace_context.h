#ifndef MODELPRESS_SERVER_BASE_TRACE_CONTEXT_H_
#define MODELPRESS_SERVER_BASE_TRACE_CONTEXT_H_

#include <string>

namespace modelpress::server {

// The trace id in a `traceparent` (W3C Trace Context): 32 lower-case hex digits; "" if it is malformed or has none.
std::string TraceId(const std::string& traceparent);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_TRACE_CONTEXT_H_
