#include "server/rpc/compression_service.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"
#include "server/rpc/unary.h"

namespace modelpress::server {
namespace {

// Files in the folder of a model; more than any model has, few enough to be stored with the job.
constexpr int kMaxInputFiles = 10'000;

// The longest name that the call may give a file: what CheckPath accepts of it holds for the others. The exact rule for prefixes
// is the engine's (save.md section 1.1).
absl::Status CheckSavePath(const std::string& save_path) {
  const bool names_folder = save_path.empty() || save_path.ends_with('/');
  return CheckPath(absl::StrCat(save_path, names_folder ? "" : "_", "deploy_model.onnx"), "save_path");
}

absl::Status CheckOptions(const v1::CallOptions& options) {
  MP_RETURN_IF_ERROR(CheckRequestId(options.request_id(), "options.request_id"));
  if (options.has_execution_timeout() && FromProto(options.execution_timeout()) <= absl::ZeroDuration()) {
    return MakeError(v1::REQUEST_INVALID, "the execution timeout must be positive; leave it unset for the server's limit",
                     {.field = "options.execution_timeout"});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<v1::File>> CompressionService::PinInputs(const std::string& workspace,
                                                                    const std::vector<Input>& inputs) {
  std::map<std::string, FileRow> pinned;
  std::vector<std::string> missing;
  std::string first_field;
  for (const Input& input : inputs) {
    if (input.with_folder) {
      const size_t slash = input.path.rfind('/');
      const std::string folder = slash == std::string::npos ? "" : input.path.substr(0, slash);
      MP_ASSIGN_OR_RETURN(std::vector<FileRow> rows, workspaces_.Snapshot(workspace, folder, kMaxInputFiles));
      for (FileRow& row : rows) {
        const std::string path = row.path;
        pinned.emplace(path, std::move(row));
      }
    } else if (!pinned.contains(input.path)) {
      absl::StatusOr<FileRow> row = workspaces_.GetFile(workspace, input.path);
      if (row.ok()) {
        pinned.emplace(input.path, *std::move(row));
      } else if (ReasonOf(row.status()) != v1::FILE_NOT_FOUND) {
        return std::move(row).status();
      }
    }
    if (!pinned.contains(input.path)) {
      missing.push_back(input.path);
      first_field = first_field.empty() ? input.field : first_field;
    }
  }
  if (!missing.empty()) {
    return WithMetadata(MakeError(v1::FILE_NOT_FOUND,
                                  absl::StrCat("not in ", FormatWorkspaceName(workspace), ": ", absl::StrJoin(missing, ", "),
                                               "; upload it first"),
                                  {.field = first_field}),
                        "missing", absl::StrJoin(missing, "\n"));
  }
  std::vector<v1::File> files;
  files.reserve(pinned.size());
  for (const auto& [path, row] : pinned) {
    files.push_back(ToProto(workspace, row));
  }
  return files;
}

absl::StatusOr<google::longrunning::Operation> CompressionService::Accept(
    const std::string& method, const google::protobuf::Message& request, const std::string& workspace_name,
    const std::string& save_path, const v1::CallOptions& options, const std::vector<Input>& inputs) {
  MP_ASSIGN_OR_RETURN(const std::string workspace, ParseWorkspaceName(workspace_name, "workspace"));
  for (const Input& input : inputs) {
    MP_RETURN_IF_ERROR(CheckPath(input.path, input.field));
  }
  MP_RETURN_IF_ERROR(CheckSavePath(save_path));
  MP_RETURN_IF_ERROR(CheckOptions(options));
  MP_ASSIGN_OR_RETURN(std::vector<v1::File> files, PinInputs(workspace, inputs));
  Job job;
  job.id = ids_.NewId();
  job.request.PackFrom(request);
  job.metadata.set_method(method);
  job.metadata.set_workspace(workspace_name);
  job.metadata.set_state(v1::OperationMetadata::PENDING);
  for (v1::File& file : files) {
    *job.metadata.add_inputs() = std::move(file);
  }
  MP_ASSIGN_OR_RETURN(const Job stored, jobs_.Create(job, options.request_id()));
  events_.Notify();
  return ToOperation(stored);
}

grpc::ServerUnaryReactor* CompressionService::SaveModel(grpc::CallbackServerContext* context, const v1::SaveModelRequest* request,
                                                        google::longrunning::Operation* operation) {
  return ServeUnary(context, calls_, [=, this]() -> absl::Status {
    MP_ASSIGN_OR_RETURN(*operation, Accept("SaveModel", *request, request->workspace(), request->save_path(), request->options(),
                                           {{request->modified_onnx_file(), "modified_onnx_file", /*with_folder=*/true},
                                            {request->record_file(), "record_file", /*with_folder=*/false}}));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CompressionService::SavePruneRetrainModel(grpc::CallbackServerContext* context,
                                                                    const v1::SavePruneRetrainModelRequest* request,
                                                                    google::longrunning::Operation* operation) {
  return ServeUnary(context, calls_, [=, this]() -> absl::Status {
    MP_ASSIGN_OR_RETURN(*operation, Accept("SavePruneRetrainModel", *request, request->workspace(), request->save_path(),
                                           request->options(), {{request->model(), "model", /*with_folder=*/true}}));
    return absl::OkStatus();
  });
}

}  // namespace modelpress::server
