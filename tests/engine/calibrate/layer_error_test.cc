#include "engine/calibrate/layer_error.h"

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using testing::HasSubstr;
using Kind = LinearOperator::Kind;
using Activation = LayerActivation::Kind;

struct Case {
  std::string name;
  LinearOperator op;
  std::vector<int64_t> input_dims;
  std::vector<int64_t> output_dims;
  LayerActivation activation = {};
};

int64_t Count(const std::vector<int64_t>& dims) {
  int64_t count = 1;
  for (int64_t dim : dims) {
    count *= dim;
  }
  return count;
}

// In [-1, 1], none twice in a row.
std::vector<float> Values(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525 + 1013904223;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

double Activate(const LayerActivation& activation, int64_t channel, double x) {
  switch (activation.kind) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu6:
      return std::min(std::max(x, 0.0), 6.0);
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kLeakyRelu:
      return x > 0 ? x : x * activation.slope;
    case Activation::kPRelu:
      return x > 0 ? x : x * activation.slopes[activation.slopes.size() == 1 ? 0 : channel];
    case Activation::kGelu:
      return x * 0.5 * (1 + std::erf(x / std::numbers::sqrt2));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  }
  return 0;
}

// The layer by its definition, in double.
std::vector<double> NaiveOutput(const Case& c, const std::vector<float>& input, const std::vector<double>& weight) {
  const auto& in = c.input_dims;
  const auto& out = c.output_dims;
  const auto& w = c.op.weight_dims;
  std::vector<double> output(Count(out));
  for (size_t i = 0; i < output.size(); ++i) {
    const int64_t channel = c.op.kind == Kind::kLinear ? i % out.back() : i / (out[2] * out[3]) % out[1];
    output[i] = c.op.bias.empty() ? 0 : c.op.bias[channel];
  }
  if (c.op.kind == Kind::kLinear) {
    const int64_t features = in.back();
    for (int64_t r = 0; r < Count(in) / features; ++r) {
      for (int64_t o = 0; o < out.back(); ++o) {
        for (int64_t i = 0; i < features; ++i) {
          output[r * out.back() + o] += input[r * features + i] * weight[c.op.trans_b ? o * w[1] + i : i * w[1] + o];
        }
      }
    }
  } else {
    // Pixel * stride + kernel element * dilation - pad is a pixel of the other side: the input of a convolution, the output of a
    // transposed one.
    const bool transposed = c.op.kind == Kind::kConvTranspose2d;
    const auto& from = transposed ? in : out;
    const auto& to = transposed ? out : in;
    const int64_t per_group = w[0] / c.op.groups;
    for (int64_t n = 0; n < in[0]; ++n) {
      for (int64_t a = 0; a < w[0]; ++a) {
        for (int64_t b = 0; b < w[1]; ++b) {
          const int64_t other = a / per_group * w[1] + b;
          for (int64_t kh = 0; kh < w[2]; ++kh) {
            for (int64_t kw = 0; kw < w[3]; ++kw) {
              const double value = weight[((a * w[1] + b) * w[2] + kh) * w[3] + kw];
              for (int64_t y = 0; y < from[2]; ++y) {
                for (int64_t x = 0; x < from[3]; ++x) {
                  const int64_t ty = y * c.op.strides[0] + kh * c.op.dilations[0] - c.op.pads[0];
                  const int64_t tx = x * c.op.strides[1] + kw * c.op.dilations[1] - c.op.pads[1];
                  if (ty < 0 || tx < 0 || ty >= to[2] || tx >= to[3]) {
                    continue;
                  }
                  const int64_t near = ((n * from[1] + a) * from[2] + y) * from[3] + x;
                  const int64_t far = ((n * to[1] + other) * to[2] + ty) * to[3] + tx;
                  output[transposed ? far : near] += value * input[transposed ? near : far];
                }
              }
            }
          }
        }
      }
    }
  }
  for (size_t i = 0; i < output.size(); ++i) {
    const int64_t channel = c.op.kind == Kind::kLinear ? i % out.back() : i / (out[2] * out[3]) % out[1];
    output[i] = Activate(c.activation, channel, output[i]);
  }
  return output;
}

double NaiveError(const Case& c, const std::vector<float>& input, const std::vector<double>& weight,
                  const std::vector<float>& target, const std::vector<int64_t>& indices) {
  const std::vector<double> output = NaiveOutput(c, input, weight);
  const int64_t sample = output.size() / c.output_dims[0];
  double sum = 0;
  for (int64_t index : indices) {
    for (int64_t i = index * sample; i < (index + 1) * sample; ++i) {
      sum += (output[i] - target[i]) * (output[i] - target[i]);
    }
  }
  const int64_t vectors = static_cast<int64_t>(indices.size()) * sample / c.output_dims[1];
  return sum / static_cast<double>(vectors);
}

class LayerErrorTest : public testing::TestWithParam<Case> {};

TEST_P(LayerErrorTest, ErrorAndGradientAreThoseOfTheDefinition) {
  const Case& c = GetParam();
  const std::vector<float> input = Values(Count(c.input_dims), 1);
  const std::vector<float> weight = Values(Count(c.op.weight_dims), 2);
  const std::vector<float> target = Values(Count(c.output_dims), 3);
  auto error = LayerError::Create(c.op, c.activation, {c.input_dims, input, c.output_dims, target}, 1);
  ASSERT_TRUE(error.ok()) << error.status();
  std::vector<int64_t> all(c.input_dims[0]);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<int64_t>(i);
  }
  // Draws of different sizes, one after the other, as a stale buffer would show.
  for (const std::vector<int64_t>& indices : {all, {all.back()}, {all.back(), 0}}) {
    std::vector<float> gradient(weight.size(), 1000);
    const double loss = error->Evaluate(weight, indices, absl::MakeSpan(gradient));
    std::vector<double> moved(weight.begin(), weight.end());
    const double expected = NaiveError(c, input, moved, target, indices);
    EXPECT_NEAR(loss, expected, 2e-6 * expected);
    // Of big weights some elements, primes apart.
    const size_t step = weight.size() > 400 ? weight.size() / 97 | 1 : 1;
    for (size_t i = 0; i < weight.size(); i += step) {
      constexpr double kMove = 1e-6;
      const double original = moved[i];
      moved[i] = original + kMove;
      const double above = NaiveError(c, input, moved, target, indices);
      moved[i] = original - kMove;
      const double below = NaiveError(c, input, moved, target, indices);
      moved[i] = original;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kMove), 1e-5 * (1 + std::abs(gradient[i]))) << "weight " << i;
    }
  }
}

TEST_P(LayerErrorTest, AnyNumberOfThreadsGivesTheSameBits) {
  const Case& c = GetParam();
  const std::vector<float> input = Values(Count(c.input_dims), 1);
  const std::vector<float> weight = Values(Count(c.op.weight_dims), 2);
  const std::vector<float> target = Values(Count(c.output_dims), 3);
  std::vector<double> losses;
  std::vector<std::vector<float>> gradients;
  for (int threads : {1, 2, 5}) {
    auto error = LayerError::Create(c.op, c.activation, {c.input_dims, input, c.output_dims, target}, threads);
    ASSERT_TRUE(error.ok()) << error.status();
    std::vector<float>& gradient = gradients.emplace_back(weight.size());
    losses.push_back(error->Evaluate(weight, {0, c.input_dims[0] - 1}, absl::MakeSpan(gradient)));
  }
  EXPECT_THAT(losses, testing::Each(losses[0]));
  EXPECT_THAT(gradients, testing::Each(gradients[0]));
}

std::vector<Case> Cases() {
  using Ints = std::vector<int64_t>;
  const auto conv = [](Ints weight, int64_t groups, Ints strides, Ints pads, Ints dilations, bool bias) {
    LinearOperator op = {.kind = Kind::kConv2d, .weight_dims = weight, .groups = groups, .strides = strides, .pads = pads};
    op.dilations = dilations;
    op.bias = bias ? Values(weight[0], 4) : std::vector<float>();
    return op;
  };
  const auto transposed = [](Ints weight, int64_t groups, Ints strides, Ints pads, Ints dilations, Ints output_padding,
                             bool bias) {
    LinearOperator op = {.kind = Kind::kConvTranspose2d,
                         .weight_dims = weight,
                         .groups = groups,
                         .strides = strides,
                         .pads = pads,
                         .dilations = dilations,
                         .output_padding = output_padding};
    op.bias = bias ? Values(weight[1] * groups, 4) : std::vector<float>();
    return op;
  };
  const auto linear = [](Ints weight, bool trans_b, bool bias) {
    LinearOperator op = {.kind = Kind::kLinear, .weight_dims = weight, .trans_b = trans_b};
    op.bias = bias ? Values(weight[trans_b ? 0 : 1], 4) : std::vector<float>();
    return op;
  };
  std::vector<Case> cases = {
      {"Conv", conv({4, 3, 3, 3}, 1, {1, 1}, {1, 1, 1, 1}, {1, 1}, true), {3, 3, 5, 6}, {3, 4, 5, 6}},
      {"ConvWithoutPads", conv({4, 3, 2, 3}, 1, {1, 1}, {0, 0, 0, 0}, {1, 1}, false), {3, 3, 5, 6}, {3, 4, 4, 4}},
      {"ConvOddities", conv({3, 2, 3, 2}, 1, {2, 1}, {0, 2, 1, 1}, {1, 3}, true), {2, 2, 6, 5}, {2, 3, 3, 5}},
      {"ConvGroups", conv({6, 2, 3, 3}, 3, {1, 2}, {1, 0, 0, 1}, {2, 1}, true), {2, 6, 6, 6}, {2, 6, 3, 3}},
      {"ConvDepthwise", conv({5, 1, 3, 3}, 5, {1, 1}, {1, 1, 1, 1}, {1, 1}, false), {3, 5, 4, 4}, {3, 5, 4, 4}},
      {"ConvInSeveralTasks", conv({140, 2, 1, 1}, 1, {1, 1}, {0, 0, 0, 0}, {1, 1}, true), {3, 2, 10, 13}, {3, 140, 10, 13}},
      {"ConvDeep", conv({2, 300, 1, 1}, 1, {1, 1}, {0, 0, 0, 0}, {1, 1}, true), {2, 300, 2, 2}, {2, 2, 2, 2}},
      {"ConvTranspose", transposed({3, 4, 2, 2}, 1, {2, 2}, {0, 0, 0, 0}, {1, 1}, {0, 0}, true), {3, 3, 3, 4}, {3, 4, 6, 8}},
      {"ConvTransposeOverlapping",
       transposed({3, 2, 3, 4}, 1, {1, 1}, {1, 1, 1, 1}, {1, 1}, {0, 0}, false),
       {3, 3, 4, 4},
       {3, 2, 4, 5}},
      {"ConvTransposeOddities",
       transposed({2, 3, 3, 2}, 1, {3, 2}, {1, 0, 2, 1}, {1, 2}, {2, 1}, true),
       {2, 2, 3, 3},
       {2, 3, 8, 7}},
      {"ConvTransposeGroups",
       transposed({4, 3, 3, 3}, 2, {2, 2}, {1, 1, 1, 1}, {1, 1}, {1, 1}, true),
       {2, 4, 3, 3},
       {2, 6, 6, 6}},
      {"ConvTransposeInSeveralTasks",
       transposed({3, 40, 2, 2}, 1, {1, 1}, {1, 0, 0, 0}, {1, 1}, {0, 0}, true),
       {3, 3, 12, 12},
       {3, 40, 12, 13}},
      {"Linear", linear({5, 4}, false, true), {7, 5}, {7, 4}},
      {"LinearTransposed", linear({4, 5}, true, false), {7, 5}, {7, 4}},
      {"LinearOfSequences", linear({4, 5}, true, true), {3, 6, 5}, {3, 6, 4}},
      {"LinearOfRank4", linear({5, 4}, false, true), {3, 2, 3, 5}, {3, 2, 3, 4}},
      {"LinearWide", linear({30, 300}, false, true), {4, 30}, {4, 300}},
  };
  for (const auto& [name, activation] : std::vector<std::pair<std::string, LayerActivation>>{
           {"Relu", {Activation::kRelu}},
           {"Relu6", {Activation::kRelu6}},
           {"Sigmoid", {Activation::kSigmoid}},
           {"Tanh", {Activation::kTanh}},
           {"LeakyRelu", {Activation::kLeakyRelu, 0.2f}},
           {"PRelu", {.kind = Activation::kPRelu, .slopes = {0.3f}}},
           {"PReluPerChannel", {.kind = Activation::kPRelu, .slopes = {0.3f, -0.1f, 0.0f, 2.0f}}},
           {"Gelu", {Activation::kGelu}},
           {"GeluTanh", {Activation::kGeluTanh}}}) {
    for (const char* kind : {"Conv", "Linear"}) {
      Case c = *std::find_if(cases.begin(), cases.end(), [&](const Case& candidate) { return candidate.name == kind; });
      c.name += name;
      c.activation = activation;
      for (float& bias : c.op.bias) {
        bias = bias * 2 + (activation.kind == Activation::kRelu6 ? 5.0f : 0.0f);  // on both sides of the kinks
      }
      cases.push_back(c);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Operators, LayerErrorTest, testing::ValuesIn(Cases()), [](const auto& info) { return info.param.name; });

TEST(LayerErrorTest, RefusesShapesThatContradictEachOther) {
  LinearOperator conv = {.kind = Kind::kConv2d, .weight_dims = {2, 1, 3, 3}};
  const std::vector<float> input(16), target(8), wrong(12);
  EXPECT_TRUE(LayerError::Create(conv, {}, {{1, 1, 4, 4}, input, {1, 2, 2, 2}, target}, 1).ok());
  const auto refused = [&](LinearOperator op, LayerActivation activation, LayerSamples samples) {
    auto error = LayerError::Create(std::move(op), std::move(activation), std::move(samples), 1);
    EXPECT_EQ(ReasonOf(error.status()), v1::INTERNAL_ERROR);
    return std::string(error.status().message());
  };
  EXPECT_THAT(refused(conv, {}, {{1, 1, 4, 4}, input, {1, 2, 2, 3}, wrong}), HasSubstr("[1, 2, 2, 2], not [1, 2, 2, 3]"));
  EXPECT_THAT(refused(conv, {}, {{1, 1, 4, 4}, input, {1, 2, 2, 2}, wrong}), HasSubstr("as many values"));
  EXPECT_THAT(refused(conv, {}, {{1, 1, 2, 8}, input, {1, 2, 1, 4}, target}), HasSubstr("its output is [1, 2, 0, 6]"));
  EXPECT_THAT(refused(conv, {}, {{1, 4, 2, 2}, input, {1, 2, 2, 2}, target}), HasSubstr("does not fit input"));
  EXPECT_THAT(refused(conv, {}, {{16}, input, {8}, target}), HasSubstr("do not fit together"));
  EXPECT_THAT(refused(conv, {.kind = Activation::kPRelu, .slopes = {1, 2, 3}}, {{1, 1, 4, 4}, input, {1, 2, 2, 2}, target}),
              HasSubstr("3 slopes"));
  conv.bias = {1};
  EXPECT_THAT(refused(conv, {}, {{1, 1, 4, 4}, input, {1, 2, 2, 2}, target}), HasSubstr("1 biases for 2"));
  conv.strides = {0, 1};
  EXPECT_THAT(refused(conv, {}, {{1, 1, 4, 4}, input, {1, 2, 2, 2}, target}), HasSubstr("out of range"));
}

}  // namespace
}  // namespace modelpress::engine
