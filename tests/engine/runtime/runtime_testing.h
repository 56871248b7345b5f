// What the tests of engine/runtime share.
#ifndef MODELPRESS_TESTS_ENGINE_RUNTIME_RUNTIME_TESTING_H_
#define MODELPRESS_TESTS_ENGINE_RUNTIME_RUNTIME_TESTING_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/runtime/calibration_data.h"
#include "engine/runtime/model_runner.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"

namespace modelpress::engine {

inline HostTensor Floats(const std::vector<int64_t>& dims, const std::vector<float>& values) {
  HostTensor tensor{onnx::TensorProto::FLOAT, dims, std::vector<uint8_t>(values.size() * sizeof(float))};
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

// Values between -1 and 1 without a pattern.
inline std::vector<float> Noise(size_t count, unsigned seed = 1) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525U + 1013904223U;
    value = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31F;
  }
  return values;
}

// The elements of a HostTensor or TensorView.
template <typename T = float, typename Tensor>
std::vector<T> ValuesOf(const Tensor& tensor) {
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

inline std::unique_ptr<ModelRunner> MakeRunner(const Model& model, const std::vector<std::string>& tensors,
                                               const TestFolder& scratch, int threads = 1) {
  auto runner = ModelRunner::Create(model, {.tensors = tensors, .threads = threads, .scratch_folder = scratch.string()});
  EXPECT_TRUE(runner.ok()) << runner.status();
  return runner.ok() ? *std::move(runner) : nullptr;
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_ENGINE_RUNTIME_RUNTIME_TESTING_H_
