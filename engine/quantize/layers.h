// The layers of a model in AMCT's sense: torch modules found again in an ONNX graph (docs/spec/ptq.md sections 2 and 3).
#ifndef MODELPRESS_ENGINE_QUANTIZE_LAYERS_H_
#define MODELPRESS_ENGINE_QUANTIZE_LAYERS_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/calibration_config.h"
#include "engine/graph/graph.h"
#include "modelpress/v1/module_manifest.pb.h"

namespace modelpress::engine {

// A module of a quantizable type. Of a module that is used several times, only the first use is listed.
struct Layer {
  ItemId node = -1;             // -1: a module of the manifest that the exported graph does not execute
  ConfigLayer config;           // name, type, why_not, ...
  bool pads_otherwise = false;  // a convolution whose module pads with something else than zeros (condition 2 of ptq.md 3.1)
  // why_not, unless it is about what matters to quantization only: how a convolution pads, how an RNN layer's states are wired.
  std::string why_not_at_all;
};

struct Layers {
  std::vector<Layer> layers;            // manifest order, else graph order; names are unique
  std::set<std::string> other_modules;  // names recovered from other nodes and from parameters
  // BatchNormalization nodes and their modules' names. With a manifest only those that are the only node of a module in it.
  std::map<ItemId, std::string> batch_norms;
  std::vector<std::string> deviations;  // from the reference, in words for the report

  LayerCatalog Catalog() const;
};

// The name that a parameter has in the whole module by the name of its tensor, which may have the level of a mark's wrapper in
// between: "c1.sub_module.weight" -> "c1.weight".
std::string ParameterName(absl::string_view tensor);

// Parses protobuf's JSON form of a ModuleManifest. MANIFEST_INVALID with the file: not JSON, unknown fields, a repeated name.
absl::StatusOr<v1::ModuleManifest> ReadModuleManifest(absl::string_view json, const std::string& file);

// Gives every tensor that is an Identity of a constant the constant itself: torch writes equal parameters as one initializer and
// Identity nodes named after the other parameters. To be called before FindLayers, which then sees weights where they belong.
absl::Status ResolveConstantIdentities(Graph& graph);

// Finds the layers. A name comes from the first of these that tells one:
//   1. metadata of torch's dynamo exporter (pkg.torch.onnx.name_scopes): the exact module path and class
//   2. a QuantIdentity mark in front of the node: the same
//   3. the weight's name "<module>.weight"
//   4. the scopes in TorchScript's node names, "/layer1/layer1.0/conv1/Conv" (ptq.md section 2)
//   5. the node's own name, and where it has none, the name of its first output
// With a manifest, names of 1 to 4 count only if a module of that name, class and weight shape is in it; a name of 4 may also be
// the end of the path of exactly one such module. Operators that belong to no module of a quantizable class (x @ self.w) are no
// layers: known by 1, 2, the manifest, or a name of 4 that is empty or that of a module with children or parameters of its own.
// No two layers have one name: scopes can be ambiguous, then 5 is used. ':' becomes '_', since it means something else in
// records.
//
// MANIFEST_INVALID where manifest and graph contradict each other.
absl::StatusOr<Layers> FindLayers(const Graph& graph, const v1::ModuleManifest* manifest, const ReferenceDefects& defects);

// Gives every layer's node the layer's name and every BatchNormalization node its module's; another node that has the name
// already gets a new one.
void NameLayerNodes(Graph& graph, const Layers& layers);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_LAYERS_H_
