// Which channel an element of a weight tensor belongs to.
#ifndef MODELPRESS_ENGINE_CALIBRATE_CHANNELS_H_
#define MODELPRESS_ENGINE_CALIBRATE_CHANNELS_H_

#include <cstdint>
#include <vector>

namespace modelpress::engine {

// Element i (row-major) belongs to channel (i / block) * period + (i / run) % period. Covers output and input channels of every
// layer type, grouped or not, in ONNX's weight layouts:
//   Conv [Cout, Cin/g, k...]            out: run Cin/g*k, period Cout, block all   in: run k, period Cin/g, block Cout/g*Cin/g*k
//   ConvTranspose [Cin, Cout/g, k...]   out: run k, period Cout/g, block Cin/g*Cout/g*k   in: run Cout/g*k, period Cin, block all
//   MatMul, Gemm [in, out]              in: run out, period in, block all;   Gemm transB [out, in]: in: run 1, period in
//   LSTM, GRU [1, nH, K]                out: run K, period nH, block all;   one scale for the whole tensor: period 1
struct ChannelMap {
  uint64_t run = 1;
  uint64_t period = 1;
  uint64_t block = 1;
  uint64_t elements = 0;  // of the tensor

  uint64_t channels() const { return elements / block * period; }
  uint64_t ChannelOf(uint64_t element) const { return element / block * period + element / run % period; }
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_CALIBRATE_CHANNELS_H_
