#include "engine/runtime/floats.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/kernels/quantize.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

absl::StatusOr<absl::Span<const float>> AsFloats(const TensorView& view, std::vector<float>& memory) {
  switch (view.data_type) {
    case onnx::TensorProto::FLOAT:
      return absl::Span<const float>(reinterpret_cast<const float*>(view.bytes.data()), view.bytes.size() / sizeof(float));
    case onnx::TensorProto::FLOAT16:
      memory.resize(view.bytes.size() / sizeof(uint16_t));
      HalfToFloat({reinterpret_cast<const uint16_t*>(view.bytes.data()), memory.size()}, memory.data());
      return absl::Span<const float>(memory);
    default:
      return MakeError(v1::TENSOR_INVALID,
                       absl::StrCat("the tensor has the type ", onnx::TensorProto::DataType_Name(view.data_type),
                                    "; only FLOAT and FLOAT16 can be quantized"));
  }
}

absl::StatusOr<std::vector<float>> FloatsOf(const TensorView& view) {
  std::vector<float> memory;
  MP_ASSIGN_OR_RETURN(const absl::Span<const float> values, AsFloats(view, memory));
  return std::vector<float>(values.begin(), values.end());
}

}  // namespace modelpress::engine
