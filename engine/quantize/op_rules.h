// Which operators can be quantized, and how each of them is wired: one table instead of conditions spread over the passes
// (docs/spec/save.md section 4).
#ifndef MODELPRESS_ENGINE_QUANTIZE_OP_RULES_H_
#define MODELPRESS_ENGINE_QUANTIZE_OP_RULES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

enum class OpKind { kConv, kConvTranspose, kGemm, kMatMul, kAveragePool, kLstm, kGru };

struct OpRule {
  absl::string_view op_type;
  OpKind kind;
  int weight;                        // input index; -1: none
  int bias;                          // input index; -1: none at the node itself (MatMul's is in the Add behind it)
  int recurrence;                    // input index of R; -1: no RNN
  int initial_h;                     // input index; -1: no RNN
  int gates;                         // LSTM 4, GRU 3, else 0
  int cin_axis;                      // axis of the weight along which INT4 values are packed
  bool per_channel_scales;           // scale_w may hold one per output channel
  bool balance_factors;              // may carry tensor_balance_factor
  absl::string_view deploy_op_type;  // what replaces the node in the deploy model; empty: it stays

  bool is_rnn() const { return gates > 0; }
};

// Null for every other operator.
const OpRule* FindOpRule(absl::string_view op_type);

// A tensor operand: the initializer or Constant node that holds it, and the Transpose between it and the layer (-1: none).
struct ConstantOperand {
  ItemId holder = -1;
  ItemId transpose = -1;
};
// Follows `value` to a constant, through at most one Transpose.
std::optional<ConstantOperand> FindConstantOperand(const Graph& graph, Value value);
// Its shape as the layer sees it, behind the Transpose.
std::vector<int64_t> DimsOf(const Graph& graph, const ConstantOperand& operand);
// Shape and ONNX data type of what a holder holds.
std::vector<int64_t> DimsOf(const Item& holder);
int DataTypeOf(const Item& holder);

// The Add behind a MatMul that adds its bias, if its output has no other use, and the Add's input 1 is a constant of rank 1 as
// long as the weight's last dimension. -1: no bias.
ItemId FindMatMulBiasAdd(const Graph& graph, ItemId matmul);

// Where a layer's bias comes in: an input of the node itself or of the Add behind a MatMul. nullopt: it has none.
struct BiasPlace {
  ItemId item = -1;
  int input = 0;
};
std::optional<BiasPlace> FindBias(const Graph& graph, ItemId layer, const OpRule& rule);

// Empty if the node can be quantized, else why not, as the end of the sentence "it cannot be quantized: ...".
std::string WhyNotQuantizable(const Graph& graph, ItemId id);

// Groups of a Conv or ConvTranspose (default 1).
int64_t GroupOf(const Item& layer);
// Channels of the activation input, which tensor_balance_factor must match.
int64_t InputChannels(const Item& layer, const OpRule& rule, const std::vector<int64_t>& weight_dims);
// Output channels, which per-channel scale_w must match (RNN: gates * hidden).
int64_t OutputChannels(const Item& layer, const OpRule& rule, const std::vector<int64_t>& weight_dims);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_OP_RULES_H_
