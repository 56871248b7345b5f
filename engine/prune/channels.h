// Which channels go, and taking them out of a graph (docs/spec/prune.md sections 5 to 9).
#ifndef MODELPRESS_ENGINE_PRUNE_CHANNELS_H_
#define MODELPRESS_ENGINE_PRUNE_CHANNELS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/prune/groups.h"
#include "modelpress/v1/rewrite_plan.pb.h"

namespace modelpress::engine {

// Channels to keep of `channels` (prune.md section 6). `group` is the record's prune_group, 1 if it has none.
int64_t ChannelsToKeep(int64_t channels, double ratio, bool ascend_optimized, int64_t group);

// Ranks the channels of every record and adds prune_index to its producers and consumers where something is cut. `enabled`: the
// configuration by layer. Where the chosen channels fall unevenly into the groups of a grouped convolution, they are chosen
// again with a prune_group that suits all of them, or none is cut where there is no such number (P-9; unless
// merges_groups_by_maximum). Weights are read piecewise by `threads` threads; the result does not depend on their number.
// PRUNE_FAILED: a producer is no layer with constant weights, has no ratio, or cannot be cut in groups.
absl::Status ChooseChannels(const Graph& graph, const std::map<std::string, FilterPruneConfig>& enabled,
                            const ChannelPruneOptions& options, const ReferenceDefects& defects, int threads,
                            std::vector<AMCTPytorchProto::PruneRecord>& records);

// What a cut does to a layer, for the report.
struct CutLayer {
  std::string name;
  std::string op_type;
  int64_t channels_before = 0;  // output channels; of a batch norm its length
  int64_t channels_after = 0;
  int64_t input_channels_before = 0;
  int64_t input_channels_after = 0;
};

struct CutChannelsResult {
  std::vector<AMCTPytorchProto::PruneRecord> records;  // those that were applied, in their order
  std::vector<std::string> dropped;                    // for each other one: which layers, and which consumer does not fit
  std::vector<v1::ModuleCut> cuts;                     // the same for torch modules, in graph order, each once
  std::vector<CutLayer> layers;                        // in graph order
};

enum class CutPolicy {
  kDropUnfitting,  // create: a record after which the shapes of the graph do not fit is left out (section 8)
  kRequireAll,     // restore: such a record is PRUNE_FAILED
};

// Cuts weights, biases, batch norms, and constants that carry a shape (Reshape), of a graph whose nodes have the layers' names. A
// tensor that layers share is copied first. New tensors are computed when they are read. Shapes in graph outputs and value_info
// follow. Records of 2:4 sparsity are passed over. PRUNE_FAILED: a record names no node, a node of another kind, or indices out
// of range; nothing is changed then. The only indices out of range that are passed over are those of a producer with one channel,
// which an Add broadcasts (P-3).
absl::StatusOr<CutChannelsResult> CutChannels(Graph& graph, const std::vector<AMCTPytorchProto::PruneRecord>& records,
                                              const Layers& layers, CutPolicy policy);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_CHANNELS_H_
