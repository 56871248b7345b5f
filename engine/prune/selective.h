// 2:4 sparsity: of four consecutive weights along the input channels two are zero (docs/spec/prune.md section 11).
#ifndef MODELPRESS_ENGINE_PRUNE_SELECTIVE_H_
#define MODELPRESS_ENGINE_PRUNE_SELECTIVE_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "amct/record.pb.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"

namespace modelpress::engine {

struct SelectiveMask {
  std::vector<int64_t> shape;   // of the weight in torch's layout
  int axis = 1;                 // of the input channels: 1, ConvTranspose2d: 0
  std::vector<int64_t> packed;  // bits in row-major order, most significant first, as in the record file; 1 = keep
};

// The two of four magnitudes that are removed, ties as libstdc++'s nth_element breaks them. NaN is the largest.
std::array<int, 2> SmallestTwoOfFour(const std::array<float, 4>& magnitudes);

// The mask of a weight in torch's layout.
absl::StatusOr<SelectiveMask> MakeSelectiveMask(const Tensor& weight, const std::vector<int64_t>& torch_shape, int axis,
                                                int threads);

// The masks of the layers in `enabled`, by name. Weights of MatMul nodes are transposed in their torch module.
absl::StatusOr<std::map<std::string, SelectiveMask>> MakeSelectiveMasks(
    const Graph& graph, const Layers& layers, const std::map<std::string, SelectivePruneConfig>& enabled, int threads);

// A record of one layer; with the mask or, as create writes it, without.
AMCTPytorchProto::PruneRecord SelectiveRecord(const std::string& layer, const SelectiveMask& mask, bool with_mask);

// Multiplies the weight of the node called `layer` by the mask (masked elements become +0 or -0 by the weight's sign).
absl::Status ApplySelectiveMask(Graph& graph, const std::string& layer, const SelectiveMask& mask);

// Every layer with a selective record has at most two nonzero weights in each group of four (docs: NOT_SPARSE with the layer and
// where). Layers of which the graph has no constant weight, or not of that shape: PRUNE_FAILED.
absl::Status CheckSelectiveSparsity(const Graph& graph, const AMCTPytorchProto::ScaleOffsetRecord& record, int threads);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_SELECTIVE_H_
