// The layers of a model that can be retrained or pruned (docs/spec/qat.md section 3, prune.md section 2).
#ifndef MODELPRESS_ENGINE_RETRAIN_RETRAIN_LAYERS_H_
#define MODELPRESS_ENGINE_RETRAIN_RETRAIN_LAYERS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layers.h"
#include "modelpress/v1/module_manifest.pb.h"

namespace modelpress::engine {

struct RetrainLayers {
  RetrainCatalog catalog;
  std::vector<ItemId> nodes;  // of each layer of the catalog; -1: a module that the graph does not execute
};

// `layers` is what FindLayers found, and NameLayerNodes has named the nodes. Without a manifest the conditions are judged by the
// graph alone.
absl::StatusOr<RetrainLayers> FindRetrainLayers(const Graph& graph, const Layers& layers, const v1::ModuleManifest* manifest,
                                                const ReferenceDefects& defects);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RETRAIN_RETRAIN_LAYERS_H_
