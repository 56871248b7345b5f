// Resource names and paths as the API spells them (workspaces.proto), checked once, at the door. Every error is NAME_INVALID
// (REQUEST_INVALID for an empty field, a bad digest or a bad request id) with the request field that is to blame.
#ifndef MODELPRESS_SERVER_RPC_NAMES_H_
#define MODELPRESS_SERVER_RPC_NAMES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace modelpress::server {

struct FileName {
  std::string workspace;  // id
  std::string path;
};

struct UploadName {
  std::string workspace;  // id
  std::string upload;     // id
};

// "workspaces/{id}" -> id, and so on.
absl::StatusOr<std::string> ParseWorkspaceName(const std::string& name, const std::string& field);
absl::StatusOr<FileName> ParseFileName(const std::string& name, const std::string& field);
absl::StatusOr<UploadName> ParseUploadName(const std::string& name, const std::string& field);
absl::StatusOr<std::string> ParseOperationName(const std::string& name, const std::string& field);

std::string FormatWorkspaceName(const std::string& workspace_id);
std::string FormatFileName(const std::string& workspace_id, const std::string& path);
std::string FormatUploadName(const std::string& workspace_id, const std::string& upload_id);

// 1 to 63 of a-z, 0-9 and "-", beginning with a letter.
absl::Status CheckWorkspaceId(const std::string& id, const std::string& field);
// The same.
absl::Status CheckProject(const std::string& project, const std::string& field);
// Relative, components separated by "/", each 1 to 255 bytes of UTF-8 without control characters or "\", none of them "." or
// "..", 1,024 bytes in all.
absl::Status CheckPath(const std::string& path, const std::string& field);
// 64 lower-case hex digits.
absl::Status CheckSha256(const std::string& sha256, const std::string& field);
// Empty or a UUID.
absl::Status CheckRequestId(const std::string& request_id, const std::string& field);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_NAMES_H_
