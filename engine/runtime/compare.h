// How far a quantized model is from the float one, tensor by tensor, on data.
#ifndef MODELPRESS_ENGINE_RUNTIME_COMPARE_H_
#define MODELPRESS_ENGINE_RUNTIME_COMPARE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/checkpoints.h"
#include "engine/runtime/calibration_data.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {

// x: the reference's values, y: the candidate's, of all batches. Figures that depend on a NaN are NaN.
struct TensorError {
  uint64_t count = 0;
  double sqnr_db = 0;       // 10 log10(sum x^2 / sum (x - y)^2); infinite where both are equal
  double cosine = 1;        // of all values as one vector; two zero vectors are alike (1), a zero vector and another are not (0)
  double max_error = 0;     // greatest |x - y|
  double mean_error = 0;    // mean of |x - y|
  double signal_power = 0;  // mean of x^2
};

// What a quantizer can represent, bounds included.
struct SaturationBounds {
  float minimum = 0;
  float maximum = 0;
};

struct Comparison {
  std::vector<TensorError> tensors;
  std::vector<double> saturated;  // share of values outside their bounds, 0 .. 1
  int64_t batches = 0;
};

struct CompareOptions {
  int64_t max_batches = 1;
  int threads = 1;
  StageCheckpoint checkpoint = {};                                   // the sums so far, after every batch
  std::function<void(uint64_t done, uint64_t total)> progress = {};  // batches
};

// Runs both on the first `max_batches` batches; their inputs are the same, in the same order. Tensor i of the reference is
// compared with tensor i of the candidate for i < pairs; the reference's tensors from `pairs` on are checked against
// bounds[i - pairs]. Sums in float64, in an order that does not depend on the number of threads. Errors: those of ModelRunner and
// CalibrationData; TENSOR_INVALID: a tensor that is neither float32 nor float16; INTERNAL_ERROR: tensors of other numbers or
// sizes.
absl::StatusOr<Comparison> Compare(const ModelRunner& reference, const ModelRunner& candidate, int pairs,
                                   absl::Span<const SaturationBounds> bounds, CalibrationData& data,
                                   const CompareOptions& options);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_COMPARE_H_
