// Runs a model in ONNX Runtime and shows any of its tensors.
#ifndef MODELPRESS_ENGINE_RUNTIME_MODEL_RUNNER_H_
#define MODELPRESS_ENGINE_RUNTIME_MODEL_RUNNER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/model.h"
#include "engine/runtime/calibration_data.h"

namespace modelpress::engine {

// The graph's inputs. One with an initializer of the same name is optional, except before IR version 4: there every initializer
// is listed among the inputs and none is meant to be given, so they are left out.
std::vector<InputSpec> InputSpecsOf(const Model& model);

struct TensorView {
  int data_type = 0;  // onnx.TensorProto.DataType
  std::vector<int64_t> dims;
  absl::Span<const uint8_t> bytes;
};

// What a run has produced. The views hold as long as this object, and the batch that the run was given, which is where graph
// inputs are shown from.
struct RunResult {
  std::vector<TensorView> tensors;
  std::shared_ptr<const void> memory;
};

struct ModelRunnerOptions {
  std::vector<std::string> tensors;  // names of the tensors to show: inputs, outputs or anything in between
  int threads = 1;                   // to write the weights with
  std::string scratch_folder;        // exists; weights go through a file there, so that ONNX Runtime can map them
};

// A run itself takes one thread, so that its bytes do not depend on the number of threads (ONNX Runtime's do); several at a time
// may run in threads of the caller's. The graph is computed as it stands, without ONNX Runtime's optimizations, which change
// values.
class ModelRunner {
 public:
  // MODEL_UNRUNNABLE with ONNX Runtime's words; INTERNAL_ERROR: a tensor to show is none that the graph computes or is given; the
  // errors of OutputFolder. Nothing is left in the scratch folder.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const Model& model, const ModelRunnerOptions& options);
  virtual ~ModelRunner() = default;
  virtual const std::vector<InputSpec>& inputs() const = 0;
  // One batch; views in the order of options.tensors. Thread-safe. MODEL_UNRUNNABLE.
  virtual absl::StatusOr<RunResult> Run(const Batch& batch) const = 0;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_MODEL_RUNNER_H_
