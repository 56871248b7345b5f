// How the client library fails: an absl::Status that keeps the details the server sent (google.rpc.ErrorInfo, BadRequest,
// PreconditionFailure) as payloads under their type URLs. Errors found on this machine carry an ErrorInfo as well, so that
// callers read every error in one way.
#ifndef MODELPRESS_CLIENT_CPP_STATUS_H_
#define MODELPRESS_CLIENT_CPP_STATUS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"
#include "modelpress/v1/errors.pb.h"

namespace modelpress::client {

// The reason of errors that this machine's file system caused (disk full, no permission, ...). All other reasons are names
// of api/modelpress/v1/errors.proto.
inline constexpr absl::string_view kLocalIoReason = "LOCAL_IO";

// What an error says about itself. Empty or 0: not known.
struct ErrorDetails {
  std::string reason = {};   // "RECORD_VALUE"
  std::string message = {};  // for people; begins with the place where the server knew one
  std::string field = {};    // request field, e.g. "record_file"
  std::string file = {};
  int line = 0;    // from 1
  int column = 0;  // from 1
  std::string layer = {};
  std::vector<std::string> missing_files = {};
  std::map<std::string, std::string> metadata = {};  // everything the ErrorInfo carries
};

ErrorDetails DetailsOf(const absl::Status& status);

// The server's statuses with their details.
absl::Status FromGrpc(const grpc::Status& status);
absl::Status FromRpc(const google::rpc::Status& status);

// Errors found on this machine. The message becomes "FILE: message"; it says what is wrong and what to do.
absl::Status LocalError(absl::StatusCode code, v1::Reason reason, absl::string_view message, const std::string& file = "");
// For a failed system call; ENOENT becomes FILE_NOT_FOUND, the rest LOCAL_IO.
absl::Status LocalIoError(absl::string_view what, const std::string& file, int error_number);

// The same error with its file renamed, in the details and at the beginning of the text: the server knows a file by its
// name in the workspace, the user by its path.
absl::Status WithFileName(const absl::Status& status, const std::map<std::string, std::string>& local_names);
// The same error with `note` at the end of its text.
absl::Status WithNote(const absl::Status& status, absl::string_view note);

}  // namespace modelpress::client

// Returns from the enclosing function if `expr` (an absl::Status) is not OK.
#define MPC_RETURN_IF_ERROR(expr)                             \
  do {                                                        \
    if (absl::Status mpc_status = (expr); !mpc_status.ok()) { \
      return mpc_status;                                      \
    }                                                         \
  } while (false)

#define MPC_CONCAT_INNER(a, b) a##b
#define MPC_CONCAT(a, b) MPC_CONCAT_INNER(a, b)

// MPC_ASSIGN_OR_RETURN(auto value, Function()): declares or assigns `value`, or returns the error.
#define MPC_ASSIGN_OR_RETURN(lhs, expr) MPC_ASSIGN_OR_RETURN_INNER(MPC_CONCAT(mpc_statusor_, __LINE__), lhs, expr)
#define MPC_ASSIGN_OR_RETURN_INNER(statusor, lhs, expr) \
  auto statusor = (expr);                               \
  if (!statusor.ok()) {                                 \
    return std::move(statusor).status();                \
  }                                                     \
  lhs = *std::move(statusor)

#endif  // MODELPRESS_CLIENT_CPP_STATUS_H_
