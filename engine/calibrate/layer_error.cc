#include "engine/calibrate/layer_error.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/kernels/gemm.h"

namespace modelpress::engine {
namespace {

// How the matrix products are cut into tasks. Fixed, since where the parts of a transposed convolution overlap, the order in
// which they are added up depends on it.
constexpr int64_t kTaskRows = 128;
constexpr int64_t kTaskColumns = 256;

int64_t Product(absl::Span<const int64_t> dims) {
  return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

absl::Status Contradiction(absl::string_view what) {
  return MakeError(v1::INTERNAL_ERROR, absl::StrCat("the layer handed to AdaRound contradicts itself: ", what));
}

// Offsets of the elements of a [planes, rows, columns] block, in row-major order.
std::vector<int64_t> Offsets(int64_t planes, int64_t plane_step, int64_t rows, int64_t row_step, int64_t columns,
                             int64_t column_step) {
  std::vector<int64_t> offsets;
  offsets.reserve(planes * rows * columns);
  for (int64_t p = 0; p < planes; ++p) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        offsets.push_back(p * plane_step + r * row_step + c * column_step);
      }
    }
  }
  return offsets;
}

struct Point {
  float value;
  float slope;
};

float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// The activation and its derivative at x.
Point ActivationAt(LayerActivation::Kind kind, float slope, float x) {
  using Kind = LayerActivation::Kind;
  switch (kind) {
    case Kind::kNone:
      break;
    case Kind::kRelu:
      return x > 0 ? Point{x, 1} : Point{x < 0 ? 0 : x, 0};  // NaN stays
    case Kind::kRelu6:
      return x > 0 && x < 6 ? Point{x, 1} : Point{x <= 0 ? 0 : (x >= 6 ? 6 : x), 0};
    case Kind::kSigmoid: {
      const float y = Sigmoid(x);
      return {y, y * (1 - y)};
    }
    case Kind::kTanh: {
      const float y = std::tanh(x);
      return {y, 1 - y * y};
    }
    case Kind::kLeakyRelu:
    case Kind::kPRelu:
      return x > 0 ? Point{x, 1} : Point{slope * x, slope};
    case Kind::kGelu: {
      constexpr float kInverseSqrt2 = 1 / std::numbers::sqrt2_v<float>;
      constexpr float kInverseSqrt2Pi = kInverseSqrt2 * std::numbers::inv_sqrtpi_v<float>;
      const float cumulative = 0.5f * (1 + std::erf(x * kInverseSqrt2));
      return {x * cumulative, cumulative + x * kInverseSqrt2Pi * std::exp(-0.5f * x * x)};
    }
    case Kind::kGeluTanh: {
      constexpr float kSqrt2OverPi = std::numbers::sqrt2_v<float> * std::numbers::inv_sqrtpi_v<float>;
      constexpr float kCubic = 0.044715f;
      const float t = std::tanh(kSqrt2OverPi * (x + kCubic * x * x * x));
      return {0.5f * x * (1 + t), 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kSqrt2OverPi * (1 + 3 * kCubic * x * x)};
    }
  }
  return {x, 1};
}

}  // namespace

absl::StatusOr<LayerError> LayerError::Create(LinearOperator op, LayerActivation activation, LayerSamples samples, int threads) {
  LayerError error;
  error.op_ = std::move(op);
  error.activation_ = std::move(activation);
  error.samples_ = std::move(samples);
  error.threads_ = threads;
  MP_RETURN_IF_ERROR(error.Layout());
  return error;
}

absl::Status LayerError::Layout() {
  const bool linear = op_.kind == LinearOperator::Kind::kLinear;
  const auto& in = samples_.input_dims;
  const auto& out = samples_.output_dims;
  const auto& w = op_.weight_dims;
  const auto positive = [](absl::Span<const int64_t> dims) {
    return std::all_of(dims.begin(), dims.end(), [](int64_t dim) { return dim > 0; });
  };
  const auto dims_of = [](absl::Span<const int64_t> dims) { return absl::StrCat("[", absl::StrJoin(dims, ", "), "]"); };
  if (w.size() != (linear ? 2 : 4) || (linear ? in.size() < 2 : in.size() != 4) || out.size() != in.size() || !positive(w) ||
      !positive(in) || !positive(out) || in[0] != out[0]) {
    return Contradiction(
        absl::StrCat("weight ", dims_of(w), ", input ", dims_of(in), " and output ", dims_of(out), " do not fit together"));
  }
  if (samples_.input.size() != Product(in) || samples_.target.size() != Product(out)) {
    return Contradiction("input or target do not have as many values as their shapes say");
  }
  if (op_.groups < 1 || (linear && op_.groups != 1) || op_.strides.size() != 2 || op_.dilations.size() != 2 ||
      op_.pads.size() != 4 || op_.output_padding.size() != 2 || !positive(op_.strides) || !positive(op_.dilations) ||
      *std::min_element(op_.pads.begin(), op_.pads.end()) < 0 ||
      *std::min_element(op_.output_padding.begin(), op_.output_padding.end()) < 0) {
    return Contradiction("groups, strides, pads, dilations or output_padding are out of range");
  }

  std::vector<int64_t> expected = {in[0]};
  int64_t in_channels = 0;
  if (linear) {
    in_channels = w[op_.trans_b ? 1 : 0];
    expected.assign(in.begin(), in.end() - 1);
    expected.push_back(w[op_.trans_b ? 0 : 1]);
    if (in.back() != in_channels) {
      return Contradiction(absl::StrCat("weight ", dims_of(w), " does not fit input ", dims_of(in)));
    }
  } else {
    const bool transposed = op_.kind == LinearOperator::Kind::kConvTranspose2d;
    in_channels = transposed ? w[0] : w[1] * op_.groups;
    if (in[1] != in_channels || w[0] % op_.groups != 0) {
      return Contradiction(absl::StrCat("weight ", dims_of(w), " with ", op_.groups, " groups does not fit input ", dims_of(in)));
    }
    expected.push_back(transposed ? w[1] * op_.groups : w[0]);
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t reach = op_.dilations[axis] * (w[2 + axis] - 1) + 1;
      const int64_t padding = op_.pads[axis] + op_.pads[2 + axis];
      expected.push_back(transposed
                             ? (in[2 + axis] - 1) * op_.strides[axis] + op_.output_padding[axis] + reach - padding
                             : (in[2 + axis] + padding < reach ? 0 : (in[2 + axis] + padding - reach) / op_.strides[axis] + 1));
    }
  }
  if (expected != out) {
    return Contradiction(absl::StrCat("its output is ", dims_of(expected), ", not ", dims_of(out)));
  }
  const int64_t out_channels = linear ? out.back() : out[1];
  if (!op_.bias.empty() && op_.bias.size() != out_channels) {
    return Contradiction(absl::StrCat("there are ", op_.bias.size(), " biases for ", out_channels, " output channels"));
  }
  if (activation_.kind == LayerActivation::Kind::kPRelu && activation_.slopes.size() != 1 &&
      activation_.slopes.size() != out_channels) {
    return Contradiction(absl::StrCat("there are ", activation_.slopes.size(), " slopes for ", out_channels, " output channels"));
  }

  switch (op_.kind) {
    case LinearOperator::Kind::kConv2d:
      LayOutConv();
      break;
    case LinearOperator::Kind::kConvTranspose2d:
      LayOutConvTranspose();
      break;
    case LinearOperator::Kind::kLinear:
      LayOutLinear();
  }
  return absl::OkStatus();
}

void LayerError::LayOutLinear() {
  const int64_t in = samples_.input_dims.back();
  const int64_t out = samples_.output_dims.back();
  const int64_t rows = Product(absl::MakeConstSpan(samples_.input_dims).subspan(1)) / in;
  positions_ = {.in = Offsets(1, 0, 1, 0, rows, in), .out = Offsets(1, 0, 1, 0, rows, out), .weight = {}};
  in_features_ = {.in = Offsets(1, 0, 1, 0, in, 1), .out = {}, .weight = Offsets(1, 0, 1, 0, in, op_.trans_b ? 1 : out)};
  out_features_ = {.in = {}, .out = Offsets(1, 0, 1, 0, out, 1), .weight = Offsets(1, 0, 1, 0, out, op_.trans_b ? in : 1)};
  in_sample_ = rows * in;
  out_sample_ = rows * out;
  extent_ = {.full_rows = rows, .full_columns = out, .rows = rows, .columns = out};
}

void LayerError::LayOutConv() {
  const auto& in = samples_.input_dims;
  const auto& out = samples_.output_dims;
  const auto& w = op_.weight_dims;
  const int64_t columns = in[3] + op_.pads[1] + op_.pads[3];
  const int64_t plane = (in[2] + op_.pads[0] + op_.pads[2]) * columns;
  const int64_t out_plane = out[2] * out[3];
  positions_ = {.in = Offsets(1, 0, out[2], op_.strides[0] * columns, out[3], op_.strides[1]),
                .out = Offsets(1, 0, 1, 0, out_plane, 1),
                .weight = {}};
  in_features_ = {.in = Offsets(w[1], plane, w[2], op_.dilations[0] * columns, w[3], op_.dilations[1]),
                  .out = {},
                  .weight = Offsets(1, 0, 1, 0, w[1] * w[2] * w[3], 1)};
  const int64_t group_channels = w[0] / op_.groups;
  out_features_ = {.in = {},
                   .out = Offsets(1, 0, 1, 0, group_channels, out_plane),
                   .weight = Offsets(1, 0, 1, 0, group_channels, w[1] * w[2] * w[3])};
  in_group_ = w[1] * plane;
  out_group_ = group_channels * out_plane;
  weight_group_ = group_channels * w[1] * w[2] * w[3];
  in_sample_ = in[1] * plane;
  out_sample_ = out[1] * out_plane;
  extent_ = {.planes = out[1], .full_rows = out[2], .full_columns = out[3], .rows = out[2], .columns = out[3]};
}

void LayerError::LayOutConvTranspose() {
  const auto& in = samples_.input_dims;
  const auto& out = samples_.output_dims;
  const auto& w = op_.weight_dims;
  const int64_t plane = in[2] * in[3];
  const int64_t columns = out[3] + op_.pads[1] + op_.pads[3];
  const int64_t rows = out[2] + op_.pads[0] + op_.pads[2];
  const int64_t out_plane = rows * columns;
  positions_ = {.in = Offsets(1, 0, 1, 0, plane, 1),
                .out = Offsets(1, 0, in[2], op_.strides[0] * columns, in[3], op_.strides[1]),
                .weight = {}};
  const int64_t group_channels = w[0] / op_.groups;
  in_features_ = {.in = Offsets(1, 0, 1, 0, group_channels, plane),
                  .out = {},
                  .weight = Offsets(1, 0, 1, 0, group_channels, w[1] * w[2] * w[3])};
  out_features_ = {.in = {},
                   .out = Offsets(w[1], out_plane, w[2], op_.dilations[0] * columns, w[3], op_.dilations[1]),
                   .weight = Offsets(1, 0, 1, 0, w[1] * w[2] * w[3], 1)};
  in_group_ = group_channels * plane;
  out_group_ = w[1] * out_plane;
  weight_group_ = group_channels * w[1] * w[2] * w[3];
  in_sample_ = in[1] * plane;
  out_sample_ = out[1] * out_plane;
  features_per_channel_ = w[2] * w[3];
  extent_ = {.planes = out[1],
             .full_rows = rows,
             .full_columns = columns,
             .top = op_.pads[0],
             .left = op_.pads[1],
             .rows = out[2],
             .columns = out[3]};
}

void LayerError::GatherDraw(absl::Span<const int64_t> indices) {
  const bool padded = op_.kind == LinearOperator::Kind::kConv2d &&
                      std::any_of(op_.pads.begin(), op_.pads.end(), [](int64_t pad) { return pad > 0; });
  const int64_t draw = indices.size();
  const int64_t positions = positions_.in.size();
  draw_in_.resize(draw * positions);
  draw_out_.resize(draw * positions);
  for (int64_t s = 0; s < draw; ++s) {
    const int64_t in = (padded ? s : indices[s]) * in_sample_;
    for (int64_t p = 0; p < positions; ++p) {
      draw_in_[s * positions + p] = in + positions_.in[p];
      draw_out_[s * positions + p] = s * out_sample_ + positions_.out[p];
    }
  }
  input_ = samples_.input.data();
  if (padded) {
    const auto& in = samples_.input_dims;
    const int64_t columns = in[3] + op_.pads[1] + op_.pads[3];
    const int64_t rows = in[2] + op_.pads[0] + op_.pads[2];
    padded_.resize(draw * in_sample_);  // what is new is zero, and the borders stay so
    ParallelFor(threads_, draw, [&](int64_t s) {
      const float* source = input_ + indices[s] * in[1] * in[2] * in[3];
      for (int64_t c = 0; c < in[1]; ++c) {
        float* target = padded_.data() + s * in_sample_ + (c * rows + op_.pads[0]) * columns + op_.pads[1];
        for (int64_t r = 0; r < in[2]; ++r) {
          std::copy_n(source + (c * in[2] + r) * in[3], in[3], target + r * columns);
        }
      }
    });
    input_ = padded_.data();
  }
  output_.resize(draw * out_sample_);
}

void LayerError::Forward(absl::Span<const float> weight) {
  std::fill(output_.begin(), output_.end(), 0.0f);
  const int64_t positions = positions_.in.size();
  const int64_t all_columns = draw_in_.size();
  const int64_t all_rows = out_features_.out.size();
  // Tasks never share an output value: whole samples times whole channels.
  const int64_t columns = CeilDiv(kTaskColumns, positions) * positions;
  const int64_t rows = std::max<int64_t>(1, kTaskRows / features_per_channel_) * features_per_channel_;
  const int64_t column_tasks = CeilDiv(all_columns, columns);
  const int64_t row_tasks = CeilDiv(all_rows, rows);
  ParallelFor(threads_, op_.groups * row_tasks * column_tasks, [&](int64_t task) {
    const int64_t first_column = task % column_tasks * columns;
    const int64_t first_row = task / column_tasks % row_tasks * rows;
    const int64_t group = task / column_tasks / row_tasks;
    const auto in = absl::MakeConstSpan(draw_in_).subspan(first_column, columns);
    const auto out = absl::MakeConstSpan(draw_out_).subspan(first_column, columns);
    MultiplyAdd({weight.data() + group * weight_group_, absl::MakeConstSpan(out_features_.weight).subspan(first_row, rows),
                 in_features_.weight},
                {input_ + group * in_group_, in_features_.in, in},
                {output_.data() + group * out_group_, absl::MakeConstSpan(out_features_.out).subspan(first_row, rows), out});
  });
}

double LayerError::DifferentiateSample(int64_t index, float factor, float* output) const {
  const float* target = samples_.target.data() + index * extent_.planes * extent_.rows * extent_.columns;
  const bool linear = op_.kind == LinearOperator::Kind::kLinear;
  const bool slope_by_channel = activation_.slopes.size() > 1;
  const float slope = activation_.kind == LayerActivation::Kind::kPRelu ? activation_.slopes[0] : activation_.slope;
  double sum = 0;
  for (int64_t plane = 0; plane < extent_.planes; ++plane) {
    for (int64_t full_row = 0; full_row < extent_.full_rows; ++full_row, output += extent_.full_columns) {
      const int64_t row = full_row - extent_.top;
      if (row < 0 || row >= extent_.rows) {
        std::fill_n(output, extent_.full_columns, 0.0f);
        continue;
      }
      std::fill_n(output, extent_.left, 0.0f);
      std::fill(output + extent_.left + extent_.columns, output + extent_.full_columns, 0.0f);
      float* values = output + extent_.left;
      for (int64_t i = 0; i < extent_.columns; ++i) {
        const int64_t channel = linear ? i : plane;
        const float x = op_.bias.empty() ? values[i] : values[i] + op_.bias[channel];
        const Point y = ActivationAt(activation_.kind, slope_by_channel ? activation_.slopes[channel] : slope, x);
        const float difference = y.value - target[i];
        sum += static_cast<double>(difference) * difference;
        values[i] = factor * difference * y.slope;
      }
      target += extent_.columns;
    }
  }
  return sum;
}

double LayerError::Differentiate(absl::Span<const int64_t> indices, float factor) {
  std::vector<double> sums(indices.size());
  ParallelFor(threads_, indices.size(),
              [&](int64_t s) { sums[s] = DifferentiateSample(indices[s], factor, output_.data() + s * out_sample_); });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void LayerError::Backward(absl::Span<float> gradient) const {
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  // The longer axis of the weight becomes the columns, along which vectors lie.
  const bool in_columns = in_features_.in.size() > out_features_.out.size();
  const OffsetMatrix<const float> out = {output_.data(), out_features_.out, draw_out_};
  const OffsetMatrix<const float> in = {input_, in_features_.in, draw_in_};
  const auto& a = in_columns ? out : in;
  const auto& b = in_columns ? in : out;
  const absl::Span<const int64_t> row_weights = in_columns ? out_features_.weight : in_features_.weight;
  const absl::Span<const int64_t> column_weights = in_columns ? in_features_.weight : out_features_.weight;
  const int64_t row_tasks = CeilDiv(a.rows.size(), kTaskRows);
  const int64_t column_tasks = CeilDiv(b.rows.size(), kTaskColumns);
  ParallelFor(threads_, op_.groups * row_tasks * column_tasks, [&](int64_t task) {
    const int64_t first_column = task % column_tasks * kTaskColumns;
    const int64_t first_row = task / column_tasks % row_tasks * kTaskRows;
    const int64_t group = task / column_tasks / row_tasks;
    const int64_t out_offset = group * out_group_;
    const int64_t in_offset = group * in_group_;
    MultiplyAdd({a.data + (in_columns ? out_offset : in_offset), a.rows.subspan(first_row, kTaskRows), a.columns},
                {b.data + (in_columns ? in_offset : out_offset), b.columns, b.rows.subspan(first_column, kTaskColumns)},
                {gradient.data() + group * weight_group_, row_weights.subspan(first_row, kTaskRows),
                 column_weights.subspan(first_column, kTaskColumns)});
  });
}

double LayerError::Evaluate(absl::Span<const float> weight, absl::Span<const int64_t> indices, absl::Span<float> gradient) {
  GatherDraw(indices);
  Forward(weight);
  const auto& dims = samples_.output_dims;
  const int64_t vectors_per_sample = Product(dims) / dims[0] / dims[1];
  const auto vectors = static_cast<double>(static_cast<int64_t>(indices.size()) * vectors_per_sample);
  const double sum = Differentiate(indices, static_cast<float>(2 / vectors));
  Backward(gradient);
  return sum / vectors;
}

}  // namespace modelpress::engine
