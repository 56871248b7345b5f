#include "server/rpc/compression_service.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/base/sha256.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

// Files in the folder of a model or of calibration data: few enough to be stored with the job.
constexpr int kMaxInputFiles = 10'000;

absl::Status CheckOptions(const v1::CallOptions& options) {
  MP_RETURN_IF_ERROR(CheckRequestId(options.request_id(), "options.request_id"));
  if (options.has_execution_timeout() && FromProto(options.execution_timeout()) <= absl::ZeroDuration()) {
    return MakeError(v1::REQUEST_INVALID, "the execution timeout must be positive; leave it unset for the server's limit",
                     {.field = "options.execution_timeout"});
  }
  return absl::OkStatus();
}

// The bytes decide whether a request_id was used for the same request, and maps have no order of their own.
google::protobuf::Any Pack(const google::protobuf::Message& request) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  request.SerializeToCodedStream(&coded);
  coded.Trim();
  google::protobuf::Any any;
  any.set_type_url(absl::StrCat("type.googleapis.com/", request.GetTypeName()));
  any.set_value(std::move(bytes));
  return any;
}

// What the result follows from: method and parameters, the contents of the inputs under their names, the engine. Names count,
// because models and reports hold them.
std::string CacheKey(const google::protobuf::Message& canonical, const std::string& workspace, const std::vector<v1::File>& inputs) {
  const google::protobuf::Any request = Pack(canonical);
  std::string facts;
  auto add = [&facts](absl::string_view fact) { absl::StrAppend(&facts, fact.size(), ":", fact); };
  add(MODELPRESS_VERSION);
  add(request.type_url());
  add(request.value());
  const std::string prefix = FormatFileName(workspace, "");
  for (const v1::File& file : inputs) {  // sorted by name
    add(absl::StripPrefix(file.name(), prefix));
    add(file.sha256());
  }
  return Sha256Hex(facts);
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

}  // namespace

absl::StatusOr<std::vector<v1::File>> CompressionService::PinInputs(const WorkspaceKey& workspace,
                                                                    const std::vector<Input>& inputs) {
  std::map<std::string, FileRow> pinned;
  std::vector<std::string> missing;
  std::string first_field;
  auto pin_folder = [&](const std::string& folder) -> absl::StatusOr<bool> {
    MP_ASSIGN_OR_RETURN(std::vector<FileRow> rows, workspaces_.Snapshot(workspace, folder, kMaxInputFiles));
    for (FileRow& row : rows) {
      const std::string path = row.path;
      pinned.emplace(path, std::move(row));
    }
    return !rows.empty();
  };
  for (const Input& input : inputs) {
    if (input.kind == InputKind::kModel) {
      MP_RETURN_IF_ERROR(pin_folder(FolderOf(input.path)).status());
    } else if (!pinned.contains(input.path)) {
      absl::StatusOr<FileRow> row = workspaces_.GetFile(workspace, input.path);
      if (row.ok()) {
        pinned.emplace(input.path, *std::move(row));
      } else if (ReasonOf(row.status()) != v1::FILE_NOT_FOUND) {
        return std::move(row).status();
      }
    }
    bool found = pinned.contains(input.path) || input.kind == InputKind::kFileIfThere;
    if (!found && input.kind == InputKind::kFileOrFolder) {
      MP_ASSIGN_OR_RETURN(found, pin_folder(input.path));
    }
    if (!found) {
      missing.push_back(input.path);
      first_field = first_field.empty() ? input.field : first_field;
    }
  }
  if (!missing.empty()) {
    return WithMetadata(MakeError(v1::FILE_NOT_FOUND,
                                  absl::StrCat("not in ", FormatWorkspaceName(workspace.id), ": ", absl::StrJoin(missing, ", "),
                                               "; upload it first"),
                                  {.field = first_field}),
                        "missing", absl::StrJoin(missing, "\n"));
  }
  std::vector<v1::File> files;
  files.reserve(pinned.size());
  for (const auto& [path, row] : pinned) {
    files.push_back(ToProto(workspace.id, row));
  }
  return files;
}

absl::StatusOr<google::longrunning::Operation> CompressionService::Accept(const Caller& caller,
                                                                          const google::protobuf::Message& request,
                                                                          const google::protobuf::Message& canonical,
                                                                          const std::string& workspace_name,
                                                                          const v1::CallOptions& options,
                                                                          const CallFiles& files) {
  MP_ASSIGN_OR_RETURN(const std::string workspace, ParseWorkspaceName(workspace_name, "workspace"));
  MP_RETURN_IF_ERROR(CheckFiles(files));
  MP_RETURN_IF_ERROR(CheckOptions(options));
  MP_ASSIGN_OR_RETURN(std::vector<v1::File> inputs, PinInputs({caller.project, workspace}, files.inputs));
  Job job;
  job.id = ids_.NewId();
  job.project = caller.project;
  job.request = Pack(request);
  job.metadata.set_method(std::string(absl::StripSuffix(request.GetDescriptor()->name(), "Request")));
  job.metadata.set_workspace(workspace_name);
  job.metadata.set_state(v1::OperationMetadata::PENDING);
  if (!options.no_cache() && !options.validate_only()) {
    job.cache_key = CacheKey(canonical, workspace, inputs);
  }
  job.trace_parent = caller.traceparent;
  for (v1::File& file : inputs) {
    *job.metadata.add_inputs() = std::move(file);
  }
  MP_ASSIGN_OR_RETURN(const Job stored, jobs_.Create(job, options.request_id()));
  events_.Notify();
  return ToOperation(stored);
}

}  // namespace modelpress::server
