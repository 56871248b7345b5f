#include "engine/kernels/calibrate.h"

#include <algorithm>
#include <limits>

#include "hwy/base.h"

// Sums keep vectors in arrays, which vectors of unknown length cannot be in.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/calibrate.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace modelpress::engine::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kCalibrateLanes>;
using DD = hn::Repartition<double, DF>;
using DI32 = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VD = hn::Vec<DD>;

// Vectors of float32 that kCalibrateLanes fill.
constexpr size_t kVectors = kCalibrateLanes / HWY_MAX_LANES_D(DF);
static_assert(kVectors * HWY_MAX_LANES_D(DF) == kCalibrateLanes);

// float64 sums of kCalibrateLanes lanes.
struct Sums {
  VD low[kVectors];
  VD high[kVectors];

  HWY_INLINE void Clear() {
    for (size_t v = 0; v < kVectors; ++v) {
      low[v] = high[v] = hn::Zero(DD());
    }
  }
  HWY_INLINE void Add(size_t v, VF terms) {
    low[v] = hn::Add(low[v], hn::PromoteLowerTo(DD(), terms));
    high[v] = hn::Add(high[v], hn::PromoteUpperTo(DD(), terms));
  }
  HWY_INLINE double Total() const {
    const DD dd;
    const size_t lanes = hn::Lanes(dd);
    HWY_ALIGN double all[kCalibrateLanes];
    for (size_t v = 0; v < kVectors; ++v) {
      hn::Store(low[v], dd, all + 2 * v * lanes);
      hn::Store(high[v], dd, all + (2 * v + 1) * lanes);
    }
    double total = 0;
    for (const double sum : all) {
      total += sum;
    }
    return total;
  }
};

size_t Widen(absl::Span<const float> values, float* minimum, float* maximum) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  auto low = hn::Set(df, *minimum);
  auto high = hn::Set(df, *maximum);
  size_t i = 0;
  for (; i + 4 * lanes <= values.size(); i += 4 * lanes) {
    const auto a = hn::LoadU(df, values.data() + i);
    const auto b = hn::LoadU(df, values.data() + i + lanes);
    const auto c = hn::LoadU(df, values.data() + i + 2 * lanes);
    const auto d = hn::LoadU(df, values.data() + i + 3 * lanes);
    const auto finite = hn::And(hn::And(hn::IsFinite(a), hn::IsFinite(b)), hn::And(hn::IsFinite(c), hn::IsFinite(d)));
    if (HWY_UNLIKELY(!hn::AllTrue(df, finite))) {
      break;
    }
    low = hn::Min(low, hn::Min(hn::Min(a, b), hn::Min(c, d)));
    high = hn::Max(high, hn::Max(hn::Max(a, b), hn::Max(c, d)));
  }
  for (; i < values.size(); i += lanes) {
    const size_t count = HWY_MIN(lanes, values.size() - i);
    const auto x =
        count == lanes ? hn::LoadU(df, values.data() + i) : hn::LoadNOr(hn::Set(df, values[i]), df, values.data() + i, count);
    if (const auto finite = hn::IsFinite(x); HWY_UNLIKELY(!hn::AllTrue(df, finite))) {
      return i + hn::FindKnownFirstTrue(df, hn::Not(finite));
    }
    low = hn::Min(low, x);
    high = hn::Max(high, x);
  }
  *minimum = hn::ReduceMin(df, low);
  *maximum = hn::ReduceMax(df, high);
  return values.size();
}

template <typename Keep>
HWY_INLINE size_t CopyIf(absl::Span<const float> values, float* out, Keep keep) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  size_t written = 0;
  size_t i = 0;
  for (; i + lanes <= values.size(); i += lanes) {
    const auto x = hn::LoadU(df, values.data() + i);
    const auto mask = keep(x);
    if (!hn::AllFalse(df, mask)) {
      written += hn::CompressStore(x, mask, df, out + written);
    }
  }
  if (i < values.size()) {
    const size_t count = values.size() - i;
    const auto x = hn::LoadN(df, values.data() + i, count);
    written += hn::CompressStore(x, hn::And(keep(x), hn::FirstN(df, count)), df, out + written);
  }
  return written;
}

size_t KeepNonzero(absl::Span<const float> values, float* out) {
  const auto zero = hn::Zero(DF());
  return CopyIf(values, out, [&](VF x) HWY_ATTR { return hn::Ne(x, zero); });
}

size_t KeepOutside(absl::Span<const float> values, float low, float high, float* out) {
  const auto lowest = hn::Set(DF(), low);
  const auto highest = hn::Set(DF(), high);
  return CopyIf(values, out, [&](VF x) HWY_ATTR { return hn::Or(hn::Lt(x, lowest), hn::Gt(x, highest)); });
}

// (q - x)^2
HWY_INLINE VF SquaredError(VF x, VF low, VF high, VF scale) {
  const auto q = hn::Mul(hn::Round(hn::Div(hn::Min(hn::Max(x, low), high), scale)), scale);
  const auto error = hn::Sub(q, x);
  return hn::Mul(error, error);
}

void SquaredErrors(absl::Span<const float> values, absl::Span<const ClipCandidate> candidates, double* sums) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  for (size_t c = 0; c < candidates.size(); ++c) {
    const auto low = hn::Set(df, candidates[c].low);
    const auto high = hn::Set(df, candidates[c].high);
    const auto scale = hn::Set(df, candidates[c].scale);
    Sums sum;
    sum.Clear();
    for (size_t i = 0; i < values.size(); i += kCalibrateLanes) {
      for (size_t v = 0; v < kVectors; ++v) {
        sum.Add(v, SquaredError(hn::LoadU(df, values.data() + i + v * lanes), low, high, scale));
      }
    }
    sums[c] = sum.Total();
  }
}

void Bins(absl::Span<const float> values, float low, float high, int count, int32_t* bins) {
  const DF df;
  const DI32 di;
  const size_t lanes = hn::Lanes(df);
  const auto start = hn::Set(df, low);
  const auto width = hn::Set(df, high - low);
  const auto bin_count = hn::Set(df, static_cast<float>(count));
  const auto last = hn::Set(di, count - 1);
  for (size_t i = 0; i < values.size(); i += lanes) {
    const size_t n = HWY_MIN(lanes, values.size() - i);
    const auto x = n == lanes ? hn::LoadU(df, values.data() + i) : hn::LoadNOr(start, df, values.data() + i, n);
    const auto bin = hn::Min(hn::ConvertTo(di, hn::Div(hn::Mul(hn::Sub(x, start), bin_count), width)), last);
    n == lanes ? hn::StoreU(bin, di, bins + i) : hn::StoreN(bin, di, bins + i, n);
  }
}

// clamp(floor(x / divisor), 0, last): the floor of the exact quotient, below 2^20 in magnitude.
HWY_INLINE VF FloorQuotient(VF x, VF divisor, VF last) {
  const DF df;
  const DD dd;
  const auto quotient = hn::Div(x, divisor);
  auto floor = hn::Floor(quotient);
  // The rounded quotient can be an integer that the exact one does not reach. The product of such an integer and the divisor is
  // exact in float64.
  if (const auto whole = hn::Eq(quotient, floor); !hn::AllFalse(df, whole)) {
    const auto excess_low =
        hn::Sub(hn::Mul(hn::PromoteLowerTo(dd, floor), hn::PromoteLowerTo(dd, divisor)), hn::PromoteLowerTo(dd, x));
    const auto excess_high =
        hn::Sub(hn::Mul(hn::PromoteUpperTo(dd, floor), hn::PromoteUpperTo(dd, divisor)), hn::PromoteUpperTo(dd, x));
    const hn::Rebind<float, DD> half;
    // A positive excess may be too small for float32; only its sign counts.
    const auto one_low = hn::IfThenElseZero(hn::Gt(excess_low, hn::Zero(dd)), hn::Set(dd, 1.0));
    const auto one_high = hn::IfThenElseZero(hn::Gt(excess_high, hn::Zero(dd)), hn::Set(dd, 1.0));
    floor = hn::Sub(floor, hn::Combine(df, hn::DemoteTo(half, one_high), hn::DemoteTo(half, one_low)));
  }
  return hn::Min(hn::Max(floor, hn::Zero(df)), last);
}

HWY_INLINE VF Cube(VF t) { return hn::Mul(hn::Mul(t, t), t); }

double BinsLoss(absl::Span<const float> bins, absl::Span<const float> densities, float first_bin, float step, int levels,
                float level_width) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const auto first = hn::Set(df, first_bin);
  const auto w = hn::Set(df, step);
  const auto width = hn::Set(df, level_width);
  const auto half = hn::Set(df, level_width / 2);
  const auto minus_half = hn::Set(df, -(level_width / 2));
  const auto last = hn::Set(df, static_cast<float>(levels - 1));
  const auto one = hn::Set(df, 1.0f);
  const auto three = hn::Set(df, 3.0f);
  const auto half_cubed = Cube(half);
  const auto minus_half_cubed = Cube(minus_half);
  const auto whole = hn::Div(hn::Sub(half_cubed, minus_half_cubed), three);
  Sums sum;
  sum.Clear();
  for (size_t i = 0; i < bins.size(); i += kCalibrateLanes) {
    for (size_t v = 0; v < kVectors; ++v) {
      const auto density = hn::LoadU(df, densities.data() + i + v * lanes);
      const auto x = hn::Mul(hn::Sub(hn::LoadU(df, bins.data() + i + v * lanes), first), w);
      const auto y = hn::Add(x, w);
      const auto p = FloorQuotient(x, width, last);
      const auto q = FloorQuotient(y, width, last);
      const auto one_level = hn::Eq(p, q);
      const auto center = hn::Add(hn::Mul(p, width), half);
      // Where the bin lies in one level: all of it (A). Else its part in the first level (B), the levels in between (C), its part
      // in the last level (G).
      const auto end_cubed = hn::IfThenElse(one_level, Cube(hn::Sub(y, center)), half_cubed);
      sum.Add(v, hn::Mul(hn::Div(hn::Sub(end_cubed, Cube(hn::Sub(x, center))), three), density));
      if (!hn::AllTrue(df, one_level)) {
        const auto between = hn::Mul(hn::Sub(hn::Sub(q, p), one), hn::Mul(whole, density));
        sum.Add(v, hn::IfThenZeroElse(one_level, between));
        const auto rest = hn::Sub(hn::Sub(y, hn::Mul(q, width)), half);
        const auto tail = hn::Mul(hn::Div(hn::Sub(Cube(rest), minus_half_cubed), three), density);
        sum.Add(v, hn::IfThenZeroElse(one_level, tail));
      }
    }
  }
  return sum.Total();
}

template <bool kByElement>
HWY_INLINE void FakeQuantize(absl::Span<float> values, const float* scales, int bits) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  const auto low = hn::Set(df, -static_cast<float>(1 << (bits - 1)));
  const auto high = hn::Set(df, static_cast<float>((1 << (bits - 1)) - 1));
  const auto one = hn::Set(df, 1.0f);
  const auto common = hn::Set(df, kByElement ? 1.0f : *scales);
  for (size_t i = 0; i < values.size(); i += lanes) {
    const size_t count = HWY_MIN(lanes, values.size() - i);
    const bool full = count == lanes;
    const auto w = full ? hn::LoadU(df, values.data() + i) : hn::LoadN(df, values.data() + i, count);
    auto s = common;
    if constexpr (kByElement) {
      s = full ? hn::LoadU(df, scales + i) : hn::LoadNOr(one, df, scales + i, count);
    }
    // Rounding after the clamp gives the same, as the bounds are integers. Not every target's Round keeps the sign of what
    // becomes zero.
    const auto quotient = hn::Clamp(hn::Add(hn::Div(w, s), hn::Zero(df)), low, high);
    const auto fake = hn::Mul(hn::CopySign(hn::Round(quotient), quotient), s);
    full ? hn::StoreU(fake, df, values.data() + i) : hn::StoreN(fake, df, values.data() + i, count);
  }
}

void FakeQuantizeCommon(absl::Span<float> values, const float* scale, int bits) { FakeQuantize<false>(values, scale, bits); }
void FakeQuantizeElements(absl::Span<float> values, const float* scales, int bits) { FakeQuantize<true>(values, scales, bits); }

}  // namespace modelpress::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace modelpress::engine {

HWY_EXPORT(Widen);
HWY_EXPORT(KeepNonzero);
HWY_EXPORT(KeepOutside);
HWY_EXPORT(SquaredErrors);
HWY_EXPORT(Bins);
HWY_EXPORT(BinsLoss);
HWY_EXPORT(FakeQuantizeCommon);
HWY_EXPORT(FakeQuantizeElements);

size_t WidenRange(absl::Span<const float> values, float* minimum, float* maximum) {
  return HWY_DYNAMIC_DISPATCH(Widen)(values, minimum, maximum);
}

size_t CopyNonzero(absl::Span<const float> values, float* out) { return HWY_DYNAMIC_DISPATCH(KeepNonzero)(values, out); }

size_t CopyOutside(absl::Span<const float> values, float low, float high, float* out) {
  return HWY_DYNAMIC_DISPATCH(KeepOutside)(values, low, high, out);
}

void SumSquaredErrors(absl::Span<const float> values, absl::Span<const ClipCandidate> candidates, double* sums) {
  HWY_DYNAMIC_DISPATCH(SquaredErrors)(values, candidates, sums);
}

void FindBins(absl::Span<const float> values, float low, float high, int count, int32_t* bins) {
  HWY_DYNAMIC_DISPATCH(Bins)(values, low, high, count, bins);
}

double HistogramLoss(absl::Span<const float> bins, absl::Span<const float> densities, float first_bin, float step, int levels,
                     float level_width) {
  return HWY_DYNAMIC_DISPATCH(BinsLoss)(bins, densities, first_bin, step, levels, level_width);
}

void FakeQuantizeInPlace(absl::Span<float> values, float scale, int bits) {
  HWY_DYNAMIC_DISPATCH(FakeQuantizeCommon)(values, &scale, bits);
}

void FakeQuantizeInPlaceByElement(absl::Span<float> values, const float* scales, int bits) {
  HWY_DYNAMIC_DISPATCH(FakeQuantizeElements)(values, scales, bits);
}

void FloatToHalf(absl::Span<const float> values, uint16_t* half) {
  for (size_t i = 0; i < values.size(); ++i) {
    half[i] = hwy::BitCastScalar<uint16_t>(hwy::F16FromF32(values[i]));
  }
}

}  // namespace modelpress::engine

#endif  // HWY_ONCE
