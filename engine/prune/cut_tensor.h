// Tensors without some of their rows or columns.
#ifndef MODELPRESS_ENGINE_PRUNE_CUT_TENSOR_H_
#define MODELPRESS_ENGINE_PRUNE_CUT_TENSOR_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace modelpress::engine {

// `source` with the indices `kept` (ascending, within range) of `axis` only. Elements keep their bits and are copied when they
// are read. The data stands in raw_data. TENSOR_INVALID: strings, 4-bit elements, or no data.
absl::StatusOr<Tensor> KeepAlongAxis(const Tensor& source, int axis, const std::vector<int64_t>& kept);

// The weight [Cout, Cin/groups, k...] of a grouped convolution with the input channels `kept` only, whose number is a multiple of
// `groups`: the weight counts as [Cout/groups, Cin, k...], loses columns, and is divided into groups anew (docs/spec/prune.md
// section 7).
absl::StatusOr<Tensor> KeepGroupedInputs(const Tensor& source, int64_t groups, const std::vector<int64_t>& kept);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_CUT_TENSOR_H_
