#include "engine/calibrate/adaround.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/calibrate/adam.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// torch 2.6: p = torch.tensor([0.5, -1., 2., 0.], requires_grad=True); o = torch.optim.Adam([p], lr=1e-3); for g in the
// gradients: p.grad = torch.tensor(g); o.step(); print p as '%.9g'
TEST(AdamTest, StepsAsTorchDoes) {
  const std::vector<std::vector<float>> gradients = {
      {0.1f, -2.0f, 1e-4f, 0.0f}, {0.3f, 1.0f, -1e-4f, 5.0f}, {-0.2f, 0.5f, 0.0f, -1e-9f}, {100.0f, 0.5f, 3e-5f, 1.0f}};
  const std::vector<std::vector<float>> expected = {{0.499000013f, -0.999000013f, 1.99900007f, 0.0f},
                                                    {0.498082221f, -0.998733699f, 1.99905264f, -0.000744136807f},
                                                    {0.497824311f, -0.998672307f, 1.99909329f, -0.00131935673f},
                                                    {0.497242391f, -0.99874723f, 1.9990052f, -0.00189545238f}};
  Adam adam(4);
  std::vector<float> parameters = {0.5f, -1.0f, 2.0f, 0.0f};
  for (size_t step = 0; step < gradients.size(); ++step) {
    adam.BeginStep();
    // In two parts, as threads would.
    adam.Update(0, absl::MakeConstSpan(gradients[step]).subspan(0, 1), absl::MakeSpan(parameters).subspan(0, 1));
    adam.Update(1, absl::MakeConstSpan(gradients[step]).subspan(1), absl::MakeSpan(parameters).subspan(1));
    for (size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_NEAR(parameters[i], expected[step][i], 2e-7 * (1 + std::abs(expected[step][i]))) << "step " << step << ", " << i;
    }
  }
}

std::vector<float> Normal(size_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

// A Linear whose input features are strongly correlated, so that rounding errors can cancel each other.
struct Problem {
  static constexpr int64_t kSamples = 100, kIn = 24, kOut = 6;

  Problem() {
    weight = Normal(kIn * kOut, 0.2f, 1);
    const std::vector<float> common = Normal(kSamples, 1, 2);
    values = Normal(kSamples * kIn, 0.1f, 3);
    for (int64_t n = 0; n < kSamples; ++n) {
      for (int64_t i = 0; i < kIn; ++i) {
        values[n * kIn + i] += common[n];
      }
    }
    target = Output(weight);
    input.op = {.kind = LinearOperator::Kind::kLinear, .weight_dims = {kIn, kOut}};
    input.weight = weight;
    input.channels = {.run = 1, .period = kOut, .block = kIn * kOut, .elements = kIn * kOut};
    input.scales = {0.01f, 0.02f, 0.03f, 0.04f, 0.05f, 0.06f};
    input.samples = {{kSamples, kIn}, values, {kSamples, kOut}, target};
    input.seed = 7;
  }

  std::vector<float> Output(const std::vector<float>& w) const {
    std::vector<float> output(kSamples * kOut);
    for (int64_t n = 0; n < kSamples; ++n) {
      for (int64_t o = 0; o < kOut; ++o) {
        for (int64_t i = 0; i < kIn; ++i) {
          output[n * kOut + o] += values[n * kIn + i] * w[i * kOut + o];
        }
      }
    }
    return output;
  }

  double ErrorOf(const std::vector<float>& w) const {
    const std::vector<float> output = Output(w);
    double sum = 0;
    for (size_t i = 0; i < output.size(); ++i) {
      sum += (output[i] - target[i]) * (output[i] - target[i]);
    }
    return sum;
  }

  std::vector<float> Nearest() const {
    std::vector<float> rounded(weight.size());
    for (size_t i = 0; i < weight.size(); ++i) {
      const float scale = input.scales[i % kOut];
      rounded[i] = std::clamp(std::floor(weight[i] / scale + 0.5f), -128.0f, 127.0f) * scale;
    }
    return rounded;
  }

  std::vector<float> weight, values, target;
  AdaRoundInput input;
};

WeightConfig Iterations(int64_t iterations) {
  WeightConfig config;
  config.algorithm = WeightConfig::Algorithm::kAda;
  config.num_iteration = iterations;
  return config;
}

TEST(AdaRoundTest, StartsFromTheWeightsThemselves) {
  const Problem problem;
  auto soft = AdaRound(problem.input, Iterations(0), /*soft_weights=*/true);
  ASSERT_TRUE(soft.ok()) << soft.status();
  for (size_t i = 0; i < soft->size(); ++i) {
    EXPECT_NEAR((*soft)[i], problem.weight[i], 1e-6 * problem.input.scales[i % Problem::kOut]) << i;
  }
}

TEST(AdaRoundTest, WithoutIterationsRoundsToTheNearest) {
  const Problem problem;
  auto hard = AdaRound(problem.input, Iterations(0), /*soft_weights=*/false);
  ASSERT_TRUE(hard.ok()) << hard.status();
  EXPECT_EQ(*hard, problem.Nearest());
}

TEST(AdaRoundTest, ClipsToEightBits) {
  Problem problem;
  problem.weight = {-1.2801f, -1.2789f, -5.0f, 1.2701f, 1.2689f, 5.0f};
  problem.input.op.weight_dims = {1, 6};
  problem.input.weight = problem.weight;
  problem.input.channels = {.run = 1, .period = 1, .block = 6, .elements = 6};
  problem.input.scales = {0.01f};
  auto soft = AdaRound(problem.input, Iterations(0), true);
  auto hard = AdaRound(problem.input, Iterations(0), false);
  ASSERT_TRUE(soft.ok() && hard.ok());
  EXPECT_THAT(*soft, ElementsAre(-128 * 0.01f, testing::FloatNear(-1.2789f, 1e-6f), -128 * 0.01f, 127 * 0.01f,
                                 testing::FloatNear(1.2689f, 1e-6f), 127 * 0.01f));
  EXPECT_THAT(*hard, ElementsAre(-128 * 0.01f, -128 * 0.01f, -128 * 0.01f, 127 * 0.01f, 127 * 0.01f, 127 * 0.01f));
}

TEST(AdaRoundTest, BringsTheOutputCloserThanRoundingToTheNearest) {
  const Problem problem;
  auto learnt = AdaRound(problem.input, Iterations(3000), /*soft_weights=*/false);
  ASSERT_TRUE(learnt.ok()) << learnt.status();
  EXPECT_LT(problem.ErrorOf(*learnt), 0.3 * problem.ErrorOf(problem.Nearest()));
  int other_than_nearest = 0;
  const std::vector<float> nearest = problem.Nearest();
  for (size_t i = 0; i < learnt->size(); ++i) {
    const float scale = problem.input.scales[i % Problem::kOut];
    const float down = std::floor(problem.weight[i] / scale);
    EXPECT_THAT((*learnt)[i],
                testing::AnyOf(std::clamp(down, -128.0f, 127.0f) * scale, std::clamp(down + 1, -128.0f, 127.0f) * scale))
        << i;
    other_than_nearest += (*learnt)[i] != nearest[i] ? 1 : 0;
  }
  EXPECT_GT(other_than_nearest, 0);
}

TEST(AdaRoundTest, TheRoundLossDrivesSoftWeightsToIntegers) {
  Problem problem;
  const auto undecided = [&](double reg_param) {
    WeightConfig config = Iterations(3000);
    config.reg_param = reg_param;
    auto soft = AdaRound(problem.input, config, /*soft_weights=*/true);
    EXPECT_TRUE(soft.ok()) << soft.status();
    int count = 0;
    for (size_t i = 0; i < soft->size(); ++i) {
      const float q = (*soft)[i] / problem.input.scales[i % Problem::kOut];
      count += std::abs(q - std::rint(q)) > 0.01f ? 1 : 0;
    }
    return count;
  };
  EXPECT_GT(undecided(0), 50);
  EXPECT_LT(undecided(0.01), 30);
}

TEST(AdaRoundTest, TheSeedAndNothingElseDecidesTheDraws) {
  Problem problem;
  const auto first = AdaRound(problem.input, Iterations(50), true);
  const auto again = AdaRound(problem.input, Iterations(50), true);
  problem.input.seed = 8;
  const auto other = AdaRound(problem.input, Iterations(50), true);
  ASSERT_TRUE(first.ok() && again.ok() && other.ok());
  EXPECT_EQ(*first, *again);
  EXPECT_NE(*first, *other);
}

TEST(AdaRoundTest, AnyNumberOfThreadsGivesTheSameBytes) {
  // More weights than one task takes.
  constexpr size_t kChannels = 48, kWindow = kChannels * 9, kValues = 4 * kChannels * 36;
  const std::vector<float> weight = Normal(kChannels * kWindow, 0.1f, 1), values = Normal(kValues, 1, 2);
  const std::vector<float> target = Normal(kValues, 1, 3);
  AdaRoundInput input;
  input.op = {.kind = LinearOperator::Kind::kConv2d, .weight_dims = {kChannels, kChannels, 3, 3}, .pads = {1, 1, 1, 1}};
  input.activation.kind = LayerActivation::Kind::kRelu;
  input.weight = weight;
  input.channels = {.run = kWindow, .period = kChannels, .block = weight.size(), .elements = weight.size()};
  input.scales.assign(kChannels, 0.003f);
  input.samples = {{4, kChannels, 6, 6}, values, {4, kChannels, 6, 6}, target};
  const auto one = AdaRound(input, Iterations(20), true);
  input.threads = 3;
  const auto three = AdaRound(input, Iterations(20), true);
  ASSERT_TRUE(one.ok() && three.ok());
  EXPECT_EQ(*one, *three);
}

TEST(AdaRoundTest, ABitPerWeightTellsTheResult) {
  for (const float scale : {0.02f, 0.0005f}) {  // with the latter, most weights are clipped
    Problem problem;
    problem.input.scales.assign(6, scale);
    problem.weight[0] = -0.0f;
    const auto rounded = AdaRound(problem.input, Iterations(50), /*soft_weights=*/false);
    ASSERT_TRUE(rounded.ok()) << rounded.status();
    const std::string bits = RoundedUp(problem.input, *rounded);
    EXPECT_EQ(bits.size(), rounded->size() / 8);
    const std::vector<float> again = RoundedWeights(problem.input, bits);
    ASSERT_EQ(again.size(), rounded->size());
    for (size_t i = 0; i < again.size(); ++i) {
      EXPECT_EQ(std::bit_cast<uint32_t>(again[i]), std::bit_cast<uint32_t>((*rounded)[i])) << i;
    }
  }
}

TEST(AdaRoundTest, TellsItsProgress) {
  Problem problem;
  std::vector<int64_t> done;
  problem.input.progress = [&](int64_t iterations, int64_t total) {
    EXPECT_EQ(total, 3);
    done.push_back(iterations);
  };
  ASSERT_TRUE(AdaRound(problem.input, Iterations(3), false).ok());
  EXPECT_THAT(done, ElementsAre(1, 2, 3));
}

TEST(AdaRoundTest, FailsOnWhatIsNotFinite) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const auto failure = [](const Problem& problem) {
    auto result = AdaRound(problem.input, Iterations(3), false);
    EXPECT_EQ(ReasonOf(result.status()), v1::CALIBRATION_FAILED);
    return std::string(result.status().message());
  };
  Problem weight, scale, input, target, overflow;
  weight.weight[5] = kNan;
  scale.input.scales[2] = std::numeric_limits<float>::infinity();
  input.values[17] = kNan;
  target.target[9] = -std::numeric_limits<float>::infinity();
  overflow.values.assign(overflow.values.size(), 3e38f);
  EXPECT_THAT(failure(weight), HasSubstr("scale, 5 is not finite"));
  EXPECT_THAT(failure(scale), HasSubstr("scale 2 is not finite"));
  EXPECT_THAT(failure(input), HasSubstr("input value 17 is not finite"));
  EXPECT_THAT(failure(target), HasSubstr("target value 9 is not finite"));
  EXPECT_THAT(failure(overflow), HasSubstr("not finite in iteration 0"));
}

}  // namespace
}  // namespace modelpress::engine
