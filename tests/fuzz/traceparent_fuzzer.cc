// The header of W3C Trace Context: what is accepted is passed on as it came, what is not begins a new trace.
#include <optional>
#include <string>

#include "server/log/trace.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(absl::string_view header) {
  const std::optional<TraceContext> context = ParseTraceparent(header);
  const TraceContext next = ContinueTrace(header);
  const std::string sent = FormatTraceparent(next);
  Require(ParseTraceparent(sent) == next, "what is sent can be read");
  Require(TraceFields(sent).size() == 2, "what is sent can be logged");
  if (context.has_value()) {
    Require(ParseTraceparent(FormatTraceparent(*context)) == context, "what was read can be written");
    Require(header.substr(3, 32) == context->trace_id && header.substr(36, 16) == context->span_id, "ids as they came");
    Require(next.trace_id == context->trace_id && next.sampled == context->sampled, "the trace goes on");
  }
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
