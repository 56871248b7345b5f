#include "engine/functions/save_retrain_model.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/calibrate/range_estimator.h"
#include "engine/formats/retrain_config.h"
#include "engine/functions/named_model.h"
#include "engine/functions/save_model.h"
#include "engine/functions/save_prune_retrain_model.h"
#include "engine/fuse/batch_norm.h"
#include "engine/retrain/plan_json.h"
#include "engine/retrain/retrain_layers.h"

namespace modelpress::engine {
namespace {

constexpr int kWeight = 1;  // inputs of Conv
constexpr int kBias = 2;
constexpr char kForceFp16[] = "FORCE_FP16_QUANT";  // fakequant_precision_mode

// A batch norm in training mode normalizes by the batch at hand and cannot be folded, while the scales in the record file count
// on its being folded (docs/spec/qat.md D-15).
absl::Status CheckInferenceMode(const Graph& graph) {
  for (ItemId id : graph.Order()) {
    const Item& item = graph.item(id);
    if (item.Is("BatchNormalization") && (IntAttribute(item.node.proto, "training_mode", 0) != 0 || item.outputs.size() > 1)) {
      return MakeError(v1::NODE_UNSUPPORTED,
                       "the batch norm is in training mode: call eval() on the module before it is exported",
                       {.layer = item.name});
    }
  }
  return absl::OkStatus();
}

// The graph with every batch norm behind a convolution folded, in the form that an export of the folded module has: data stands
// in raw_data, new biases behind their weights, and nothing is said of the tensors of marks that went with their batch norms.
absl::StatusOr<Graph> FoldedGraph(NamedModel model, const ReferenceDefects& defects, std::vector<std::string>& warnings) {
  MP_RETURN_IF_ERROR(CheckInferenceMode(model.graph));
  std::set<std::string> skipped;
  for (const Layer& layer : model.layers.layers) {
    if (layer.pads_otherwise) {
      skipped.insert(layer.config.name);
    }
  }
  std::set<ItemId> had_bias;
  for (ItemId id : model.graph.Order()) {
    if (model.graph.item(id).Is("Conv") && !model.graph.InputOf(id, kBias).is_none()) {
      had_bias.insert(id);
    }
  }
  MP_ASSIGN_OR_RETURN(const FoldedBatchNorms folded, FoldBatchNorms(model.graph, skipped, NewBiasName::kByWeight));
  warnings.insert(warnings.end(), folded.warnings.begin(), folded.warnings.end());

  std::set<std::string> computed;
  std::map<std::string, std::string> new_bias_of;  // by the weight's name
  std::set<std::string> gone;
  for (const FoldedBatchNorm& pair : folded.folded) {
    const std::string weight = model.graph.NameOf(model.graph.InputOf(pair.conv, kWeight));
    const std::string bias = model.graph.NameOf(model.graph.InputOf(pair.conv, kBias));
    computed.insert({weight, bias});
    if (!had_bias.contains(pair.conv)) {
      new_bias_of[weight] = bias;
    }
    if (const auto mark = model.mark_tensors.find(pair.batch_norm); mark != model.mark_tensors.end()) {
      gone.insert(mark->second);
    }
  }
  MP_ASSIGN_OR_RETURN(Model exported, model.graph.ToModel());
  auto& value_info = *exported.shell.mutable_graph()->mutable_value_info();
  value_info.erase(std::remove_if(value_info.begin(), value_info.end(),
                                  [&](const onnx::ValueInfoProto& value) { return gone.contains(value.name()); }),
                   value_info.end());
  std::map<std::string, Tensor> new_biases;
  for (const auto& [weight, bias] : new_bias_of) {
    new_biases[bias] = {};
  }
  std::vector<Tensor> initializers;
  initializers.reserve(exported.initializers.size());
  for (Tensor& tensor : exported.initializers) {
    if (tensor.field == DataField::kFloat && computed.contains(tensor.name())) {
      tensor.field = DataField::kRaw;
    }
    if (const auto bias = new_biases.find(tensor.name()); bias != new_biases.end()) {
      bias->second = std::move(tensor);
    } else {
      initializers.push_back(std::move(tensor));
    }
  }
  exported.initializers.clear();
  for (Tensor& tensor : initializers) {
    const auto bias = new_bias_of.find(tensor.name());
    exported.initializers.push_back(std::move(tensor));
    if (bias != new_bias_of.end()) {
      exported.initializers.push_back(std::move(new_biases[bias->second]));
    }
  }
  return Graph::Create(std::move(exported), defects);
}

// What FORCE_FP16_QUANT asks for, as post-training quantization does it: scales that float16 hardware computes with, and the
// record says so. The reference ignores it in training (docs/spec/qat.md D-10).
void ForceFp16(AMCTPytorchProto::ScaleOffsetRecord& record) {
  for (auto& entry : *record.mutable_record()) {
    if (!entry.has_value()) {
      continue;
    }
    AMCTPytorchProto::SingleLayerRecord& value = *entry.mutable_value();
    if (value.has_scale_d()) {
      value.set_scale_d(Float16Scale(value.scale_d()));
    }
    if (value.has_scale_h()) {
      value.set_scale_h(Float16Scale(value.scale_h()));
    }
    value.set_fakequant_precision_mode(kForceFp16);
  }
}

absl::StatusOr<SavedModels> SaveTrained(const CallContext& context, const SaveRetrainModelCall& call, const SavePath& path,
                                        NamedModel model, ParsedRecord record, ReportExtension report) {
  const ErrorPlace place = {.field = "model", .file = call.model};
  report.inputs.insert(model.files_read.begin(), model.files_read.end());
  report.inputs.insert(call.record_file);
  MP_RETURN_IF_ERROR(AtPlace(CheckPruneRecords(model.graph, record.record, context.threads, report.warnings), place));
  absl::StatusOr<Graph> folded = FoldedGraph(std::move(model), context.defects, report.warnings);
  MP_RETURN_IF_ERROR(AtPlace(folded.status(), place));
  return SaveGraph(context,
                   {.graph = *std::move(folded),
                    .record = std::move(record),
                    .float16_layers = {},
                    .graph_place = place,
                    .record_place = {.field = "record_file", .file = call.record_file}},
                   path, report);
}

}  // namespace

absl::StatusOr<SavedModels> SaveQuantRetrainModel(const CallContext& context, const SaveRetrainModelCall& call) {
  MP_ASSIGN_OR_RETURN(const SavePath path, SavePath::Parse(call.save_path));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest,
                                                       {call.input_names, call.output_names, call.dynamic_axes}));
  ReportExtension report = {.function = "save_quant_retrain_model", .inputs = {call.config_file}};
  const ErrorPlace config_place = {.field = "config_file", .file = call.config_file};
  MP_ASSIGN_OR_RETURN(const std::string text, ReadText(context, call.config_file, config_place.field));
  const RetrainLayers layers = FindRetrainLayers(model.layers, context.defects);
  absl::StatusOr<RetrainConfig> config = ReadRetrainConfig(layers.catalog, text, call.config_file);
  MP_RETURN_IF_ERROR(AtPlace(config.status(), config_place));
  if (!call.rewrite_plan.empty()) {
    report.inputs.insert(call.rewrite_plan);
    MP_ASSIGN_OR_RETURN(const std::string json, ReadText(context, call.rewrite_plan, "rewrite_plan"));
    absl::StatusOr<v1::RewritePlan> plan = ParseRewritePlan(json, call.rewrite_plan);
    MP_RETURN_IF_ERROR(AtPlace(plan.status(), {.field = "rewrite_plan"}));
    MP_RETURN_IF_ERROR(AtPlace(CheckSameRetrainConfig(*config, *plan), config_place));
  }
  report.warnings = config->warnings;
  report.deviations = {config->deviations.begin(), config->deviations.end()};
  MP_ASSIGN_OR_RETURN(ParsedRecord record, ReadRecordFile(context, call.record_file));
  if (config->force_fp16_quant && !context.defects.ignores_fp16_mode_in_training) {
    ForceFp16(record.record);
    report.deviations.insert("scales are made for FORCE_FP16_QUANT, as the configuration asks (qat.md D-10)");
  }
  return SaveTrained(context, call, path, std::move(model), std::move(record), std::move(report));
}

absl::StatusOr<SavedModels> SaveCompressedRetrainModel(const CallContext& context, const SaveRetrainModelCall& call) {
  MP_ASSIGN_OR_RETURN(const SavePath path, SavePath::Parse(call.save_path));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(ParsedRecord record, ReadRecordFile(context, call.record_file));
  if (record.record.record_size() == 0 && record.record.prune_record_size() > 0) {
    return SavePruned(context, "save_compressed_retrain_model", call.model, call.save_path, call.record_file,
                      {"the record file has no factors: the model is saved as it is, not quantized"});
  }
  MP_ASSIGN_OR_RETURN(NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest,
                                                       {call.input_names, call.output_names, call.dynamic_axes}));
  return SaveTrained(context, call, path, std::move(model), std::move(record), {.function = "save_compressed_retrain_model"});
}

}  // namespace modelpress::engine
