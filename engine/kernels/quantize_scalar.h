// What kernels/quantize.h computes, one element at a time: the reference that the SIMD loops are tested against.
#ifndef MODELPRESS_ENGINE_KERNELS_QUANTIZE_SCALAR_H_
#define MODELPRESS_ENGINE_KERNELS_QUANTIZE_SCALAR_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace modelpress::engine::scalar {

// clamp(RNE(w / scale)). `w` is finite, `scale` finite and positive; the quotient may be infinite.
inline int8_t QuantizeWeight(float w, float scale, int bits) {
  const float bound = static_cast<float>(1 << (bits - 1));
  return static_cast<int8_t>(std::clamp(std::nearbyint(w / scale), -bound, bound - 1));
}

inline float HalfToFloat(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int fraction = half & 1023;
  const uint32_t sign = static_cast<uint32_t>(half >> 15) << 31;
  if (exponent == 31) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7F800000u | static_cast<uint32_t>(fraction) << 13);
  }
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

inline float BfloatToFloat(uint16_t bfloat) { return std::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16); }

inline uint8_t PackNibbles(int8_t low, int8_t high) {
  return static_cast<uint8_t>((static_cast<uint8_t>(low) & 15) | (static_cast<uint8_t>(high) & 15) << 4);
}

}  // namespace modelpress::engine::scalar

#endif  // MODELPRESS_ENGINE_KERNELS_QUANTIZE_SCALAR_H_
