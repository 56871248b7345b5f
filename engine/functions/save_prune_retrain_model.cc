#include "engine/functions/save_prune_retrain_model.h"

#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/functions/named_model.h"
#include "engine/functions/report.h"
#include "engine/graph/graph.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/selective.h"
#include "engine/quantize/marks.h"
#include "engine/quantize/op_rules.h"
#include "engine/runtime/load_check.h"

namespace modelpress::engine {
namespace {

// The folder part of a name, with the slash at its end; "" where there is none.
std::string FolderOf(const std::string& name) { return name.substr(0, name.rfind('/') + 1); }

// Output channels of a layer; nullopt where the graph does not tell.
std::optional<int64_t> ChannelsOf(const Graph& graph, ItemId id) {
  const OpRule* rule = FindOpRule(graph.item(id).node.proto.op_type());
  const auto weight =
      rule == nullptr || rule->weight < 0 ? std::nullopt : FindConstantOperand(graph, graph.InputOf(id, rule->weight));
  if (!weight.has_value()) {
    return std::nullopt;
  }
  const std::vector<int64_t> dims = DimsOf(graph, *weight);
  if (dims.size() < 2) {
    return std::nullopt;
  }
  return rule->kind == OpKind::kGemm ? dims[IntAttribute(graph.item(id).node.proto, "transB", 0) == 1 ? 0 : 1]
                                     : OutputChannels(graph.item(id), *rule, dims);
}

}  // namespace

absl::StatusOr<SavedModels> SavePruneRetrainModel(const CallContext& context, const std::string& model,
                                                  const std::string& save_path, const std::string& record_file) {
  return SavePruned(context, "save_prune_retrain_model", model, save_path, record_file);
}

absl::StatusOr<SavedModels> SavePruned(const CallContext& context, const std::string& function, const std::string& model,
                                       const std::string& save_path, const std::string& record_file,
                                       std::vector<std::string> warnings) {
  const ErrorPlace place = {.field = "model", .file = model};
  MP_ASSIGN_OR_RETURN(const SavePath path, SavePath::Parse(save_path));
  context.progress("read", 0, 0);
  absl::StatusOr<Model> read = ReadModel(*context.files, model);
  MP_RETURN_IF_ERROR(AtPlace(read.status(), place));
  std::set<std::string> inputs_read(read->external_files.begin(), read->external_files.end());
  inputs_read.insert(model);

  context.progress("check", 0, 0);
  SavedModels result;
  result.warnings = std::move(warnings);
  MP_RETURN_IF_ERROR(AtPlace(CheckUnmarked(*read), place));
  MP_RETURN_IF_ERROR(AtPlace(Graph::Create(*read, context.defects).status(), place));
  if (!record_file.empty()) {
    inputs_read.insert(record_file);
    MP_ASSIGN_OR_RETURN(const ParsedRecord record, ReadRecordFile(context, record_file));
    MP_ASSIGN_OR_RETURN(const NamedModel named, ReadNamedModel(context, model, "model", ""));
    MP_RETURN_IF_ERROR(AtPlace(CheckPruneRecords(named.graph, record.record, context.threads, result.warnings), place));
  }
  if (const absl::Status loads = CheckLoads(*read); !loads.ok()) {
    result.warnings.push_back(absl::StrCat("ONNX Runtime does not load the model: ", loads.message()));
  }

  nlohmann::ordered_json report = StartReport(function, context, inputs_read);
  report["warnings"] = result.warnings;
  report["outputs"] = nlohmann::ordered_json::array();
  if (context.validate_only) {
    result.report_json = PrintReport(report);
    return result;
  }

  // External data keeps its names, which the model refers to. They may lie in folders of their own; the folder with the models is
  // committed last, so that whatever it refers to is there before it.
  std::map<std::string, std::unique_ptr<OutputFolder>> folders;
  auto folder = [&](const std::string& name) -> absl::StatusOr<OutputFolder*> {
    std::unique_ptr<OutputFolder>& entry = folders[name];
    if (entry == nullptr) {
      MP_ASSIGN_OR_RETURN(entry, CreateOutputFolder(context, (std::filesystem::path(path.folder) / name).string()));
    }
    return entry.get();
  };
  context.progress("write", 0, 0);
  auto copy = [&](const std::string& source, const std::string& target) -> absl::StatusOr<WrittenFile> {
    const std::string subfolder = FolderOf(target);
    MP_ASSIGN_OR_RETURN(OutputFolder * output, folder(subfolder));
    MP_ASSIGN_OR_RETURN(std::shared_ptr<const InputFile> file, context.files->Open(source));
    MP_RETURN_IF_ERROR(output->AddCopy(target.substr(subfolder.size()), *file));
    WrittenFile written = output->files().back();
    written.name = path.WorkspaceName(target);
    report["outputs"].push_back(DescribeFile(written));
    return written;
  };
  MP_ASSIGN_OR_RETURN(result.deploy_model, copy(model, path.FileName("deploy_model.onnx")));
  MP_ASSIGN_OR_RETURN(result.fake_quant_model, copy(model, path.FileName("fake_quant_model.onnx")));
  for (const std::string& external : read->external_files) {
    MP_ASSIGN_OR_RETURN(WrittenFile written, copy(external, external.substr(FolderOf(model).size())));
    result.external_data.push_back(std::move(written));
  }
  result.report_json = PrintReport(report);
  const std::string report_name = path.FileName("report.json");
  OutputFolder* main_folder = folders.at("").get();
  MP_RETURN_IF_ERROR(main_folder->AddFile(report_name, result.report_json));
  result.report = main_folder->files().back();
  result.report.name = path.WorkspaceName(report_name);
  for (auto it = folders.rbegin(); it != folders.rend(); ++it) {  // "" sorts first
    MP_RETURN_IF_ERROR(it->second->Commit());
  }
  return result;
}

absl::Status CheckPruneRecords(const Graph& graph, const AMCTPytorchProto::ScaleOffsetRecord& record, int threads,
                               std::vector<std::string>& warnings) {
  std::map<std::string, ItemId> nodes;
  for (ItemId id : graph.Order()) {
    if (graph.item(id).is_node()) {
      nodes.emplace(graph.item(id).name, id);
    }
  }
  for (const AMCTPytorchProto::PruneRecord& prune : record.prune_record()) {
    for (const AMCTPytorchProto::PruneNode& producer : prune.producer()) {
      const std::optional<int64_t> end = FindRecordInt(producer, kPruneEndAttribute);
      const AMCTProto::AttrProto* cut = FindRecordAttribute(producer, kPruneIndexAttribute);
      const auto node = nodes.find(producer.name());
      const std::optional<int64_t> channels = node == nodes.end() ? std::nullopt : ChannelsOf(graph, node->second);
      if (!end.has_value() || cut == nullptr) {
        continue;
      }
      if (!channels.has_value()) {
        warnings.push_back(absl::StrCat("layer '", producer.name(), "' of the record file is not found in the model"));
      } else if (*channels != *end - cut->ints_size()) {
        return MakeError(v1::PRUNE_FAILED,
                         absl::StrCat("it has ", *channels, " output channels, but by the record file ", *end - cut->ints_size(),
                                      " of ", *end, " are left: is the model another one than the record file is of?"),
                         {.layer = producer.name()});
      }
    }
  }
  return CheckSelectiveSparsity(graph, record, threads);
}

}  // namespace modelpress::engine
