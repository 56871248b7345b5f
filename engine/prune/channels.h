// Which channels go, and taking them out of a graph (docs/spec/prune.md sections 5 to 9).
#ifndef MODELPRESS_ENGINE_PRUNE_CHANNELS_H_
#define MODELPRESS_ENGINE_PRUNE_CHANNELS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "amct/record.pb.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/prune/groups.h"
#include "modelpress/v1/rewrite_plan.pb.h"

namespace modelpress::engine {

// Channels to keep of `channels` (prune.md section 6). `group` is the record's prune_group, 1 if it has none.
int64_t ChannelsToKeep(int64_t channels, double ratio, bool ascend_optimized, int64_t group);

// Ranks the channels of every record and adds prune_index to its producers and consumers where something is cut. `enabled`: the
// configuration by layer. Weights are read piecewise by `threads` threads; the result does not depend on their number.
absl::Status ChooseChannels(const Graph& graph, const std::map<std::string, FilterPruneConfig>& enabled,
                            const ChannelPruneOptions& options, int threads, std::vector<AMCTPytorchProto::PruneRecord>& records);

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
  std::vector<v1::ModuleCut> cuts;                     // the same for a torch module
  std::vector<CutLayer> layers;                        // in graph order
};

enum class CutPolicy {
  kDropUnfitting,  // create: a record after which the shapes of the graph do not fit is left out (section 8)
  kRequireAll,     // restore: such a record is PRUNE_FAILED
};

// Cuts weights, biases, batch norms, and constants that carry a shape (Reshape), of a graph whose nodes have the layers' names. A
// tensor that layers share is copied first. New tensors are computed when they are read. Shapes in graph outputs and value_info
// follow. PRUNE_FAILED: a record names no node, a node of another kind, or indices out of range.
absl::StatusOr<CutChannelsResult> CutChannels(Graph& graph, const std::vector<AMCTPytorchProto::PruneRecord>& records,
                                              const Layers& layers, CutPolicy policy);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_CHANNELS_H_
