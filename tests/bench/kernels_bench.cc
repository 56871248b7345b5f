// Speed of the integer loops in bytes read and written per second, to be compared with BM_Copy. 64 MiB of weights do not fit any
// cache.
#include <cstring>
#include <vector>

#include "benchmark/benchmark.h"
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

}  // namespace
}  // namespace modelpress::engine
