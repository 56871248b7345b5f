// What AdaRound has to know of a layer in a graph: the operator with its attributes, and the activation behind it
// (docs/spec/ptq.md section 10).
#ifndef MODELPRESS_ENGINE_CALIBRATE_LAYER_ACTIVATION_H_
#define MODELPRESS_ENGINE_CALIBRATE_LAYER_ACTIVATION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/calibrate/layer_error.h"
#include "engine/graph/graph.h"

namespace modelpress::engine {

struct ActivatedLayer {
  Value output;  // of the layer itself; of a MatMul with bias, that of the Add
  LayerActivation activation;
  Value activated;  // behind the activation; `output` where there is none
};

// The activation that is the only consumer of the output of `layer` (Conv, ConvTranspose, Gemm, MatMul): Relu, Clip(0, 6),
// Sigmoid, Tanh, LeakyRelu, PRelu with constant slopes (one, or one per output channel), GELU and its tanh approximation, as an
// operator or as the nodes that exporters write for it. kNone for everything else. TENSOR_INVALID: a constant that cannot be
// read.
absl::StatusOr<ActivatedLayer> FindLayerActivation(const Graph& graph, ItemId layer);

// The operator of `layer`, with its bias. weight_dims is the shape of the initializer; a Transpose between it and a MatMul or
// Gemm becomes trans_b. `input_dims`: of the layer's input as it runs; decides what auto_pad means. NODE_UNSUPPORTED, with the
// layer: anything but 2-D convolutions and Gemm and MatMul with a constant weight of rank 2; operands that are not constant;
// alpha, beta, transA, output_shape, negative pads.
absl::StatusOr<LinearOperator> LinearOperatorOf(const Graph& graph, ItemId layer, absl::Span<const int64_t> input_dims);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_LAYER_ACTIVATION_H_
