// What AdaRound minimises: how far a layer's output lies from a target, as a function of the layer's weight, with its gradient
// (docs/spec/ptq.md section 10).
#ifndef MODELPRESS_ENGINE_CALIBRATE_LAYER_ERROR_H_
#define MODELPRESS_ENGINE_CALIBRATE_LAYER_ERROR_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace modelpress::engine {

// A linear operator with a constant weight, in ONNX's terms.
struct LinearOperator {
  enum class Kind { kConv2d, kConvTranspose2d, kLinear };
  Kind kind = Kind::kLinear;
  // Conv2d [Cout, Cin/g, kh, kw]; ConvTranspose2d [Cin, Cout/g, kh, kw]; Linear [in, out], or [out, in] with trans_b.
  std::vector<int64_t> weight_dims;
  bool trans_b = false;  // Gemm
  int64_t groups = 1;
  std::vector<int64_t> strides = {1, 1};     // down, right; so are dilations and output_padding
  std::vector<int64_t> pads = {0, 0, 0, 0};  // top, left, bottom, right
  std::vector<int64_t> dilations = {1, 1};
  std::vector<int64_t> output_padding = {0, 0};
  std::vector<float> bias;  // one per output channel, or empty
};

// What follows the layer as its only consumer.
struct LayerActivation {
  enum class Kind { kNone, kRelu, kRelu6, kSigmoid, kTanh, kLeakyRelu, kPRelu, kGelu, kGeluTanh };
  Kind kind = Kind::kNone;
  float slope = 0.01f;             // LeakyRelu
  std::vector<float> slopes = {};  // PRelu: one, or one per output channel (Linear: along the last axis)

  friend bool operator==(const LayerActivation&, const LayerActivation&) = default;
};

// Input and target of a layer: what flows into the operator and what should come out of the activation. Spans, not copies.
struct LayerSamples {
  std::vector<int64_t> input_dims;  // dim 0: samples. Linear: rank 2 or more, features last
  absl::Span<const float> input;
  std::vector<int64_t> output_dims;  // of the operator
  absl::Span<const float> target;
};

// Works on a draw of samples at a time. Holds the draw's output and, if the operator pads, its padded input; nothing of the size
// of an im2col matrix. Any number of threads gives the same bits. Not thread-safe.
class LayerError {
 public:
  // INTERNAL_ERROR where shapes and sizes contradict each other; the message says which.
  static absl::StatusOr<LayerError> Create(LinearOperator op, LayerActivation activation, LayerSamples samples, int threads);

  int64_t samples() const { return samples_.input_dims[0]; }

  // The mean, over everything but dim 1, of the squared L2 norm along dim 1 of activation(op(input)) - target, over the samples
  // with these indices. Writes its gradient with respect to `weight`.
  double Evaluate(absl::Span<const float> weight, absl::Span<const int64_t> indices, absl::Span<float> gradient);

 private:
  // Where an operand lies, as sums of offsets: the matrix product runs over positions p (pixels, or rows of a Linear), input
  // features k and output features n of a group; for a transposed convolution n counts output channels and kernel elements.
  struct Axis {
    std::vector<int64_t> in, out, weight;  // of each index, in the padded input, the full output, the weight; empty: not in it
  };
  // The full output: with what a transposed convolution's pads cut off. Linear: one plane of rows.
  struct Extent {
    int64_t planes = 1, full_rows = 1, full_columns = 1, top = 0, left = 0, rows = 1, columns = 1;
  };

  LayerError() = default;

  absl::Status Layout();
  void LayOutLinear();
  void LayOutConv();
  void LayOutConvTranspose();
  void GatherDraw(absl::Span<const int64_t> indices);
  void Forward(absl::Span<const float> weight);
  // Turns the output into the gradient with respect to it; returns the sum of squares.
  double Differentiate(absl::Span<const int64_t> indices, float factor);
  double DifferentiateSample(int64_t index, float factor, float* output) const;
  void Backward(absl::Span<float> gradient) const;

  LinearOperator op_;
  LayerActivation activation_;
  LayerSamples samples_;
  int threads_ = 1;

  Axis positions_, in_features_, out_features_;
  int64_t in_group_ = 0, out_group_ = 0, weight_group_ = 0;  // offset from group to group
  int64_t in_sample_ = 0, out_sample_ = 0;                   // from sample to sample
  int64_t features_per_channel_ = 1;                         // consecutive n that belong to one output channel
  Extent extent_;

  const float* input_ = nullptr;  // of the draw: the caller's, or padded_
  std::vector<float> padded_;
  std::vector<float> output_;                // [draw, full output]
  std::vector<int64_t> draw_in_, draw_out_;  // offsets of every position of the draw
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_LAYER_ERROR_H_
