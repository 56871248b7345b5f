// How ONNX stores the elements of each data type: the one table of element sizes.
#ifndef MODELPRESS_ENGINE_MODEL_ELEMENT_TYPE_H_
#define MODELPRESS_ENGINE_MODEL_ELEMENT_TYPE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

struct ElementType {
  int data_type = 0;                   // onnx.TensorProto.DataType
  int bits = 0;                        // of one element in raw_data; 0 for strings, which cannot stand there
  DataField typed = DataField::kNone;  // the field for elements that are not in raw_data
  int values = 1;                      // values in that field per element; two 4-bit elements share one

  uint64_t RawBytes(uint64_t elements) const { return (elements * bits + 7) / 8; }
  uint64_t TypedValues(uint64_t elements) const { return bits == 4 ? (elements + 1) / 2 : elements * values; }
  // Bytes that one value of a packed integer field has in raw_data.
  int BytesPerValue() const { return bits == 4 ? 1 : bits / 8; }
};

// Null for a data type that onnx.proto does not know.
const ElementType* FindElementType(int data_type);

// Bytes of one value of a packed field of fixed-size values; 0 for varint fields, kString and kNone, 1 for kRaw.
int FixedValueBytes(DataField field);

// Number of elements by the dims. TENSOR_INVALID for a negative dim, MODEL_LIMIT for more than max_dims dims or a number
// of elements that no file can hold.
absl::StatusOr<uint64_t> CheckedElementCount(const onnx::TensorProto& header, int max_dims);

// Checks that the data fits type and dims. `amount`: bytes for kRaw, number of values for every other field.
absl::Status CheckData(const onnx::TensorProto& header, DataField field, uint64_t amount, int max_dims);

// The elements as raw_data would hold them: little-endian, without gaps. `tensor` has element data and no strings.
PayloadPtr RawElements(const Tensor& tensor);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_ELEMENT_TYPE_H_
