// Matrix multiplication in float32 over matrices that need not lie as matrices: an element is found by adding an offset of its
// row and one of its column, so that a convolution's windows, transposes and groups are all read and written where they are.
#ifndef MODELPRESS_ENGINE_KERNELS_GEMM_H_
#define MODELPRESS_ENGINE_KERNELS_GEMM_H_

#include <cstdint>

#include "absl/types/span.h"

namespace modelpress::engine {

// Element (r, c) is data[rows[r] + columns[c]].
template <typename T>
struct OffsetMatrix {
  T* data = nullptr;
  absl::Span<const int64_t> rows;
  absl::Span<const int64_t> columns;
};

// Adds a * b to c, where a is [M, K], b [K, N] and c [M, N]. Elements of c that share an address are added up there.
// Every product and every sum is rounded by itself, and the order of the sums depends on nothing but M, N and K: the same bits
// on every machine. Works in some 0.6 MiB of its own.
void MultiplyAdd(const OffsetMatrix<const float>& a, const OffsetMatrix<const float>& b, const OffsetMatrix<float>& c);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_KERNELS_GEMM_H_
