#include "engine/functions/calibrate.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/calibrate/balance.h"
#include "engine/calibrate/kv_cache.h"
#include "engine/calibrate/layer_activations.h"
#include "engine/formats/kv_cache_config.h"
#include "engine/formats/record.h"
#include "engine/functions/ptq_model.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

// The float W and R of every RNN layer, from the model that quantize_model was given.
absl::StatusOr<std::map<std::string, std::pair<Tensor, Tensor>>> FloatRnnWeights(const CallContext& context,
                                                                                 const CalibrateCall& call, const Graph& modified,
                                                                                 const std::vector<ConfiguredLayer>& layers) {
  std::map<std::string, std::pair<Tensor, Tensor>> weights;
  if (std::none_of(layers.begin(), layers.end(), [](const ConfiguredLayer& layer) { return layer.rule->is_rnn(); })) {
    return weights;
  }
  if (call.model.empty()) {
    return MakeError(v1::REQUEST_INVALID,
                     "LSTM and GRU layers are calibrated with their float weights; give the model that quantize_model was given",
                     {.field = "model"});
  }
  MP_ASSIGN_OR_RETURN(const NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest));
  for (const ConfiguredLayer& layer : layers) {
    if (!layer.rule->is_rnn()) {
      continue;
    }
    const std::string& name = modified.item(layer.node).name;
    const ItemId node = model.graph.Find(name);
    if (node < 0 || FindOpRule(model.graph.item(node).node.proto.op_type()) != layer.rule) {
      return MakeError(v1::GRAPH_INVALID, "this layer of the modified model is not in the model; give the one it was made from",
                       {.field = "model", .file = call.model, .layer = name});
    }
    auto weight = [&](int input, absl::string_view what) -> absl::StatusOr<Tensor> {
      MP_ASSIGN_OR_RETURN(const ConstantOperand operand,
                          RequireConstant(model.graph, node, model.graph.InputOf(node, input), what));
      return TensorOf(model.graph.item(operand.holder));
    };
    MP_ASSIGN_OR_RETURN(Tensor w, weight(layer.rule->weight, "W"));
    MP_ASSIGN_OR_RETURN(Tensor r, weight(layer.rule->recurrence, "R"));
    weights[name] = {std::move(w), std::move(r)};
  }
  return weights;
}

// Every enabled layer was there when quantize_model wrote the record.
absl::Status CheckRecord(const AMCTPytorchProto::ScaleOffsetRecord& record, const Graph& graph,
                         const std::vector<ConfiguredLayer>& layers) {
  for (const ConfiguredLayer& layer : layers) {
    const std::string& name = graph.item(layer.node).name;
    if (std::none_of(record.record().begin(), record.record().end(),
                     [&](const auto& entry) { return entry.key() == name && entry.value().scale_w_size() > 0; })) {
      return MakeError(v1::RECORD_INCOMPLETE,
                       "the configuration enables it, but the record file has no scale_w for it; run quantize_model with this "
                       "configuration first",
                       {.layer = name});
    }
  }
  return absl::OkStatus();
}

// Key-value caches: the float model runs as it is.
absl::StatusOr<SavedRecord> CalibrateCaches(const CallContext& context, const CalibrateCall& call, const OutputFile& record_file,
                                            const std::string& config_text) {
  const bool has_model = !call.model.empty();
  MP_ASSIGN_OR_RETURN(const NamedModel model, ReadNamedModel(context, has_model ? call.model : call.modified_onnx_file,
                                                             has_model ? "model" : "modified_onnx_file", call.module_manifest));
  absl::StatusOr<KvCacheConfig> config = ReadKvCacheConfig(model.layers.Catalog(), config_text, call.config_file);
  MP_RETURN_IF_ERROR(AtPlace(config.status(), {.field = "config_file", .file = call.config_file}));
  AMCTPytorchProto::ScaleOffsetRecord record;
  if (context.files->Contains(call.record_file)) {
    MP_ASSIGN_OR_RETURN(ParsedRecord parsed, ReadRecordFile(context, call.record_file));
    record = std::move(parsed.record);
  }
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<CalibrationData> data, OpenData(context, call.data, model.graph, config->batch_num));
  SavedRecord result;
  result.warnings = data->warnings();
  if (context.validate_only) {
    return result;
  }
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> scratch, ScratchFolder::Create(context));
  ActivationStepOptions options;
  options.threads = context.threads;
  options.scratch_folder = scratch->path();
  options.progress = [&context](uint64_t done, uint64_t total) { context.progress("calibrate", done, total); };
  options.checkpoint = CheckpointOf(context, "calibration");
  MP_RETURN_IF_ERROR(CalibrateKvCache(model.graph, *config, *data, options, record).status());
  context.progress("write", 0, 0);
  MP_ASSIGN_OR_RETURN(result.record_file, WriteText(context, record_file, PrintRecord(record)));
  return result;
}

}  // namespace

absl::StatusOr<SavedRecord> Calibrate(const CallContext& context, const CalibrateCall& call) {
  MP_ASSIGN_OR_RETURN(const OutputFile record_file, OutputFile::Parse("record_file", call.record_file));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(const std::string config_text, ReadText(context, call.config_file, "config_file"));
  absl::StatusOr<bool> for_caches = IsKvCacheConfig(config_text, call.config_file);
  MP_RETURN_IF_ERROR(AtPlace(for_caches.status(), {.field = "config_file", .file = call.config_file}));
  if (*for_caches) {
    return CalibrateCaches(context, call, record_file, config_text);
  }
  MP_ASSIGN_OR_RETURN(NamedModel modified,
                      ReadNamedModel(context, call.modified_onnx_file, "modified_onnx_file", call.module_manifest));
  MP_ASSIGN_OR_RETURN(const QuantConfig config, ReadConfigFile(context, call.config_file, modified.layers));
  MP_ASSIGN_OR_RETURN(const std::vector<ConfiguredLayer> layers, FindConfiguredLayers(modified.graph, config));
  const ErrorPlace record_place = {.field = "record_file", .file = call.record_file};
  MP_ASSIGN_OR_RETURN(ParsedRecord parsed, ReadRecordFile(context, call.record_file));
  MP_RETURN_IF_ERROR(AtPlace(CheckRecord(parsed.record, modified.graph, layers), record_place));
  absl::StatusOr<BalanceByLayer> balance = BalanceInRecord(parsed.record, modified.graph, layers);
  MP_RETURN_IF_ERROR(AtPlace(balance.status(), record_place));
  MP_ASSIGN_OR_RETURN(const auto rnn_weights, FloatRnnWeights(context, call, modified.graph, layers));
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<CalibrationData> data,
                      OpenData(context, call.data, modified.graph, config.batch_num));
  SavedRecord result;
  result.warnings = data->warnings();
  if (context.validate_only) {
    return result;
  }
  MP_RETURN_IF_ERROR(MakeCalibrationGraph(modified.graph, layers, rnn_weights, *balance));
  MP_RETURN_IF_ERROR(RunCalibration(context, modified.graph, layers, config, *data, parsed.record).status());
  context.progress("write", 0, 0);
  MP_ASSIGN_OR_RETURN(result.record_file, WriteText(context, record_file, PrintRecord(parsed.record)));
  return result;
}

}  // namespace modelpress::engine
