// How every fallible function of modelpress fails: an absl::Status whose payload is a google.rpc.ErrorInfo with a reason of
// api/modelpress/v1/errors.proto and, where known, the file, line, column and layer that are to blame. Texts never have to
// be parsed.
#ifndef MODELPRESS_ENGINE_BASE_STATUS_H_
#define MODELPRESS_ENGINE_BASE_STATUS_H_

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "modelpress/v1/errors.pb.h"

namespace modelpress {

// Where an error lies, in the caller's terms. Empty or 0: not known or not applicable.
struct ErrorPlace {
  std::string field = {};  // request field the thing came in by, e.g. "record_file"; becomes a BadRequest violation
  std::string file = {};   // name of the caller's file
  int line = 0;            // from 1
  int column = 0;          // from 1
  std::string layer = {};  // name of the node or tensor
};

// The gRPC code that a reason stands for. Who is at fault decides it.
absl::StatusCode CodeOf(v1::Reason reason);

// A status with code CodeOf(reason). The text is "FILE:LINE:COLUMN: layer NAME: message", as far as the parts are known;
// `message` says what is wrong and what to do, in one sentence without a final full stop.
absl::Status MakeError(v1::Reason reason, absl::string_view message, const ErrorPlace& place = {});

// The same status with the empty parts of its place filled in from `place`, where an inner function did not know them.
// OK and statuses without a reason are returned unchanged.
absl::Status AtPlace(const absl::Status& status, const ErrorPlace& place);

// Adds a free metadata pair (`committed_size`, ...) to the ErrorInfo.
absl::Status WithMetadata(const absl::Status& status, absl::string_view key, absl::string_view value);

// What a status says about itself. A status without payload has REASON_UNSPECIFIED.
v1::Reason ReasonOf(const absl::Status& status);
ErrorPlace PlaceOf(const absl::Status& status);
std::map<std::string, std::string> MetadataOf(const absl::Status& status);

// True where trying again elsewhere or later can help: our infrastructure failed, not the input.
bool IsInfrastructureError(const absl::Status& status);

}  // namespace modelpress

// Returns from the enclosing function if `expr` (an absl::Status) is not OK.
#define MP_RETURN_IF_ERROR(expr)                            \
  do {                                                      \
    if (absl::Status mp_status = (expr); !mp_status.ok()) { \
      return mp_status;                                     \
    }                                                       \
  } while (false)

#define MP_CONCAT_INNER(a, b) a##b
#define MP_CONCAT(a, b) MP_CONCAT_INNER(a, b)

// MP_ASSIGN_OR_RETURN(auto value, Function()): declares or assigns `value`, or returns the error.
#define MP_ASSIGN_OR_RETURN(lhs, expr) MP_ASSIGN_OR_RETURN_INNER(MP_CONCAT(mp_statusor_, __LINE__), lhs, expr)
#define MP_ASSIGN_OR_RETURN_INNER(statusor, lhs, expr) \
  auto statusor = (expr);                              \
  if (!statusor.ok()) {                                \
    return std::move(statusor).status();               \
  }                                                    \
  lhs = *std::move(statusor)

#endif  // MODELPRESS_ENGINE_BASE_STATUS_H_
