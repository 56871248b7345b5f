// Folds batch normalization into the convolution in front of it (docs/spec/ptq.md section 5).
#ifndef MODELPRESS_ENGINE_FUSE_BATCH_NORM_H_
#define MODELPRESS_ENGINE_FUSE_BATCH_NORM_H_

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

struct FoldedBatchNorm {
  std::string layer;   // name of the convolution
  std::string output;  // the tensor that the batch normalization wrote; now the convolution writes it
  ItemId conv = -1;
  ItemId batch_norm = -1;  // gone
};

struct FoldedBatchNorms {
  std::vector<FoldedBatchNorm> folded;
  std::vector<std::string> warnings;  // pairs that were left because a folded value would not be finite
};

// What the bias of a convolution that had none is called.
enum class NewBiasName {
  kByLayer,   // "<layer>.bias", as quantize_model calls it
  kByWeight,  // like its weight "<name>.weight" "<name>.bias", as the export of a folded module calls it
};

// Folds every BatchNormalization in inference mode that is the only consumer of a Conv not named in `skipped`. New weights are
// computed on demand; shared weights and parameters are copied first, so that every pair is folded by itself (the reference folds
// a batch norm that several convolutions share into the first one only).
absl::StatusOr<FoldedBatchNorms> FoldBatchNorms(Graph& graph, const std::set<std::string>& skipped,
                                                NewBiasName bias_name = NewBiasName::kByLayer);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUSE_BATCH_NORM_H_
