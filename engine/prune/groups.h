// Which layers must lose the same channels: the prune records of docs/spec/prune.md sections 3 and 4.
#ifndef MODELPRESS_ENGINE_PRUNE_GROUPS_H_
#define MODELPRESS_ENGINE_PRUNE_GROUPS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"

namespace modelpress::engine {

// What channel pruning does beyond the reference (PruneOptions of api/modelpress/v1/compression.proto). All off by default.
struct ChannelPruneOptions {
  bool extended = false;
  bool rank_by_all_producers = false;
};

struct PruneGroups {
  // Without prune_index, in the order and form of the record file.
  std::vector<AMCTPytorchProto::PruneRecord> records;
  // Layers for which pruning is enabled and that are in no record, with what stopped them: "its output reaches Sigmoid '/act'".
  std::map<std::string, std::string> left_alone;
  std::vector<std::string> deviations;  // from the reference, in words for the report
};

// Finds the groups of the layers in `enabled` (by name). The graph is not changed; node names are layer names (NameLayerNodes).
// NODE_UNSUPPORTED where the reference fails and there is no safe reading.
absl::StatusOr<PruneGroups> FindPruneGroups(const Graph& graph, const Layers& layers,
                                            const std::map<std::string, FilterPruneConfig>& enabled,
                                            const ChannelPruneOptions& options, const ReferenceDefects& defects);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_GROUPS_H_
