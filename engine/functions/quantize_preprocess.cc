#include "engine/functions/quantize_preprocess.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/base/status.h"
#include "engine/calibrate/balance.h"
#include "engine/formats/record.h"
#include "engine/functions/ptq_model.h"
#include "engine/fuse/batch_norm.h"

namespace modelpress::engine {

absl::StatusOr<SavedRecord> QuantizePreprocess(const CallContext& context, const QuantizePreprocessCall& call) {
  MP_ASSIGN_OR_RETURN(const OutputFile record_file, OutputFile::Parse("record_file", call.record_file));
  context.progress("read", 0, 0);
  MP_ASSIGN_OR_RETURN(NamedModel model, ReadNamedModel(context, call.model, "model", call.module_manifest));
  MP_ASSIGN_OR_RETURN(const QuantConfig config, ReadConfigFile(context, call.config_file, model.layers));
  MP_ASSIGN_OR_RETURN(const std::vector<ConfiguredLayer> layers, FindConfiguredLayers(model.graph, config));
  if (std::none_of(layers.begin(), layers.end(), IsBalanced)) {
    return MakeError(v1::CONFIG_EMPTY, "no layer is configured for the DMQ balancer (dmq_balancer_param)",
                     {.field = "config_file", .file = call.config_file});
  }
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<CalibrationData> data, OpenData(context, call.data, model.graph, 1));
  SavedRecord result;
  if (config.do_fusion) {
    MP_ASSIGN_OR_RETURN(FoldedBatchNorms folded, FoldBatchNorms(model.graph, LayersWithoutFusion(model.layers, config)));
    result.warnings = std::move(folded.warnings);
  }
  context.progress("calibrate", 0, 1);
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> scratch, ScratchFolder::Create(context));
  MP_ASSIGN_OR_RETURN(
      const BalanceByLayer balance,
      MeasureBalance(model.graph, layers, *data, {.threads = context.threads, .scratch_folder = scratch->path()}));
  context.progress("write", 0, 0);
  MP_ASSIGN_OR_RETURN(result.record_file,
                      WriteText(context, record_file, PrintRecord(BalanceRecord(model.graph, layers, balance))));
  return result;
}

}  // namespace modelpress::engine
