// The values of a tensor that a run has shown.
#ifndef MODELPRESS_ENGINE_RUNTIME_FLOATS_H_
#define MODELPRESS_ENGINE_RUNTIME_FLOATS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {

// The elements as float32: those of the view itself, or of a float16 tensor, widened into `memory`. TENSOR_INVALID for every
// other type.
absl::StatusOr<absl::Span<const float>> AsFloats(const TensorView& view, std::vector<float>& memory);

// A copy of them.
absl::StatusOr<std::vector<float>> FloatsOf(const TensorView& view);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_FLOATS_H_
