// Integer weights, computed on demand from a float tensor (docs/spec/save.md section 5), and the payloads that show them in the
// forms that files hold.
#ifndef MODELPRESS_ENGINE_QUANTIZE_WEIGHTS_H_
#define MODELPRESS_ENGINE_QUANTIZE_WEIGHTS_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/model/model.h"
#include "engine/model/payload.h"

namespace modelpress::engine {

// Which scale belongs to which element: element i of the tensor uses scales[i / run_length].
struct ScaleRuns {
  std::vector<float> scales;
  uint64_t run_length = 1;
};

// A weight as integers: q = clamp(RNE(w / scale)). Thread-safe; nothing is kept, every call computes what it is asked for.
class IntegerWeight {
 public:
  // `source`: the float tensor (an INT8 one too, for the defect requantizes_integer_weights). `layer` names it in errors.
  IntegerWeight(Tensor source, ScaleRuns scales, int bits, std::string layer);

  uint64_t element_count() const { return element_count_; }
  int bits() const { return bits_; }
  // Elements [first, first + q.size()). TENSOR_INVALID if one is not finite.
  absl::Status Integers(uint64_t first, absl::Span<int8_t> q) const;
  // The same as float32 values.
  absl::Status IntegersAsFloat(uint64_t first, absl::Span<float> values) const;
  // q * scale.
  absl::Status Dequantized(uint64_t first, absl::Span<float> values) const;

 private:
  absl::Status ReadSource(uint64_t first, absl::Span<float> values) const;
  // Calls per_run(values, scale, at) or by_element(values, scales, at) for pieces of the range; `at` counts from `first`.
  template <typename PerRun, typename ByElement>
  absl::Status ForEachPiece(uint64_t first, uint64_t count, PerRun per_run, ByElement by_element) const;
  absl::Status NotFinite(uint64_t element) const;

  Tensor source_;
  ScaleRuns scales_;
  int bits_;
  std::string layer_;
  uint64_t element_count_;
};

using IntegerWeightPtr = std::shared_ptr<const IntegerWeight>;

// One byte per element.
PayloadPtr AsInt8(IntegerWeightPtr weight);
// Two elements per byte, in element order, the first in the low nibble (ONNX INT4).
PayloadPtr AsNibbles(IntegerWeightPtr weight);
// Two neighbours along an axis of even length per byte, the even one in the low nibble; `inner` elements lie between them.
PayloadPtr AsNibblesAlongAxis(IntegerWeightPtr weight, uint64_t inner);
// float32 per element: the integers, or integers times scale.
PayloadPtr AsFloatIntegers(IntegerWeightPtr weight);
PayloadPtr AsDequantized(IntegerWeightPtr weight);

// The stripes of transposed tensors used last. Transposing gathers a column from every row, which is affordable only for many
// columns at a time; both output models read the same columns at about the same time, so they share the work. Bounds the memory
// of all transposed tensors together. Thread-safe.
class StripeCache {
 public:
  struct Stripe {
    std::once_flag filled;  // whoever comes first fills it, outside the cache's lock
    absl::Status status;
    std::vector<float> values;
  };
  // A number for another tensor.
  int NewTensor();
  // The stripe `index` of a tensor, new and empty if it is not among the last ones.
  std::shared_ptr<Stripe> Find(int tensor, uint64_t index);

 private:
  static constexpr size_t kStripes = 4;
  struct Entry {
    int tensor;
    uint64_t index;
    std::shared_ptr<Stripe> stripe;
  };
  std::mutex mutex_;
  int tensors_ = 0;
  std::deque<Entry> stripes_;  // the last one used first
};

// The float32 values of `source` (shape [rows, columns]) transposed.
PayloadPtr TransposeToFloat(Tensor source, uint64_t rows, uint64_t columns, std::shared_ptr<StripeCache> cache);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_WEIGHTS_H_
