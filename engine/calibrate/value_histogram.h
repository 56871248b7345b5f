// Counts of float32 values by their leading bits: fine near zero, coarse far away, in memory that follows the spread of the
// values and not their number.
#ifndef MODELPRESS_ENGINE_CALIBRATE_VALUE_HISTOGRAM_H_
#define MODELPRESS_ENGINE_CALIBRATE_VALUE_HISTOGRAM_H_

#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/types/span.h"

namespace modelpress::engine {

class ValueHistogram {
 public:
  // Of a value's 32 bits the last ones do not count: sign, exponent and 12 bits of the mantissa tell the bucket.
  static constexpr int kLowBits = 11;
  static constexpr uint32_t kValuesPerBucket = uint32_t{1} << kLowBits;

  // Finite values of one bucket; equally spaced, as they share their exponent.
  struct Bucket {
    uint32_t id = 0;
    float first = 0;  // smallest and greatest value that falls in
    float last = 0;
    uint64_t count = 0;
    uint64_t low_sum = 0;  // of the values' last bits, as numbers
    long double sum = 0;   // of the values; exact but for one rounding
  };
  static constexpr uint32_t kBuckets = uint32_t{1} << (32 - kLowBits);
  static Bucket MakeBucket(uint32_t id, uint64_t count, uint64_t low_sum);

  // Numbers that are ordered as the floats are (-0 before +0).
  static uint32_t KeyOf(float value) {
    const auto bits = std::bit_cast<int32_t>(value);
    return static_cast<uint32_t>(bits ^
                                 (bits >> 31 | std::numeric_limits<int32_t>::min()));  // without a branch: signs are random
  }
  static float ValueOf(uint32_t key) { return std::bit_cast<float>(key ^ (key >> 31 != 0 ? 0x80000000U : 0xFFFFFFFFU)); }
  static uint32_t BucketOf(float value) { return KeyOf(value) >> kLowBits; }

  // The values are finite.
  void Add(absl::Span<const float> values);
  // Adds what another histogram has counted.
  void Add(absl::Span<const Bucket> buckets);
  // Buckets that are not empty, in ascending order, of this and others together.
  std::vector<Bucket> Buckets(absl::Span<const ValueHistogram* const> others = {}) const;

 private:
  // A value is the first one of its bucket plus `low` steps: count and sum of low give count and sum of the values.
  struct Cell {
    uint64_t count = 0;
    uint64_t low_sum = 0;
  };
  // Both in one number while they are small, so that adding a value is one addition.
  static constexpr int kCountShift = 36;
  static constexpr uint64_t kMaxPending = uint64_t{1} << (kCountShift - kLowBits);

  static constexpr int kPageBits = 8;
  static constexpr size_t kPages = size_t{1} << (32 - kLowBits - kPageBits);
  static constexpr size_t kPageSize = size_t{1} << kPageBits;
  using PendingPage = std::array<uint64_t, kPageSize>;
  using Page = std::array<Cell, kPageSize>;

  // Moves the pending numbers into `cells`.
  void Flush(std::vector<std::unique_ptr<Page>>& cells) const;

  // kPages each, null where nothing was added; or none at all.
  std::vector<std::unique_ptr<PendingPage>> pending_;
  std::vector<std::unique_ptr<Page>> cells_;
  uint64_t pending_values_ = 0;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_VALUE_HISTOGRAM_H_
