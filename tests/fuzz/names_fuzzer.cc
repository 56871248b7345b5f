// Resource names and paths: what is accepted is what the formatting functions would give, and stays inside its folder.
#include <string>

#include "absl/strings/str_split.h"
#include "server/rpc/names.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void RequireHarmless(const std::string& path) {
  Require(!path.empty() && path[0] != '/' && path.find('\0') == std::string::npos, "a path is relative");
  for (const absl::string_view component : absl::StrSplit(path, '/')) {
    Require(!component.empty() && component != "." && component != ".." && component.size() <= 255, "a path's component");
  }
}

void Run(const std::string& name) {
  if (const absl::StatusOr<std::string> id = ParseWorkspaceName(name, "name"); id.ok()) {
    Require(FormatWorkspaceName(*id) == name, "a workspace's name");
  } else {
    RequireClear(id.status());
  }
  if (const absl::StatusOr<FileName> file = ParseFileName(name, "name"); file.ok()) {
    Require(FormatFileName(file->workspace, file->path) == name, "a file's name");
    RequireHarmless(file->path);
  } else {
    RequireClear(file.status());
  }
  if (const absl::StatusOr<UploadName> upload = ParseUploadName(name, "name"); upload.ok()) {
    Require(FormatUploadName(upload->workspace, upload->upload) == name, "an upload's name");
    RequireHarmless(upload->upload);
  } else {
    RequireClear(upload.status());
  }
  if (const absl::StatusOr<std::string> id = ParseOperationName(name, "name"); id.ok()) {
    Require("operations/" + *id == name, "an operation's name");
    RequireHarmless(*id);
  } else {
    RequireClear(id.status());
  }
  if (const absl::Status status = CheckPath(name, "path"); status.ok()) {
    RequireHarmless(name);
  } else {
    RequireClear(status);
  }
  RequireClear(CheckSha256(name, "sha256"));
  RequireClear(CheckRequestId(name, "request_id"));
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(std::string(modelpress::AsText(data, size)));
  return 0;
}
