// What the functions of post-training quantization share: reading their configuration and running their steps.
#ifndef MODELPRESS_ENGINE_FUNCTIONS_PTQ_MODEL_H_
#define MODELPRESS_ENGINE_FUNCTIONS_PTQ_MODEL_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/calibrate/balance.h"
#include "engine/calibrate/layer_activations.h"
#include "engine/calibrate/layer_weights.h"
#include "engine/formats/calibration_config.h"
#include "engine/formats/record.h"
#include "engine/functions/functions.h"
#include "engine/functions/named_model.h"
#include "engine/functions/quantize_preprocess.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"
#include "engine/runtime/calibration_data.h"

namespace modelpress::engine {

// Reads and checks config_file against the layers.
absl::StatusOr<QuantConfig> ReadConfigFile(const CallContext& context, const std::string& config_file, const Layers& layers);

// Opens and checks the calibration data. `batches`: see CalibrationDataOptions.
absl::StatusOr<std::unique_ptr<CalibrationData>> OpenData(const CallContext& context, const CalibrationInput& input,
                                                          const Graph& graph, int64_t batches);

// A folder for temporary files of the call; gone with the object.
class ScratchFolder {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchFolder>> Create(const CallContext& context);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  explicit ScratchFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Names of layers whose batch norms stay: the configuration's skip_fusion_layers, and convolutions that a module pads in another
// way than with zeros (ptq.md section 5).
std::set<std::string> LayersWithoutFusion(const Layers& layers, const QuantConfig& config);

// Makes the modified graph the one that is calibrated: RNN layers get their float weights back, inputs of balanced layers are
// divided.
absl::Status MakeCalibrationGraph(Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                  const std::map<std::string, std::pair<Tensor, Tensor>>& rnn_weights,
                                  const BalanceByLayer& balance);

// CalibrateActivations with what the call has to say about it; logs how the data was gone through.
absl::StatusOr<ActivationStepResult> RunCalibration(const CallContext& context, Graph& graph,
                                                    const std::vector<ConfiguredLayer>& layers, const QuantConfig& config,
                                                    CalibrationData& data, AMCTPytorchProto::ScaleOffsetRecord& record);

// The configuration that `config_definition` (a .cfg; request field of that name) asks for, or where there is none, `arguments`.
// `default_batch_num`: where the .cfg sets none.
absl::StatusOr<QuantConfigText> MakeQuantConfig(const CallContext& context, const LayerCatalog& catalog,
                                                const QuantConfigArguments& arguments, const std::string& config_definition,
                                                int64_t default_batch_num = 1);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_PTQ_MODEL_H_
