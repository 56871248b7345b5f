// How much the output channels of a layer weigh (docs/spec/prune.md section 6).
#ifndef MODELPRESS_ENGINE_PRUNE_RANK_H_
#define MODELPRESS_ENGINE_PRUNE_RANK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/model.h"

namespace modelpress::engine {

// A weight to be ranked: `channels` rows of `row` elements in torch's layout, which the tensor holds as [channels, row] or, if it
// is transposed, as [row, channels].
struct RankedWeight {
  Tensor tensor;
  std::string layer;  // for errors
  int64_t channels = 0;
  int64_t row = 0;
  bool transposed = false;
};

// The scores of each weight's channels: L2 norm of the row, divided by its length, then moved to [0, 1]; float32 arithmetic in
// the reference's order. All NaN where all are equal or one is NaN. Weights are read once, in pieces, by `threads` threads; the
// scores do not depend on their number. TENSOR_INVALID, or the errors of reading.
absl::StatusOr<std::vector<std::vector<float>>> ScoreChannels(const std::vector<RankedWeight>& weights, int threads);

// The `cut` channels to remove, ascending: of each of `groups` consecutive blocks of floor(n / groups) channels those of the
// least score, cut / groups each (of equal ones the first), and all channels behind the last block.
std::vector<int64_t> LeastChannels(absl::Span<const float> scores, int64_t cut, int64_t groups);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_RANK_H_
