#include "client/cpp/local_calls.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "amct/auto_channel_prune_config.pb.h"
#include "client/cpp/external_data.h"
#include "client/cpp/local_file.h"
#include "client/cpp/local_path.h"
#include "client/cpp/sha256.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"

namespace modelpress::client {
namespace {

using google::longrunning::Operation;

// How long a cancelled operation may take to end before its workspace is left behind.
constexpr absl::Duration kCancelPatience = absl::Seconds(15);
// What the server takes of one folder (it pins every file with the operation).
constexpr size_t kMaxDataFiles = 10'000;

struct Input {
  std::string name;  // in the workspace, e.g. "model/m.onnx"
  std::string path;  // on this machine
};

// Where results go: one file, or, with a "/" at the end of both, whatever files of a folder.
struct Place {
  std::string name;  // in the workspace
  std::string path;  // on this machine, absolute
};

std::string WithSlash(const std::string& folder) { return folder.ends_with('/') ? folder : absl::StrCat(folder, "/"); }

absl::Status NoFile(const std::string& path, absl::string_view parameter) {
  return LocalError(absl::StatusCode::kInvalidArgument, v1::NAME_INVALID,
                    absl::StrCat(parameter, " '", path, "' is not the path of a file"));
}

absl::Status CheckInputPath(const std::string& path, absl::string_view parameter) {
  if (path.empty() || path.back() == '/') {
    return NoFile(path, parameter);
  }
  MPC_RETURN_IF_ERROR(CheckName(BaseName(path), path));
  return InputFile::Open(path).status();
}

// The files below a folder, by their paths in it, sorted. Hidden ones are left out.
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& folder) {
  namespace fs = std::filesystem;
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, fs::directory_options::follow_directory_symlink, error);
  while (!error && entry != fs::recursive_directory_iterator()) {
    const bool is_folder = entry->is_directory(error);
    if (entry->path().filename().native().starts_with('.')) {
      entry.disable_recursion_pending();
    } else if (!is_folder) {
      files.push_back(entry->path().lexically_relative(folder).native());
    }
    if (files.size() > kMaxDataFiles) {
      return LocalError(absl::StatusCode::kInvalidArgument, v1::DATA_UNREADABLE,
                        absl::StrCat("holds more than ", kMaxDataFiles, " files; put the samples together into .npz files"),
                        folder);
    }
    if (!error) {
      entry.increment(error);
    }
  }
  if (error) {
    return LocalIoError("cannot list the folder", folder, error.value());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// What a call sends and where its results go. Each function gets a path of this machine and puts the name in the workspace in its
// place; every argument has a folder of its own there, so that files of one name do not meet.
class Files {
 public:
  // A model and the files it keeps tensors in.
  absl::Status SendModel(std::string& path, absl::string_view parameter, absl::string_view folder = "model") {
    const std::string model = path;
    const std::string base = BaseName(model);
    MPC_RETURN_IF_ERROR(Send(path, parameter, folder));
    MPC_ASSIGN_OR_RETURN(const MappedFile mapped, MappedFile::Map(model));
    MPC_ASSIGN_OR_RETURN(std::vector<std::string> locations, FindExternalData(mapped.bytes(), model));
    for (const std::string& location : locations) {
      if (location == base) {
        continue;  // tensors in the model file itself; it travels anyway
      }
      Input input{.name = absl::StrCat(folder, "/", location),
                  .path = absl::StrCat(model.substr(0, model.size() - base.size()), location)};
      absl::Status status = InputFile::Open(input.path).status();
      if (!status.ok()) {
        return WithNote(status, absl::StrCat("external data of ", model, ": put it beside the model"));
      }
      inputs.push_back(std::move(input));
    }
    return absl::OkStatus();
  }

  absl::Status Send(std::string& path, absl::string_view parameter, absl::string_view folder) {
    MPC_RETURN_IF_ERROR(CheckInputPath(path, parameter));
    inputs.push_back({.name = absl::StrCat(folder, "/", BaseName(path)), .path = path});
    path = inputs.back().name;
    return absl::OkStatus();
  }

  absl::Status SendIfGiven(std::string& path, absl::string_view parameter, absl::string_view folder) {
    return path.empty() ? absl::OkStatus() : Send(path, parameter, folder);
  }

  // A file or a folder of files.
  absl::Status SendData(std::string& path, absl::string_view parameter) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      return Send(path, parameter, parameter);
    }
    MPC_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListFolder(path));
    if (files.empty()) {
      return LocalError(absl::StatusCode::kInvalidArgument, v1::DATA_TOO_SHORT,
                        absl::StrCat("the folder of ", parameter, " holds no files"), path);
    }
    // Named after what is in it: a kept workspace may hold files of an earlier call, which must not be taken for this one's.
    Sha256 names;
    names.Update(absl::StrJoin(files, "\n"));
    const std::string folder = absl::StrCat(parameter, "-", names.Finish().substr(0, 16));
    for (const std::string& relative : files) {
      const std::string file = absl::StrCat(WithSlash(path), relative);
      MPC_RETURN_IF_ERROR(CheckInputPath(file, parameter));
      inputs.push_back({.name = absl::StrCat(folder, "/", relative), .path = file});
    }
    path = folder;
    return absl::OkStatus();
  }

  // A file to write; with_folder: and other files beside it.
  absl::Status Receive(std::string& path, absl::string_view parameter, absl::string_view folder, bool with_folder = false) {
    MPC_ASSIGN_OR_RETURN(const std::string resolved, ResolvePath(path));
    std::error_code error;
    if (path.empty() || path.back() == '/' || std::filesystem::is_directory(resolved, error)) {
      return NoFile(path, parameter);
    }
    const std::string base = BaseName(resolved);
    MPC_RETURN_IF_ERROR(CheckName(base, path));
    path = absl::StrCat(folder, "/", base);
    if (with_folder) {
      places.push_back({absl::StrCat(folder, "/"), resolved.substr(0, resolved.size() - base.size())});
    } else {
      places.push_back({path, resolved});
    }
    return absl::OkStatus();
  }

  // A file to read, if it is there or if it is needed, and to write.
  absl::Status Replace(std::string& path, absl::string_view parameter, absl::string_view folder, bool needed) {
    const std::string local = path;
    MPC_RETURN_IF_ERROR(Receive(path, parameter, folder));
    std::error_code error;
    if (needed || std::filesystem::exists(local, error)) {
      MPC_RETURN_IF_ERROR(CheckInputPath(local, parameter));
      inputs.push_back({.name = path, .path = local});
    } else {
      absent.push_back(path);
    }
    return absl::OkStatus();
  }

  // The files that begin with save_path.
  absl::Status ReceiveSaved(std::string& save_path) {
    MPC_ASSIGN_OR_RETURN(SavePath split, SplitSavePath(save_path));
    places.push_back({"results/", WithSlash(split.folder)});
    save_path = absl::StrCat("results/", split.prefix);
    return absl::OkStatus();
  }

  // The folder of this machine behind a place.
  static std::string FolderOf(const Place& place) {
    const size_t slash = place.path.rfind('/');
    return slash == 0 ? "/" : place.path.substr(0, slash);
  }

  std::vector<Input> inputs;
  std::vector<std::string> absent;  // names of inputs that are not there, nor may be in a kept workspace
  std::vector<Place> places;
};

// What the documented functions differ in.
struct Function {
  Files files;
  std::function<absl::StatusOr<Operation>(const std::string& workspace)> start;
  std::function<absl::StatusOr<std::vector<v1::File>>(const Operation&)> outputs;
};

// The files that a response names, in the order of its fields. Files that were not written are absent.
template <typename Response>
absl::StatusOr<std::vector<v1::File>> OutputsOf(const Operation& operation) {
  MPC_ASSIGN_OR_RETURN(const Response response, ResponseOf<Response>(operation));
  const google::protobuf::Reflection& reflection = *response.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(response, &fields);
  std::vector<v1::File> files;
  for (const google::protobuf::FieldDescriptor* field : fields) {
    if (field->message_type() != v1::File::descriptor()) {
      continue;
    }
    const int count = field->is_repeated() ? reflection.FieldSize(response, field) : 1;
    for (int i = 0; i < count; ++i) {
      files.push_back(static_cast<const v1::File&>(field->is_repeated() ? reflection.GetRepeatedMessage(response, field, i)
                                                                        : reflection.GetMessage(response, field)));
    }
  }
  return files;
}

class LocalCall {
 public:
  LocalCall(Client& client, Function function, const LocalCallOptions& options)
      : client_(client), function_(std::move(function)), options_(options) {}

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
    for (const Input& input : function_.files.inputs) {
      local_names_[input.name] = input.path;
      local_names_[FileName(input.name)] = input.path;
    }
    return absl::OkStatus();
  }

  absl::Status Work() {
    for (const Input& input : function_.files.inputs) {
      MPC_RETURN_IF_ERROR(
          client_.Upload(input.path, FileName(input.name), Transfer(CallProgress::Phase::kUpload, input.path)).status());
    }
    for (const std::string& name : function_.files.absent) {
      if (absl::Status deleted = client_.DeleteFile(FileName(name)); !deleted.ok() && !absl::IsNotFound(deleted)) {
        return deleted;
      }
    }
    if (options_.stop.stop_requested()) {
      return absl::CancelledError("interrupted");
    }
    MPC_ASSIGN_OR_RETURN(result_.operation, function_.start(workspace_));
    operation_name_ = result_.operation.name();
    if (!options_.wait) {
      return absl::OkStatus();
    }
    WaitOptions wait{.progress = [this](const Operation& operation) { ReportOperation(operation); }, .stop = options_.stop};
    MPC_ASSIGN_OR_RETURN(result_.operation, client_.WaitOperation(operation_name_, wait));
    v1::OperationMetadata metadata = MetadataOf(result_.operation);
    result_.warnings.assign(metadata.warnings().begin(), metadata.warnings().end());
    result_.report = metadata.report();
    MPC_ASSIGN_OR_RETURN(std::vector<v1::File> outputs, function_.outputs(result_.operation));
    return FetchOutputs(outputs);
  }

  absl::Status FetchOutputs(const std::vector<v1::File>& outputs) {
    std::vector<StagedFile> staged;
    std::set<std::string> paths;
    for (const v1::File& output : outputs) {
      MPC_ASSIGN_OR_RETURN(const std::string path, PathOf(output.name()));
      if (!paths.insert(path).second) {
        return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID,
                          "two results would be written to this path; give them different names", path);
      }
      local_names_[output.name()] = path;
      MPC_RETURN_IF_ERROR(MakeFolders(Files::FolderOf({.name = "", .path = path})));
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

  // Where an output goes. Checked, since a wrong server could otherwise name any path of this machine.
  absl::StatusOr<std::string> PathOf(const std::string& output) const {
    for (const Place& place : function_.files.places) {
      absl::string_view rest = output;
      if (!absl::ConsumePrefix(&rest, FileName(place.name))) {
        continue;
      }
      if (place.name.ends_with('/') ? !absl::StrContains(rest, '/') && CheckName(rest, "").ok() : rest.empty()) {
        return absl::StrCat(place.path, rest);
      }
    }
    return absl::InternalError(absl::StrCat("the server named an output that was not asked for: ", output));
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
  const LocalCallOptions& options_;
  std::string workspace_;
  std::string operation_name_;
  std::map<std::string, std::string> local_names_;  // of the server's files
  LocalCallResult result_;
};

// Checks what can be checked without the server, then does the work. `request` has names in the workspace.
template <typename Response, typename Request>
absl::StatusOr<LocalCallResult> RunLocally(Client& client, absl::StatusOr<Operation> (Client::*method)(Request), Files files,
                                           Request request, const LocalCallOptions& options) {
  if (!options.wait && options.workspace.empty()) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID,
                      "a call that is not waited for needs a named workspace, where its results stay");
  }
  if (options.wait && !options.call.validate_only()) {
    for (const Place& place : files.places) {
      MPC_RETURN_IF_ERROR(CheckFolderUsable(Files::FolderOf(place)));
    }
  }
  Function function{.files = std::move(files), .start = {}, .outputs = OutputsOf<Response>};
  function.start = [&](const std::string& workspace) {
    request.set_workspace(workspace);
    *request.mutable_options() = options.call;
    return (client.*method)(request);
  };
  return LocalCall(client, std::move(function), options).Run();
}

// What all calls of retraining read.
template <typename Request>
absl::Status SendModelAndManifest(Request& request, Files& files) {
  MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_model(), "model"));
  return files.SendIfGiven(*request.mutable_module_manifest(), "module_manifest", "manifest");
}

template <typename Request>
absl::StatusOr<LocalCallResult> CreatePruned(Client& client, absl::StatusOr<Operation> (Client::*method)(Request),
                                             Request request, const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_definition(), "config_defination", "config_definition"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::RetrainModelResponse>(client, method, std::move(files), std::move(request), options);
}

template <typename Request>
absl::StatusOr<LocalCallResult> RestorePruned(Client& client, absl::StatusOr<Operation> (Client::*method)(Request),
                                              Request request, const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_definition(), "config_defination", "config_definition"));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_weights(), "weights", "weights"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::RetrainModelResponse>(client, method, std::move(files), std::move(request), options);
}

// The file that a search's configuration names, "" if none. A text that cannot be parsed is left to the server, which says where.
absl::StatusOr<std::string> OverrideNamedIn(const std::string& config) {
  MPC_RETURN_IF_ERROR(CheckInputPath(config, "config"));
  MPC_ASSIGN_OR_RETURN(const MappedFile mapped, MappedFile::Map(config));
  class Silent final : public google::protobuf::io::ErrorCollector {
    void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
  } silent;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&silent);
  parser.AllowPartialMessage(true);
  AMCTProto::AutoChannelPruneConfig parsed;
  const bool readable = parser.ParseFromString(std::string(mapped.bytes()), &parsed);
  return readable ? parsed.override_prune_cfg() : "";
}

}  // namespace

absl::StatusOr<LocalCallResult> CreateQuantConfigOnLocalPaths(Client& client, v1::CreateQuantConfigRequest request,
                                                              const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_model(), "model"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_config_definition(), "config_defination", "config_definition"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_module_manifest(), "module_manifest", "manifest"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_config_file(), "config_file", "config"));
  return RunLocally<v1::CreateQuantConfigResponse>(client, &Client::CreateQuantConfig, std::move(files), std::move(request),
                                                   options);
}

absl::StatusOr<LocalCallResult> QuantizePreprocessOnLocalPaths(Client& client, v1::QuantizePreprocessRequest request,
                                                               const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_model(), "model"));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_file(), "config_file", "config"));
  MPC_RETURN_IF_ERROR(files.SendData(*request.mutable_calibration_data()->mutable_path(), "calibration_data"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_module_manifest(), "module_manifest", "manifest"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_record_file(), "record_file", "record"));
  return RunLocally<v1::QuantizePreprocessResponse>(client, &Client::QuantizePreprocess, std::move(files), std::move(request),
                                                    options);
}

absl::StatusOr<LocalCallResult> QuantizeModelOnLocalPaths(Client& client, v1::QuantizeModelRequest request,
                                                          const LocalCallOptions& options) {
  Files files;
  const bool saves = !request.save_path().empty();
  MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_model(), "model"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_config_file(), "config_file", "config"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_config_definition(), "config_defination", "config_definition"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_module_manifest(), "module_manifest", "manifest"));
  if (request.has_calibration_data()) {
    MPC_RETURN_IF_ERROR(files.SendData(*request.mutable_calibration_data()->mutable_path(), "calibration_data"));
  }
  if (request.has_sample_data()) {
    MPC_RETURN_IF_ERROR(files.SendData(*request.mutable_sample_data()->mutable_path(), "sample_data"));
  }
  if (!saves || !request.modified_onnx_file().empty()) {
    MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_modified_onnx_file(), "modfied_onnx_file", "modified",
                                      /*with_folder=*/true));
  }
  if (!saves || !request.record_file().empty()) {
    MPC_RETURN_IF_ERROR(files.Replace(*request.mutable_record_file(), "record_file", "record", /*needed=*/false));
  }
  if (saves) {
    MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  }
  return RunLocally<v1::QuantizeModelResponse>(client, &Client::QuantizeModel, std::move(files), std::move(request), options);
}

absl::StatusOr<LocalCallResult> CalibrateOnLocalPaths(Client& client, v1::CalibrateRequest request,
                                                      const LocalCallOptions& options) {
  Files files;
  const bool kv_cache = request.modified_onnx_file().empty();
  if (!kv_cache) {
    MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_modified_onnx_file(), "modfied_onnx_file", "modified"));
  }
  if (kv_cache || !request.model().empty()) {
    MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_model(), "model"));
  }
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_file(), "config_file", "config"));
  MPC_RETURN_IF_ERROR(files.SendData(*request.mutable_calibration_data()->mutable_path(), "calibration_data"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_module_manifest(), "module_manifest", "manifest"));
  MPC_RETURN_IF_ERROR(files.Replace(*request.mutable_record_file(), "record_file", "record", /*needed=*/!kv_cache));
  return RunLocally<v1::CalibrateResponse>(client, &Client::Calibrate, std::move(files), std::move(request), options);
}

absl::StatusOr<LocalCallResult> SaveModelOnLocalPaths(Client& client, v1::SaveModelRequest request,
                                                      const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_modified_onnx_file(), "modfied_onnx_file"));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::SaveModelResponse>(client, &Client::SaveModel, std::move(files), std::move(request), options);
}

absl::StatusOr<LocalCallResult> CreatePruneRetrainModelOnLocalPaths(Client& client, v1::CreatePruneRetrainModelRequest request,
                                                                    const LocalCallOptions& options) {
  return CreatePruned(client, &Client::CreatePruneRetrainModel, std::move(request), options);
}

absl::StatusOr<LocalCallResult> RestorePruneRetrainModelOnLocalPaths(Client& client, v1::RestorePruneRetrainModelRequest request,
                                                                     const LocalCallOptions& options) {
  return RestorePruned(client, &Client::RestorePruneRetrainModel, std::move(request), options);
}

absl::StatusOr<LocalCallResult> AutoChannelPruneSearchOnLocalPaths(Client& client, v1::AutoChannelPruneSearchRequest request,
                                                                   const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  if (request.override_prune_cfg().empty()) {
    MPC_ASSIGN_OR_RETURN(*request.mutable_override_prune_cfg(), OverrideNamedIn(request.config()));
  }
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_override_prune_cfg(), "override_prune_cfg", "override_prune_cfg"));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config(), "config", "config"));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_sensitivities(), "sensitivities", "sensitivities"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_output_cfg(), "output_cfg", "output_cfg"));
  return RunLocally<v1::AutoChannelPruneSearchResponse>(client, &Client::AutoChannelPruneSearch, std::move(files),
                                                        std::move(request), options);
}

absl::StatusOr<LocalCallResult> CreateQuantRetrainConfigOnLocalPaths(Client& client, v1::CreateQuantRetrainConfigRequest request,
                                                                     const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_config_definition(), "config_defination", "config_definition"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_config_file(), "config_file", "config"));
  return RunLocally<v1::CreateQuantConfigResponse>(client, &Client::CreateQuantRetrainConfig, std::move(files),
                                                   std::move(request), options);
}

absl::StatusOr<LocalCallResult> CreateQuantRetrainModelOnLocalPaths(Client& client, v1::CreateQuantRetrainModelRequest request,
                                                                    const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_file(), "config_file", "config"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::RetrainModelResponse>(client, &Client::CreateQuantRetrainModel, std::move(files), std::move(request),
                                              options);
}

absl::StatusOr<LocalCallResult> RestoreQuantRetrainModelOnLocalPaths(Client& client, v1::RestoreQuantRetrainModelRequest request,
                                                                     const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_file(), "config_file", "config"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_weights(), "weights", "weights"));
  MPC_RETURN_IF_ERROR(files.Receive(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::RetrainModelResponse>(client, &Client::RestoreQuantRetrainModel, std::move(files), std::move(request),
                                              options);
}

absl::StatusOr<LocalCallResult> SaveQuantRetrainModelOnLocalPaths(Client& client, v1::SaveQuantRetrainModelRequest request,
                                                                  const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_config_file(), "config_file", "config"));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_rewrite_plan(), "rewrite_plan", "rewrite_plan"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::SaveModelResponse>(client, &Client::SaveQuantRetrainModel, std::move(files), std::move(request), options);
}

absl::StatusOr<LocalCallResult> CreateCompressedRetrainModelOnLocalPaths(Client& client,
                                                                         v1::CreateCompressedRetrainModelRequest request,
                                                                         const LocalCallOptions& options) {
  return CreatePruned(client, &Client::CreateCompressedRetrainModel, std::move(request), options);
}

absl::StatusOr<LocalCallResult> RestoreCompressedRetrainModelOnLocalPaths(Client& client,
                                                                          v1::RestoreCompressedRetrainModelRequest request,
                                                                          const LocalCallOptions& options) {
  return RestorePruned(client, &Client::RestoreCompressedRetrainModel, std::move(request), options);
}

absl::StatusOr<LocalCallResult> SaveCompressedRetrainModelOnLocalPaths(Client& client,
                                                                       v1::SaveCompressedRetrainModelRequest request,
                                                                       const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(SendModelAndManifest(request, files));
  MPC_RETURN_IF_ERROR(files.Send(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::SaveModelResponse>(client, &Client::SaveCompressedRetrainModel, std::move(files), std::move(request),
                                           options);
}

absl::StatusOr<LocalCallResult> SavePruneRetrainModelOnLocalPaths(Client& client, v1::SavePruneRetrainModelRequest request,
                                                                  const LocalCallOptions& options) {
  Files files;
  MPC_RETURN_IF_ERROR(files.SendModel(*request.mutable_model(), "model"));
  MPC_RETURN_IF_ERROR(files.SendIfGiven(*request.mutable_record_file(), "record_file", "record"));
  MPC_RETURN_IF_ERROR(files.ReceiveSaved(*request.mutable_save_path()));
  return RunLocally<v1::SavePruneRetrainModelResponse>(client, &Client::SavePruneRetrainModel, std::move(files),
                                                       std::move(request), options);
}

}  // namespace modelpress::client
