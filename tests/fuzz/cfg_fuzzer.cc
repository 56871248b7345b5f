// A simple configuration (.cfg, protobuf text) of every kind; what it makes is a configuration that can be read.
#include <string>

#include "engine/base/reference_defects.h"
#include "engine/formats/auto_channel_prune_config.h"
#include "engine/formats/calibration_config.h"
#include "engine/formats/kv_cache_config.h"
#include "engine/formats/retrain_config.h"
#include "tests/fuzz/catalogs.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

void Run(absl::string_view cfg) {
  static const LayerCatalog& catalog = *new LayerCatalog(SmallCatalog());
  static const RetrainCatalog& retrain = *new RetrainCatalog(SmallRetrainCatalog());
  for (const ReferenceDefects& defects : {ReferenceDefects{}, ReferenceDefects::All()}) {
    const absl::StatusOr<QuantConfigText> quant = CreateQuantConfigText(catalog, cfg, "in.cfg", defects);
    RequireClear(quant.status());
    if (quant.ok()) {
      const absl::StatusOr<QuantConfig> read = ReadQuantConfig(catalog, quant->json, "config.json", defects);
      RequireClear(read.status());
      Require(read.ok() || defects.omits_precision_mode, read.status().ToString());
    }
    RequireClear(CreateKvCacheConfigText(catalog, cfg, "in.cfg", defects).status());
    const absl::StatusOr<QuantConfigText> retrained = CreateRetrainConfigText(retrain, cfg, "in.cfg", defects);
    RequireClear(retrained.status());
    if (retrained.ok()) {
      RequireClear(ReadRetrainConfig(retrain, retrained->json, "config.json").status());
    }
    for (const RetrainAbilities abilities :
         {RetrainAbilities::kQuant, RetrainAbilities::kPrune, RetrainAbilities::kQuantAndPrune}) {
      RequireClear(ReadRetrainDefinition(retrain, cfg, "in.cfg", abilities, defects).status());
    }
    const auto overrides = [](const std::string& name) -> absl::StatusOr<std::string> {
      return name == "empty.cfg" ? absl::StatusOr<std::string>("")
                                 : MakeError(v1::FILE_NOT_FOUND, "no such file", {.file = name});
    };
    RequireClear(ReadAutoChannelPruneConfig(retrain, cfg, "in.cfg", overrides, defects).status());
  }
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
