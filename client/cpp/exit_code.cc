#include "client/cpp/exit_code.h"

#include "client/cpp/status.h"

namespace modelpress::client {

ExitCode ExitCodeOf(const absl::Status& status) {
  if (DetailsOf(status).reason == kLocalIoReason) {
    return kExitLocalIo;
  }
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return kExitInput;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kAlreadyExists:
      return kExitExists;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTryLater;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return kExitPermission;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitServer;
  }
}

}  // namespace modelpress::client
