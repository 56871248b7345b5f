// The weights of a training checkpoint, put into a graph (docs/spec/prune.md section 9, qat.md sections 5.2, 8 and 13).
#ifndef MODELPRESS_ENGINE_RETRAIN_CHECKPOINT_H_
#define MODELPRESS_ENGINE_RETRAIN_CHECKPOINT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"
#include "engine/quantize/layers.h"
#include "modelpress/v1/module_manifest.pb.h"
#include "modelpress/v1/rewrite_plan.pb.h"

namespace modelpress::engine {

// Replaces the parameters in `graph`, which is pruned already, by `weights`: entries of a state_dict of the module that `plan`
// wraps. With `state_dict_name` only the entries below it count. Where all names start with "module." that is dropped. Entries of
// wrappers are checked to be those of the plan's layers; the parameters of a wrapped layer are found below its wrapper.
//
// Strict, as the reference loads: WEIGHTS_INVALID where a parameter of the graph or a trained value of a wrapper has no entry, an
// entry is none of them (num_batches_tracked and, by the manifest, parameters that the graph does not use are fine), or has
// another shape or a type that cannot be converted; metadata `missing` and `unexpected` list the names. New tensors are read from
// the file when they are needed; those of LSTM and GRU, which ONNX orders otherwise, are in memory.
absl::Status LoadCheckpoint(Graph& graph, const Layers& layers, const v1::ModuleManifest* manifest, const v1::RewritePlan& plan,
                            std::vector<Tensor> weights, const std::string& state_dict_name);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RETRAIN_CHECKPOINT_H_
