// What the reference does wrong and modelpress does right unless asked otherwise. One named switch each, so that every golden
// file of the reference can be met and every defect tested both ways. A pass reads the one it needs.
#ifndef MODELPRESS_ENGINE_BASE_REFERENCE_DEFECTS_H_
#define MODELPRESS_ENGINE_BASE_REFERENCE_DEFECTS_H_

#include <algorithm>
#include <iterator>

namespace modelpress::engine {

struct ReferenceDefects {
  // save.md 3.1: the last opset import is dropped whenever there are several, not just the mark domain.
  bool drops_last_opset_import = false;
  // save.md 3.1: a subgraph's use of an outer tensor is no edge, so it goes on reading a quantized layer's integers.
  bool ignores_subgraph_captures = false;
  // save.md 3.3: only node names are made unique; two nodes may emit one tensor name.
  bool repeats_tensor_names = false;
  // save.md 3.4: a model with opset < 11 gets a fake-quant model that cannot be loaded.
  bool accepts_old_opsets = false;
  // save.md 6.4: an initializer that two layers share is quantized twice.
  bool quantizes_shared_tensors_twice = false;
  // save.md 5: a bias of exactly 2^31 wraps, a NaN becomes -2^31.
  bool wraps_bias = false;
  // save.md 2.3: offset_d of a 4-bit activation is checked against 8 bits.
  bool accepts_wide_4bit_offsets = false;
  // save.md 2.3: 1 / scale_d may overflow to infinity.
  bool accepts_overflowing_scales = false;
  // golden save/errors/weight_int8: a weight that is integer already is quantized again.
  bool requantizes_integer_weights = false;
  // ptq.md 8.3: scales made for FORCE_FP16_QUANT go into the record without saying so.
  bool omits_precision_mode = false;
  // ptq.md 10: AdaRound's weights stay between two integers.
  bool leaves_soft_weights = false;
  // ptq.md 3.1 (8): Conv1d layers that share a weight are quantized, those of other types are not.
  bool quantizes_shared_conv1d = false;
  // ptq.md 2: the second use of module `conv` is called `conv1`, which keeps a real module `conv1` from being quantized.
  bool reused_names_collide = false;
  // formats.md 2.2: a required field of a .cfg that is missing reads as empty.
  bool accepts_missing_required = false;
  // formats.md 5.4 (a): INT16 that a type override asks for is not lowered for a Linear without bias, and then cannot be read.
  bool keeps_int16_by_type = false;
  // formats.md 5.4 (b): LSTM and GRU keep dmq_balancer_param, which cannot be executed.
  bool balances_rnn = false;
  // prune.md P-1: a Concat branch without record has its width forgotten by everything behind the Concat.
  bool forgets_concat_widths = false;
  // prune.md P-2: a merge through Add moves a branch to the end of the Concat.
  bool reorders_concat_branches = false;
  // prune.md P-3: the width of a branch is taken from the first producer, also of a broadcast operand.
  bool takes_width_of_first_producer = false;
  // prune.md P-4: a depthwise convolution with several outputs per channel counts as having one.
  bool ignores_depthwise_multiplier = false;
  // prune.md P-9: layers of different group counts that are added get the larger one, multiple of the other or not.
  bool merges_groups_by_maximum = false;
  // prune.md P-10: a tensor concatenated with itself and later excluded leaves a record behind.
  bool leaves_stale_prune_records = false;
  // prune.md P-15: the search takes the weight for the feature map, the step of the wrong record, and tests every 100 channels.
  bool searches_by_weight_shape = false;
  // qat.md D-12: an override with a prune_config only switches the quantization of a skipped layer on again.
  bool prune_override_enables_quantization = false;
  // qat.md D-13: INT4 activations are refused in a .cfg and accepted in a JSON configuration.
  bool refuses_int4_activations = false;
  // qat.md D-17: LSTM and GRU layers that cannot be saved are trained.
  bool accepts_unsavable_rnn = false;
  // formats.md 7.1 (2): a type override with prune_config is ignored where pruning is refused.
  bool ignores_prune_type_override = false;
  // qat.md D-10: FORCE_FP16_QUANT has no effect on quantization-aware training.
  bool ignores_fp16_mode_in_training = false;

  bool any() const;
  static ReferenceDefects All();
};

// Every switch, so that none is forgotten below.
inline constexpr bool ReferenceDefects::* kReferenceDefects[] = {
    &ReferenceDefects::drops_last_opset_import,
    &ReferenceDefects::ignores_subgraph_captures,
    &ReferenceDefects::repeats_tensor_names,
    &ReferenceDefects::accepts_old_opsets,
    &ReferenceDefects::quantizes_shared_tensors_twice,
    &ReferenceDefects::wraps_bias,
    &ReferenceDefects::accepts_wide_4bit_offsets,
    &ReferenceDefects::accepts_overflowing_scales,
    &ReferenceDefects::requantizes_integer_weights,
    &ReferenceDefects::omits_precision_mode,
    &ReferenceDefects::leaves_soft_weights,
    &ReferenceDefects::quantizes_shared_conv1d,
    &ReferenceDefects::reused_names_collide,
    &ReferenceDefects::accepts_missing_required,
    &ReferenceDefects::keeps_int16_by_type,
    &ReferenceDefects::balances_rnn,
    &ReferenceDefects::forgets_concat_widths,
    &ReferenceDefects::reorders_concat_branches,
    &ReferenceDefects::takes_width_of_first_producer,
    &ReferenceDefects::ignores_depthwise_multiplier,
    &ReferenceDefects::merges_groups_by_maximum,
    &ReferenceDefects::leaves_stale_prune_records,
    &ReferenceDefects::searches_by_weight_shape,
    &ReferenceDefects::prune_override_enables_quantization,
    &ReferenceDefects::refuses_int4_activations,
    &ReferenceDefects::accepts_unsavable_rnn,
    &ReferenceDefects::ignores_prune_type_override,
    &ReferenceDefects::ignores_fp16_mode_in_training,
};
static_assert(sizeof(ReferenceDefects) == std::size(kReferenceDefects));

inline bool ReferenceDefects::any() const {
  return std::any_of(std::begin(kReferenceDefects), std::end(kReferenceDefects), [this](auto defect) { return this->*defect; });
}

inline ReferenceDefects ReferenceDefects::All() {
  ReferenceDefects defects;
  for (auto defect : kReferenceDefects) {
    defects.*defect = true;
  }
  return defects;
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_BASE_REFERENCE_DEFECTS_H_
