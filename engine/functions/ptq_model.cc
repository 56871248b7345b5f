#include "engine/functions/ptq_model.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quantize/operands.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {

absl::StatusOr<QuantConfig> ReadConfigFile(const CallContext& context, const std::string& config_file, const Layers& layers) {
  MP_ASSIGN_OR_RETURN(const std::string text, ReadText(context, config_file, "config_file"));
  absl::StatusOr<QuantConfig> config = ReadQuantConfig(layers.Catalog(), text, config_file, context.defects);
  MP_RETURN_IF_ERROR(AtPlace(config.status(), {.field = "config_file", .file = config_file}));
  return config;
}

absl::StatusOr<std::unique_ptr<CalibrationData>> OpenData(const CallContext& context, const CalibrationInput& input,
                                                          const Graph& graph, int64_t batches) {
  MP_ASSIGN_OR_RETURN(const Model model, graph.ToModel());
  absl::StatusOr<std::unique_ptr<CalibrationData>> data = CalibrationData::Open(
      *context.files, input.path, InputSpecsOf(model), {.batch_size = input.batch_size, .batches = batches});
  MP_RETURN_IF_ERROR(AtPlace(data.status(), {.field = "calibration_data", .file = input.path}));
  return data;
}

absl::StatusOr<std::unique_ptr<ScratchFolder>> ScratchFolder::Create(const CallContext& context) {
  std::string path = (std::filesystem::path(context.output_root) / ".scratch-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat("cannot make a folder for temporary files: ", std::strerror(errno)));
  }
  return std::unique_ptr<ScratchFolder>(new ScratchFolder(std::move(path)));
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;  // the worker removes the whole output folder later
  std::filesystem::remove_all(path_, ignored);
}

std::set<std::string> LayersWithoutFusion(const Layers& layers, const QuantConfig& config) {
  std::set<std::string> names = layers.OtherwisePadded();
  names.insert(config.skip_fusion_layers.begin(), config.skip_fusion_layers.end());
  return names;
}

absl::Status MakeCalibrationGraph(Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                  const std::map<std::string, std::pair<Tensor, Tensor>>& rnn_weights,
                                  const BalanceByLayer& balance) {
  for (const ConfiguredLayer& layer : layers) {
    auto weights = rnn_weights.find(graph.item(layer.node).name);
    if (weights == rnn_weights.end()) {
      continue;
    }
    auto set = [&](int input, const Tensor& tensor) -> absl::Status {
      MP_ASSIGN_OR_RETURN(const ConstantOperand operand, OwnOperand(graph, layer.node, layer.node, input, "weight"));
      SetTensor(graph, operand, tensor);
      return absl::OkStatus();
    };
    MP_RETURN_IF_ERROR(set(layer.rule->weight, weights->second.first));
    MP_RETURN_IF_ERROR(set(layer.rule->recurrence, weights->second.second));
  }
  return DivideInputs(graph, layers, balance);
}

absl::StatusOr<ActivationStepResult> RunCalibration(const CallContext& context, Graph& graph,
                                                    const std::vector<ConfiguredLayer>& layers, const QuantConfig& config,
                                                    CalibrationData& data, AMCTPytorchProto::ScaleOffsetRecord& record) {
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> scratch, ScratchFolder::Create(context));
  context.progress("calibrate", 0, 0);
  MP_ASSIGN_OR_RETURN(
      ActivationStepResult result,
      CalibrateActivations(graph, layers, data,
                           {.force_fp16_quant = config.force_fp16_quant,
                            .omits_precision_mode = context.defects.omits_precision_mode,
                            .threads = context.threads,
                            .scratch_folder = scratch->path(),
                            .progress = [&context](uint64_t done, uint64_t total) { context.progress("calibrate", done, total); },
                            .checkpoint = CheckpointOf(context, "calibration")},
                           record));
  context.log(absl::StrCat("calibration: ", result.summary.passes, " passes over ", data.batch_count(), " batches; ",
                           result.summary.choice));
  return result;
}

absl::StatusOr<QuantConfigText> MakeQuantConfig(const CallContext& context, const LayerCatalog& catalog,
                                                const QuantConfigArguments& arguments, const std::string& config_definition,
                                                int64_t default_batch_num) {
  if (config_definition.empty()) {
    return CreateQuantConfigText(catalog, arguments);
  }
  MP_ASSIGN_OR_RETURN(const std::string cfg, ReadText(context, config_definition, "config_definition"));
  return CreateQuantConfigText(catalog, cfg, config_definition, context.defects, default_batch_num);
}

}  // namespace modelpress::engine
