// The part of a rewrite plan that inserts quantizers and 2:4 masks (docs/spec/qat.md sections 5.3, 6.3, 6.5 and 16.2).
#ifndef MODELPRESS_ENGINE_RETRAIN_PLAN_H_
#define MODELPRESS_ENGINE_RETRAIN_PLAN_H_

#include <map>
#include <string>

#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/prune/selective.h"
#include "engine/quantize/layers.h"
#include "engine/retrain/retrain_layers.h"
#include "modelpress/v1/rewrite_plan.pb.h"

namespace modelpress::engine {

// Fills everything of a plan but its cuts and engine_version. `graph` is the graph after channel pruning, its marks taken off;
// `masks` are those of the layers that become 2:4 sparse, by layer.
v1::RewritePlan MakeWrapPlan(const Graph& graph, const RetrainLayers& layers, const Layers& all_layers,
                             const RetrainConfig& config, const std::map<std::string, SelectiveMask>& masks);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RETRAIN_PLAN_H_
