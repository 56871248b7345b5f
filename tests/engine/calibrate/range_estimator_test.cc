#include "engine/calibrate/range_estimator.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/calibrate/estimators.h"
#include "engine/kernels/calibrate_scalar.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using ::testing::HasSubstr;
using Values = std::vector<float>;

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  absl::Status status;
  ActivationFactors factors;
  int passes = 0;
};

Result Drive(RangeEstimator& estimator, const std::vector<Values>& batches, int threads = 1) {
  Result result;
  for (; estimator.wants_pass() && result.passes < 10; ++result.passes) {
    for (const Values& batch : batches) {
      const absl::Span<const float> piece = batch;
      result.status = estimator.Add({piece}, threads);
      if (!result.status.ok()) {
        return result;
      }
    }
    result.status = estimator.EndPass();
  }
  const absl::StatusOr<ActivationFactors> factors = estimator.Factors();
  result.status.Update(factors.status());
  result.factors = factors.value_or(ActivationFactors{});
  return result;
}

void ExpectSame(const Result& a, const Result& b, const std::string& what) {
  EXPECT_EQ(a.status, b.status) << what;
  EXPECT_EQ(a.factors.scale, b.factors.scale) << what;
  EXPECT_EQ(a.factors.offset, b.factors.offset) << what;
}

Values Make(size_t count, const std::function<float()>& next) {
  Values values(count);
  std::generate(values.begin(), values.end(), next);
  return values;
}

struct Distribution {
  std::string name;
  std::function<Values(size_t count, uint32_t seed)> make;
};

std::vector<Distribution> Distributions() {
  using Random = std::mt19937;
  const auto from = [](const std::string& name, auto draw) {
    return Distribution{name, [draw](size_t count, uint32_t seed) {
                          Random random(seed);
                          return Make(count, [&] { return draw(random); });
                        }};
  };
  const auto normal = [](Random& random, float mean, float deviation) {
    return std::normal_distribution<float>(mean, deviation)(random);
  };
  return {
      from("gaussian", [=](Random& r) { return normal(r, 0, 1); }),
      from("shifted", [=](Random& r) { return normal(r, 3, 0.5); }),
      from("relu", [=](Random& r) { return std::max(0.0f, normal(r, 0, 2)); }),
      from("relu6", [=](Random& r) { return std::clamp(normal(r, 2, 4), 0.0f, 6.0f); }),
      from("negative", [=](Random& r) { return -std::fabs(normal(r, 1, 1)); }),
      from("heavy", [=](Random& r) { return normal(r, 0, 1) * std::exp(2 * normal(r, 0, 1)); }),
      from("cauchy", [](Random& r) { return std::cauchy_distribution<float>(0, 1)(r); }),
      from("uniform", [](Random& r) { return std::uniform_real_distribution<float>(-1, 2)(r); }),
      from("few", [](Random& r) { return static_cast<float>(r() % 5) * 0.37f - 0.5f; }),
      from("constant", [](Random&) { return 0.8125f; }),
      from("zeros", [](Random& r) { return r() % 2 == 0 ? 0.0f : -0.0f; }),
      from("one_outlier", [=](Random& r) { return r() % 3000 == 0 ? 50.0f : normal(r, 0, 1); }),
      from("grid", [=](Random& r) { return std::nearbyint(normal(r, 0, 30)) / 64; }),
      from("tiny", [=](Random& r) { return normal(r, 0, 1e-9f); }),
      from("small", [=](Random& r) { return normal(r, 0, 1e-5f); }),
      from("denormal", [=](Random& r) { return normal(r, 0, 1e-39f); }),
      from("huge", [=](Random& r) { return normal(r, 0, 1e15f); }),
      from("overflowing", [=](Random& r) { return normal(r, 0, 1e30f); }),
      from("bits",
           [](Random& r) {
             const auto value = std::bit_cast<float>(static_cast<uint32_t>(r()));
             return std::fabs(value) < 1e17f ? value : 0.0f;
           }),
  };
}

// The specification word by word: sorts, then searches with the scalar arithmetic.
ActivationFactors Reference(const Values& values, const ActivationConfig& config) {
  Values sorted = values;
  std::sort(sorted.begin(), sorted.end());
  const auto rank = [&](double percentile) {
    return 1 - percentile < 1.192092896e-7
               ? 1
               : values.size() - static_cast<uint64_t>(percentile * static_cast<double>(values.size()));
  };
  const float maximum = std::max(0.0f, sorted[sorted.size() - rank(config.max_percentile)]);
  const float minimum = std::min(0.0f, sorted[rank(config.min_percentile) - 1]);
  const std::vector<ClipCandidate> candidates = *ClipCandidates(config, minimum, maximum);
  std::vector<double> losses;
  losses.reserve(candidates.size());
  for (const ClipCandidate& candidate : candidates) {
    losses.push_back(scalar::SumSquaredErrors(values, candidate));
  }
  const float scale = candidates[std::min_element(losses.begin(), losses.end()) - losses.begin()].scale;
  const int offset = config.asymmetric ? static_cast<int>(-std::nearbyint(minimum / scale)) - (1 << (config.bits - 1)) : 0;
  return {scale, offset};
}

std::vector<Values> Cut(const Values& values, const std::vector<size_t>& sizes) {
  std::vector<Values> batches;
  size_t at = 0;
  for (const size_t size : sizes) {
    batches.emplace_back(values.begin() + at, values.begin() + at + size);
    at += size;
  }
  batches.emplace_back(values.begin() + at, values.end());
  return batches;
}

TEST(IfmrTest, FindsWhatTheSpecificationSays) {
  for (const Distribution& distribution : Distributions()) {
    for (const int bits : {4, 8, 16}) {
      for (const bool asymmetric : {false, true}) {
        for (const size_t count : {1, 2, 30, 5000}) {
          const ActivationConfig config = {.bits = bits, .asymmetric = asymmetric};
          const Values values = distribution.make(count, static_cast<uint32_t>(count));
          const ActivationFactors expected = Reference(values, config);
          const std::vector<Values> batches = count == 1 ? std::vector<Values>{values} : Cut(values, {count / 2});
          const Result result = Drive(*NewIfmrEstimator(config), batches);
          ASSERT_TRUE(result.status.ok()) << result.status;
          EXPECT_EQ(result.factors.scale, expected.scale) << distribution.name << " " << bits << asymmetric << " " << count;
          EXPECT_EQ(result.factors.offset, expected.offset) << distribution.name << " " << bits << asymmetric << " " << count;
        }
      }
    }
  }
}

class IfmrShortcutsTest : public testing::TestWithParam<size_t> {};

INSTANTIATE_TEST_SUITE_P(Distributions, IfmrShortcutsTest, testing::Range<size_t>(0, Distributions().size()),
                         [](const auto& info) { return Distributions()[info.param].name; });

// The histogram may only leave out what the full search would not choose, and holding the values changes nothing.
TEST_P(IfmrShortcutsTest, ChooseAsTheFullSearch) {
  const Distribution distribution = Distributions()[GetParam()];
  uint32_t seed = 0;
  for (const int bits : {8, 16}) {
    for (const bool asymmetric : {false, true}) {
      for (const double percentile : {1.0, 0.999999, 0.99, 0.6}) {
        const ActivationConfig config = {.bits = bits,
                                         .asymmetric = asymmetric,
                                         .max_percentile = percentile,
                                         .min_percentile = percentile == 0.6 ? 1 : percentile};
        const std::vector<Values> batches = Cut(distribution.make(4000, ++seed), {1, 1900, 600});
        const std::string what =
            std::to_string(bits) + (asymmetric ? " asymmetric " : " symmetric ") + std::to_string(percentile);
        const Result full = Drive(*NewIfmrEstimator(config, {.preselect = false}), batches);
        EXPECT_TRUE(full.status.ok()) << what << full.status;
        ExpectSame(Drive(*NewIfmrEstimator(config), batches), full, what);
        ExpectSame(Drive(*HoldSmallInputs(NewIfmrEstimator(config), 100000), batches), full, what + " held");
        ExpectSame(Drive(*HoldSmallInputs(NewIfmrEstimator(config), 2000), batches), full, what + " held at first");
      }
    }
  }
}

TEST(IfmrTest, ManyRandomShapesChooseAsTheFullSearch) {
  std::mt19937 random(5);
  const std::vector<Distribution> distributions = Distributions();
  int single = 0;
  for (int round = 0; round < 150; ++round) {
    // A mixture of two distributions, scaled.
    const Distribution& a = distributions[random() % distributions.size()];
    const Distribution& b = distributions[random() % 8];
    Values values = a.make(random() % 4000 + 1, random());
    const Values more = b.make(random() % 4000 + 1, random());
    const float factor = std::exp2(static_cast<float>(random() % 800) / 100 - 4);
    std::transform(more.begin(), more.end(), std::back_inserter(values), [&](float x) { return x * factor; });
    const ActivationConfig config = {
        .asymmetric = random() % 2 == 0, .search_start = 0.4, .search_end = 1.5, .search_step = 0.007};
    const Result full = Drive(*NewIfmrEstimator(config, {.preselect = false}), {values});
    const Result quick = Drive(*NewIfmrEstimator(config), {values});
    ExpectSame(quick, full, a.name + " and " + b.name + " " + std::to_string(round));
    single += quick.passes == 1 ? 1 : 0;
  }
  EXPECT_GT(single, 15);
}

TEST(IfmrTest, ThreadsAndPiecesDoNotMatter) {
  for (const bool preselect : {false, true}) {
    for (const int bits : {8, 16}) {
      const ActivationConfig config = {.bits = bits, .max_percentile = 0.9};  // three passes
      const Values values = Distributions()[5].make(300000, 1);
      const absl::Span<const float> all = values;
      const Result expected = Drive(*NewIfmrEstimator(config, {preselect}), {values});
      ASSERT_TRUE(expected.status.ok()) << expected.status;
      for (const int threads : {1, 2, 3}) {
        ExpectSame(Drive(*NewIfmrEstimator(config, {preselect}), {values}, threads), expected, "threads");
        const std::unique_ptr<RangeEstimator> estimator = NewIfmrEstimator(config, {preselect});
        while (estimator->wants_pass()) {
          ASSERT_TRUE(estimator
                          ->Add({all.subspan(0, 0), all.subspan(0, 5), all.subspan(5, 100000), all.subspan(100005, 0),
                                 all.subspan(100005)},
                                threads)
                          .ok());
          ASSERT_TRUE(estimator->EndPass().ok());
        }
        EXPECT_EQ(estimator->Factors()->scale, expected.factors.scale);
        EXPECT_EQ(estimator->Factors()->offset, expected.factors.offset);
      }
    }
  }
}

TEST(IfmrTest, FindsPercentilesOfManyValues) {
  std::mt19937 random(9);
  Values values(200000);
  std::generate(values.begin(), values.end(), [&] { return std::normal_distribution<float>(0, 1)(random); });
  for (const double percentile : {0.99, 0.995, 0.75, 0.51}) {
    const ActivationConfig config = {
        .max_percentile = percentile, .min_percentile = 0.999, .search_start = 1, .search_end = 1.5, .search_step = 0.5};
    const Result result = Drive(*NewIfmrEstimator(config), {values}, 2);
    ASSERT_TRUE(result.status.ok());
    EXPECT_EQ(result.factors.scale, Reference(values, config).scale) << percentile;
    EXPECT_EQ(result.factors.offset, Reference(values, config).offset) << percentile;
  }
}

TEST(IfmrTest, MeasuresStatistics) {
  const std::unique_ptr<RangeEstimator> estimator = NewRangeEstimator({});
  const Result result = Drive(*estimator, {{-1, 2}, {0.5, 3, -0.25}});
  EXPECT_EQ(result.passes, 1);  // small inputs are held
  const ActivationStatistics statistics = estimator->Statistics();
  EXPECT_EQ(statistics.count, 5);
  EXPECT_EQ(statistics.minimum, -1);
  EXPECT_EQ(statistics.maximum, 3);
  EXPECT_EQ(statistics.clip_minimum, result.factors.scale * static_cast<float>(-128 - result.factors.offset));
  EXPECT_EQ(statistics.clip_maximum, result.factors.scale * static_cast<float>(127 - result.factors.offset));
  EXPECT_NEAR(statistics.clip_minimum, -1, 0.1);
  EXPECT_NEAR(statistics.clip_maximum, 3, 1);
}

TEST(IfmrTest, ZerosAndNegativeValues) {
  Result result = Drive(*NewRangeEstimator({}), {{0, 0, -0.0f}});
  EXPECT_EQ(result.factors.scale, 1);
  EXPECT_EQ(result.factors.offset, -128);
  result = Drive(*NewRangeEstimator({.asymmetric = false}), {{0}});
  EXPECT_EQ(result.factors.scale, 1);
  EXPECT_EQ(result.factors.offset, 0);
  result = Drive(*NewRangeEstimator({}), {{-1, -2, -3}});
  EXPECT_EQ(result.factors.scale, 3.0f / 255);
  EXPECT_EQ(result.factors.offset, 127);
}

std::vector<ActivationConfig> AllKinds() {
  std::vector<ActivationConfig> configs;
  for (const auto algorithm : {ActivationConfig::Algorithm::kIfmr, ActivationConfig::Algorithm::kHfmg}) {
    for (const int bits : {8, 16}) {
      for (const bool asymmetric : {false, true}) {
        configs.push_back({.algorithm = algorithm, .bits = bits, .asymmetric = asymmetric, .bins = 1024});
      }
    }
  }
  return configs;
}

TEST(RangeEstimatorTest, BadValuesAreNamed) {
  for (const ActivationConfig& config : AllKinds()) {
    for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
      for (const size_t at : {0, 17, 9000, 29999}) {
        Values values(30000, 1.0f);
        values[at] = bad;
        const Result result = Drive(*NewRangeEstimator(config), {values}, 2);
        EXPECT_EQ(ReasonOf(result.status), v1::CALIBRATION_FAILED);
        EXPECT_THAT(result.status.message(), HasSubstr("a value is not finite (value " + std::to_string(at)));
        Values few(values.begin() + static_cast<std::ptrdiff_t>(at), values.begin() + static_cast<std::ptrdiff_t>(at) + 1);
        EXPECT_THAT(Drive(*NewRangeEstimator(config), {few}).status.message(), HasSubstr("a value is not finite (value 0"));
      }
    }
    EXPECT_THAT(Drive(*NewRangeEstimator(config), {{}}).status.message(), HasSubstr("no values"));
    EXPECT_THAT(Drive(*NewRangeEstimator(config), {}).status.message(), HasSubstr("no values"));
    EXPECT_FALSE(NewRangeEstimator(config)->Factors().ok());  // before any pass
  }
}

// Whatever finite values come, there are finite factors or an error.
TEST(RangeEstimatorTest, HostileValuesGiveFactorsOrAnError) {
  const std::vector<Values> inputs = {{kMax},
                                      {-kMax},
                                      {kMax, -kMax},
                                      {kMax, 0, 1},
                                      {1e38f, 2e38f},
                                      {-1e38f, 1},
                                      {1e-45f},
                                      {-1e-45f, 1e-45f},
                                      {1e-38f, 1e-39f},
                                      {1e10f},
                                      {1e10f, 1e10f, 1e10f},
                                      {3e34f, -2e34f},
                                      {16777216, 16777218},
                                      {1, std::nextafter(1.0f, 2.0f)},
                                      {5},
                                      {-5, 1e-30f}};
  for (const ActivationConfig& config : AllKinds()) {
    for (const Values& a : inputs) {
      for (const Values& b : inputs) {
        const std::unique_ptr<RangeEstimator> estimator = NewRangeEstimator(config);
        const Result result = Drive(*estimator, {a, b, a});
        if (result.status.ok()) {
          EXPECT_FALSE(estimator->wants_pass());
          EXPECT_TRUE(std::isfinite(result.factors.scale) && result.factors.scale > 0) << a[0] << " " << b[0];
          EXPECT_LE(std::abs(result.factors.offset), 1 << (config.bits - 1)) << a[0] << " " << b[0] << " " << config.bits;
        } else {
          EXPECT_EQ(ReasonOf(result.status), v1::CALIBRATION_FAILED) << result.status;
        }
        estimator->Statistics();
      }
    }
  }
}

TEST(RangeEstimatorTest, RefusesTooManyCandidates) {
  const Result result = Drive(*NewRangeEstimator({.search_step = 1e-9}), {{1, 2}});
  EXPECT_EQ(ReasonOf(result.status), v1::CALIBRATION_FAILED);
  EXPECT_THAT(result.status.message(), HasSubstr("search_step"));
}

TEST(RangeEstimatorTest, PassesMustShowTheSameValues) {
  const std::unique_ptr<RangeEstimator> estimator = NewIfmrEstimator({.bits = 16});
  const Values values = {1, 2, 3};
  const absl::Span<const float> piece = values;
  ASSERT_TRUE(estimator->Add({piece}, 1).ok());
  ASSERT_TRUE(estimator->EndPass().ok());
  ASSERT_TRUE(estimator->wants_pass());
  ASSERT_TRUE(estimator->Add({piece.subspan(1)}, 1).ok());
  EXPECT_THAT(estimator->EndPass().message(), HasSubstr("3 values"));
  EXPECT_FALSE(estimator->wants_pass());
  EXPECT_FALSE(estimator->Factors().ok());
}

TEST(HfmgTest, ThreadsAndPiecesDoNotMatter) {
  for (const Distribution& distribution : Distributions()) {
    const ActivationConfig config = {.algorithm = ActivationConfig::Algorithm::kHfmg};
    const Values values = distribution.make(200000, 4);
    const std::vector<Values> batches = Cut(values, {10, 150000});
    const Result expected = Drive(*NewRangeEstimator(config), batches);
    for (const int threads : {2, 3}) {
      ExpectSame(Drive(*NewRangeEstimator(config), batches, threads), expected, distribution.name);
    }
    const std::unique_ptr<RangeEstimator> estimator = NewRangeEstimator(config);
    for (const Values& batch : batches) {
      const absl::Span<const float> all = batch;
      const absl::Status status = estimator->Add({all.subspan(0, 7), all.subspan(7)}, 1);
      ASSERT_EQ(status, expected.status);
    }
    ASSERT_TRUE(estimator->EndPass().ok());
    EXPECT_EQ(estimator->Factors()->scale, expected.factors.scale);
  }
}

TEST(HfmgTest, HistogramsKeepAllCounts) {
  std::mt19937 random(8);
  for (int round = 0; round < 50; ++round) {
    MergingHistogram histogram(1024);
    uint64_t total = 0;
    for (int batch = 0; batch < 4; ++batch) {
      const float scale = std::exp2(static_cast<float>(random() % 800) / 100 - 4);
      const float shift = static_cast<float>(random() % 100) / 10 - 5;
      const Values values = Make(random() % 500 + 1, [&] { return std::normal_distribution<float>(shift, scale)(random); });
      const absl::Span<const float> piece = values;
      ASSERT_TRUE(histogram.Add({piece}, 1).ok());
      total += values.size();
      EXPECT_EQ(histogram.total(), total);
      uint64_t sum = 0;
      for (const int64_t count : histogram.counts()) {
        EXPECT_GE(count, 0);
        sum += count;
      }
      EXPECT_EQ(sum, total);
    }
  }
}

TEST(HfmgTest, ConstantsAndZeros) {
  const ActivationConfig asymmetric = {.algorithm = ActivationConfig::Algorithm::kHfmg};
  const ActivationConfig symmetric = {.algorithm = ActivationConfig::Algorithm::kHfmg, .asymmetric = false};
  Result result = Drive(*NewRangeEstimator(asymmetric), {{0, 0}, {0}});
  EXPECT_EQ(result.factors.scale, 1);
  EXPECT_EQ(result.factors.offset, -128);
  result = Drive(*NewRangeEstimator(symmetric), {{0, 0}});
  EXPECT_EQ(result.factors.scale, 1);
  EXPECT_EQ(result.factors.offset, 0);
  result = Drive(*NewRangeEstimator(asymmetric), {{5, 5}, {5}});
  EXPECT_EQ(result.factors.scale, 5.0f / 255);
  EXPECT_EQ(result.factors.offset, -128);
  result = Drive(*NewRangeEstimator(symmetric), {{-4}});
  EXPECT_EQ(result.factors.scale, 4.0f / 127);  // both ends are -4, and neither is the greater one
}

TEST(HfmgTest, TooWideARangeIsAnError) {
  const Result result = Drive(*NewRangeEstimator({.algorithm = ActivationConfig::Algorithm::kHfmg}), {{1e37f, -1e37f}});
  EXPECT_EQ(ReasonOf(result.status), v1::CALIBRATION_FAILED);
  EXPECT_THAT(result.status.message(), HasSubstr("too wide"));
}

// The states of an estimator between all batches: before the first one, behind each, and at the end.
std::vector<std::string> StatesOf(const ActivationConfig& config, const std::vector<Values>& batches, int threads) {
  std::vector<std::unique_ptr<RangeEstimator>> estimator;
  estimator.push_back(NewRangeEstimator(config));
  std::vector<std::string> states = {SaveEstimators(estimator)};
  while (estimator[0]->wants_pass()) {
    for (const Values& batch : batches) {
      const absl::Span<const float> piece = batch;
      EXPECT_TRUE(estimator[0]->Add({piece}, threads).ok());
      states.push_back(SaveEstimators(estimator));
    }
    EXPECT_TRUE(estimator[0]->EndPass().ok());
    states.push_back(SaveEstimators(estimator));
  }
  return states;
}

// Loads every state, shows the rest, and expects what one go gives.
void ExpectResumes(const ActivationConfig& config, const std::vector<Values>& batches, int threads_before, int threads_after,
                   const std::string& what) {
  const std::unique_ptr<RangeEstimator> whole = NewRangeEstimator(config);
  const Result expected = Drive(*whole, batches, threads_before);
  ASSERT_TRUE(expected.status.ok()) << what << expected.status;
  const ActivationStatistics statistics = whole->Statistics();
  const std::vector<std::string> states = StatesOf(config, batches, threads_before);
  const size_t per_pass = batches.size() + 1;
  ASSERT_EQ(states.size(), 1 + expected.passes * per_pass);
  for (size_t s = 0; s < states.size(); ++s) {
    const std::string where = what + ", state " + std::to_string(s);
    std::vector<std::unique_ptr<RangeEstimator>> resumed;
    resumed.push_back(NewRangeEstimator(config));
    ASSERT_TRUE(LoadEstimators(states[s], resumed)) << where;
    EXPECT_EQ(SaveEstimators(resumed), states[s]) << where;
    size_t pass = s == 0 ? 0 : (s - 1) / per_pass;
    size_t batch = s == 0 ? 0 : (s - 1) % per_pass + 1;
    if (batch == per_pass) {
      ++pass;
      batch = 0;
    }
    for (; resumed[0]->wants_pass(); ++pass, batch = 0) {
      for (; batch < batches.size(); ++batch) {
        const absl::Span<const float> piece = batches[batch];
        ASSERT_TRUE(resumed[0]->Add({piece}, threads_after).ok()) << where;
      }
      ASSERT_TRUE(resumed[0]->EndPass().ok()) << where;
    }
    EXPECT_EQ(pass, expected.passes) << where;
    const absl::StatusOr<ActivationFactors> factors = resumed[0]->Factors();
    ASSERT_TRUE(factors.ok()) << where << factors.status();
    EXPECT_EQ(factors->scale, expected.factors.scale) << where;
    EXPECT_EQ(factors->offset, expected.factors.offset) << where;
    const ActivationStatistics after = resumed[0]->Statistics();
    EXPECT_EQ(after.count, statistics.count) << where;
    EXPECT_EQ(after.minimum, statistics.minimum) << where;
    EXPECT_EQ(after.maximum, statistics.maximum) << where;
    EXPECT_EQ(after.clip_minimum, statistics.clip_minimum) << where;
    EXPECT_EQ(after.clip_maximum, statistics.clip_maximum) << where;
  }
}

TEST(EstimatorStateTest, AnyStateGoesOnToTheSameEnd) {
  for (const Distribution& distribution : Distributions()) {
    for (ActivationConfig config : AllKinds()) {
      const bool is_hfmg = config.algorithm == ActivationConfig::Algorithm::kHfmg;
      if (is_hfmg && distribution.name == "overflowing") {
        continue;  // no histogram of it
      }
      const bool narrow = config.bits == 16;  // needs the pass that finds percentiles
      config.max_percentile = config.min_percentile = narrow ? 0.9 : 0.999999;
      for (const size_t size : {100, 6000}) {  // held in memory, or not from the third batch on
        if (size == 6000 && narrow != config.asymmetric) {
          continue;  // for the time it takes
        }
        ExpectResumes(config, {distribution.make(size, 1), distribution.make(size + 7, 2), distribution.make(size, 3)}, 1, 1,
                      distribution.name + (is_hfmg ? ", hfmg" : ", ifmr") + (narrow ? ", narrow" : ""));
      }
    }
  }
}

TEST(EstimatorStateTest, OnAnotherNumberOfThreads) {
  const Distribution gaussian = Distributions().front();
  const std::vector<Values> batches = {gaussian.make(140000, 1), gaussian.make(60000, 2)};  // the first one for two threads
  ActivationConfig ifmr;
  ifmr.max_percentile = 0.9;
  for (const ActivationConfig& config : {ifmr, {.algorithm = ActivationConfig::Algorithm::kHfmg, .bins = 1024}}) {
    ExpectResumes(config, batches, 2, 1, "fewer");
    ExpectResumes(config, batches, 1, 2, "more");
  }
}

TEST(EstimatorStateTest, WhatDoesNotFitChangesNothing) {
  // So great that no candidate is left out by bounds.
  std::mt19937 random(9);
  auto next = [&random] { return std::normal_distribution<float>(0, 1e20f)(random); };
  const std::vector<Values> batches = {Make(20000, next), Make(20000, next)};
  ActivationConfig ifmr;
  ifmr.max_percentile = 0.9;
  const ActivationConfig hfmg = {.algorithm = ActivationConfig::Algorithm::kHfmg, .bins = 1024};
  const ActivationConfig more_bins = {.algorithm = ActivationConfig::Algorithm::kHfmg, .bins = 2048};
  const std::vector<std::string> ifmr_states = StatesOf(ifmr, batches, 1);
  const std::vector<std::string> hfmg_states = StatesOf(hfmg, batches, 1);
  ASSERT_EQ(ifmr_states.size(), 10) << "three passes over two batches";
  auto expect_refused = [](const ActivationConfig& config, const std::string& bytes, const std::string& what) {
    std::vector<std::unique_ptr<RangeEstimator>> estimators;
    estimators.push_back(NewRangeEstimator(config));
    const std::string before = SaveEstimators(estimators);
    EXPECT_FALSE(LoadEstimators(bytes, estimators)) << what;
    EXPECT_EQ(SaveEstimators(estimators), before) << what;
  };
  for (const std::string& state : ifmr_states) {
    expect_refused(hfmg, state, "another algorithm");
  }
  for (const std::string& state : hfmg_states) {
    expect_refused(ifmr, state, "another algorithm");
    expect_refused(more_bins, state, "other bins");
  }
  for (const std::string& bytes : {std::string(), std::string("no message"), ifmr_states[0] + ifmr_states[0]}) {
    expect_refused(ifmr, bytes, "not one state");
  }
  auto changed = [&](const std::string& bytes, auto change) {
    state::RangeEstimators state;
    EXPECT_TRUE(state.ParseFromString(bytes));
    change(*state.mutable_estimators(0)->mutable_holding()->mutable_inner()->mutable_ifmr());
    return state.SerializeAsString();
  };
  expect_refused(ifmr, changed(ifmr_states[2], [](state::Ifmr& s) { s.set_pass(4); }), "an unknown pass");
  expect_refused(ifmr, changed(ifmr_states[2], [](state::Ifmr& s) { s.clear_collectors(); }), "no collector");
  expect_refused(ifmr, changed(ifmr_states[2], [](state::Ifmr& s) { s.mutable_nonzero()->set_skipped(0, 1U << 21); }),
                 "a bucket beyond the last");
  expect_refused(ifmr, changed(ifmr_states[2], [](state::Ifmr& s) { s.mutable_nonzero()->add_counts(1); }), "a count too many");
  expect_refused(ifmr, changed(ifmr_states[4], [](state::Ifmr& s) { s.add_low_counts(1); }), "too many counts");
  expect_refused(ifmr, changed(ifmr_states[7], [](state::Ifmr& s) { s.set_searched(0, 1 << 20); }), "no such candidate");
  expect_refused(ifmr, changed(ifmr_states[7], [](state::Ifmr& s) { s.add_losses(1); }), "a loss too many");
  expect_refused(ifmr, changed(ifmr_states.back(), [](state::Ifmr& s) { s.set_best(1 << 20); }), "no such candidate");
  // Of two, the first one fits.
  state::RangeEstimators two;
  ASSERT_TRUE(two.ParseFromString(ifmr_states.back()));
  state::RangeEstimators other;
  ASSERT_TRUE(other.ParseFromString(hfmg_states.back()));
  two.MergeFrom(other);
  std::vector<std::unique_ptr<RangeEstimator>> estimators;
  estimators.push_back(NewRangeEstimator(ifmr));
  estimators.push_back(NewRangeEstimator(more_bins));
  const std::string before = SaveEstimators(estimators);
  EXPECT_FALSE(LoadEstimators(two.SerializeAsString(), estimators));
  EXPECT_EQ(SaveEstimators(estimators), before);
}

TEST(Float16ScaleTest, UsesHalves) {
  EXPECT_EQ(Float16Scale(1.0f), 1.0f);
  EXPECT_EQ(Float16Scale(0.1f), 0.0999755859375f);
  EXPECT_EQ(Float16Scale(65504.0f), 65504.0f);
  EXPECT_EQ(Float16Scale(0x1p-14f), 0x1p-14f);
  EXPECT_EQ(Float16Scale(0x1p-20f), 0x1p-20f);      // the square of 2^-10
  EXPECT_EQ(Float16Scale(1048576.0f), 1048576.0f);  // the square of 1024
  EXPECT_NEAR(Float16Scale(1e-5f), 1e-5f, 1e-8f);
  EXPECT_NEAR(Float16Scale(70000.0f), 70000.0f, 70);
}

}  // namespace
}  // namespace modelpress::engine
