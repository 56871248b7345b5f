#include "engine/kernels/gemm.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace modelpress::engine {
namespace {

std::vector<int64_t> Offsets(size_t count, int64_t step) {
  std::vector<int64_t> offsets(count);
  for (size_t i = 0; i < count; ++i) {
    offsets[i] = static_cast<int64_t>(i) * step;
  }
  return offsets;
}

std::vector<float> Values(size_t count, int seed) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(static_cast<int>((i * 7919 + seed) % 2003) - 1001) / 997.0f;
  }
  return values;
}

struct Shape {
  size_t m, k, n;
};

// Every shape runs with each instruction set that this build has and this machine can run.
class GemmTest : public testing::TestWithParam<std::tuple<int64_t, Shape>> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(std::get<0>(GetParam())); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

// What the header promises of the order: sums over blocks of 256, each from zero, added to c one after the other.
TEST_P(GemmTest, IsTheSameToTheBitAsTheNaiveLoopWithTheSameOrder) {
  const auto [m, k, n] = std::get<1>(GetParam());
  const std::vector<float> a = Values(m * k, 1);
  const std::vector<float> b = Values(k * n, 2);
  std::vector<float> c = Values(m * n, 3);
  std::vector<float> expected = c;
  for (size_t i = 0; i < m; ++i) {
    for (size_t j = 0; j < n; ++j) {
      for (size_t k0 = 0; k0 < k; k0 += 256) {
        float sum = 0;
        for (size_t kk = k0; kk < std::min(k, k0 + 256); ++kk) {
          sum += a[kk * m + i] * b[kk * n + j];  // a is stored transposed
        }
        expected[i * n + j] += sum;
      }
    }
  }
  const std::vector<int64_t> a_rows = Offsets(m, 1), a_columns = Offsets(k, m);
  const std::vector<int64_t> b_rows = Offsets(k, n), c_rows = Offsets(m, n), columns = Offsets(n, 1);
  MultiplyAdd({a.data(), a_rows, a_columns}, {b.data(), b_rows, columns}, {c.data(), c_rows, columns});
  EXPECT_EQ(c, expected);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GemmTest,
                         testing::Combine(testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                                          testing::Values(Shape{1, 1, 1}, Shape{6, 256, 32}, Shape{5, 3, 7}, Shape{13, 300, 65},
                                                          Shape{4, 257, 513}, Shape{2, 600, 1100}, Shape{3, 9, 31},
                                                          Shape{64, 576, 196})));

TEST(GemmOverlapTest, AddsUpWhatSharesAnAddress) {
  const std::vector<float> a = {1, 2};  // [2, 1]
  const std::vector<float> b = {3, 5};  // [1, 2]
  const std::vector<int64_t> steps = {0, 1}, zero = {0};
  std::vector<float> c = {100, 0, 0};
  MultiplyAdd({a.data(), steps, zero}, {b.data(), zero, steps}, {c.data(), steps, steps});
  EXPECT_EQ(c, (std::vector<float>{103, 5 + 6, 10}));
}

}  // namespace
}  // namespace modelpress::engine
