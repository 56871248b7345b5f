#include "engine/kernels/quantize.h"

// Highway compiles what stands between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE once per instruction set and picks the
// best one that the machine has.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/quantize.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace modelpress::engine::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI32 = hn::RebindToSigned<DF>;
using DU32 = hn::RebindToUnsigned<DF>;
using DI8 = hn::Rebind<int8_t, DF>;
using DU16 = hn::Rebind<uint16_t, DF>;

// Stores the first `count` of `q`.
HWY_INLINE void Store(hn::Vec<DI32> q, int8_t* out, size_t count) {
  const DI8 d8;
  count == hn::Lanes(d8) ? hn::StoreU(hn::DemoteTo(d8, q), d8, out) : hn::StoreN(hn::DemoteTo(d8, q), d8, out, count);
}
HWY_INLINE void Store(hn::Vec<DI32> q, float* out, size_t count) {
  const DF df;
  count == hn::Lanes(df) ? hn::StoreU(hn::ConvertTo(df, q), df, out) : hn::StoreN(hn::ConvertTo(df, q), df, out, count);
}

// `scale` points to one scale, or with kByElement to one for each weight.
template <bool kByElement, typename Out>
HWY_INLINE size_t Quantize(absl::Span<const float> weights, const float* scale, int bits, Out* out) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const auto low = hn::Set(df, -static_cast<float>(1 << (bits - 1)));
  const auto high = hn::Set(df, static_cast<float>((1 << (bits - 1)) - 1));
  const auto one = hn::Set(df, 1.0f);
  const auto common_scale = hn::Set(df, kByElement || weights.empty() ? 1.0f : *scale);
  for (size_t i = 0; i < weights.size(); i += lanes) {
    const size_t count = HWY_MIN(lanes, weights.size() - i);
    const bool whole = count == lanes;
    const auto w = whole ? hn::LoadU(df, weights.data() + i) : hn::LoadN(df, weights.data() + i, count);
    if (const auto finite = hn::IsFinite(w); HWY_UNLIKELY(!hn::AllTrue(df, finite))) {
      return i + hn::FindKnownFirstTrue(df, hn::Not(finite));
    }
    auto s = common_scale;
    if constexpr (kByElement) {
      s = whole ? hn::LoadU(df, scale + i) : hn::LoadNOr(one, df, scale + i, count);
    }
    // The bounds are integers, so rounding after the clamp gives the same, and nothing is out of int32's range then.
    const auto quotient = hn::Clamp(hn::Div(w, s), low, high);
    Store(hn::NearestInt(quotient), out + i, count);
  }
  return weights.size();
}

size_t QuantizeToInt(absl::Span<const float> w, const float* scale, int bits, int8_t* q) {
  return Quantize<false>(w, scale, bits, q);
}
size_t QuantizeToFloat(absl::Span<const float> w, const float* scale, int bits, float* fake) {
  return Quantize<false>(w, scale, bits, fake);
}
size_t QuantizeToIntByElement(absl::Span<const float> w, const float* scale, int bits, int8_t* q) {
  return Quantize<true>(w, scale, bits, q);
}
size_t QuantizeToFloatByElement(absl::Span<const float> w, const float* scale, int bits, float* fake) {
  return Quantize<true>(w, scale, bits, fake);
}

// By bits rather than by the machine's conversion, which makes quiet NaNs of signalling ones on some targets only.
HWY_INLINE hn::Vec<DU32> WidenHalf(hn::Vec<DU32> half) {
  const DU32 du;
  const DF df;
  const auto exponent_step = hn::Set(du, 112u << 23);  // difference of the exponents' biases
  const auto magnitude = hn::And(half, hn::Set(du, 0x7FFFu));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  auto result = hn::Add(shifted, exponent_step);
  const auto is_special = hn::Ge(magnitude, hn::Set(du, 0x7C00u));  // infinity, NaN: the exponent field is full again
  result = hn::IfThenElse(is_special, hn::Add(result, exponent_step), result);
  const auto is_subnormal = hn::Lt(magnitude, hn::Set(du, 0x0400u));
  const auto subnormal = hn::Mul(hn::ConvertTo(df, hn::BitCast(DI32(), magnitude)), hn::Set(df, 0x1p-24f));
  result = hn::IfThenElse(is_subnormal, hn::BitCast(du, subnormal), result);
  return hn::Or(result, hn::ShiftLeft<16>(hn::And(half, hn::Set(du, 0x8000u))));
}

template <bool kHalf>
HWY_INLINE void Widen(absl::Span<const uint16_t> in, float* out) {
  const DF df;
  const DU32 du32;
  const DU16 du16;
  const size_t lanes = hn::Lanes(df);
  for (size_t i = 0; i < in.size(); i += lanes) {
    const size_t count = HWY_MIN(lanes, in.size() - i);
    const bool whole = count == lanes;
    const auto bits = hn::PromoteTo(du32, whole ? hn::LoadU(du16, in.data() + i) : hn::LoadN(du16, in.data() + i, count));
    const auto value = hn::BitCast(df, kHalf ? WidenHalf(bits) : hn::ShiftLeft<16>(bits));
    whole ? hn::StoreU(value, df, out + i) : hn::StoreN(value, df, out + i, count);
  }
}

void WidenHalfs(absl::Span<const uint16_t> half, float* out) { Widen<true>(half, out); }
void WidenBfloats(absl::Span<const uint16_t> bfloat, float* out) { Widen<false>(bfloat, out); }

void PackPairs(absl::Span<const int8_t> q, uint8_t* out) {
  const hn::ScalableTag<uint16_t> du16;
  const hn::Rebind<uint8_t, decltype(du16)> du8;  // half a vector
  const size_t lanes = hn::Lanes(du16);
  size_t k = 0;
  for (; 2 * (k + lanes) <= q.size(); k += lanes) {
    const hn::Repartition<uint8_t, decltype(du16)> du8_pairs;
    const auto bytes = hn::LoadU(du8_pairs, reinterpret_cast<const uint8_t*>(q.data() + 2 * k));
    const auto pairs = hn::BitCast(du16, bytes);  // little-endian: the first of a pair is the low byte
    const auto packed = hn::Or(hn::And(pairs, hn::Set(du16, 0x0F)), hn::And(hn::ShiftRight<4>(pairs), hn::Set(du16, 0xF0)));
    hn::StoreU(hn::DemoteTo(du8, packed), du8, out + k);
  }
  for (; 2 * k < q.size(); ++k) {
    const uint8_t high = 2 * k + 1 < q.size() ? static_cast<uint8_t>(q[2 * k + 1]) : 0;
    out[k] = static_cast<uint8_t>((static_cast<uint8_t>(q[2 * k]) & 0x0F) | (high & 0x0F) << 4);
  }
}

void PackRows(absl::Span<const int8_t> even, absl::Span<const int8_t> odd, uint8_t* out) {
  const hn::ScalableTag<uint8_t> d;
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < even.size(); i += lanes) {
    const size_t count = HWY_MIN(lanes, even.size() - i);
    const auto low = hn::LoadN(d, reinterpret_cast<const uint8_t*>(even.data() + i), count);
    const auto high = hn::LoadN(d, reinterpret_cast<const uint8_t*>(odd.data() + i), count);
    hn::StoreN(hn::Or(hn::And(low, hn::Set(d, 0x0F)), hn::ShiftLeft<4>(high)), d, out + i, count);
  }
}

}  // namespace modelpress::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace modelpress::engine {

HWY_EXPORT(QuantizeToInt);
HWY_EXPORT(QuantizeToFloat);
HWY_EXPORT(QuantizeToIntByElement);
HWY_EXPORT(QuantizeToFloatByElement);
HWY_EXPORT(WidenHalfs);
HWY_EXPORT(WidenBfloats);
HWY_EXPORT(PackPairs);
HWY_EXPORT(PackRows);

size_t QuantizeWeights(absl::Span<const float> w, float scale, int bits, int8_t* q) {
  return HWY_DYNAMIC_DISPATCH(QuantizeToInt)(w, &scale, bits, q);
}

size_t FakeQuantizeWeights(absl::Span<const float> w, float scale, int bits, float* fake) {
  return HWY_DYNAMIC_DISPATCH(QuantizeToFloat)(w, &scale, bits, fake);
}

size_t QuantizeWeightsByElement(absl::Span<const float> w, const float* scale, int bits, int8_t* q) {
  return HWY_DYNAMIC_DISPATCH(QuantizeToIntByElement)(w, scale, bits, q);
}

size_t FakeQuantizeWeightsByElement(absl::Span<const float> w, const float* scale, int bits, float* fake) {
  return HWY_DYNAMIC_DISPATCH(QuantizeToFloatByElement)(w, scale, bits, fake);
}

void HalfToFloat(absl::Span<const uint16_t> half, float* out) { HWY_DYNAMIC_DISPATCH(WidenHalfs)(half, out); }

void BfloatToFloat(absl::Span<const uint16_t> bfloat, float* out) { HWY_DYNAMIC_DISPATCH(WidenBfloats)(bfloat, out); }

void PackNibbles(absl::Span<const int8_t> q, uint8_t* out) { HWY_DYNAMIC_DISPATCH(PackPairs)(q, out); }

void PackNibbleRows(absl::Span<const int8_t> even, absl::Span<const int8_t> odd, uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(PackRows)(even, odd, out);
}

}  // namespace modelpress::engine

#endif  // HWY_ONCE
