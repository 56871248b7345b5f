#include "client/cpp/cli.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <system_error>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "client/cpp/exit_code.h"
#include "client/cpp/local_calls.h"
#include "client/cpp/local_path.h"
#include "client/cpp/progress.h"
#include "google/protobuf/util/json_util.h"
#include "nlohmann/json.hpp"

namespace modelpress::client {
namespace {

using google::longrunning::Operation;
using nlohmann::json;

// "x" and "workspaces/x" both name the workspace.
std::string WithPrefix(absl::string_view prefix, const std::string& name) {
  return absl::StartsWith(name, prefix) ? name : absl::StrCat(prefix, name);
}

// A message as JSON with the field names of the .proto files.
json ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) {
    return {{"unprintable", message.GetTypeName()}};  // an Any of a type that this program does not know
  }
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

template <typename Message>
json ToJsonList(const std::vector<Message>& messages) {
  json list = json::array();
  std::transform(messages.begin(), messages.end(), std::back_inserter(list),
                 [](const Message& message) { return ToJson(message); });
  return list;
}

json ErrorToJson(absl::string_view code, const ErrorDetails& details) {
  json error = {{"code", std::string(code)}, {"reason", details.reason}, {"message", details.message}};
  if (!details.file.empty()) {
    error["file"] = details.file;
  }
  if (details.line > 0) {
    error["line"] = details.line;
  }
  if (details.column > 0) {
    error["column"] = details.column;
  }
  if (!details.layer.empty()) {
    error["layer"] = details.layer;
  }
  if (!details.field.empty()) {
    error["field"] = details.field;
  }
  if (!details.missing_files.empty()) {
    error["missing_files"] = details.missing_files;
  }
  return {{"error", error}};
}

// "30", "30s" or "5m".
std::string CheckDuration(const std::string& text) {
  absl::Duration duration;
  double seconds = 0;
  bool valid = absl::SimpleAtod(text, &seconds) || absl::ParseDuration(text, &duration);
  duration = seconds > 0 ? absl::Seconds(seconds) : duration;
  return valid && duration > absl::ZeroDuration() && duration < absl::InfiniteDuration()
             ? ""
             : "must be a positive time such as 90s, 5m or 1h";
}

// `text` has passed CheckDuration.
absl::Duration ToDuration(const std::string& text) {
  absl::Duration duration;
  double seconds = 0;
  if (absl::SimpleAtod(text, &seconds)) {
    return absl::Seconds(seconds);
  }
  return absl::ParseDuration(text, &duration) ? duration : absl::ZeroDuration();
}

class Cli {
 public:
  Cli(const CliStreams& streams, const std::stop_token& stop)
      : streams_(streams), stop_(stop), progress_(streams.err, streams.err_is_terminal, streams.width, absl::Now) {
    app_.set_version_flag("--version", MODELPRESS_VERSION);
    app_.require_subcommand(1);
    app_.fallthrough();
    app_.footer(absl::StrCat(kExitCodeHelp, "\nAll commands: docs/cli.md"));
    app_.add_option("--target", target_, "address of the server, HOST:PORT")->envname("MODELPRESS_TARGET")->capture_default_str();
    app_.add_option("--output", output_, "text, or json: one object on stdout, also for errors")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
    app_.add_flag("--quiet,-q", quiet_, "no progress and no warnings");
    AddSaveCommands();
    AddWorkspaceCommands();
    AddFileCommands();
    AddOperationCommands();
  }

  int Run(std::vector<std::string> arguments) {
    // The parser may fail before it has seen this.
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i] == "--output=json" ||
          (arguments[i] == "--output" && i + 1 < arguments.size() && arguments[i + 1] == "json")) {
        output_ = "json";
      }
    }
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    try {
      app_.parse(std::move(arguments));
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) {  // --help, --version
        app_.exit(error, streams_.out, streams_.err);
        return kExitOk;
      }
      if (output_ == "json") {
        Print(ErrorToJson("INVALID_ARGUMENT", {.reason = "USAGE", .message = error.what()}));
      }
      streams_.err << "modelpress: " << Printable(error.what()) << " (see modelpress --help) [USAGE]" << std::endl;
      return kExitUsage;
    }
    absl::Status status = action_();
    progress_.Clear();
    if (!status.ok()) {
      PrintError(status);
    }
    return ExitCodeOf(status);
  }

 private:
  // ---- commands: each one's callback only chooses the action

  CLI::App* AddCommand(CLI::App& parent, const std::string& name, const std::string& help, std::function<absl::Status()> action) {
    CLI::App* command = parent.add_subcommand(name, help);
    command->fallthrough();
    command->callback([this, action = std::move(action)] { action_ = action; });
    return command;
  }

  CLI::App* AddGroup(const std::string& name, const std::string& help) {
    CLI::App* group = app_.add_subcommand(name, help);
    group->require_subcommand(1);
    group->fallthrough();
    return group;
  }

  void AddSaveCommands() {
    CLI::App* save = AddCommand(app_, "save_model", "write the deploy and fake-quant models of a calibrated model", [this] {
      return Save([this](Client& client, const LocalCallOptions& options) {
        return SaveModelOnLocalPaths(client, model_, record_file_, save_path_, options);
      });
    });
    save->add_option("--modfied_onnx_file,--modified_onnx_file", model_, "the modified ONNX model")->required();
    save->add_option("--record_file", record_file_, "the record file of its quantization factors")->required();
    AddSaveOptions(*save);
    CLI::App* prune = AddCommand(app_, "save_prune_retrain_model", "write a pruned or 2:4 sparse model under both names", [this] {
      return Save([this](Client& client, const LocalCallOptions& options) {
        return SavePruneRetrainModelOnLocalPaths(client, model_, save_path_, options);
      });
    });
    prune->add_option("--model", model_, "the exported ONNX model")->required();
    AddSaveOptions(*prune);
  }

  void AddSaveOptions(CLI::App& command) {
    command.add_option("--save_path", save_path_, "prefix of the results: out/model gives out/model_deploy_model.onnx")
        ->required();
    CLI::Option* workspace =
        command.add_option("--workspace", workspace_, "use this workspace and keep it; default: a temporary one");
    command.add_flag("--reference_defects", reference_defects_, "bring back the bytes of the reference where it is wrong")
        ->envname("MODELPRESS_REFERENCE_DEFECTS");
    CLI::Option* validate = command.add_flag("--validate_only", validate_only_, "do every check and write no file");
    command.add_option("--request_id", request_id_, "a UUID; the same request with the same id runs only once")->needs(workspace);
    command.add_option("--execution_timeout", execution_timeout_, "limit of the operation's run, e.g. 90s or 5m")
        ->check(CLI::Validator(CheckDuration, "DURATION"));
    command.add_flag("--no-wait", no_wait_, "print the operation's name and leave")->needs(workspace)->excludes(validate);
  }

  void AddWorkspaceCommands() {
    CLI::App* group = AddGroup("workspace", "named places for files");
    CLI::App* create = AddCommand(*group, "create", "make a workspace", [this] {
      return WithClient(
          [this](Client& client) { return Show(client.CreateWorkspace(std::string(absl::StripPrefix(name_, "workspaces/")))); });
    });
    create->add_option("id", name_, "its id; default: the server chooses");
    CLI::App* get = AddCommand(*group, "get", "show a workspace", [this] {
      return WithClient([this](Client& client) { return Show(client.GetWorkspace(WithPrefix("workspaces/", name_))); });
    });
    get->add_option("workspace", name_)->required();
    AddCommand(*group, "list", "show all workspaces",
               [this] { return WithClient([this](Client& client) { return ShowAll("workspaces", client.ListWorkspaces()); }); });
    CLI::App* remove = AddCommand(*group, "delete", "delete a workspace and its files", [this] {
      return WithClient([this](Client& client) { return Done(client.DeleteWorkspace(WithPrefix("workspaces/", name_))); });
    });
    remove->add_option("workspace", name_)->required();
  }

  void AddFileCommands() {
    constexpr char kName[] = "workspaces/ID/files/PATH";
    CLI::App* group = AddGroup("file", "files of a workspace");
    CLI::App* list = AddCommand(*group, "list", "show the files of a workspace", [this] {
      return WithClient([this](Client& client) { return ShowAll("files", client.ListFiles(WithPrefix("workspaces/", name_))); });
    });
    list->add_option("workspace", name_)->required();
    CLI::App* get = AddCommand(*group, "get", "show a file's size and SHA-256",
                               [this] { return WithClient([this](Client& client) { return Show(client.GetFile(name_)); }); });
    get->add_option("name", name_, kName)->required();
    CLI::App* upload = AddCommand(*group, "upload", "send a local file",
                                  [this] { return WithClient([this](Client& client) { return UploadFile(client); }); });
    upload->add_option("local", local_, "the local file")->required();
    upload->add_option("name", name_, kName)->required();
    CLI::App* download = AddCommand(*group, "download", "fetch a file",
                                    [this] { return WithClient([this](Client& client) { return DownloadFile(client); }); });
    download->add_option("name", name_, kName)->required();
    download->add_option("local", local_, "the local file or folder; default: the file's name in the current folder");
    CLI::App* remove = AddCommand(*group, "delete", "delete a file", [this] {
      return WithClient([this](Client& client) { return Done(client.DeleteFile(name_)); });
    });
    remove->add_option("name", name_, kName)->required();
  }

  void AddOperationCommands() {
    CLI::App* group = AddGroup("operation", "running and finished calls");
    auto name = [this] { return WithPrefix("operations/", name_); };
    CLI::App* get = AddCommand(*group, "get", "show an operation", [this, name] {
      return WithClient([this, name](Client& client) { return Show(client.GetOperation(name())); });
    });
    get->add_option("operation", name_)->required();
    CLI::App* list = AddCommand(*group, "list", "show all operations, the newest first", [this] {
      return WithClient([this](Client& client) { return ShowAll("operations", client.ListOperations(filter_)); });
    });
    list->add_option("--filter", filter_, "e.g. 'workspace = \"workspaces/x\" AND state = RUNNING'");
    CLI::App* wait = AddCommand(*group, "wait", "wait for the end of an operation; Ctrl-C ends only the waiting", [this, name] {
      return WithClient([this, name](Client& client) { return Wait(client, name()); });
    });
    wait->add_option("operation", name_)->required();
    wait->add_option("--timeout", wait_timeout_, "wait no longer, e.g. 90s or 5m")
        ->check(CLI::Validator(CheckDuration, "DURATION"));
    CLI::App* cancel = AddCommand(*group, "cancel", "cancel an operation", [this, name] {
      return WithClient([this, name](Client& client) { return Done(client.CancelOperation(name())); });
    });
    cancel->add_option("operation", name_)->required();
    CLI::App* remove = AddCommand(*group, "delete", "forget a finished operation", [this, name] {
      return WithClient([this, name](Client& client) { return Done(client.DeleteOperation(name())); });
    });
    remove->add_option("operation", name_)->required();
  }

  // ---- actions

  absl::Status WithClient(const std::function<absl::Status(Client&)>& action) const {
    Client::Options options;
    options.target = target_;
    MPC_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Connect(std::move(options)));
    return action(*client);
  }

  absl::Status Save(const std::function<absl::StatusOr<LocalCallResult>(Client&, const LocalCallOptions&)>& function) {
    LocalCallOptions options;
    options.workspace = std::string(absl::StripPrefix(workspace_, "workspaces/"));
    options.call.set_request_id(request_id_);
    options.call.set_validate_only(validate_only_);
    options.call.set_reference_defects(reference_defects_);
    if (!execution_timeout_.empty()) {
      absl::Duration timeout = ToDuration(execution_timeout_);
      options.call.mutable_execution_timeout()->set_seconds(absl::ToInt64Seconds(timeout));
      options.call.mutable_execution_timeout()->set_nanos(static_cast<int>(absl::ToInt64Nanoseconds(timeout % absl::Seconds(1))));
    }
    options.wait = !no_wait_;
    options.stop = stop_;
    options.progress = [this](const CallProgress& progress) { ShowProgress(progress); };
    return WithClient([&](Client& client) -> absl::Status {
      MPC_ASSIGN_OR_RETURN(LocalCallResult result, function(client, options));
      progress_.Clear();
      for (const std::string& warning : result.warnings) {
        if (!quiet_) {
          streams_.err << "modelpress: warning: " << Printable(warning) << std::endl;
        }
      }
      if (output_ == "json") {
        json object = {{"operation", ToJson(result.operation)}, {"files", result.files}, {"warnings", result.warnings}};
        if (!result.workspace.empty()) {
          object["workspace"] = result.workspace;
        }
        Print(object);
      } else if (no_wait_) {
        streams_.out << result.operation.name() << std::endl;
      } else {
        for (const std::string& file : result.files) {
          streams_.out << file << std::endl;
        }
      }
      return absl::OkStatus();
    });
  }

  TransferOptions Transfer(CallProgress::Phase phase) {
    return {.progress = [this, phase](uint64_t done, uint64_t total) { ShowProgress({phase, BaseName(name_), done, total}); },
            .stop = stop_};
  }

  absl::Status UploadFile(Client& client) {
    MPC_ASSIGN_OR_RETURN(v1::Upload upload, client.Upload(local_, name_, Transfer(CallProgress::Phase::kUpload)));
    progress_.Clear();
    if (output_ == "json") {
      Print(ToJson(upload));
    } else {
      streams_.out << name_ << std::endl;
    }
    return absl::OkStatus();
  }

  absl::Status DownloadFile(Client& client) {
    std::error_code error;
    const bool folder = !local_.empty() && std::filesystem::is_directory(local_, error);
    // A path that ends in "/" stands for a folder, as in save_path.
    MPC_ASSIGN_OR_RETURN(SavePath split, SplitSavePath(folder ? absl::StrCat(local_, "/") : local_));
    const std::string file_name = split.prefix.empty() ? BaseName(name_) : split.prefix;
    MPC_RETURN_IF_ERROR(CheckName(file_name, name_));
    const std::string path = absl::StrCat(split.folder == "/" ? "" : split.folder, "/", file_name);
    MPC_ASSIGN_OR_RETURN(StagedFile staged, StagedFile::Create(path));
    MPC_ASSIGN_OR_RETURN(v1::File file, client.Download(name_, "", staged, Transfer(CallProgress::Phase::kDownload)));
    MPC_RETURN_IF_ERROR(staged.Commit());
    progress_.Clear();
    if (output_ == "json") {
      Print({{"file", ToJson(file)}, {"path", path}});
    } else {
      streams_.out << path << std::endl;
    }
    return absl::OkStatus();
  }

  absl::Status Wait(Client& client, const std::string& name) {
    WaitOptions options{.stop = stop_};
    options.progress = [this](const Operation& operation) {
      v1::OperationMetadata metadata = MetadataOf(operation);
      const v1::Progress& progress = metadata.progress();
      ShowProgress(metadata.state() == v1::OperationMetadata::PENDING
                       ? CallProgress{.phase = CallProgress::Phase::kQueue}
                       : CallProgress{CallProgress::Phase::kRun, progress.stage(), progress.done(), progress.total()});
    };
    if (!wait_timeout_.empty()) {
      options.timeout = ToDuration(wait_timeout_);
    }
    MPC_ASSIGN_OR_RETURN(Operation operation, client.WaitOperation(name, options));
    progress_.Clear();
    if (operation.has_error()) {
      return FromRpc(operation.error());
    }
    if (output_ == "json") {
      Print(ToJson(operation));
      return absl::OkStatus();
    }
    const v1::OperationMetadata metadata = MetadataOf(operation);
    for (const v1::File& file : metadata.outputs()) {
      streams_.out << file.name() << std::endl;
    }
    return absl::OkStatus();
  }

  // ---- output

  void ShowProgress(const CallProgress& progress) {
    if (!quiet_) {
      progress_.Print(progress);
    }
  }

  static std::string Line(const v1::Workspace& workspace) { return workspace.name(); }
  static std::string Line(const v1::File& file) {
    return absl::StrCat(file.name(), "\t", file.size_bytes(), "\t", file.sha256());
  }
  static std::string Line(const Operation& operation) {
    v1::OperationMetadata metadata = MetadataOf(operation);
    std::string line = absl::StrCat(operation.name(), "\t", v1::OperationMetadata::State_Name(metadata.state()), "\t",
                                    metadata.method(), "\t", metadata.workspace());
    return operation.has_error() ? absl::StrCat(line, "\t", Printable(operation.error().message())) : line;
  }

  template <typename Message>
  absl::Status Show(const absl::StatusOr<Message>& message) {
    if (!message.ok()) {
      return message.status();
    }
    if (output_ == "json") {
      Print(ToJson(*message));
    } else {
      streams_.out << Line(*message) << std::endl;
    }
    return absl::OkStatus();
  }

  template <typename Message>
  absl::Status ShowAll(const std::string& key, const absl::StatusOr<std::vector<Message>>& messages) {
    if (!messages.ok()) {
      return messages.status();
    }
    if (output_ == "json") {
      Print({{key, ToJsonList(*messages)}});
      return absl::OkStatus();
    }
    for (const Message& message : *messages) {
      streams_.out << Line(message) << std::endl;
    }
    return absl::OkStatus();
  }

  absl::Status Done(const absl::Status& status) {
    if (status.ok() && output_ == "json") {
      Print(json::object());
    }
    return status;
  }

  void Print(const json& object) {
    // Local paths need not be UTF-8.
    streams_.out << object.dump(2, ' ', false, json::error_handler_t::replace) << std::endl;
  }

  void PrintError(const absl::Status& status) {
    const ErrorDetails details = DetailsOf(status);
    const std::string code = absl::StatusCodeToString(status.code());
    if (output_ == "json") {
      Print(ErrorToJson(code, details));
    }
    std::string text = details.message;
    if (!details.file.empty() && !absl::StrContains(text, details.file)) {
      text = absl::StrCat(details.file, ": ", text);
    }
    streams_.err << "modelpress: " << Printable(text) << " [" << (details.reason.empty() ? code : details.reason) << "]"
                 << std::endl;
  }

  CliStreams streams_;
  std::stop_token stop_;
  ProgressPrinter progress_;
  CLI::App app_{"Compress neural networks with a modelpress server.", "modelpress"};
  std::function<absl::Status()> action_;

  std::string target_ = "localhost:50051";
  std::string output_ = "text";
  bool quiet_ = false;
  std::string model_;
  std::string record_file_;
  std::string save_path_;
  std::string workspace_;
  bool reference_defects_ = false;
  bool validate_only_ = false;
  bool no_wait_ = false;
  std::string request_id_;
  std::string execution_timeout_;
  std::string wait_timeout_;
  std::string name_;
  std::string local_;
  std::string filter_;
};

}  // namespace

int RunCli(const std::vector<std::string>& arguments, const CliStreams& streams, const std::stop_token& stop) {
  return Cli(streams, stop).Run(arguments);
}

}  // namespace modelpress::client
