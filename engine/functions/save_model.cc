#include "engine/functions/save_model.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/formats/record.h"
#include "engine/functions/named_model.h"
#include "engine/functions/report.h"
#include "engine/functions/report_html.h"
#include "engine/graph/graph.h"
#include "engine/quantize/deploy_check.h"
#include "engine/quantize/layer_factors.h"
#include "engine/quantize/marks.h"
#include "engine/quantize/modified_model.h"
#include "engine/quantize/pass.h"
#include "engine/runtime/load_check.h"

namespace modelpress::engine {
namespace {

constexpr char kFakeQuantModel[] = "fake-quant model";
// It uses Round and Clip with three inputs.
constexpr int64_t kMinOpset = 11;

// The opset import of the mark domain goes; the reference drops the last one, whatever it is (docs/spec/save.md section 3.1).
void DropOpset(onnx::ModelProto& shell, const ReferenceDefects& defects, std::set<std::string>& deviations) {
  auto* imports = shell.mutable_opset_import();
  if (imports->size() < 2) {
    return;
  }
  if (defects.drops_last_opset_import) {
    imports->RemoveLast();
    return;
  }
  if (imports->Get(imports->size() - 1).domain() != kMarkDomain) {
    deviations.insert("every opset import but that of the mark domain is kept (3.1)");
  }
  DropMarkOpset(shell);
}

absl::Status CheckOpset(const onnx::ModelProto& shell, const ReferenceDefects& defects) {
  for (const onnx::OperatorSetIdProto& import : shell.opset_import()) {
    if (import.domain().empty() && import.version() < kMinOpset && !defects.accepts_old_opsets) {
      return MakeError(v1::OPSET_UNSUPPORTED,
                       absl::StrCat("the model has opset ", import.version(),
                                    "; the fake-quant model needs 11 or newer: export or convert it again"));
    }
  }
  return absl::OkStatus();
}

// kernel_shape may be left out where the weight tells it; the reference demands it.
void InferKernelShapes(Graph& graph) {
  for (ItemId id : graph.Order()) {
    Item& item = graph.mutable_item(id);
    if ((!item.Is("Conv") && !item.Is("ConvTranspose")) || FindAttribute(item.node.proto, "kernel_shape") != nullptr) {
      continue;
    }
    std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(id, 1));
    if (!weight.has_value()) {
      continue;
    }
    onnx::AttributeProto& kernel_shape = *item.node.proto.add_attribute();
    kernel_shape.set_name("kernel_shape");
    kernel_shape.set_type(onnx::AttributeProto::INTS);
    const std::vector<int64_t> dims = DimsOf(graph.item(weight->holder));
    for (size_t i = 2; i < dims.size(); ++i) {
      kernel_shape.add_ints(dims[i]);
    }
  }
}

// Things in a record that are legal and have no effect.
std::vector<std::string> RecordWarnings(const ParsedRecord& record, const FactorsByLayer& factors) {
  std::vector<std::string> warnings;
  if (factors.empty()) {
    warnings.emplace_back("no entry of the record file carries factors: nothing is quantized");
  }
  absl::flat_hash_map<std::string, int> seen;
  for (const auto& entry : record.record.record()) {
    if (absl::StrContains(entry.key(), ':')) {
      warnings.push_back(absl::StrCat("record entry '", entry.key(), "': entries for tensors have no effect when saving"));
    }
    if (entry.has_kv_cache_value()) {
      warnings.push_back(absl::StrCat("record entry '", entry.key(), "': kv_cache_value has no effect when saving"));
    }
    if (++seen[entry.key()] == 2) {
      warnings.push_back(
          absl::StrCat("record entry '", entry.key(), "' is given more than once; the last one with factors counts"));
    }
  }
  return warnings;
}

// Reads every tensor through, for calls that write nothing: weights are only checked when they are computed.
absl::Status ComputeAll(const Model& model) {
  std::vector<uint8_t> chunk(1 << 20);
  for (const Tensor& tensor : model.initializers) {
    const uint64_t size = tensor.payload == nullptr ? 0 : tensor.payload->size();
    for (uint64_t offset = 0; offset < size; offset += chunk.size()) {
      auto piece = absl::MakeSpan(chunk).first(std::min<uint64_t>(chunk.size(), size - offset));
      MP_RETURN_IF_ERROR(AtPlace(tensor.payload->Read(offset, piece), {.layer = tensor.name()}));
    }
  }
  return absl::OkStatus();
}

// Reads a staged file back, together with the other staged files it may refer to.
absl::StatusOr<Model> ReadBack(const OutputFolder& output, const std::string& name) {
  std::map<std::string, std::string> paths;
  for (const WrittenFile& file : output.files()) {
    paths[file.name] = output.StagedPath(file.name);
  }
  return ReadModel(FileSet(std::move(paths)), name);
}

}  // namespace

absl::StatusOr<SavedModels> SaveModel(const CallContext& context, const std::string& modified_onnx_file,
                                      const std::string& record_file, const std::string& save_path,
                                      const ReportExtension* extension) {
  const ErrorPlace place = {.field = "modified_onnx_file", .file = modified_onnx_file};
  MP_ASSIGN_OR_RETURN(const SavePath path, SavePath::Parse(save_path));
  context.progress("read", 0, 0);
  absl::StatusOr<Model> model = ReadModel(*context.files, modified_onnx_file);
  MP_RETURN_IF_ERROR(AtPlace(model.status(), place));
  MP_RETURN_IF_ERROR(AtPlace(CheckUnmarked(*model), place));
  ReportExtension report = {.function = "save_model", .inputs = {model->external_files.begin(), model->external_files.end()}};
  report.inputs.insert({modified_onnx_file, record_file});
  if (extension != nullptr) {
    report = *extension;
  }
  absl::flat_hash_set<std::string> float16_layers = TakeDataTypes(*model);
  DropOpset(model->shell, context.defects, report.deviations);
  absl::StatusOr<Graph> graph = Graph::Create(*std::move(model), context.defects);
  MP_RETURN_IF_ERROR(AtPlace(graph.status(), place));
  MP_ASSIGN_OR_RETURN(ParsedRecord record, ReadRecordFile(context, record_file));
  return SaveGraph(context,
                   {.graph = *std::move(graph),
                    .record = std::move(record),
                    .float16_layers = std::move(float16_layers),
                    .graph_place = place,
                    .record_place = {.field = "record_file", .file = record_file}},
                   path, report);
}

absl::StatusOr<SavedModels> SaveGraph(const CallContext& context, GraphToSave source, const SavePath& path,
                                      const ReportExtension& extension) {
  auto at_model = [&](const absl::Status& status) { return AtPlace(status, source.graph_place); };
  Graph& graph = source.graph;
  SaveStep step = {
      .defects = context.defects, .float16_layers = std::move(source.float16_layers), .deviations = extension.deviations};
  MP_RETURN_IF_ERROR(at_model(CheckOpset(graph.shell(), context.defects)));
  MP_ASSIGN_OR_RETURN(const Model input, graph.ToModel());  // without tensor data: payloads are shared
  InferKernelShapes(graph);
  absl::StatusOr<FactorsByLayer> factors = ReadFactors(source.record, graph, source.record_place.file, context.defects);
  MP_RETURN_IF_ERROR(AtPlace(factors.status(), source.record_place));
  step.factors = *std::move(factors);

  SavedModels result;
  result.warnings = extension.warnings;
  for (std::string& warning : RecordWarnings(source.record, step.factors)) {
    result.warnings.push_back(std::move(warning));
  }
  nlohmann::ordered_json report = StartReport(extension.function, context, extension.inputs);
  report["layers"] = DescribeLayers(graph, step.factors);

  // Both models are complete, but for the bytes of big tensors, before anything is written.
  context.progress("quantize", 0, 0);
  MP_RETURN_IF_ERROR(at_model(RunPasses(graph, CommonPasses(step))));
  MP_ASSIGN_OR_RETURN(Model common, graph.ToModel());
  MP_RETURN_IF_ERROR(at_model(RunPasses(graph, DeployPasses(step))));
  MP_ASSIGN_OR_RETURN(const Model deploy, graph.ToModel());
  DropOpset(common.shell, context.defects, step.deviations);
  MP_ASSIGN_OR_RETURN(Graph fake_graph, Graph::Create(std::move(common), context.defects));
  MP_RETURN_IF_ERROR(at_model(RunPasses(fake_graph, FakeQuantPasses(step))));
  MP_ASSIGN_OR_RETURN(const Model fake_quant, fake_graph.ToModel());
  for (const Graph* rewritten : {&graph, &fake_graph}) {
    step.deviations.insert(rewritten->deviations().begin(), rewritten->deviations().end());
  }

  std::unique_ptr<OutputFolder> output;
  const std::string deploy_name = path.FileName("deploy_model.onnx");
  const std::string fake_quant_name = path.FileName("fake_quant_model.onnx");
  if (context.validate_only) {
    context.progress("check", 0, 0);
    MP_RETURN_IF_ERROR(at_model(ComputeAll(deploy)));
    MP_RETURN_IF_ERROR(CheckDeployModel(deploy, step.factors, context.defects));
    MP_ASSIGN_OR_RETURN(const std::string warning, CheckStillLoads(fake_quant, input, kFakeQuantModel));
    if (!warning.empty()) {
      result.warnings.push_back(warning);
    }
  } else {
    MP_ASSIGN_OR_RETURN(output, CreateOutputFolder(context, path.folder));
    WriteOptions options;
    options.threads = context.threads;
    options.progress = [&context](uint64_t done, uint64_t total) { context.progress("write", done, total); };
    MP_RETURN_IF_ERROR(
        at_model(output->AddModels({{&deploy, deploy_name, "_deploy"}, {&fake_quant, fake_quant_name, "_fakequant"}}, options)));
    context.progress("check", 0, 0);
    MP_ASSIGN_OR_RETURN(const Model written_deploy, ReadBack(*output, deploy_name));
    MP_RETURN_IF_ERROR(CheckDeployModel(written_deploy, step.factors, context.defects));
    MP_ASSIGN_OR_RETURN(const Model written_fake_quant, ReadBack(*output, fake_quant_name));
    MP_ASSIGN_OR_RETURN(const std::string warning, CheckStillLoads(written_fake_quant, input, kFakeQuantModel));
    if (!warning.empty()) {
      result.warnings.push_back(warning);
    }
    if (extension.extend != nullptr) {
      MP_RETURN_IF_ERROR(extension.extend(written_fake_quant, output->files(), report));
    }
  }

  report["reference_defects"] = context.defects.any();
  report["deviations"] = step.deviations;
  report["warnings"] = result.warnings;
  report["outputs"] = nlohmann::ordered_json::array();
  if (output != nullptr) {
    for (WrittenFile file : output->files()) {
      file.name = path.WorkspaceName(file.name);
      report["outputs"].push_back(DescribeFile(file));
      if (file.name == path.WorkspaceName(deploy_name)) {
        result.deploy_model = file;
      } else if (file.name == path.WorkspaceName(fake_quant_name)) {
        result.fake_quant_model = file;
      } else {
        result.external_data.push_back(file);
      }
    }
  }
  result.report_json = PrintReport(report);
  if (output != nullptr) {
    const std::string report_name = path.FileName("report.json");
    MP_RETURN_IF_ERROR(output->AddFile(report_name, result.report_json));
    result.report = output->files().back();
    result.report.name = path.WorkspaceName(report_name);
    if (extension.html) {
      const std::string html_name = path.FileName("report.html");
      MP_RETURN_IF_ERROR(output->AddFile(html_name, ReportHtml(report)));
      result.report_html = output->files().back();
      result.report_html.name = path.WorkspaceName(html_name);
    }
    MP_RETURN_IF_ERROR(output->Commit());
  }
  return result;
}

}  // namespace modelpress::engine
