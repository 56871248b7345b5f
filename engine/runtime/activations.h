// Shows the activations of a model on calibration data to whoever wants them, batch by batch, as often as they want, at a memory
// cost that does not depend on the number of batches.
#ifndef MODELPRESS_ENGINE_RUNTIME_ACTIVATIONS_H_
#define MODELPRESS_ENGINE_RUNTIME_ACTIVATIONS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/base/checkpoints.h"
#include "engine/runtime/calibration_data.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {

// What one consumer sees of each batch: one or more tensors of the run, concatenated.
struct Tap {
  struct Part {
    int tensor = 0;                // index into ModelRunnerOptions.tensors
    bool drops_last_step = false;  // without the last entry of axis 0 (y_1 .. y_{T-1} of an RNN's Y)
  };
  std::vector<Part> parts;
  std::string layer;  // for errors
};

class ActivationConsumer {
 public:
  virtual ~ActivationConsumer() = default;
  virtual bool wants_pass() const = 0;
  // All values of the consumer's tap in the present batch, as float32: one span per part.
  virtual absl::Status Add(absl::Span<const absl::Span<const float>> values) = 0;
  virtual absl::Status EndPass() = 0;
  // Between two batches: everything that it has gathered so far.
  virtual std::string Save() const = 0;
  // Makes its state the saved one of a consumer made in the same way. False, and nothing has happened: the bytes are no such
  // state.
  virtual bool Load(absl::string_view state) = 0;
};

// Seconds from any fixed point.
using Clock = std::function<double()>;
double SteadySeconds();

struct CollectOptions {
  std::string scratch_folder;             // for the spill
  uint64_t max_spill_bytes = 8ull << 30;  // and never more than half of what is free there
  // Batches that are run at the same time, each in a thread, as long as their activations together stay below
  // max_bytes_in_flight.
  int threads = 1;
  uint64_t max_bytes_in_flight = 1ull << 30;
  std::function<void(uint64_t done, uint64_t total)> progress = {};  // batches over all passes known so far
  Clock clock = SteadySeconds;
  // The state of the consumers, after every pass and within one as often as it costs next to nothing, but not more often than
  // this.
  StageCheckpoint checkpoint = {};
  double seconds_between_checkpoints = 1;
};

// How the passes after the first one got their data, and why; for log and report.
struct CollectSummary {
  int passes = 0;
  bool spilled = false;
  std::string choice;            // in words, with the estimates
  double inference_seconds = 0;  // sum over all runs
  uint64_t spilled_bytes = 0;
};

// Runs the data past the consumers (consumers[i] gets taps[i]) until none wants a pass. A single batch is kept in memory for the
// passes after the first one. Else the first pass writes the activations to disk as long as writing them and reading them back is
// cheaper than running the model again (by what was measured so far) and there is space; a full disk is no error. Where a
// checkpoint is loaded, it goes on at the batch behind it, and the model runs again in every pass, as the activations of the
// batches before are gone. Errors: those of ModelRunner, CalibrationData and the consumers (with the tap's layer);
// TENSOR_INVALID: a tensor that is neither float32 nor float16.
absl::StatusOr<CollectSummary> CollectActivations(const ModelRunner& runner, CalibrationData& data, absl::Span<const Tap> taps,
                                                  absl::Span<ActivationConsumer* const> consumers, const CollectOptions& options);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_ACTIVATIONS_H_
