#include "engine/functions/save_prune_retrain_model.h"

#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/functions/report.h"
#include "engine/graph/graph.h"
#include "engine/runtime/load_check.h"

namespace modelpress::engine {
namespace {

// The folder part of a name, with the slash at its end; "" where there is none.
std::string FolderOf(const std::string& name) { return name.substr(0, name.rfind('/') + 1); }

}  // namespace

absl::StatusOr<SavedModels> SavePruneRetrainModel(const CallContext& context, const std::string& model,
                                                  const std::string& save_path) {
  const ErrorPlace place = {.field = "model", .file = model};
  MP_ASSIGN_OR_RETURN(const SavePath path, SavePath::Parse(save_path));
  context.progress("read", 0, 0);
  absl::StatusOr<Model> read = ReadModel(*context.files, model);
  MP_RETURN_IF_ERROR(AtPlace(read.status(), place));
  std::set<std::string> inputs_read(read->external_files.begin(), read->external_files.end());
  inputs_read.insert(model);

  context.progress("check", 0, 0);
  SavedModels result;
  MP_RETURN_IF_ERROR(AtPlace(Graph::Create(*read, context.defects).status(), place));
  if (const absl::Status loads = CheckLoads(*read); !loads.ok()) {
    result.warnings.push_back(absl::StrCat("ONNX Runtime does not load the model: ", loads.message()));
  }

  nlohmann::ordered_json report = StartReport("save_prune_retrain_model", context, inputs_read);
  report["warnings"] = result.warnings;
  report["outputs"] = nlohmann::ordered_json::array();
  if (context.validate_only) {
    result.report_json = report.dump(2) + "\n";
    return result;
  }

  // External data keeps its names, which the model refers to. They may lie in folders of their own; the folder with the models is
  // committed last, so that whatever it refers to is there before it.
  std::map<std::string, std::unique_ptr<OutputFolder>> folders;
  auto folder = [&](const std::string& name) -> absl::StatusOr<OutputFolder*> {
    std::unique_ptr<OutputFolder>& entry = folders[name];
    if (entry == nullptr) {
      MP_ASSIGN_OR_RETURN(entry,
                          OutputFolder::Create((std::filesystem::path(context.output_root) / path.folder / name).string()));
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
  result.report_json = report.dump(2) + "\n";
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

}  // namespace modelpress::engine
