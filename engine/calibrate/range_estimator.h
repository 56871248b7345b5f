// Activation calibration: from the values that flow into a layer to the scale and offset of its quantizer (docs/spec/ptq.md
// section 8), without ever holding all values.
#ifndef MODELPRESS_ENGINE_CALIBRATE_RANGE_ESTIMATOR_H_
#define MODELPRESS_ENGINE_CALIBRATE_RANGE_ESTIMATOR_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/base/checkpoint.pb.h"
#include "engine/formats/calibration_config.h"

namespace modelpress::engine {

// real = scale * (q - offset)
struct ActivationFactors {
  float scale = 1;
  int offset = 0;
};

// What was measured of one layer input; for the report.
struct ActivationStatistics {
  uint64_t count = 0;
  float minimum = 0;
  float maximum = 0;
  float clip_minimum = 0;  // what the factors can represent
  float clip_maximum = 0;
};

// One layer input. The driver runs the whole data past it while wants_pass(): for every batch, in order, one Add with all values
// of the batch (in memory in one or more pieces, which count as concatenated), then EndPass. Every pass must show the same
// values. Not thread-safe; Add itself works on `threads` threads, and the result does not depend on their number.
class RangeEstimator {
 public:
  virtual ~RangeEstimator() = default;

  virtual bool wants_pass() const = 0;
  // CALIBRATION_FAILED: a value is NaN or infinite; an empty batch; a range too wide for HFMG's histogram. Nothing may follow an
  // error.
  virtual absl::Status Add(absl::Span<const absl::Span<const float>> batch, int threads) = 0;
  // CALIBRATION_FAILED: no finite scale exists, too many candidates, another number of values than in the first pass.
  virtual absl::Status EndPass() = 0;
  // After the last pass. CALIBRATION_FAILED where no finite scale exists.
  virtual absl::StatusOr<ActivationFactors> Factors() const = 0;
  virtual ActivationStatistics Statistics() const = 0;

  // Between two batches, while there was no error.
  virtual state::RangeEstimator Save() const = 0;
  // Makes its state the saved one of an estimator of the same configuration. False, and nothing has happened: it cannot be that.
  virtual bool Load(const state::RangeEstimator& state) = 0;
};

// IFMR or HFMG by `config`.
std::unique_ptr<RangeEstimator> NewRangeEstimator(const ActivationConfig& config);

// The states of a consumer's estimators as bytes. Load: all or none.
std::string SaveEstimators(absl::Span<const std::unique_ptr<RangeEstimator>> estimators);
bool LoadEstimators(absl::string_view bytes, absl::Span<const std::unique_ptr<RangeEstimator>> estimators);

// FORCE_FP16_QUANT (ptq.md section 8.3): the scale that float16 hardware computes with.
float Float16Scale(float scale);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_RANGE_ESTIMATOR_H_
