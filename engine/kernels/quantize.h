// The integer loops: weights to integers and back (docs/spec/save.md section 5). All are exact: the same bytes on every machine,
// with every SIMD target, however the data is cut.
#ifndef MODELPRESS_ENGINE_KERNELS_QUANTIZE_H_
#define MODELPRESS_ENGINE_KERNELS_QUANTIZE_H_

#include <cstdint>

#include "absl/types/span.h"

namespace modelpress::engine {

// q[i] = clamp(RNE(w[i] / scale), -2^(bits-1), 2^(bits-1) - 1); division and rounding in float32, ties to even. 2 <= bits <= 8.
// Returns the index of the first weight that is not finite (its q and what follows is unspecified), or w.size().
size_t QuantizeWeights(absl::Span<const float> w, float scale, int bits, int8_t* q);

// The same, and `fake[i]` = float(q[i]) instead of the integer.
size_t FakeQuantizeWeights(absl::Span<const float> w, float scale, int bits, float* fake);

// The same with one scale per element: scale[i] belongs to w[i].
size_t QuantizeWeightsByElement(absl::Span<const float> w, const float* scale, int bits, int8_t* q);
size_t FakeQuantizeWeightsByElement(absl::Span<const float> w, const float* scale, int bits, float* fake);

// Exact widening. `half` are the 16 bits of an IEEE float16, `bfloat` of a bfloat16, little-endian in memory.
void HalfToFloat(absl::Span<const uint16_t> half, float* out);
void BfloatToFloat(absl::Span<const uint16_t> bfloat, float* out);

// out[k] = low nibble of q[2k], high nibble of q[2k+1]; with an odd count the last high nibble is 0.
void PackNibbles(absl::Span<const int8_t> q, uint8_t* out);
// out[i] = low nibble of even[i], high nibble of odd[i]: packs two rows that are neighbours along the packed axis.
void PackNibbleRows(absl::Span<const int8_t> even, absl::Span<const int8_t> odd, uint8_t* out);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_KERNELS_QUANTIZE_H_
