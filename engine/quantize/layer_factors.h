// The quantization factors of a record file, checked against a graph (docs/spec/save.md section 2).
#ifndef MODELPRESS_ENGINE_QUANTIZE_LAYER_FACTORS_H_
#define MODELPRESS_ENGINE_QUANTIZE_LAYER_FACTORS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/reference_defects.h"
#include "engine/formats/record.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

// One layer's factors, with what the type fields mean spelled out (docs/spec/save.md section 2.4).
struct LayerFactors {
  float scale_d = 0;  // activation: real = scale_d * (q - offset_d)
  int offset_d = 0;
  std::vector<float> scale_w;  // weight: real = scale_w * q; one, or one per output channel (RNN: per gate or per row)
  float scale_h = 0;           // RNN hidden state
  int offset_h = 0;
  std::vector<float> scale_r;                // RNN recurrence weight
  std::vector<float> tensor_balance_factor;  // DMQ: one per input channel, or empty

  int activation_bits = 8;               // 4, 8 or 16
  int weight_bits = 8;                   // 4, 6, 7 or 8
  int rnn_activation_bits = 8;           // act_type alone decides for RNN
  std::string merge_type;                // act_type as written, "UNSET" where absent: equal quantizers merge only if it is equal
  bool packs_int4 = false;               // deploy weights are packed along Cin
  bool truncates_dequant_scale = false;  // FORCE_FP16_QUANT
};

// Node name -> factors. Nodes without factors are not in it.
using FactorsByLayer = std::map<std::string, LayerFactors>;

// "INT8" and so on.
std::string IntegerTypeName(int bits);

// What a record is read for. Before the weights are quantized its entries may hold balance factors alone.
enum class RecordUse { kSave, kQuantize };

// Checks every entry in file order; the first error ends it. The result holds the layers that carry factors. `file` names the
// record in errors. RECORD_EMPTY, RECORD_INCOMPLETE, RECORD_UNKNOWN_LAYER, RECORD_NOT_QUANTIZABLE, RECORD_VALUE, RECORD_LENGTH,
// RECORD_UNEXPECTED, each with line, column and layer.
absl::StatusOr<FactorsByLayer> ReadFactors(const ParsedRecord& record, const Graph& graph, const std::string& file,
                                           const ReferenceDefects& defects, RecordUse use = RecordUse::kSave);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_LAYER_FACTORS_H_
