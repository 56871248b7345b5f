#include "engine/calibrate/adaround.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/calibrate/adam.h"

namespace modelpress::engine {
namespace {

constexpr int64_t kDraw = 32;
constexpr float kLowest = -128;
constexpr float kHighest = 127;
// h = sigmoid(alpha), stretched to [-0.1, 1.1] and clipped to [0, 1].
constexpr float kStretch = 1.2f;
constexpr float kMargin = 0.1f;
constexpr size_t kTaskElements = 1 << 14;

float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// Numbers below `bound`, equally likely, the same with every standard library.
uint64_t DrawBelow(uint64_t bound, std::mt19937_64& random) {
  const uint64_t limit = std::numeric_limits<uint64_t>::max() / bound * bound;
  uint64_t number = 0;
  do {
    number = random();
  } while (number >= limit);
  return number % bound;
}

absl::Status NotFinite(absl::string_view what, size_t index) {
  return MakeError(v1::CALIBRATION_FAILED,
                   absl::StrCat(what, " ", index, " is not finite, so AdaRound cannot quantize the weight"));
}

absl::Status CheckFinite(absl::string_view what, absl::Span<const float> values) {
  const auto it = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  return it == values.end() ? absl::OkStatus() : NotFinite(what, it - values.begin());
}

float ScaleAt(const ChannelMap& channels, absl::Span<const float> scales, size_t i) {
  return scales[scales.size() == 1 ? 0 : channels.ChannelOf(i)];
}

// `h`: 0 rounds down, 1 up.
float RoundedWeight(float weight, float scale, float h) {
  return std::clamp(std::floor(weight / scale) + h, kLowest, kHighest) * scale;
}

// The weights of a layer as functions of one alpha each.
class LearntWeights {
 public:
  explicit LearntWeights(const AdaRoundInput& input)
      : weight_(input.weight),
        channels_(input.channels),
        scales_(input.scales),
        threads_(input.threads),
        alpha_(weight_.size()) {}

  // Alphas of which the soft weights are the weights themselves.
  absl::Status Start() {
    for (size_t i = 0; i < weight_.size(); ++i) {
      const float x = weight_[i] / ScaleOf(i);
      if (!std::isfinite(x)) {
        return NotFinite("weight, or weight divided by its scale,", i);
      }
      alpha_[i] = -std::log(kStretch / (x - std::floor(x) + kMargin) - 1);
    }
    return absl::OkStatus();
  }

  // The weights with h(alpha), or with h forced to 0 or 1.
  void Weights(bool soft, absl::Span<float> out) const {
    InParallel([&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const float scale = ScaleOf(i);
        const float h = std::clamp(Sigmoid(alpha_[i]) * kStretch - kMargin, 0.0f, 1.0f);
        out[i] = RoundedWeight(weight_[i], scale, soft ? h : (h >= 0.5f ? 1.0f : 0.0f));
      }
    });
  }

  // An Adam step. `gradient`: of the layer error with respect to the weights; overwritten. `regularization`: factor of the round
  // loss sum(1 - |2h - 1|^beta).
  void Step(float regularization, float beta, absl::Span<float> gradient) {
    adam_.BeginStep();
    InParallel([&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        gradient[i] = AlphaGradient(i, gradient[i], regularization, beta);
      }
      adam_.Update(begin, gradient.subspan(begin, end - begin), absl::MakeSpan(alpha_).subspan(begin, end - begin));
    });
  }

  absl::Status CheckAlphas() const { return CheckFinite("what was learnt for weight", alpha_); }

 private:
  float ScaleOf(size_t i) const { return ScaleAt(channels_, scales_, i); }

  float AlphaGradient(size_t i, float weight_gradient, float regularization, float beta) const {
    const float sigmoid = Sigmoid(alpha_[i]);
    const float h = sigmoid * kStretch - kMargin;
    if (h < 0 || h > 1) {
      return 0;
    }
    const float scale = ScaleOf(i);
    const float rounded = std::floor(weight_[i] / scale) + h;
    float gradient = rounded < kLowest || rounded > kHighest ? 0 : weight_gradient * scale;
    const float distance = 2 * h - 1;
    if (regularization > 0 && distance != 0) {
      gradient -= std::copysign(regularization * 2 * beta * std::pow(std::abs(distance), beta - 1), distance);
    }
    return gradient * kStretch * sigmoid * (1 - sigmoid);
  }

  template <typename Function>
  void InParallel(Function function) const {
    ParallelFor(threads_, static_cast<int64_t>((weight_.size() + kTaskElements - 1) / kTaskElements), [&](int64_t task) {
      function(task * kTaskElements, std::min<size_t>((task + 1) * kTaskElements, weight_.size()));
    });
  }

  absl::Span<const float> weight_;
  ChannelMap channels_;
  absl::Span<const float> scales_;
  int threads_;
  std::vector<float> alpha_;
  Adam adam_{weight_.size()};
};

absl::Status Learn(const AdaRoundInput& input, const WeightConfig& config, LearntWeights& rounded, absl::Span<float> weights) {
  MP_RETURN_IF_ERROR(CheckFinite("input value", input.samples.input));
  MP_RETURN_IF_ERROR(CheckFinite("target value", input.samples.target));
  MP_ASSIGN_OR_RETURN(LayerError error, LayerError::Create(input.op, input.activation, input.samples, input.threads));
  std::vector<int64_t> order(error.samples());
  std::iota(order.begin(), order.end(), 0);
  const int64_t draw = std::min<int64_t>(kDraw, order.size());
  std::mt19937_64 random(input.seed);
  std::vector<float> gradient(weights.size());
  const double total = static_cast<double>(config.num_iteration);
  const double warm = total * config.warm_start;
  for (int64_t iteration = 0; iteration < config.num_iteration; ++iteration) {
    if (draw < order.size()) {
      for (int64_t i = 0; i < draw; ++i) {  // the first steps of a Fisher-Yates shuffle
        std::swap(order[i], order[i + DrawBelow(order.size() - i, random)]);
      }
    }
    rounded.Weights(/*soft=*/true, weights);
    if (!std::isfinite(error.Evaluate(weights, absl::MakeConstSpan(order).subspan(0, draw), absl::MakeSpan(gradient)))) {
      return MakeError(v1::CALIBRATION_FAILED,
                       absl::StrCat("the error of the layer's output is not finite in iteration ", iteration, " of AdaRound"));
    }
    const double at = static_cast<double>(iteration);
    const bool warming = at < warm;
    const double beta = warming ? config.beta_start
                                : config.beta_end + 0.5 * (config.beta_start - config.beta_end) *
                                                        (1 + std::cos(std::numbers::pi * (at - warm) / (total - warm)));
    rounded.Step(warming ? 0 : static_cast<float>(config.reg_param), static_cast<float>(beta), absl::MakeSpan(gradient));
    if (input.progress) {
      input.progress(iteration + 1, config.num_iteration);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<float>> AdaRound(const AdaRoundInput& input, const WeightConfig& config, bool soft_weights) {
  if (input.channels.elements != input.weight.size() || input.channels.channels() != input.scales.size() ||
      std::accumulate(input.op.weight_dims.begin(), input.op.weight_dims.end(), int64_t{1}, std::multiplies<>()) !=
          input.weight.size()) {
    return MakeError(v1::INTERNAL_ERROR, absl::StrCat("AdaRound was given ", input.weight.size(), " weights, ",
                                                      input.channels.elements, " elements and ", input.scales.size(), " scales"));
  }
  MP_RETURN_IF_ERROR(CheckFinite("scale", input.scales));
  LearntWeights rounded(input);
  MP_RETURN_IF_ERROR(rounded.Start());
  std::vector<float> weights(input.weight.size());
  if (config.num_iteration > 0) {
    MP_RETURN_IF_ERROR(Learn(input, config, rounded, absl::MakeSpan(weights)));
    MP_RETURN_IF_ERROR(rounded.CheckAlphas());
  }
  rounded.Weights(soft_weights, absl::MakeSpan(weights));
  return weights;
}

std::string RoundedUp(const AdaRoundInput& input, absl::Span<const float> rounded) {
  std::string bits((rounded.size() + 7) / 8, '\0');
  for (size_t i = 0; i < rounded.size(); ++i) {
    if (rounded[i] != RoundedWeight(input.weight[i], ScaleAt(input.channels, input.scales, i), 0)) {
      bits[i / 8] = static_cast<char>(bits[i / 8] | 1 << i % 8);
    }
  }
  return bits;
}

std::vector<float> RoundedWeights(const AdaRoundInput& input, const std::string& rounded_up) {
  std::vector<float> weights(input.weight.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = RoundedWeight(input.weight[i], ScaleAt(input.channels, input.scales, i),
                               static_cast<float>(rounded_up[i / 8] >> i % 8 & 1));
  }
  return weights;
}

}  // namespace modelpress::engine
