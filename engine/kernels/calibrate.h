// The loops of calibration (docs/spec/ptq.md sections 7 and 8). All give the same bits on every machine, with every SIMD target.
#ifndef MODELPRESS_ENGINE_KERNELS_CALIBRATE_H_
#define MODELPRESS_ENGINE_KERNELS_CALIBRATE_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace modelpress::engine {

// Widens [*minimum, *maximum] to cover `values`. Returns the index of the first value that is not finite (the range is then
// unspecified), or values.size().
size_t WidenRange(absl::Span<const float> values, float* minimum, float* maximum);

// Copies the values that are not zero, in order; returns their number. `out` has room for values.size() + kCalibrateLanes.
size_t CopyNonzero(absl::Span<const float> values, float* out);

// Copies the values below `low` or above `high`, in order; returns their number. Room as for CopyNonzero.
size_t CopyOutside(absl::Span<const float> values, float low, float high, float* out);

// Sums are kept in this many lanes: lane k adds up the values at positions k, k + kCalibrateLanes, ... This fixes the order of
// additions.
inline constexpr size_t kCalibrateLanes = 16;

// A way to quantize activations: float32 arithmetic q = rint(clamp(x, low, high) / scale) * scale.
struct ClipCandidate {
  float low = 0;
  float high = 0;
  float scale = 1;
};

// sums[c] = sum of (q - x)^2 over the values for candidate c: each term in float32, their sum in float64, lane by lane and then
// the lanes in order. The number of values is a multiple of kCalibrateLanes; zeros pad it, which add nothing where low <= 0 <=
// high.
void SumSquaredErrors(absl::Span<const float> values, absl::Span<const ClipCandidate> candidates, double* sums);

// bins[i] = min(trunc(((x - low) * count) / (high - low)), count - 1), in float32. low <= x <= high, low < high, and
// (high - low) * count is finite.
void FindBins(absl::Span<const float> values, float low, float high, int count, int32_t* bins);

// The loss of a candidate range of HFMG (ptq.md section 8.2 step 5) over the bins that are listed: `positions` are the bins'
// numbers less the candidate's first one, as float32, `densities` the D_i. The number of bins is a multiple of kCalibrateLanes;
// bins of density 0 pad it. step: w; levels: N; level_width: D, at least float32's epsilon. Sums in float64, lane by lane and
// then the lanes in order.
double HistogramLoss(absl::Span<const float> bins, absl::Span<const float> densities, float first_bin, float step, int levels,
                     float level_width);

// values[i] = clamp(rint(values[i] / scale + 0), -2^(bits-1), 2^(bits-1) - 1) * scale: a negative value that rounds to zero gives
// negative zero, negative zero gives zero. `scales` has one scale per value.
void FakeQuantizeInPlace(absl::Span<float> values, float scale, int bits);
void FakeQuantizeInPlaceByElement(absl::Span<float> values, const float* scales, int bits);

// Rounds to the nearest float16, ties to even; overflow gives infinity.
void FloatToHalf(absl::Span<const float> values, uint16_t* half);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_KERNELS_CALIBRATE_H_
