#include "client/cpp/local_calls.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/cpp/external_data.h"
#include "client/cpp/local_file.h"
#include "client/cpp/local_path.h"

namespace modelpress::client {
namespace {

using google::longrunning::Operation;

constexpr char kResults[] = "results/";
// How long a cancelled operation may take to end before its workspace is left behind.
constexpr absl::Duration kCancelPatience = absl::Seconds(15);

struct Input {
  std::string name;  // in the workspace, e.g. "model/m.onnx"
  std::string path;  // on this machine
};

// The parts in which one documented function differs from another.
struct Function {
  std::vector<Input> inputs;
  std::function<absl::StatusOr<Operation>(const std::string& workspace, const std::string& save_path)> start;
  std::function<absl::StatusOr<std::vector<v1::File>>(const Operation&)> outputs;
};

// Every response of a function that writes models has these four fields. Files that were not written are absent.
template <typename Response>
absl::StatusOr<std::vector<v1::File>> OutputsOf(const Operation& operation) {
  MPC_ASSIGN_OR_RETURN(Response response, ResponseOf<Response>(operation));
  std::vector<v1::File> files;
  auto add = [&files](const v1::File& file) {
    if (!file.name().empty()) {
      files.push_back(file);
    }
  };
  add(response.deploy_model());
  add(response.fake_quant_model());
  std::for_each(response.external_data().begin(), response.external_data().end(), add);
  add(response.report());
  return files;
}

absl::Status CheckInputPath(const std::string& path, absl::string_view parameter) {
  if (path.empty() || path.back() == '/') {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::NAME_INVALID,
                      absl::StrCat(parameter, " '", path, "' is not the path of a file"));
  }
  MPC_RETURN_IF_ERROR(CheckName(BaseName(path), path));
  return InputFile::Open(path).status();
}

// The model and the files it keeps tensors in.
absl::StatusOr<std::vector<Input>> ModelInputs(const std::string& path, absl::string_view parameter) {
  MPC_RETURN_IF_ERROR(CheckInputPath(path, parameter));
  const std::string base = BaseName(path);
  const std::string folder = path.substr(0, path.size() - base.size());
  std::vector<Input> inputs = {{.name = absl::StrCat("model/", base), .path = path}};
  MPC_ASSIGN_OR_RETURN(const MappedFile model, MappedFile::Map(path));
  MPC_ASSIGN_OR_RETURN(std::vector<std::string> locations, FindExternalData(model.bytes(), path));
  for (const std::string& location : locations) {
    if (location == base) {
      continue;  // tensors in the model file itself; it travels anyway
    }
    Input input{.name = absl::StrCat("model/", location), .path = absl::StrCat(folder, location)};
    absl::Status status = InputFile::Open(input.path).status();
    if (!status.ok()) {
      return WithNote(status, absl::StrCat("external data of ", path, ": put it beside the model"));
    }
    inputs.push_back(std::move(input));
  }
  return inputs;
}

class LocalCall {
 public:
  LocalCall(Client& client, Function function, SavePath save_path, const LocalCallOptions& options)
      : client_(client), function_(std::move(function)), save_path_(std::move(save_path)), options_(options) {}

  absl::StatusOr<LocalCallResult> Run() {
    MPC_RETURN_IF_ERROR(UseWorkspace());
    absl::Status status = Work();
    if (!status.ok() && !operation_name_.empty() && !result_.operation.done()) {
      status = EndOperation(status);
    }
    if (options_.workspace.empty()) {
      // By now the call has its result; a workspace left behind is worth a note but no failure.
      absl::Status deleted = client_.DeleteWorkspace(workspace_);
      if (!deleted.ok() && !absl::IsNotFound(deleted)) {
        std::string note = absl::StrCat("the temporary workspace ", workspace_, " is left on the server: ", deleted.message());
        result_.warnings.push_back(note);
        status = status.ok() ? status : WithNote(status, note);
      }
    } else {
      result_.workspace = workspace_;
    }
    if (!status.ok()) {
      return WithFileName(status, local_names_);
    }
    return std::move(result_);
  }

 private:
  absl::Status UseWorkspace() {
    absl::StatusOr<v1::Workspace> made = client_.CreateWorkspace(options_.workspace);
    if (made.ok()) {
      workspace_ = made->name();
    } else if (absl::IsAlreadyExists(made.status()) && !options_.workspace.empty()) {
      workspace_ = absl::StrCat("workspaces/", options_.workspace);
    } else {
      return made.status();
    }
    for (const Input& input : function_.inputs) {
      local_names_[input.name] = input.path;
      local_names_[FileName(input.name)] = input.path;
    }
    return absl::OkStatus();
  }

  absl::Status Work() {
    for (const Input& input : function_.inputs) {
      MPC_RETURN_IF_ERROR(
          client_.Upload(input.path, FileName(input.name), Transfer(CallProgress::Phase::kUpload, input.path)).status());
    }
    if (options_.stop.stop_requested()) {
      return absl::CancelledError("interrupted");
    }
    MPC_ASSIGN_OR_RETURN(result_.operation, function_.start(workspace_, absl::StrCat(kResults, save_path_.prefix)));
    operation_name_ = result_.operation.name();
    if (!options_.wait) {
      return absl::OkStatus();
    }
    WaitOptions wait{.progress = [this](const Operation& operation) { ReportOperation(operation); }, .stop = options_.stop};
    MPC_ASSIGN_OR_RETURN(result_.operation, client_.WaitOperation(operation_name_, wait));
    v1::OperationMetadata metadata = MetadataOf(result_.operation);
    result_.warnings.assign(metadata.warnings().begin(), metadata.warnings().end());
    MPC_ASSIGN_OR_RETURN(std::vector<v1::File> outputs, function_.outputs(result_.operation));
    return FetchOutputs(outputs);
  }

  absl::Status FetchOutputs(const std::vector<v1::File>& outputs) {
    if (outputs.empty()) {  // validate_only
      return absl::OkStatus();
    }
    MPC_RETURN_IF_ERROR(MakeFolders(save_path_.folder));
    std::vector<StagedFile> staged;
    for (const v1::File& output : outputs) {
      // All of them lie in the folder of save_path, so only the last component may differ. Checked, since a wrong server
      // could otherwise name any path of this machine.
      absl::string_view name = output.name();
      if (!absl::ConsumePrefix(&name, FileName(kResults)) || absl::StrContains(name, '/') || !CheckName(name, "").ok()) {
        return absl::InternalError(absl::StrCat("the server named an output outside of save_path: ", output.name()));
      }
      std::string path = absl::StrCat(save_path_.folder == "/" ? "" : save_path_.folder, "/", name);
      local_names_[output.name()] = path;
      MPC_ASSIGN_OR_RETURN(StagedFile file, StagedFile::Create(path));
      MPC_RETURN_IF_ERROR(
          client_.Download(output.name(), output.sha256(), file, Transfer(CallProgress::Phase::kDownload, path)).status());
      staged.push_back(std::move(file));
    }
    for (StagedFile& file : staged) {
      MPC_RETURN_IF_ERROR(file.Commit());
      result_.files.push_back(file.final_path());
    }
    return absl::OkStatus();
  }

  // Cancels the operation after the caller's interruption, and waits a little so that its workspace can be deleted.
  absl::Status EndOperation(const absl::Status& why) {
    if (!absl::IsCancelled(why)) {
      return WithNote(why, absl::StrCat(operation_name_, " may still run; ask with `modelpress operation get`"));
    }
    absl::Status ended = client_.CancelOperation(operation_name_);
    if (ended.ok()) {
      ended = client_.WaitOperation(operation_name_, {.timeout = kCancelPatience}).status();
    }
    return ended.ok() ? WithNote(why, absl::StrCat(operation_name_, " is cancelled"))
                      : WithNote(why, absl::StrCat("cancelling ", operation_name_, " failed: ", ended.message()));
  }

  void ReportOperation(const Operation& operation) const {
    if (!options_.progress) {
      return;
    }
    v1::OperationMetadata metadata = MetadataOf(operation);
    if (metadata.state() == v1::OperationMetadata::PENDING) {
      options_.progress({.phase = CallProgress::Phase::kQueue});
    } else {
      options_.progress({.phase = CallProgress::Phase::kRun,
                         .item = metadata.progress().stage(),
                         .done = metadata.progress().done(),
                         .total = metadata.progress().total()});
    }
  }

  TransferOptions Transfer(CallProgress::Phase phase, const std::string& path) const {
    TransferOptions transfer{.stop = options_.stop};
    if (options_.progress) {
      transfer.progress = [this, phase, item = BaseName(path)](uint64_t done, uint64_t total) {
        options_.progress({.phase = phase, .item = item, .done = done, .total = total});
      };
    }
    return transfer;
  }

  std::string FileName(absl::string_view path) const { return absl::StrCat(workspace_, "/files/", path); }

  Client& client_;
  Function function_;
  SavePath save_path_;
  const LocalCallOptions& options_;
  std::string workspace_;
  std::string operation_name_;
  std::map<std::string, std::string> local_names_;  // of the server's files
  LocalCallResult result_;
};

// Checks what can be checked without the server, then does the work.
absl::StatusOr<LocalCallResult> RunLocally(Client& client, Function function, const std::string& save_path,
                                           const LocalCallOptions& options) {
  if (!options.wait && options.workspace.empty()) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID,
                      "a call that is not waited for needs a named workspace, where its results stay");
  }
  MPC_ASSIGN_OR_RETURN(SavePath split, SplitSavePath(save_path));
  if (options.wait && !options.call.validate_only()) {
    MPC_RETURN_IF_ERROR(CheckFolderUsable(split.folder));
  }
  return LocalCall(client, std::move(function), std::move(split), options).Run();
}

}  // namespace

absl::StatusOr<LocalCallResult> SaveModelOnLocalPaths(Client& client, const std::string& modified_onnx_file,
                                                      const std::string& record_file, const std::string& save_path,
                                                      const LocalCallOptions& options) {
  Function function;
  MPC_ASSIGN_OR_RETURN(function.inputs, ModelInputs(modified_onnx_file, "modfied_onnx_file"));
  MPC_RETURN_IF_ERROR(CheckInputPath(record_file, "record_file"));
  const Input record{.name = absl::StrCat("record/", BaseName(record_file)), .path = record_file};
  const std::string model_name = function.inputs.front().name;
  function.inputs.push_back(record);
  function.start = [&](const std::string& workspace, const std::string& remote_save_path) {
    v1::SaveModelRequest request;
    request.set_workspace(workspace);
    request.set_modified_onnx_file(model_name);
    request.set_record_file(record.name);
    request.set_save_path(remote_save_path);
    *request.mutable_options() = options.call;
    return client.SaveModel(std::move(request));
  };
  function.outputs = OutputsOf<v1::SaveModelResponse>;
  return RunLocally(client, std::move(function), save_path, options);
}

absl::StatusOr<LocalCallResult> SavePruneRetrainModelOnLocalPaths(Client& client, const std::string& model,
                                                                  const std::string& save_path, const LocalCallOptions& options) {
  Function function;
  MPC_ASSIGN_OR_RETURN(function.inputs, ModelInputs(model, "model"));
  const std::string model_name = function.inputs.front().name;
  function.start = [&](const std::string& workspace, const std::string& remote_save_path) {
    v1::SavePruneRetrainModelRequest request;
    request.set_workspace(workspace);
    request.set_model(model_name);
    request.set_save_path(remote_save_path);
    *request.mutable_options() = options.call;
    return client.SavePruneRetrainModel(std::move(request));
  };
  function.outputs = OutputsOf<v1::SavePruneRetrainModelResponse>;
  return RunLocally(client, std::move(function), save_path, options);
}

}  // namespace modelpress::client
