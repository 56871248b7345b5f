#include "client/cpp/cli.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "client/cpp/connection.h"
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

// A number at `key` of an object; nothing if either is missing.
std::optional<double> NumberAt(const json& object, const std::string& key) {
  return object.is_object() && object.contains(key) && object[key].is_number() ? std::optional(object[key].get<double>())
                                                                               : std::nullopt;
}

// ", SQNR 23.4 dB" or "" where the report does not have it.
std::string SqnrText(const json& error) {
  const std::optional<double> sqnr = NumberAt(error, "sqnr_db");
  return sqnr.has_value() ? absl::StrFormat(" SQNR %.1f dB", *sqnr) : "";
}

// What a report (docs/report.md) says in short: sizes, the outputs' errors, the layers that lose most. Keys may be missing.
std::vector<std::string> SummaryLines(const json& report) {
  constexpr size_t kWorstLayers = 3;
  std::vector<std::string> lines;
  if (!report.is_object()) {
    return lines;
  }
  const json sizes = report.value("sizes", json::object());
  const std::optional<double> before = NumberAt(sizes, "model_bytes");
  const std::optional<double> after = NumberAt(sizes, "deploy_bytes");
  if (before.has_value() && after.has_value() && *before > 0) {
    lines.push_back(absl::StrFormat("size: %s -> %s (%.0f %%)", FormatBytes(static_cast<uint64_t>(*before)),
                                    FormatBytes(static_cast<uint64_t>(*after)), 100 * *after / *before));
  }
  for (const json& output : report.value("outputs_error", json::array())) {
    if (output.is_object() && output.contains("name") && output["name"].is_string()) {
      lines.push_back(absl::StrCat("output ", output["name"].get<std::string>(), ":", SqnrText(output)));
    }
  }
  std::map<std::string, json> errors;  // layer -> error
  for (const json& layer : report.value("layers", json::array())) {
    if (layer.is_object() && layer.contains("error") && layer.contains("name") && layer["name"].is_string()) {
      errors[layer["name"].get<std::string>()] = layer["error"];
    }
  }
  std::vector<std::string> worst;
  for (const json& name : report.value("worst_first", json::array())) {
    if (name.is_string() && worst.size() < kWorstLayers) {
      worst.push_back(name.get<std::string>() + SqnrText(errors[name.get<std::string>()]));
    }
  }
  if (!worst.empty()) {
    lines.push_back(absl::StrCat("largest errors: ", absl::StrJoin(worst, ", ")));
  }
  return lines;
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
    AddConnectionOptions();
    app_.add_option("--output", output_, "text, or json: one object on stdout, also for errors")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
    app_.add_flag("--quiet,-q", quiet_, "no progress and no warnings");
    AddPostTrainingCommands();
    AddPruneCommands();
    AddQuantRetrainCommands();
    AddCompressedRetrainCommands();
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

  // A command that runs one of the documented functions on local paths. `request` is a member, filled by the command's options.
  template <typename Request>
  CLI::App* AddFunction(const std::string& name, const std::string& help, Request& request,
                        absl::StatusOr<LocalCallResult> (*function)(Client&, Request, const LocalCallOptions&)) {
    CLI::App* command = AddCommand(app_, name, help, [this, &request, function] {
      return RunFunction(
          [&request, function](Client& client, const LocalCallOptions& options) { return function(client, request, options); });
    });
    AddCallOptions(*command);
    return command;
  }

  // How to reach a server that wants to know who calls.
  void AddConnectionOptions() {
    auto add = [this](const std::string& name, std::string& value, const std::string& help) {
      app_.add_option(Spellings(name), value, help)->envname(absl::StrCat("MODELPRESS_", absl::AsciiStrToUpper(name)));
    };
    app_.add_flag("--tls", connection_.tls, "TLS also to this machine; to others it is always used")->envname("MODELPRESS_TLS");
    add("tls_ca", connection_.tls_ca, "PEM file of root certificates to trust instead of the system's; implies TLS");
    add("tls_cert", connection_.tls_cert, "PEM file of the client's certificate chain (mTLS); implies TLS");
    add("tls_key", connection_.tls_key, "PEM file of its private key");
    add("tls_server_name", connection_.tls_server_name, "name that the server's certificate is made for; default: the target's");
    add("token_file", connection_.token_file, "file with a bearer token, read anew for every call");
    add("project", connection_.project, "project to act in, for administrators");
  }

  void AddPostTrainingCommands() {
    CLI::App* config = AddFunction("create_quant_config", "write the configuration of post-training quantization", create_config_,
                                   CreateQuantConfigOnLocalPaths);
    AddField(*config, "config_file", create_config_, "the JSON configuration to write")->required();
    AddField(*config, "model", create_config_, "the ONNX model")->required();
    AddArguments(*config, create_config_);
    AddField(*config, "module_manifest", create_config_, "JSON that names the model's modules (docs/cli.md)");
    AddField(*config, "kv_cache", create_config_, "configure key-value caches instead");
    AddField(*config, "kv_cache_layers", create_config_, "the layers with key-value caches: a,b");

    CLI::App* preprocess = AddFunction("quantize_preprocess", "write the balance factors of the layers that are balanced",
                                       preprocess_, QuantizePreprocessOnLocalPaths);
    AddField(*preprocess, "config_file", preprocess_, "the JSON configuration")->required();
    AddField(*preprocess, "record_file", preprocess_, "the record file to write")->required();
    AddField(*preprocess, "model", preprocess_, "the ONNX model")->required();
    AddData(*preprocess, preprocess_)->required();
    AddManifest(*preprocess, preprocess_);

    CLI::App* quantize =
        AddFunction("quantize_model", "write the modified model and its record file", quantize_model_, QuantizeModelOnLocalPaths);
    AddField(*quantize, "config_file", quantize_model_, "the JSON configuration; may be absent with --save_path");
    AddField(*quantize, "modified_onnx_file", quantize_model_, "the modified model to write", "--modfied_onnx_file");
    AddField(*quantize, "record_file", quantize_model_, "the record file to write; read before if it is there");
    AddField(*quantize, "model", quantize_model_, "the ONNX model")->required();
    AddNames(*quantize, quantize_model_);
    AddManifest(*quantize, quantize_model_);
    AddData(*quantize, quantize_model_);
    AddSampleData(*quantize, quantize_model_);
    AddField(*quantize, "save_path", quantize_model_, "also save, as save_model does: out/model");
    AddArguments(*quantize, quantize_model_);

    CLI::App* calibrate = AddFunction("calibrate", "complete the record file with the factors of the activations", calibrate_,
                                      CalibrateOnLocalPaths);
    AddField(*calibrate, "modified_onnx_file", calibrate_, "the modified model of quantize_model", "--modfied_onnx_file");
    AddField(*calibrate, "record_file", calibrate_, "its record file, which is replaced")->required();
    AddField(*calibrate, "config_file", calibrate_, "the JSON configuration")->required();
    AddField(*calibrate, "model", calibrate_, "the model given to quantize_model: for RNN layers and key-value caches");
    AddData(*calibrate, calibrate_)->required();
    AddManifest(*calibrate, calibrate_);

    AddQuantizeCommand();
  }

  // From a float model to everything, in one call.
  void AddQuantizeCommand() {
    CLI::App* command = AddCommand(app_, "quantize", "calibrate and quantize a model: all steps in one", [this] {
      return RunFunction(
          [this](Client& client, const LocalCallOptions& options) -> absl::StatusOr<LocalCallResult> {
            quantize_.set_save_path(QuantizeSavePath());
            return QuantizeModelOnLocalPaths(client, quantize_, options);
          },
          [this](const LocalCallResult& result) { PrintSummary(result); });
    });
    AddCallOptions(*command);
    AddField(*command, "model", quantize_, "the ONNX model", "model")->required();
    AddData(*command, quantize_)->required();
    command->add_option("-o,--save_path,--save-path", save_path_,
                        "folder (out/, or one that exists) or prefix (out/name) of the results; default: the current folder");
    AddField(*command, "config_file", quantize_, "a JSON configuration; default: one is made");
    AddArguments(*command, quantize_);
    AddManifest(*command, quantize_);
  }

  void AddSaveCommands() {
    CLI::App* save = AddFunction("save_model", "write the deploy and fake-quant models of a calibrated model", save_model_,
                                 SaveModelOnLocalPaths);
    AddField(*save, "modified_onnx_file", save_model_, "the modified ONNX model", "--modfied_onnx_file")->required();
    AddField(*save, "record_file", save_model_, "the record file of its quantization factors")->required();
    CLI::App* prune = AddFunction("save_prune_retrain_model", "write a pruned or 2:4 sparse model under both names", save_prune_,
                                  SavePruneRetrainModelOnLocalPaths);
    AddField(*prune, "model", save_prune_, "the exported ONNX model")->required();
    AddField(*prune, "record_file", save_prune_, "its record file: the model is checked to be pruned and sparse as it says");
    AddSavePath(*save, save_model_);
    AddSavePath(*prune, save_prune_);
  }

  void AddPruneCommands() {
    CLI::App* create = AddFunction("create_prune_retrain_model", "prune channels or make layers 2:4 sparse before training",
                                   create_prune_, CreatePruneRetrainModelOnLocalPaths);
    AddCreatePruned(*create, create_prune_);
    CLI::App* restore = AddFunction("restore_prune_retrain_model", "prune as a record file says, with a checkpoint's weights",
                                    restore_prune_, RestorePruneRetrainModelOnLocalPaths);
    AddRestorePruned(*restore, restore_prune_);

    CLI::App* search = AddFunction("auto_channel_prune_search", "find a prune ratio for every layer", search_,
                                   AutoChannelPruneSearchOnLocalPaths);
    AddField(*search, "model", search_, "the ONNX model")->required();
    AddField(*search, "config", search_, "the configuration of the search (.cfg)")->required();
    AddField(*search, "sensitivities", search_, "safetensors of the sums of |weight * gradient| of each layer's channels")
        ->required();
    AddField(*search, "output_cfg", search_, "the simple configuration to write")->required();
    AddManifest(*search, search_);
  }

  void AddQuantRetrainCommands() {
    CLI::App* config = AddFunction("create_quant_retrain_config", "write the configuration of quantization-aware training",
                                   retrain_config_, CreateQuantRetrainConfigOnLocalPaths);
    AddField(*config, "config_file", retrain_config_, "the JSON configuration to write")->required();
    AddField(*config, "model", retrain_config_, "the ONNX model")->required();
    AddDefinition(*config, retrain_config_);
    AddManifest(*config, retrain_config_);

    CLI::App* create = AddFunction("create_quant_retrain_model", "write the plan by which a module gets its quantizers",
                                   create_quant_, CreateQuantRetrainModelOnLocalPaths);
    AddQuantRetrain(*create, create_quant_);
    CLI::App* restore = AddFunction("restore_quant_retrain_model", "plan the quantizers again, and check that a checkpoint fits",
                                    restore_quant_, RestoreQuantRetrainModelOnLocalPaths);
    AddQuantRetrain(*restore, restore_quant_);
    AddWeights(*restore, restore_quant_);

    CLI::App* save = AddFunction("save_quant_retrain_model", "write both models after quantization-aware training", save_quant_,
                                 SaveQuantRetrainModelOnLocalPaths);
    AddField(*save, "config_file", save_quant_, "the JSON configuration")->required();
    AddSaveRetrain(*save, save_quant_);
    AddField(*save, "rewrite_plan", save_quant_, "the plan of the model: the configuration is checked to be its own");
  }

  void AddCompressedRetrainCommands() {
    CLI::App* create =
        AddFunction("create_compressed_retrain_model", "prune or make sparse before training, and plan the quantizers",
                    create_compressed_, CreateCompressedRetrainModelOnLocalPaths);
    AddCreatePruned(*create, create_compressed_);
    CLI::App* restore = AddFunction("restore_compressed_retrain_model",
                                    "prune by a record file, with a checkpoint's weights, and plan the quantizers",
                                    restore_compressed_, RestoreCompressedRetrainModelOnLocalPaths);
    AddRestorePruned(*restore, restore_compressed_);
    CLI::App* save = AddFunction("save_compressed_retrain_model", "write both models after training a compressed model",
                                 save_compressed_, SaveCompressedRetrainModelOnLocalPaths);
    AddSaveRetrain(*save, save_compressed_);
  }

  // ---- options

  // "--config_file,--config-file": both spellings of a documented name.
  static std::string Spellings(const std::string& name) {
    const std::string dashed = absl::StrReplaceAll(name, {{"_", "-"}});
    return dashed == name ? absl::StrCat("--", name) : absl::StrCat("--", name, ",--", dashed);
  }

  // An option for a field of `message`: a string, a number, a flag, or strings separated by commas. `other` is one more name; one
  // without dashes makes it an argument.
  static CLI::Option* AddField(CLI::App& command, const std::string& field, google::protobuf::Message& message,
                               const std::string& help, const std::string& other = "") {
    const google::protobuf::FieldDescriptor* descriptor = message.GetDescriptor()->FindFieldByName(field);
    const google::protobuf::Reflection* reflection = message.GetReflection();
    std::string names = Spellings(field);
    if (!other.empty()) {
      names = other.starts_with('-') ? absl::StrCat(other, ",", names) : other;
    }
    if (descriptor->is_repeated()) {
      return command
          .add_option_function<std::vector<std::string>>(
              names,
              [&message, reflection, descriptor](const std::vector<std::string>& values) {
                for (const std::string& value : values) {
                  reflection->AddString(&message, descriptor, value);
                }
              },
              help)
          ->delimiter(',')
          ->allow_extra_args(false);
    }
    if (descriptor->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
      return command.add_flag_callback(
          names, [&message, reflection, descriptor] { reflection->SetBool(&message, descriptor, true); }, help);
    }
    if (descriptor->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_UINT32) {
      return command.add_option_function<uint32_t>(
          names,
          [&message, reflection, descriptor](const uint32_t& value) { reflection->SetUInt32(&message, descriptor, value); },
          help);
    }
    return command.add_option_function<std::string>(
        names,
        [&message, reflection, descriptor](const std::string& value) { reflection->SetString(&message, descriptor, value); },
        help);
  }

  template <typename Request>
  static void AddSavePath(CLI::App& command, Request& request) {
    AddField(command, "save_path", request, "prefix of the results: out/model gives out/model_report.json and so on")->required();
  }

  template <typename Request>
  static void AddManifest(CLI::App& command, Request& request) {
    AddField(command, "module_manifest", request, "JSON that names the model's modules");
  }

  template <typename Request>
  static CLI::Option* AddDefinition(CLI::App& command, Request& request) {
    return AddField(command, "config_definition", request, "a simple configuration (.cfg)", "--config_defination");
  }

  template <typename Request>
  static void AddWeights(CLI::App& command, Request& request) {
    AddField(command, "weights", request, "the checkpoint's weights as safetensors");
    AddField(command, "state_dict_name", request, "only its entries \"NAME.\" count");
  }

  // Of the create and restore calls that prune.
  template <typename Request>
  static void AddPruned(CLI::App& command, Request& request, const std::string& record_help) {
    AddField(command, "model", request, "the ONNX model, batch norms not folded")->required();
    AddDefinition(command, request)->required();
    AddField(command, "record_file", request, record_help)->required();
    AddSavePath(command, request);
    AddField(command, "plan_only", request, "write no model, only the plan by which a module is rewritten");
    AddManifest(command, request);
  }

  template <typename Request>
  static void AddCreatePruned(CLI::App& command, Request& request) {
    AddPruned(command, request, "the record file to write");
    v1::PruneOptions& options = *request.mutable_prune_options();
    AddField(command, "extended", options, "prune through what stops the reference but can be followed (docs/pruning.md)");
    AddField(command, "rank_by_all_producers", options, "rank the channels of coupled layers by all of them, not by the first");
  }

  template <typename Request>
  static void AddRestorePruned(CLI::App& command, Request& request) {
    AddPruned(command, request, "the record file that tells which channels were cut");
    AddWeights(command, request);
  }

  template <typename Request>
  static void AddQuantRetrain(CLI::App& command, Request& request) {
    AddField(command, "config_file", request, "the JSON configuration")->required();
    AddField(command, "model", request, "the ONNX model, batch norms not folded")->required();
    AddField(command, "record_file", request, "the record file to write, empty")->required();
    AddSavePath(command, request);
    AddManifest(command, request);
  }

  template <typename Request>
  static void AddSaveRetrain(CLI::App& command, Request& request) {
    AddField(command, "model", request, "the trained model's export without its wrappers, batch norms not folded")->required();
    AddField(command, "record_file", request, "the record file of its quantization factors")->required();
    AddSavePath(command, request);
    AddNames(command, request);
    AddManifest(command, request);
  }

  // What a configuration is made of.
  template <typename Request>
  void AddArguments(CLI::App& command, Request& request) {
    AddField(command, "skip_layers", request, "layers to leave alone: a,b");
    AddField(command, "batch_num", request, "batches to calibrate with");
    command.add_flag_function(
        "--activation_offset,--activation-offset,!--no-activation_offset,!--no-activation-offset",
        [&request](int64_t count) { request.set_activation_offset(count > 0); }, "asymmetric activations (default), or not");
    AddField(command, "config_definition", request, "a simple configuration (.cfg) instead of these three",
             "--config_defination");
  }

  template <typename Request>
  CLI::Option* AddData(CLI::App& command, Request& request) {
    CLI::Option* data = command.add_option_function<std::string>(
        "--calibration_data,--calibration-data",
        [&request](const std::string& path) { request.mutable_calibration_data()->set_path(path); },
        "an .npz, .npy or .pb file, or a folder of them");
    command
        .add_option_function<uint32_t>(
            "--batch_size,--batch-size",
            [&request](const uint32_t& size) { request.mutable_calibration_data()->set_batch_size(size); },
            "samples per batch, where an array holds many")
        ->needs(data);
    return data;
  }

  static void AddSampleData(CLI::App& command, v1::QuantizeModelRequest& request) {
    command.add_option_function<std::string>(
        "--input_data,--input-data", [&request](const std::string& path) { request.mutable_sample_data()->set_path(path); },
        "one batch for AdaRound; default: the first one of the calibration data");
  }

  template <typename Request>
  static void AddNames(CLI::App& command, Request& request) {
    AddField(command, "input_names", request, "new names for the inputs: a,b");
    AddField(command, "output_names", request, "new names for the outputs: a,b");
    AddDynamicAxes(command, *request.mutable_dynamic_axes());
  }

  using DynamicAxes = google::protobuf::Map<std::string, v1::DynamicAxes>;

  static void AddDynamicAxes(CLI::App& command, DynamicAxes& axes) {
    command
        .add_option_function<std::vector<std::string>>(
            "--dynamic_axes,--dynamic-axes",
            [&axes](const std::vector<std::string>& values) {
              for (const std::string& value : values) {
                ParseDynamicAxes(value, axes);
              }
            },
            "axes of any size, NAME:AXIS[=LABEL],...: input:0=batch,2")
        ->allow_extra_args(false);
  }

  static void ParseDynamicAxes(const std::string& text, DynamicAxes& axes) {
    const size_t colon = text.rfind(':');  // names of tensors may hold colons
    if (colon == std::string::npos || colon == 0) {
      throw CLI::ValidationError("--dynamic_axes", absl::StrCat("'", text, "' is not NAME:AXIS[=LABEL],..."));
    }
    auto& labels = *axes[text.substr(0, colon)].mutable_labels();
    for (const std::string& part : std::vector<std::string>(absl::StrSplit(text.substr(colon + 1), ','))) {
      const std::pair<std::string, std::string> axis_label = absl::StrSplit(part, absl::MaxSplits('=', 1));
      int axis = 0;
      if (!absl::SimpleAtoi(axis_label.first, &axis) || axis < 0) {
        throw CLI::ValidationError("--dynamic_axes",
                                   absl::StrCat("'", part, "' in '", text, "' is no axis: a number from 0, or NUMBER=LABEL"));
      }
      labels[axis] = axis_label.second;
    }
  }

  // What every function takes besides its own parameters.
  void AddCallOptions(CLI::App& command) {
    CLI::Option* workspace =
        command.add_option("--workspace", workspace_, "use this workspace and keep it; default: a temporary one");
    command
        .add_flag(Spellings("reference_defects"), reference_defects_, "bring back the bytes of the reference where it is wrong")
        ->envname("MODELPRESS_REFERENCE_DEFECTS");
    CLI::Option* validate =
        command.add_flag(Spellings("validate_only"), validate_only_, "do every check, print the report and write no file");
    command.add_flag(Spellings("no_cache"), no_cache_, "run it even where the server has the result of the same call already");
    command.add_option(Spellings("request_id"), request_id_, "a UUID; the same request with the same id runs only once")
        ->needs(workspace);
    command.add_option(Spellings("execution_timeout"), execution_timeout_, "limit of the operation's run, e.g. 90s or 5m")
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
    options.connection = connection_;
    if (const char* traceparent = std::getenv("TRACEPARENT"); traceparent != nullptr) {
      options.connection.traceparent = traceparent;
    }
    MPC_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Connect(std::move(options)));
    return action(*client);
  }

  // `show` adds to what is told in text.
  absl::Status RunFunction(const std::function<absl::StatusOr<LocalCallResult>(Client&, const LocalCallOptions&)>& function,
                           const std::function<void(const LocalCallResult&)>& show = {}) {
    LocalCallOptions options;
    options.workspace = std::string(absl::StripPrefix(workspace_, "workspaces/"));
    options.call.set_request_id(request_id_);
    options.call.set_validate_only(validate_only_);
    options.call.set_reference_defects(reference_defects_);
    options.call.set_no_cache(no_cache_);
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
        if (!result.report.empty()) {
          object["report"] = json::parse(result.report, nullptr, /*allow_exceptions=*/false);
        }
        Print(object);
      } else if (no_wait_) {
        streams_.out << result.operation.name() << std::endl;
      } else {
        for (const std::string& file : result.files) {
          streams_.out << file << std::endl;
        }
        streams_.out << result.report;
        if (show && !quiet_) {
          show(result);
        }
      }
      return absl::OkStatus();
    });
  }

  // -o of `quantize` as a save_path: a folder gets the model's name as prefix.
  std::string QuantizeSavePath() const {
    std::error_code error;
    const bool folder = save_path_.empty() || save_path_.back() == '/' || std::filesystem::is_directory(save_path_, error);
    if (!folder) {
      return save_path_;
    }
    return std::filesystem::path(save_path_) / std::filesystem::path(quantize_.model()).stem();
  }

  // What the report says in short, to stderr like everything that is no path.
  void PrintSummary(const LocalCallResult& result) const {
    auto report = std::ranges::find_if(result.files, [](const std::string& file) { return file.ends_with("report.json"); });
    if (report == result.files.end()) {
      return;
    }
    std::ifstream file(*report);
    for (const std::string& line : SummaryLines(json::parse(file, nullptr, /*allow_exceptions=*/false))) {
      streams_.err << Printable(line) << std::endl;
    }
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
  ConnectionOptions connection_;
  std::string output_ = "text";
  bool quiet_ = false;
  v1::CreateQuantConfigRequest create_config_;
  v1::QuantizePreprocessRequest preprocess_;
  v1::QuantizeModelRequest quantize_model_;
  v1::CalibrateRequest calibrate_;
  v1::QuantizeModelRequest quantize_;
  v1::SaveModelRequest save_model_;
  v1::SavePruneRetrainModelRequest save_prune_;
  v1::CreatePruneRetrainModelRequest create_prune_;
  v1::RestorePruneRetrainModelRequest restore_prune_;
  v1::AutoChannelPruneSearchRequest search_;
  v1::CreateQuantRetrainConfigRequest retrain_config_;
  v1::CreateQuantRetrainModelRequest create_quant_;
  v1::RestoreQuantRetrainModelRequest restore_quant_;
  v1::SaveQuantRetrainModelRequest save_quant_;
  v1::CreateCompressedRetrainModelRequest create_compressed_;
  v1::RestoreCompressedRetrainModelRequest restore_compressed_;
  v1::SaveCompressedRetrainModelRequest save_compressed_;
  std::string save_path_;
  std::string workspace_;
  bool reference_defects_ = false;
  bool validate_only_ = false;
  bool no_wait_ = false;
  bool no_cache_ = false;
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
