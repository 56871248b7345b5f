#include "engine/kernels/gemm.h"

#include <algorithm>

// Vectors whose length the compiler does not know cannot stand in the array of sums.
#define HWY_DISABLED_TARGETS (HWY_ALL_SVE | HWY_RVV)
// Highway compiles what stands between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE once per instruction set and picks the
// best one that the machine has.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/gemm.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
// clang-format off
#include "hwy/highway.h"
#include "hwy/aligned_allocator.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace modelpress::engine::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// kRows x 2 vectors of sums stay in registers. The block sizes decide the order of the sums and so are the same for all machines.
constexpr size_t kRows = 6;
constexpr size_t kDepth = 256;    // of a block of sums; a packed block of a fits the first cache
constexpr size_t kColumns = 512;  // of a packed block of b, which fits the second

// One block: `a` [depth][rows], `b` [depth][2 vectors], both packed; the products' sums go to rows of `out`.
template <size_t rows>
HWY_INLINE void MultiplyBlock(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, size_t depth, float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  hn::Vec<decltype(d)> sums[rows][2];
  for (size_t r = 0; r < rows; ++r) {
    sums[r][0] = hn::Zero(d);
    sums[r][1] = hn::Zero(d);
  }
  for (size_t k = 0; k < depth; ++k) {
    const auto b0 = hn::Load(d, b + k * 2 * lanes);
    const auto b1 = hn::Load(d, b + k * 2 * lanes + lanes);
    for (size_t r = 0; r < rows; ++r) {
      const auto factor = hn::Set(d, a[k * rows + r]);
      sums[r][0] = hn::Add(sums[r][0], hn::Mul(factor, b0));  // no MulAdd: not every machine has it
      sums[r][1] = hn::Add(sums[r][1], hn::Mul(factor, b1));
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    hn::Store(sums[r][0], d, out + r * kColumns);
    hn::Store(sums[r][1], d, out + r * kColumns + lanes);
  }
}

// `rows` (up to kRows) rows of a, whose elements are a.data[row_offsets[r] + depth_offsets[k]], times the packed `b`.
template <size_t rows>
HWY_INLINE void MultiplyRows(const float* a, const int64_t* row_offsets, absl::Span<const int64_t> depth_offsets, const float* b,
                             size_t columns, float* packed_a, float* out) {
  const size_t width = 2 * hn::Lanes(hn::ScalableTag<float>());
  for (size_t k = 0; k < depth_offsets.size(); ++k) {
    for (size_t r = 0; r < rows; ++r) {
      packed_a[k * rows + r] = a[row_offsets[r] + depth_offsets[k]];
    }
  }
  for (size_t j = 0; j < columns; j += width) {
    MultiplyBlock<rows>(packed_a, b + j * depth_offsets.size(), depth_offsets.size(), out + j);
  }
}

void Multiply(const OffsetMatrix<const float>& a, const OffsetMatrix<const float>& b, const OffsetMatrix<float>& c) {
  const size_t width = 2 * hn::Lanes(hn::ScalableTag<float>());
  const size_t m = c.rows.size();
  const size_t n = c.columns.size();
  const size_t depth = a.columns.size();
  const size_t block_columns = std::min(kColumns, (n + width - 1) / width * width);
  const size_t block_depth = std::min(kDepth, depth);
  const auto packed_a = hwy::AllocateAligned<float>(kRows * block_depth);
  const auto packed_b = hwy::AllocateAligned<float>(block_columns * block_depth);
  const auto sums = hwy::AllocateAligned<float>(kRows * kColumns);
  // Behind the last column vectors hold anything, and nothing reads what they add up to.
  std::fill_n(packed_b.get(), block_columns * block_depth, 0.0f);
  for (size_t j0 = 0; j0 < n; j0 += kColumns) {
    const auto columns = b.columns.subspan(j0, kColumns);
    for (size_t k0 = 0; k0 < depth; k0 += kDepth) {
      const auto a_depth = a.columns.subspan(k0, kDepth);
      const auto b_depth = b.rows.subspan(k0, kDepth);
      float* packed = packed_b.get();
      for (size_t j = 0; j < columns.size(); j += width) {
        const size_t count = std::min(width, columns.size() - j);
        for (const int64_t row : b_depth) {
          const float* source = b.data + row;
          for (size_t i = 0; i < count; ++i) {
            packed[i] = source[columns[j + i]];
          }
          packed += width;
        }
      }
      for (size_t i0 = 0; i0 < m; i0 += kRows) {
        const size_t rows = std::min(kRows, m - i0);
        const auto multiply = [&]<size_t count>() {
          MultiplyRows<count>(a.data, a.rows.data() + i0, a_depth, packed_b.get(), columns.size(), packed_a.get(), sums.get());
        };
        switch (rows) {
          case 1:
            multiply.template operator()<1>();
            break;
          case 2:
            multiply.template operator()<2>();
            break;
          case 3:
            multiply.template operator()<3>();
            break;
          case 4:
            multiply.template operator()<4>();
            break;
          case 5:
            multiply.template operator()<5>();
            break;
          default:
            multiply.template operator()<kRows>();
        }
        for (size_t r = 0; r < rows; ++r) {
          float* target = c.data + c.rows[i0 + r];
          for (size_t j = 0; j < columns.size(); ++j) {
            target[c.columns[j0 + j]] += sums[r * kColumns + j];
          }
        }
      }
    }
  }
}

}  // namespace modelpress::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace modelpress::engine {

HWY_EXPORT(Multiply);

void MultiplyAdd(const OffsetMatrix<const float>& a, const OffsetMatrix<const float>& b, const OffsetMatrix<float>& c) {
  HWY_DYNAMIC_DISPATCH(Multiply)(a, b, c);
}

}  // namespace modelpress::engine

#endif  // HWY_ONCE
