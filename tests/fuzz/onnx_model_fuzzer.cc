// An uploaded ONNX file, with two files of external data beside it: read, checked, made a graph, its layers found, and made a
// model again, as every function does with its model first.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "engine/base/reference_defects.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"
#include "engine/quantize/layers.h"
#include "engine/quantize/marks.h"
#include "engine/quantize/modified_model.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

void ReadTensors(const Model& model) {
  for (const Tensor& tensor : model.initializers) {
    std::vector<float> values(std::min<uint64_t>(tensor.ElementCount(), 1024));
    RequireClear(ReadFloats(tensor, 0, absl::MakeSpan(values)));
    if (tensor.payload == nullptr || tensor.payload->size() < 4096) {
      RequireClear(ToProto(tensor).status());
    }
  }
}

void Run(absl::string_view bytes) {
  static InputFolder folder;
  folder.Write("m.onnx", bytes);
  if (!folder.files().Contains("w.bin")) {
    folder.Write("w.bin", std::string(256, '\1'));
    folder.Write("empty.bin", "");
  }
  absl::StatusOr<Model> model = ReadModel(folder.files(), "m.onnx", {.max_items = 20'000, .max_inline_bytes = 16 << 20});
  RequireClear(model.status());
  if (!model.ok()) {
    return;
  }
  ReadTensors(*model);
  TakeDataTypes(*model);
  DropMarkOpset(model->shell);
  absl::StatusOr<Graph> graph = Graph::Create(*std::move(model), ReferenceDefects{});
  RequireClear(graph.status());
  if (!graph.ok()) {
    return;
  }
  Require(graph->Validate().ok(), "links of the graph that was read");
  RequireClear(ResolveConstantIdentities(*graph));
  const absl::StatusOr<Layers> layers = FindLayers(*graph, nullptr, ReferenceDefects{});
  RequireClear(layers.status());
  if (!layers.ok()) {
    return;
  }
  RequireClear(StripMarks(*graph).status());
  NameLayerNodes(*graph, *layers);
  Require(graph->Validate().ok(), "links of the graph that was edited");
  RequireClear(graph->ToModel().status());
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
