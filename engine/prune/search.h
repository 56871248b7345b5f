// auto_channel_prune_search: how much of each layer to prune (docs/spec/prune.md section 13).
#ifndef MODELPRESS_ENGINE_PRUNE_SEARCH_H_
#define MODELPRESS_ENGINE_PRUNE_SEARCH_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/auto_channel_prune_config.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"

namespace modelpress::engine {

// A Conv2d or Linear of the cost table. `bitops` as the reference computes them or, without its defect, true ones at the
// feature map's size.
struct LayerCost {
  std::string layer;
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  double bitops = 0;
};
absl::StatusOr<std::vector<LayerCost>> CostTable(const Graph& graph, const Layers& layers, const ReferenceDefects& defects);

// Kept output channels of each producer in `records`, by greedy search. `sensitivities`: by producer, float32 [Cout].
struct SearchResult {
  std::map<std::string, int64_t> kept;
  double compress_ratio = 1;  // reached
  std::vector<std::string> warnings;
};
absl::StatusOr<SearchResult> GreedySearch(const AutoChannelPruneSettings& settings, const std::vector<LayerCost>& costs,
                                          const std::vector<AMCTPytorchProto::PruneRecord>& records,
                                          const std::map<std::string, std::vector<float>>& sensitivities,
                                          const ReferenceDefects& defects);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_SEARCH_H_
