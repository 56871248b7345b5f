// Weight calibration: scales of ARQ and AdaRound, balance factors of DMQ (docs/spec/ptq.md sections 7, 9, 10). All read their
// tensor once (KlScales twice), in chunks, as float32; no tensor is in memory as a whole.
#ifndef MODELPRESS_ENGINE_CALIBRATE_WEIGHTS_H_
#define MODELPRESS_ENGINE_CALIBRATE_WEIGHTS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/calibrate/channels.h"
#include "engine/model/model.h"
#include "engine/model/payload.h"

namespace modelpress::engine {

// One scale per channel of `channels` (ptq.md section 7 steps 1 to 3). CALIBRATION_FAILED: a weight is not finite, or a scale is
// not.
absl::StatusOr<std::vector<float>> ArqScales(const Tensor& weight, const ChannelMap& channels, int bits, int threads);

// The scales that AdaRound starts from (ptq.md section 10, "Scale").
absl::StatusOr<std::vector<float>> KlScales(const Tensor& weight, const ChannelMap& channels, int threads);

// Greatest absolute value per channel.
absl::StatusOr<std::vector<float>> MaxAbs(const Tensor& weight, const ChannelMap& channels, int threads);

// Balance factors out of the greatest absolute activation and weight per input channel (ptq.md section 9 steps 2 to 6).
// `strength`: migration strength. CALIBRATION_FAILED where a factor leaves (E, 1/E).
absl::StatusOr<std::vector<float>> BalanceFactors(absl::Span<const float> activation_max, absl::Span<const float> weight_max,
                                                  double strength);

// `source` with `transform` applied to its values on demand, in the type it has (float32, float16 rounded to nearest even).
// `transform` gets values[0...] = elements [first, first + values.size()) and changes them in place; it must not depend on how
// the elements are cut. The result has the same name, type and dims; float32 data stands in float_data, float16 in raw_data.
Tensor Transformed(const Tensor& source, std::function<absl::Status(uint64_t first, absl::Span<float> values)> transform);

// clamp(rint(w / s + 0), -2^(bits-1), 2^(bits-1) - 1) * s with the scale of each element's channel (ptq.md section 7 step 4,
// signs of zeros included).
Tensor FakeQuantized(const Tensor& source, const ChannelMap& channels, std::vector<float> scales, int bits);

// w * factors[channel], one float32 multiplication each.
Tensor Multiplied(const Tensor& source, const ChannelMap& channels, std::vector<float> factors);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_WEIGHTS_H_
