// What kernels/calibrate.h computes, one value at a time: the reference that the SIMD loops are tested against.
#ifndef MODELPRESS_ENGINE_KERNELS_CALIBRATE_SCALAR_H_
#define MODELPRESS_ENGINE_KERNELS_CALIBRATE_SCALAR_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "absl/types/span.h"
#include "engine/kernels/calibrate.h"

namespace modelpress::engine::scalar {

// Sums in kCalibrateLanes lanes.
class LaneSums {
 public:
  void Add(size_t position, float term) { lanes_[position % kCalibrateLanes] += static_cast<double>(term); }
  double Total() const {
    double total = 0;
    for (const double lane : lanes_) {
      total += lane;
    }
    return total;
  }

 private:
  std::array<double, kCalibrateLanes> lanes_ = {};
};

inline double SumSquaredErrors(absl::Span<const float> values, const ClipCandidate& candidate) {
  LaneSums sums;
  for (size_t i = 0; i < values.size(); ++i) {
    const float clipped = std::min(std::max(values[i], candidate.low), candidate.high);
    const float error = std::nearbyint(clipped / candidate.scale) * candidate.scale - values[i];
    sums.Add(i, error * error);
  }
  return sums.Total();
}

inline int32_t FindBin(float value, float low, float high, int count) {
  const float position = ((value - low) * static_cast<float>(count)) / (high - low);
  return std::min(static_cast<int32_t>(position), count - 1);
}

// Python's float floor division (ptq.md section 8.2).
inline float FloorDivide(float a, float b) {
  const float rest = std::fmod(a, b);
  float quotient = (a - rest) / b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    quotient -= 1;
  }
  const float floor = std::floor(quotient);
  return quotient - floor > 0.5f ? floor + 1 : floor;
}

inline double HistogramLoss(absl::Span<const float> bins, absl::Span<const float> densities, float first_bin, float step,
                            int levels, float level_width) {
  const auto cube = [](float t) { return (t * t) * t; };
  const auto level = [&](float x) {
    return std::min(static_cast<float>(levels - 1), std::max(0.0f, FloorDivide(x, level_width)));
  };
  const float half = level_width / 2;
  LaneSums sums;
  for (size_t i = 0; i < bins.size(); ++i) {
    const auto area = [&](float from, float to) { return ((cube(to) - cube(from)) / 3.0f) * densities[i]; };
    const float x = (bins[i] - first_bin) * step;
    const float y = x + step;
    const float p = level(x);
    const float q = level(y);
    const float center = p * level_width + half;
    if (p == q) {
      sums.Add(i, area(x - center, y - center));
    } else {
      sums.Add(i, area(x - center, half));
      sums.Add(i, ((q - p) - 1) * area(-half, half));
      sums.Add(i, area(-half, (y - q * level_width) - half));
    }
  }
  return sums.Total();
}

inline float FakeQuantize(float value, float scale, int bits) {
  const auto bound = static_cast<float>(1 << (bits - 1));
  return std::clamp(std::nearbyint(value / scale + 0.0f), -bound, bound - 1) * scale;
}

}  // namespace modelpress::engine::scalar

#endif  // MODELPRESS_ENGINE_KERNELS_CALIBRATE_SCALAR_H_
