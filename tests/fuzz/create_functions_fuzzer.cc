// The functions that take a float model and need no data, from the uploaded file to the answer, with
// configurations that do not change: layers are found, batch norms folded, channels chosen and cut, a rewrite plan made.
#include <cstdint>
#include <string>

#include "engine/functions/create_quant_config.h"
#include "engine/functions/functions.h"
#include "engine/functions/quantize_model.h"
#include "engine/functions/retrain_model.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

constexpr char kModel[] = "m.onnx";
constexpr char kPrune[] = "prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.5 } } }";
constexpr char kSparseAndQuant[] =
    "retrain_data_quant_config { ulq_quantize { } } retrain_weight_quant_config { arq_retrain { } }"
    "prune_config { n_out_of_m_pruner { l1_selective_prune { } } }";

void Run(absl::string_view bytes) {
  static InputFolder folder;
  folder.Write(kModel, bytes);
  if (!folder.files().Contains("prune.cfg")) {
    folder.Write("prune.cfg", kPrune);
    folder.Write("quant.cfg", kSparseAndQuant);
  }
  const FileSet files = folder.files();
  CallContext context;
  context.files = &files;
  context.output_root = folder.path();
  context.validate_only = true;
  context.log = [](const std::string&) {};

  RequireClear(CreateQuantConfig(context, {.config_file = "c.json", .model = kModel}).status());
  RequireClear(QuantizeModel(context, {.model = kModel, .saves = true, .save_path = "out/m"}).status());
  RetrainModelCall call;
  call.model = kModel;
  call.record_file = "r.txt";
  call.save_path = "out/m";
  call.config_definition = "prune.cfg";
  for (const bool extended : {false, true}) {
    call.prune_options.extended = extended;
    RequireClear(CreatePruneRetrainModel(context, call).status());
  }
  call.config_definition = "quant.cfg";
  RequireClear(CreateCompressedRetrainModel(context, call).status());
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
