#include "engine/functions/create_quant_config.h"

#include <utility>

#include "engine/base/status.h"
#include "engine/formats/kv_cache_config.h"
#include "engine/functions/ptq_model.h"

namespace modelpress::engine {
namespace {

constexpr char kDefinitionField[] = "config_definition";

absl::StatusOr<QuantConfigText> CreateText(const CallContext& context, const CreateQuantConfigCall& call,
                                           const LayerCatalog& catalog) {
  if (!call.kv_cache) {
    return MakeQuantConfig(context, catalog, call.arguments, call.config_definition);
  }
  if (call.config_definition.empty()) {
    return CreateKvCacheConfigText(catalog, call.kv_cache_layers);
  }
  MP_ASSIGN_OR_RETURN(const std::string cfg, ReadText(context, call.config_definition, kDefinitionField));
  return CreateKvCacheConfigText(catalog, cfg, call.config_definition, context.defects);
}

}  // namespace

absl::StatusOr<SavedConfig> CreateQuantConfig(const CallContext& context, const CreateQuantConfigCall& call) {
  MP_ASSIGN_OR_RETURN(const OutputFile config_file, OutputFile::Parse("config_file", call.config_file));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(const NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest));
  absl::StatusOr<QuantConfigText> text = CreateText(context, call, model.layers.Catalog());
  MP_RETURN_IF_ERROR(AtConfigSource(text.status(), call.model, call.config_definition));
  SavedConfig saved;
  saved.warnings = std::move(text->warnings);
  if (!call.config_definition.empty() && (!call.arguments.skip_layers.empty() || !call.kv_cache_layers.empty())) {
    saved.warnings.emplace_back("skip_layers and kv_cache_layers have no effect beside config_definition");
  }
  context.progress("write", 0, 0);
  MP_ASSIGN_OR_RETURN(saved.config_file, WriteText(context, config_file, text->json));
  return saved;
}

}  // namespace modelpress::engine
