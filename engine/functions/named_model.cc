#include "engine/functions/named_model.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/quantize/marks.h"
#include "engine/quantize/modified_model.h"

namespace modelpress::engine {
namespace {

// The graph's inputs that are no initializers.
std::vector<onnx::ValueInfoProto*> InputsOf(Model& model) {
  std::set<std::string> initializers;
  for (const Tensor& tensor : model.initializers) {
    initializers.insert(tensor.name());
  }
  std::vector<onnx::ValueInfoProto*> inputs;
  for (onnx::ValueInfoProto& input : *model.shell.mutable_graph()->mutable_input()) {
    if (!initializers.contains(input.name())) {
      inputs.push_back(&input);
    }
  }
  return inputs;
}

absl::Status FreeAxes(onnx::ValueInfoProto& value, const std::string& name, const std::map<int, std::string>& axes) {
  onnx::TypeProto::Tensor& type = *value.mutable_type()->mutable_tensor_type();
  int position = 0;
  for (const auto& [axis, label] : axes) {
    ++position;
    if (axis < 0 || axis >= type.shape().dim_size()) {
      return MakeError(v1::REQUEST_INVALID,
                       absl::StrCat("'", name, "' has ", type.shape().dim_size(), " dimensions; there is no axis ", axis),
                       {.field = "dynamic_axes"});
    }
    type.mutable_shape()->mutable_dim(axis)->set_dim_param(label.empty() ? absl::StrCat(name, "_dynamic_axes_", position)
                                                                         : label);
  }
  return absl::OkStatus();
}

// torch calls a dimension of an output that it cannot infer after the output: "Gemm33_dim_0". Such names follow a new name.
void RenameDimensions(onnx::ValueInfoProto& output, const std::string& name) {
  onnx::TensorShapeProto& shape = *output.mutable_type()->mutable_tensor_type()->mutable_shape();
  for (int axis = 0; axis < shape.dim_size(); ++axis) {
    absl::string_view prefix = shape.dim(axis).dim_param();
    if (absl::ConsumeSuffix(&prefix, absl::StrCat(output.name(), "_dim_", axis))) {
      shape.mutable_dim(axis)->set_dim_param(absl::StrCat(prefix, name, "_dim_", axis));
    }
  }
}

absl::Status CheckCount(size_t names, size_t values, absl::string_view what, const std::string& field) {
  if (names > values) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat(names, " names are given for ", values, " ", what, " of the model"),
                     {.field = field});
  }
  return absl::OkStatus();
}

// Names and frees the axes; the names are those that the model will have.
absl::Status ApplyDynamicAxes(Model& model, const InterfaceNames& names) {
  const std::vector<onnx::ValueInfoProto*> inputs = InputsOf(model);
  MP_RETURN_IF_ERROR(CheckCount(names.inputs.size(), inputs.size(), "inputs", "input_names"));
  MP_RETURN_IF_ERROR(CheckCount(names.outputs.size(), model.shell.graph().output_size(), "outputs", "output_names"));
  std::map<std::string, onnx::ValueInfoProto*> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    values[i < names.inputs.size() ? names.inputs[i] : inputs[i]->name()] = inputs[i];
  }
  for (int i = 0; i < model.shell.graph().output_size(); ++i) {
    onnx::ValueInfoProto* output = model.shell.mutable_graph()->mutable_output(i);
    if (i < static_cast<int>(names.outputs.size())) {
      RenameDimensions(*output, names.outputs[i]);
    }
    values[i < static_cast<int>(names.outputs.size()) ? names.outputs[i] : output->name()] = output;
  }
  for (const auto& [name, axes] : names.dynamic_axes) {
    auto value = values.find(name);
    if (value == values.end()) {
      return MakeError(v1::REQUEST_INVALID, absl::StrCat("the model has no input or output '", name, "'"),
                       {.field = "dynamic_axes"});
    }
    MP_RETURN_IF_ERROR(FreeAxes(*value->second, name, axes));
  }
  return absl::OkStatus();
}

// A model that went through save_model is nothing to start from.
absl::Status CheckFloatModel(const Model& model) {
  for (const Node& node : model.nodes) {
    for (const char* op_type : {"AscendQuant", "AscendDequant", "AscendAntiQuant", "AscendWeightQuant"}) {
      if (node.proto.op_type() == op_type) {
        return MakeError(v1::MODEL_MARKED,
                         absl::StrCat("the model has the operator ", op_type, ": it is quantized already; give the float model"),
                         {.layer = node.proto.name()});
      }
    }
  }
  return absl::OkStatus();
}

// Some exporters give many nodes one name, which is legal ONNX as long as nobody looks for nodes by name, as records do.
void NumberRepeatedNames(Model& model) {
  absl::flat_hash_set<std::string> names;
  for (const Node& node : model.nodes) {
    names.insert(node.proto.name());
  }
  absl::flat_hash_set<std::string> seen;
  for (Node& node : model.nodes) {
    const std::string name = node.proto.name();
    if (name.empty() || seen.insert(name).second) {
      continue;
    }
    std::string numbered;
    for (int i = 1; numbered.empty() || !names.insert(numbered).second; ++i) {
      numbered = absl::StrCat(name, "_", i);
    }
    node.proto.set_name(numbered);
  }
}

}  // namespace

absl::StatusOr<NamedModel> ReadNamedModel(const CallContext& context, const std::string& model, const std::string& field,
                                          const std::string& module_manifest, const InterfaceNames& names) {
  const ErrorPlace place = {.field = field, .file = model};
  absl::StatusOr<Model> read = ReadModel(*context.files, model);
  MP_RETURN_IF_ERROR(AtPlace(read.status(), place));
  std::set<std::string> files_read(read->external_files.begin(), read->external_files.end());
  files_read.insert(model);
  MP_RETURN_IF_ERROR(AtPlace(CheckFloatModel(*read), place));
  TakeDataTypes(*read);
  DropMarkOpset(read->shell);
  MP_RETURN_IF_ERROR(ApplyDynamicAxes(*read, names));
  NumberRepeatedNames(*read);
  absl::StatusOr<Graph> graph = Graph::Create(*std::move(read), context.defects);
  MP_RETURN_IF_ERROR(AtPlace(graph.status(), place));
  for (size_t i = 0; i < names.inputs.size(); ++i) {
    MP_RETURN_IF_ERROR(graph->RenameInput(static_cast<int>(i), names.inputs[i]));
  }
  for (size_t i = 0; i < names.outputs.size(); ++i) {
    MP_RETURN_IF_ERROR(graph->RenameOutput(static_cast<int>(i), names.outputs[i]));
  }
  MP_RETURN_IF_ERROR(AtPlace(ResolveConstantIdentities(*graph), place));
  std::optional<v1::ModuleManifest> manifest;
  if (!module_manifest.empty()) {
    MP_ASSIGN_OR_RETURN(const std::string text, ReadText(context, module_manifest, "module_manifest"));
    absl::StatusOr<v1::ModuleManifest> parsed = ReadModuleManifest(text, module_manifest);
    MP_RETURN_IF_ERROR(AtPlace(parsed.status(), {.field = "module_manifest"}));
    manifest = *std::move(parsed);
    files_read.insert(module_manifest);
  }
  absl::StatusOr<Layers> layers = FindLayers(*graph, manifest.has_value() ? &*manifest : nullptr, context.defects);
  MP_RETURN_IF_ERROR(AtPlace(layers.status(), place));
  MP_ASSIGN_OR_RETURN(auto mark_tensors, StripMarks(*graph));
  NameLayerNodes(*graph, *layers);
  return NamedModel{*std::move(graph), *std::move(layers), std::move(files_read), std::move(mark_tensors), std::move(manifest)};
}

absl::StatusOr<std::string> ReadText(const CallContext& context, const std::string& file, const std::string& field) {
  absl::StatusOr<std::shared_ptr<const InputFile>> input = context.files->Open(file);
  MP_RETURN_IF_ERROR(AtPlace(input.status(), {.field = field, .file = file}));
  const absl::Span<const uint8_t> bytes = (*input)->mapping();
  if (bytes.size() > kMaxRecordBytes) {  // the largest of all texts; what is made of them has limits of its own
    return MakeError(v1::REQUEST_INVALID,
                     absl::StrCat("the file has ", bytes.size(), " bytes; at most ", kMaxRecordBytes, " are read"),
                     {.field = field, .file = file});
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

absl::StatusOr<ParsedRecord> ReadRecordFile(const CallContext& context, const std::string& record_file) {
  MP_ASSIGN_OR_RETURN(const std::string text, ReadText(context, record_file, "record_file"));
  absl::StatusOr<ParsedRecord> record = ParseRecord(text, record_file);
  MP_RETURN_IF_ERROR(AtPlace(record.status(), {.field = "record_file", .file = record_file}));
  return record;
}

absl::Status AtConfigSource(const absl::Status& status, const std::string& model, const std::string& config_definition) {
  const ErrorPlace place = PlaceOf(status);
  if (!config_definition.empty() && place.file == config_definition) {
    return AtPlace(status, {.field = "config_definition"});
  }
  return place.field.empty() ? AtPlace(status, {.field = "model", .file = model}) : status;
}

absl::StatusOr<WrittenFile> WriteText(const CallContext& context, const OutputFile& file, absl::string_view text) {
  if (context.validate_only) {
    return WrittenFile();
  }
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFolder> output, CreateOutputFolder(context, file.folder));
  MP_RETURN_IF_ERROR(output->AddFile(file.name, text));
  MP_RETURN_IF_ERROR(output->Commit());
  WrittenFile written = output->files().back();
  written.name = file.WorkspaceName();
  return written;
}

}  // namespace modelpress::engine
