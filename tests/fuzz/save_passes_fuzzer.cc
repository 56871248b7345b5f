// What save_model does between reading and writing: a record file up to the first byte 0, behind it a model. Factors are read for
// the model's layers, and the graph is rewritten to both models.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/reference_defects.h"
#include "engine/formats/record.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"
#include "engine/quantize/deploy_check.h"
#include "engine/quantize/layer_factors.h"
#include "engine/quantize/marks.h"
#include "engine/quantize/modified_model.h"
#include "engine/quantize/pass.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

// False where the passes refuse the model.
bool Rewritten(Graph& graph, const std::vector<std::unique_ptr<Pass>>& passes) {
  const absl::Status status = RunPasses(graph, passes);
  RequireClear(status);
  Require(!status.ok() || graph.Validate().ok(), "links of the graph that was rewritten");
  return status.ok();
}

void Run(absl::string_view bytes) {
  static InputFolder folder;
  const size_t end = std::min(bytes.find('\0'), bytes.size());
  const absl::StatusOr<ParsedRecord> record = ParseRecord(bytes.substr(0, end), "r.txt");
  RequireClear(record.status());
  if (!record.ok()) {
    return;
  }
  folder.Write("m.onnx", bytes.substr(std::min(end + 1, bytes.size())));
  absl::StatusOr<Model> model = ReadModel(folder.files(), "m.onnx", {.max_items = 2000, .max_inline_bytes = 1 << 20});
  if (!model.ok() || !CheckUnmarked(*model).ok()) {
    return;
  }
  const ReferenceDefects defects;
  SaveStep step;
  step.float16_layers = TakeDataTypes(*model);
  DropMarkOpset(model->shell);
  absl::StatusOr<Graph> graph = Graph::Create(*std::move(model), defects);
  if (!graph.ok()) {
    return;
  }
  absl::StatusOr<FactorsByLayer> factors = ReadFactors(*record, *graph, "r.txt", defects);
  RequireClear(factors.status());
  if (!factors.ok()) {
    return;
  }
  step.factors = *std::move(factors);
  if (!Rewritten(*graph, CommonPasses(step))) {
    return;
  }
  absl::StatusOr<Model> common = graph->ToModel();
  RequireClear(common.status());
  if (Rewritten(*graph, DeployPasses(step))) {
    const absl::StatusOr<Model> deploy = graph->ToModel();
    RequireClear(deploy.status());
    if (deploy.ok()) {
      RequireClear(CheckDeployModel(*deploy, step.factors, defects));
    }
  }
  if (common.ok()) {
    absl::StatusOr<Graph> fake_quant = Graph::Create(*std::move(common), defects);
    RequireClear(fake_quant.status());
    if (fake_quant.ok() && Rewritten(*fake_quant, FakeQuantPasses(step))) {
      RequireClear(fake_quant->ToModel().status());
    }
  }
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
