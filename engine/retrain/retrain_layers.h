// The layers of a model that can be retrained or pruned (docs/spec/qat.md section 3, prune.md section 2).
#ifndef MODELPRESS_ENGINE_RETRAIN_RETRAIN_LAYERS_H_
#define MODELPRESS_ENGINE_RETRAIN_RETRAIN_LAYERS_H_

#include <vector>

#include "engine/base/reference_defects.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"

namespace modelpress::engine {

struct RetrainLayers {
  RetrainCatalog catalog;
  std::vector<ItemId> nodes;  // of each layer of the catalog; -1: a module that the graph does not execute
};

// What retraining can do with the layers that FindLayers found. Layers that share a weight are left out everywhere, also from
// pruning, which breaks them in the reference (prune.md section 16, P-8). `extended`: ChannelPruneOptions::extended.
RetrainLayers FindRetrainLayers(const Layers& layers, const ReferenceDefects& defects, bool extended = false);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RETRAIN_RETRAIN_LAYERS_H_
