#include "engine/functions/auto_channel_prune_search.h"

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/formats/auto_channel_prune_config.h"
#include "engine/formats/safetensors.h"
#include "engine/functions/named_model.h"
#include "engine/prune/groups.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/search.h"
#include "engine/retrain/retrain_layers.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;

int64_t ChannelsOf(const PruneNode& producer) { return FindRecordInt(producer, kPruneEndAttribute).value_or(0); }

// The sensitivities of every producer, by layer: float32 [Cout].
absl::StatusOr<std::map<std::string, std::vector<float>>> ReadSensitivities(const CallContext& context, const std::string& name,
                                                                            const std::vector<PruneRecord>& records) {
  const ErrorPlace place = {.field = "sensitivities", .file = name};
  absl::StatusOr<std::shared_ptr<const InputFile>> file = context.files->Open(name);
  MP_RETURN_IF_ERROR(AtPlace(file.status(), place));
  absl::StatusOr<std::vector<Tensor>> tensors = ReadSafetensors(*file);
  MP_RETURN_IF_ERROR(AtPlace(tensors.status(), place));
  std::map<std::string, const Tensor*> by_name;
  for (const Tensor& tensor : *tensors) {
    by_name[tensor.name()] = &tensor;
  }
  std::map<std::string, std::vector<float>> sensitivities;
  std::set<std::string> missing;
  for (const PruneRecord& record : records) {
    for (const PruneNode& producer : record.producer()) {
      const auto it = by_name.find(producer.name());
      if (it == by_name.end()) {
        missing.insert(producer.name());
        continue;
      }
      const Tensor& tensor = *it->second;
      if (tensor.header.data_type() != onnx::TensorProto::FLOAT || tensor.header.dims_size() != 1 ||
          tensor.header.dims(0) != ChannelsOf(producer)) {
        return MakeError(v1::WEIGHTS_INVALID, absl::StrCat("the sensitivities must be float32 [", ChannelsOf(producer), "]"),
                         {.field = place.field, .file = name, .layer = producer.name()});
      }
      std::vector<float>& values = sensitivities[producer.name()];
      values.resize(tensor.ElementCount());
      MP_RETURN_IF_ERROR(AtPlace(ReadFloats(tensor, 0, absl::MakeSpan(values)), place));
    }
  }
  if (!missing.empty()) {
    return WithMetadata(
        MakeError(v1::WEIGHTS_INVALID, absl::StrCat("no sensitivities are given for ", absl::StrJoin(missing, ", ")), place),
        "missing", absl::StrJoin(missing, ","));
  }
  return sensitivities;
}

}  // namespace

absl::StatusOr<SavedConfig> AutoChannelPruneSearch(const CallContext& context, const AutoChannelPruneSearchCall& call) {
  MP_ASSIGN_OR_RETURN(const OutputFile output_cfg, OutputFile::Parse("output_cfg", call.output_cfg));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(const NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest));
  auto at_model = [&](const absl::Status& status) { return AtPlace(status, {.field = "model", .file = call.model}); };
  const RetrainLayers layers = FindRetrainLayers(model.layers, context.defects);
  MP_ASSIGN_OR_RETURN(const std::string cfg, ReadText(context, call.config, "config"));
  // The path in the configuration is one of the caller's machine; the call says which file it is.
  auto read_file = [&](const std::string& name) -> absl::StatusOr<std::string> {
    if (call.override_prune_cfg.empty()) {
      return MakeError(v1::FILE_NOT_FOUND,
                       absl::StrCat("the configuration names '", name, "' as override_prune_cfg; give that file with the call"),
                       {.field = "override_prune_cfg"});
    }
    return ReadText(context, call.override_prune_cfg, "override_prune_cfg");
  };
  absl::StatusOr<AutoChannelPruneSettings> settings =
      ReadAutoChannelPruneConfig(layers.catalog, cfg, call.config, read_file, context.defects);
  MP_RETURN_IF_ERROR(AtPlace(settings.status(), {.field = "config", .file = call.config}));

  context.progress("search", 0, 0);
  std::map<std::string, FilterPruneConfig> enabled;
  for (const std::string& layer : settings->searched) {
    enabled[layer] = {};
  }
  absl::StatusOr<PruneGroups> groups = FindPruneGroups(model.graph, model.layers, enabled, {}, context.defects);
  MP_RETURN_IF_ERROR(at_model(groups.status()));
  SavedConfig saved;
  saved.warnings = settings->warnings;
  std::vector<FoundRatio> ratios;
  if (groups->records.empty()) {
    saved.warnings.emplace_back("no layer can be pruned: the configuration has its fixed part only");
  } else {
    MP_ASSIGN_OR_RETURN(const auto sensitivities, ReadSensitivities(context, call.sensitivities, groups->records));
    absl::StatusOr<std::vector<LayerCost>> costs = CostTable(model.graph, model.layers, context.defects);
    MP_RETURN_IF_ERROR(at_model(costs.status()));
    absl::StatusOr<SearchResult> result = GreedySearch(*settings, *costs, groups->records, sensitivities, context.defects);
    MP_RETURN_IF_ERROR(AtPlace(result.status(), {.field = "sensitivities", .file = call.sensitivities}));
    saved.warnings.insert(saved.warnings.end(), result->warnings.begin(), result->warnings.end());
    for (const PruneRecord& record : groups->records) {
      for (const PruneNode& producer : record.producer()) {
        ratios.push_back({producer.name(), result->kept.at(producer.name()), ChannelsOf(producer)});
      }
    }
  }
  context.progress("write", 0, 0);
  MP_ASSIGN_OR_RETURN(saved.config_file, WriteText(context, output_cfg, PrintFoundRatios(*settings, ratios)));
  return saved;
}

}  // namespace modelpress::engine
