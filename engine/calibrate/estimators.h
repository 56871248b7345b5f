// The two range estimators and the steps that they are made of.
#ifndef MODELPRESS_ENGINE_CALIBRATE_ESTIMATORS_H_
#define MODELPRESS_ENGINE_CALIBRATE_ESTIMATORS_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/calibrate/range_estimator.h"
#include "engine/formats/calibration_config.h"
#include "engine/kernels/calibrate.h"

namespace modelpress::engine {

// Below it a scale counts as zero: float32's epsilon.
inline constexpr float kMinScale = std::numeric_limits<float>::epsilon();

// The values of one batch, which may lie in several pieces, as blocks of a fixed size.
class Blocks {
 public:
  static constexpr size_t kSize = 8192;

  // The pieces must outlive this.
  explicit Blocks(absl::Span<const absl::Span<const float>> pieces);
  uint64_t values() const { return starts_.back(); }
  uint64_t count() const { return (values() + kSize - 1) / kSize; }
  // Block `index`; in `scratch` if it lies in several pieces.
  absl::Span<const float> Get(uint64_t index, std::vector<float>& scratch) const;

 private:
  absl::Span<const absl::Span<const float>> pieces_;
  std::vector<uint64_t> starts_;  // of each piece, and the end
};

// How many threads pay for work on so many values.
int UsefulThreads(int threads, uint64_t values);

absl::Status NotFiniteError(uint64_t element, float value);
absl::Status NoValuesError();
// The ends of what the factors can represent.
void SetClipRange(const ActivationFactors& factors, int bits, ActivationStatistics& statistics);

// ptq.md section 8.1 step 3: start, start + step, ... below `end`, rounded as torch.arange does.
std::vector<float> SearchRatios(double start, double end, double step);
// Number of ratios; a double, as a tiny step makes it greater than any integer.
double SearchRatioCount(double start, double end, double step);

// Steps 2 and 4: `minimum` <= 0 and `maximum` >= 0 are m and M of step 1. CALIBRATION_FAILED: a scale or its inverse is not
// finite.
absl::StatusOr<std::vector<ClipCandidate>> ClipCandidates(const ActivationConfig& config, float minimum, float maximum);

struct IfmrOptions {
  bool preselect = true;  // skip candidates that a histogram proves to be worse than another one; changes no result
};
std::unique_ptr<RangeEstimator> NewIfmrEstimator(const ActivationConfig& config, const IfmrOptions& options = {});

// `inner` with the values of small inputs held in memory until the end of the first pass, so that no further one is needed. A
// batch that does not fit the rest of `max_values` ends that.
std::unique_ptr<RangeEstimator> HoldSmallInputs(std::unique_ptr<RangeEstimator> inner, uint64_t max_values);

// The running histogram of HFMG, of `bins` bins (ptq.md section 8.2 steps 1 to 3).
class MergingHistogram {
 public:
  explicit MergingHistogram(int bins) : counts_(std::max(bins, 1)) {}
  // CALIBRATION_FAILED: not finite, empty, or too wide a range for float32 arithmetic.
  absl::Status Add(absl::Span<const absl::Span<const float>> batch, int threads);

  uint64_t total() const { return total_; }
  float minimum() const { return minimum_; }
  float maximum() const { return maximum_; }
  const std::vector<int64_t>& counts() const { return counts_; }

  void Save(state::Hfmg& state) const;
  // False: of another number of bins.
  bool Load(const state::Hfmg& state);

 private:
  void MergeOld(const std::vector<int64_t>& old, float old_minimum, float old_maximum);

  std::vector<int64_t> counts_;
  uint64_t total_ = 0;
  float minimum_ = 0;
  float maximum_ = 0;
};

// Steps 4 to 6.
struct HistogramSearch {
  std::vector<std::pair<int, int>> ranges;  // candidates: first and last bin
  std::vector<double> losses;
  float clip_minimum = 0;  // of the first smallest loss
  float clip_maximum = 0;
};
HistogramSearch SearchHistogram(const MergingHistogram& histogram, int bits, int threads);

std::unique_ptr<RangeEstimator> NewHfmgEstimator(const ActivationConfig& config);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_ESTIMATORS_H_
