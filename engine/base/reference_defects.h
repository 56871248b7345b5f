// What the reference does wrong and modelpress does right unless asked otherwise. One named switch each, so that every golden
// file of the reference can be met and every defect tested both ways. A pass reads the one it needs.
#ifndef MODELPRESS_ENGINE_BASE_REFERENCE_DEFECTS_H_
#define MODELPRESS_ENGINE_BASE_REFERENCE_DEFECTS_H_

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

  bool any() const {
    return drops_last_opset_import || ignores_subgraph_captures || repeats_tensor_names || accepts_old_opsets ||
           quantizes_shared_tensors_twice || wraps_bias || accepts_wide_4bit_offsets || accepts_overflowing_scales ||
           requantizes_integer_weights;
  }
  static ReferenceDefects All() { return {true, true, true, true, true, true, true, true, true}; }
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_BASE_REFERENCE_DEFECTS_H_
