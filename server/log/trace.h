// Where a call stands in a distributed trace: https://www.w3.org/TR/trace-context/ (level 1).
#ifndef MODELPRESS_SERVER_LOG_TRACE_H_
#define MODELPRESS_SERVER_LOG_TRACE_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "server/log/log.h"

namespace modelpress::server {

// Name of the HTTP header, and so of the request metadata, that carries a TraceContext.
inline constexpr char kTraceparent[] = "traceparent";

struct TraceContext {
  std::string trace_id;  // of the whole trace: 32 hexadecimal digits in lower case, not all 0
  std::string span_id;   // of one piece of work in it ("parent-id" in the header): 16 such digits, not all 0
  bool sampled = false;  // whoever came before keeps what it has of this trace

  friend bool operator==(const TraceContext&, const TraceContext&) = default;
};

// Reads a `traceparent` header: "00-<trace id>-<span id>-<flags>", or what a later version appends to that. nullopt for anything
// else.
std::optional<TraceContext> ParseTraceparent(absl::string_view header);

// The header that passes `context` on.
std::string FormatTraceparent(const TraceContext& context);

// A new span of the trace that `header` names, or of a new trace where it names none (section 3.3: an invalid header is dealt
// with as if it had not come). Both ids come from the kernel's randomness.
TraceContext ContinueTrace(absl::string_view header);

// The log fields trace_id and span_id of a header; none if it is not valid.
LogFields TraceFields(absl::string_view header);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_LOG_TRACE_H_
