// Speed of the integer loops in bytes read and written per second, to be compared with BM_Copy: 64 MiB of weights do not fit any
// cache. And of AdaRound in time per iteration.
// Speed of the integer loops in bytes read and written per second, to be compared with BM_Copy, and of calibration in values per
// second and pass. 64 MiB of weights or activations do not fit any cache.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "engine/calibrate/adaround.h"
#include "engine/calibrate/estimators.h"
#include "engine/kernels/quantize.h"

namespace modelpress::engine {
namespace {

constexpr size_t kCount = 16 << 20;

std::vector<float> Weights() {
  std::vector<float> weights(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    weights[i] = static_cast<float>(i % 2048) * 0.001f - 1.0f;
  }
  return weights;
}

void BM_Copy(benchmark::State& state) {
  const std::vector<float> weights = Weights();
  std::vector<float> out(kCount);
  for ([[maybe_unused]] auto _ : state) {
    std::memcpy(out.data(), weights.data(), kCount * sizeof(float));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 8));
}
BENCHMARK(BM_Copy);

void BM_QuantizeWeights(benchmark::State& state) {
  const std::vector<float> weights = Weights();
  std::vector<int8_t> q(kCount);
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(QuantizeWeights(weights, 0.0078f, 8, q.data()));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 5));
}
BENCHMARK(BM_QuantizeWeights);

void BM_FakeQuantizeWeights(benchmark::State& state) {
  const std::vector<float> weights = Weights();
  std::vector<float> fake(kCount);
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(FakeQuantizeWeights(weights, 0.0078f, 8, fake.data()));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 8));
}
BENCHMARK(BM_FakeQuantizeWeights);

void BM_QuantizeWeightsByElement(benchmark::State& state) {
  const std::vector<float> weights = Weights();
  const std::vector<float> scales(kCount, 0.0078f);
  std::vector<int8_t> q(kCount);
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(QuantizeWeightsByElement(weights, scales.data(), 8, q.data()));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 9));
}
BENCHMARK(BM_QuantizeWeightsByElement);

void BM_HalfToFloat(benchmark::State& state) {
  const std::vector<uint16_t> half(kCount, 0x3C01);
  std::vector<float> out(kCount);
  for ([[maybe_unused]] auto _ : state) {
    HalfToFloat(half, out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 6));
}
BENCHMARK(BM_HalfToFloat);

void BM_PackNibbles(benchmark::State& state) {
  const std::vector<int8_t> q(kCount, -3);
  std::vector<uint8_t> out(kCount / 2);
  for ([[maybe_unused]] auto _ : state) {
    PackNibbles(q, out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 3 / 2));
}
BENCHMARK(BM_PackNibbles);

void BM_PackNibbleRows(benchmark::State& state) {
  const std::vector<int8_t> q(kCount / 2, -3);
  std::vector<uint8_t> out(kCount / 2);
  for ([[maybe_unused]] auto _ : state) {
    PackNibbleRows(q, q, out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kCount * 3 / 2));
}
BENCHMARK(BM_PackNibbleRows);

// Conv, by channels, groups, height and width of the kernel and of the image, batch 32. One iteration.
void BM_AdaRoundConv(benchmark::State& state) {
  const int64_t channels = state.range(0), groups = state.range(1), kernel = state.range(2), image = state.range(3);
  const int64_t per_group = channels / groups;
  const std::vector<float> weight(channels * per_group * kernel * kernel, 0.0123f);
  const std::vector<float> values(32 * channels * image * image, 0.5f);
  AdaRoundInput input;
  input.op = {.kind = LinearOperator::Kind::kConv2d, .weight_dims = {channels, per_group, kernel, kernel}, .groups = groups};
  input.op.pads.assign(4, kernel / 2);
  input.activation.kind = LayerActivation::Kind::kRelu;
  input.weight = weight;
  input.channels = {.run = weight.size() / channels,
                    .period = static_cast<uint64_t>(channels),
                    .block = weight.size(),
                    .elements = weight.size()};
  input.scales.assign(channels, 0.01f);
  input.samples = {{32, channels, image, image}, values, {32, channels, image, image}, values};
  input.threads = static_cast<int>(state.range(4));
  WeightConfig config;
  config.num_iteration = 10;
  config.warm_start = 0;  // the round loss from the start
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(AdaRound(input, config, false));
  }
  state.counters["per_iteration"] = benchmark::Counter(static_cast<double>(state.iterations() * config.num_iteration),
                                                       benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_AdaRoundConv)
    ->ArgNames({"channels", "groups", "kernel", "image", "threads"})
    ->Args({64, 1, 3, 14, 1})
    ->Args({64, 1, 3, 14, 2})
    ->Args({512, 1, 1, 7, 1})
    ->Args({576, 576, 3, 14, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
// Activations as networks have them: normally distributed with a few far away, negative ones cut off behind a ReLU.
std::vector<float> Activations(bool has_relu) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> values(kCount);
  for (float& value : values) {
    value = normal(random) * (random() % 64 == 0 ? 4.0f : 1.0f);
    value = has_relu ? std::max(value, 0.0f) : value;
  }
  return values;
}

// All passes over batches of 1 Mi values, on one thread. per_1e9_values: CPU seconds for so many values, or nanoseconds for one,
// all passes together.
void Estimate(benchmark::State& state, const std::vector<float>& values, const ActivationConfig& config, bool preselect) {
  constexpr size_t kBatch = 1 << 20;
  int passes = 0;
  for ([[maybe_unused]] auto _ : state) {
    const std::unique_ptr<RangeEstimator> estimator =
        config.algorithm == ActivationConfig::Algorithm::kHfmg ? NewHfmgEstimator(config) : NewIfmrEstimator(config, {preselect});
    for (passes = 0; estimator->wants_pass(); ++passes) {
      for (size_t i = 0; i < kCount; i += kBatch) {
        const absl::Span<const float> batch = absl::MakeConstSpan(values).subspan(i, kBatch);
        if (!estimator->Add({batch}, 1).ok()) {
          state.SkipWithError("Add failed");
        }
      }
      if (!estimator->EndPass().ok()) {
        state.SkipWithError("EndPass failed");
      }
    }
    benchmark::DoNotOptimize(estimator->Factors());
  }
  state.counters["passes"] = passes;
  state.counters["per_1e9_values"] = benchmark::Counter(static_cast<double>(state.iterations() * kCount) / 1e9,
                                                        benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

// Arguments: behind a ReLU, bits.
void BM_Ifmr(benchmark::State& state) {
  Estimate(state, Activations(state.range(0) != 0), {.bits = static_cast<int>(state.range(1))}, true);
}
BENCHMARK(BM_Ifmr)->ArgsProduct({{0, 1}, {8, 16}})->ArgNames({"relu", "bits"})->Unit(benchmark::kMillisecond);

void BM_IfmrAllCandidates(benchmark::State& state) { Estimate(state, Activations(state.range(0) != 0), {}, false); }
BENCHMARK(BM_IfmrAllCandidates)->Arg(0)->Arg(1)->ArgName("relu")->Unit(benchmark::kMillisecond);

void BM_Hfmg(benchmark::State& state) {
  Estimate(state, Activations(state.range(0) != 0), {.algorithm = ActivationConfig::Algorithm::kHfmg}, false);
}
BENCHMARK(BM_Hfmg)->Arg(0)->Arg(1)->ArgName("relu")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace modelpress::engine
