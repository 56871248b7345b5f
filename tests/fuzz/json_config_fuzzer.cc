// Every kind of JSON that a caller uploads: configurations, the module manifest, a rewrite plan.
#include <string>

#include "engine/base/reference_defects.h"
#include "engine/formats/calibration_config.h"
#include "engine/formats/json_text.h"
#include "engine/formats/kv_cache_config.h"
#include "engine/formats/retrain_config.h"
#include "engine/quantize/layers.h"
#include "engine/retrain/plan_json.h"
#include "tests/fuzz/catalogs.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

void Run(absl::string_view json) {
  static const LayerCatalog& catalog = *new LayerCatalog(SmallCatalog());
  static const RetrainCatalog& retrain = *new RetrainCatalog(SmallRetrainCatalog());
  RequireClear(ParseJson(json, "c.json").status());
  RequireClear(ReadQuantConfig(catalog, json, "c.json", ReferenceDefects{}).status());
  RequireClear(ReadQuantConfig(catalog, json, "c.json", ReferenceDefects::All()).status());
  RequireClear(IsKvCacheConfig(json, "c.json").status());
  RequireClear(ReadKvCacheConfig(catalog, json, "c.json").status());
  RequireClear(ReadRetrainConfig(retrain, json, "c.json").status());
  RequireClear(ReadModuleManifest(json, "m.json").status());
  const absl::StatusOr<v1::RewritePlan> plan = ParseRewritePlan(json, "p.json");
  RequireClear(plan.status());
  if (plan.ok()) {
    const absl::StatusOr<std::string> printed = PrintRewritePlan(*plan);
    Require(printed.ok() && ParseRewritePlan(*printed, "p.json").ok(), "a plan that was read can be written and read");
  }
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
