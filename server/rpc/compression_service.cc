#include "server/rpc/compression_service.h"

#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/base/sha256.h"
#include "server/rpc/convert.h"
#include "server/rpc/limits.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

// Files in the folder of a model or of calibration data: few enough to be stored with the job.
constexpr int kMaxInputFiles = 10'000;

// How often inputs that change while a call is accepted are looked up.
constexpr int kMaxPins = 3;

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
std::string CacheKey(const google::protobuf::Message& canonical, const std::string& workspace,
                     const std::vector<v1::File>& inputs) {
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

// Where the bytes of an input file count.
uint64_t& SizeOf(const std::string& path, const std::vector<Input>& inputs, InputSizes& sizes) {
  for (const Input& input : inputs) {
    if (input.path == path) {
      return input.kind == InputKind::kModel ? sizes.models : sizes.others;
    }
    if (input.kind == InputKind::kFileOrFolder && absl::StartsWith(path, input.path + "/")) {
      return sizes.others;
    }
  }
  return sizes.beside;
}

}  // namespace

absl::StatusOr<CompressionService::PinnedInputs> CompressionService::PinInputs(const WorkspaceKey& workspace,
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
  PinnedInputs result;
  result.files.reserve(pinned.size());
  for (const auto& [path, row] : pinned) {
    result.files.push_back(ToProto(workspace.id, row));
    SizeOf(path, inputs, result.sizes) += row.size_bytes;
  }
  return result;
}

absl::StatusOr<google::longrunning::Operation> CompressionService::Accept(
    const Caller& caller, const google::protobuf::Message& request, const google::protobuf::Message& canonical,
    const std::string& workspace_name, const v1::CallOptions& options, const CallFiles& files) {
  MP_ASSIGN_OR_RETURN(const std::string workspace, ParseWorkspaceName(workspace_name, "workspace"));
  MP_RETURN_IF_ERROR(CheckFiles(files));
  MP_RETURN_IF_ERROR(CheckOptions(options));
  Job job;
  job.id = ids_.NewId();
  job.project = caller.project;
  job.request = Pack(request);
  job.metadata.set_method(std::string(absl::StripSuffix(request.GetDescriptor()->name(), "Request")));
  job.metadata.set_workspace(workspace_name);
  job.metadata.set_state(v1::OperationMetadata::PENDING);
  job.trace_parent = caller.traceparent;
  // Before anything that may have changed since the first time is looked at.
  MP_ASSIGN_OR_RETURN(const std::optional<Job> before, jobs_.FindCreated(job.project, options.request_id(), job.request));
  if (before.has_value()) {
    return ToOperation(*before);
  }
  const bool reusable = !options.no_cache() && !options.validate_only();
  // Nothing holds what was pinned until the job is stored.
  absl::StatusOr<Job> stored;
  for (int tries = 0; tries == 0 || (tries < kMaxPins && ReasonOf(stored.status()) == v1::FILE_CHANGED); ++tries) {
    MP_ASSIGN_OR_RETURN(const PinnedInputs inputs, PinInputs({caller.project, workspace}, files.inputs));
    MP_RETURN_IF_ERROR(CheckCost(job.metadata.method(), inputs.sizes, limits_));
    job.cost = EstimateCost(job.metadata.method(), inputs.sizes, limits_);
    job.metadata.mutable_inputs()->Assign(inputs.files.begin(), inputs.files.end());
    job.cache_key = reusable ? CacheKey(canonical, workspace, inputs.files) : "";
    if (const size_t size = job.metadata.ByteSizeLong() + job.request.ByteSizeLong(); size > kMaxOperationBytes) {
      return MakeError(v1::REQUEST_INVALID,
                       absl::StrCat("the request and the names of its ", job.metadata.inputs_size(), " input files have ", size,
                                    " bytes; at most ", kMaxOperationBytes,
                                    " are allowed: put data into one .npz, a model into a folder of its own"));
    }
    stored = jobs_.Create(job, options.request_id());
  }
  MP_RETURN_IF_ERROR(stored.status());
  events_.Notify();
  return ToOperation(*stored);
}

}  // namespace modelpress::server
