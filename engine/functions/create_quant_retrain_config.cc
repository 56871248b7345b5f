#include "engine/functions/create_quant_retrain_config.h"

#include <optional>
#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/formats/retrain_config.h"
#include "engine/functions/named_model.h"
#include "engine/retrain/retrain_layers.h"

namespace modelpress::engine {

absl::StatusOr<SavedConfig> CreateQuantRetrainConfig(const CallContext& context, const CreateQuantRetrainConfigCall& call) {
  MP_ASSIGN_OR_RETURN(const OutputFile config_file, OutputFile::Parse("config_file", call.config_file));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(const NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest));
  std::optional<std::string> cfg;
  if (!call.config_definition.empty()) {
    MP_ASSIGN_OR_RETURN(cfg, ReadText(context, call.config_definition, "config_definition"));
  }
  const RetrainLayers layers = FindRetrainLayers(model.layers, context.defects);
  absl::StatusOr<QuantConfigText> text =
      CreateRetrainConfigText(layers.catalog, cfg.has_value() ? std::optional<absl::string_view>(*cfg) : std::nullopt,
                              call.config_definition, context.defects);
  MP_RETURN_IF_ERROR(AtConfigSource(text.status(), call.model, call.config_definition));
  SavedConfig saved;
  saved.warnings = std::move(text->warnings);
  context.progress("write", 0, 0);
  MP_ASSIGN_OR_RETURN(saved.config_file, WriteText(context, config_file, text->json));
  return saved;
}

}  // namespace modelpress::engine
