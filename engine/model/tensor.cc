#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "engine/model/model.h"
#include "engine/model/wire.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;

static_assert(std::endian::native == std::endian::little, "tensor data is little-endian and read as it stands");

constexpr ElementType kElementTypes[] = {
    {TensorProto::FLOAT, 32, DataField::kFloat},
    {TensorProto::UINT8, 8, DataField::kInt32},
    {TensorProto::INT8, 8, DataField::kInt32},
    {TensorProto::UINT16, 16, DataField::kInt32},
    {TensorProto::INT16, 16, DataField::kInt32},
    {TensorProto::INT32, 32, DataField::kInt32},
    {TensorProto::INT64, 64, DataField::kInt64},
    {TensorProto::STRING, 0, DataField::kString},
    {TensorProto::BOOL, 8, DataField::kInt32},
    {TensorProto::FLOAT16, 16, DataField::kInt32},
    {TensorProto::DOUBLE, 64, DataField::kDouble},
    {TensorProto::UINT32, 32, DataField::kUint64},
    {TensorProto::UINT64, 64, DataField::kUint64},
    {TensorProto::COMPLEX64, 64, DataField::kFloat, 2},
    {TensorProto::COMPLEX128, 128, DataField::kDouble, 2},
    {TensorProto::BFLOAT16, 16, DataField::kInt32},
    {TensorProto::FLOAT8E4M3FN, 8, DataField::kInt32},
    {TensorProto::FLOAT8E4M3FNUZ, 8, DataField::kInt32},
    {TensorProto::FLOAT8E5M2, 8, DataField::kInt32},
    {TensorProto::FLOAT8E5M2FNUZ, 8, DataField::kInt32},
    {TensorProto::UINT4, 4, DataField::kInt32},
    {TensorProto::INT4, 4, DataField::kInt32},
    {23, 4, DataField::kInt32},  // FLOAT4E2M1, newer than the onnx.proto compiled in
    {24, 8, DataField::kInt32},  // FLOAT8E8M0, the same
};

const char* FieldName(DataField field) {
  switch (field) {
    case DataField::kNone:
      return "no data";
    case DataField::kFloat:
      return "float_data";
    case DataField::kInt32:
      return "int32_data";
    case DataField::kString:
      return "string_data";
    case DataField::kInt64:
      return "int64_data";
    case DataField::kRaw:
      return "raw_data";
    case DataField::kDouble:
      return "double_data";
    case DataField::kUint64:
      return "uint64_data";
  }
  return "?";
}

float FromFloat16(uint16_t half) {
  // The exponent is rebased by an exact multiplication, which also makes subnormal numbers normal.
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>((half & 0x7fffU) << 13) * 0x1p112F);
  if ((half & 0x7c00U) == 0x7c00U) {
    bits |= 0x7f800000U;  // infinity, NaN
  }
  return std::bit_cast<float>(bits | (half & 0x8000U) << 16);
}

float FromBfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Reads `out.size()` elements of type T from element `first` of fixed-size data and converts them.
template <typename T, typename Convert>
absl::Status ReadFixed(const Payload& payload, uint64_t first, absl::Span<float> out, Convert convert) {
  std::vector<T> buffer(std::min<size_t>(out.size(), 1 << 14));
  while (!out.empty()) {
    size_t count = std::min(out.size(), buffer.size());
    MP_RETURN_IF_ERROR(payload.Read(first * sizeof(T), {reinterpret_cast<uint8_t*>(buffer.data()), count * sizeof(T)}));
    std::transform(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(count), out.begin(), convert);
    first += count;
    out.remove_prefix(count);
  }
  return absl::OkStatus();
}

template <typename Convert>
absl::Status ReadPacked(const Payload& payload, uint64_t first, absl::Span<float> out, Convert convert) {
  VarintReader reader(payload);
  uint64_t value = 0;
  for (uint64_t i = 0; i < first; ++i) {
    MP_RETURN_IF_ERROR(reader.Next(value));
  }
  for (float& element : out) {
    MP_RETURN_IF_ERROR(reader.Next(value));
    element = convert(static_cast<uint16_t>(value));
  }
  return absl::OkStatus();
}

template <typename Convert>
absl::Status ReadHalves(const Tensor& tensor, uint64_t first, absl::Span<float> out, Convert convert) {
  return tensor.field == DataField::kRaw ? ReadFixed<uint16_t>(*tensor.payload, first, out, convert)
                                         : ReadPacked(*tensor.payload, first, out, convert);
}

// Packed varints as little-endian values of a fixed size.
class UnpackedPayload final : public Payload {
 public:
  UnpackedPayload(PayloadPtr varints, int value_bytes, uint64_t size)
      : varints_(std::move(varints)), value_bytes_(value_bytes), size_(size) {}

  uint64_t size() const override { return size_; }

  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const override {
    if (out.empty()) {
      return absl::OkStatus();
    }
    std::call_once(indexed_, [this] { index_status_ = BuildIndex(); });
    MP_RETURN_IF_ERROR(index_status_);
    uint64_t index = offset / value_bytes_;
    VarintReader reader(*varints_, block_starts_[index / kBlock]);
    uint64_t value = 0;
    for (uint64_t i = 0; i < index % kBlock; ++i) {
      MP_RETURN_IF_ERROR(reader.Next(value));
    }
    for (uint64_t skip = offset % value_bytes_; !out.empty(); skip = 0) {
      MP_RETURN_IF_ERROR(reader.Next(value));
      size_t count = std::min<size_t>(out.size(), value_bytes_ - skip);
      std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(&value) + skip, count);
      out.remove_prefix(count);
    }
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kBlock = 1 << 16;

  // Notes where every kBlock-th varint starts, so that a range can be read without reading all before it.
  absl::Status BuildIndex() const {
    VarintReader reader(*varints_);
    for (uint64_t i = 0; !reader.done(); ++i) {
      if (i % kBlock == 0) {
        block_starts_.push_back(reader.position());
      }
      uint64_t value = 0;
      MP_RETURN_IF_ERROR(reader.Next(value));
    }
    return absl::OkStatus();
  }

  PayloadPtr varints_;
  uint64_t value_bytes_;
  uint64_t size_;
  mutable std::once_flag indexed_;
  mutable absl::Status index_status_;
  mutable std::vector<uint64_t> block_starts_;
};

}  // namespace

const ElementType* FindElementType(int data_type) {
  const auto* it = std::find_if(std::begin(kElementTypes), std::end(kElementTypes),
                                [data_type](const ElementType& type) { return type.data_type == data_type; });
  return it == std::end(kElementTypes) ? nullptr : it;
}

int FixedValueBytes(DataField field) {
  switch (field) {
    case DataField::kRaw:
      return 1;
    case DataField::kFloat:
      return 4;
    case DataField::kDouble:
      return 8;
    default:
      return 0;
  }
}

absl::StatusOr<uint64_t> CheckedElementCount(const TensorProto& header, int max_dims) {
  if (header.dims_size() > max_dims) {
    return MakeError(v1::MODEL_LIMIT, absl::StrCat("the tensor has ", header.dims_size(), " dims, the limit is ", max_dims));
  }
  uint64_t count = 1;
  bool too_many = false;
  for (int64_t dim : header.dims()) {
    if (dim < 0) {
      return MakeError(v1::TENSOR_INVALID, absl::StrCat("the tensor has a negative dim, ", dim));
    }
    too_many = too_many || __builtin_mul_overflow(count, static_cast<uint64_t>(dim), &count) || count > kMaxTensorElements;
  }
  if (too_many) {
    return MakeError(v1::MODEL_LIMIT, "the product of the tensor's dims is larger than any tensor can be");
  }
  return count;
}

absl::Status CheckData(const TensorProto& header, DataField field, uint64_t amount, int max_dims) {
  MP_ASSIGN_OR_RETURN(uint64_t elements, CheckedElementCount(header, max_dims));
  const ElementType* type = FindElementType(header.data_type());
  if (type == nullptr) {
    return MakeError(v1::TENSOR_INVALID, absl::StrCat("the tensor has the unknown data type ", header.data_type()));
  }
  if (field == DataField::kNone) {
    return elements == 0 ? absl::OkStatus()
                         : MakeError(v1::TENSOR_INVALID, absl::StrCat("the tensor has no data for its ", elements, " elements"));
  }
  if (field == DataField::kRaw ? type->bits == 0 : field != type->typed) {
    return MakeError(v1::TENSOR_INVALID,
                     absl::StrCat("the data type ", header.data_type(), " cannot be stored in ", FieldName(field)));
  }
  uint64_t expected = field == DataField::kRaw ? type->RawBytes(elements) : type->TypedValues(elements);
  if (amount != expected) {
    return MakeError(v1::TENSOR_INVALID,
                     absl::StrCat("the dims of the tensor need ", expected, field == DataField::kRaw ? " bytes" : " values",
                                  " of data, its ", FieldName(field), " holds ", amount));
  }
  return absl::OkStatus();
}

PayloadPtr RawElements(const Tensor& tensor) {
  if (FixedValueBytes(tensor.field) > 0) {
    return tensor.payload;
  }
  const ElementType* type = FindElementType(tensor.header.data_type());
  return std::make_shared<UnpackedPayload>(tensor.payload, type->BytesPerValue(), type->RawBytes(tensor.ElementCount()));
}

uint64_t Tensor::ElementCount() const {
  uint64_t count = 1;
  for (int64_t dim : header.dims()) {
    count *= static_cast<uint64_t>(dim);
  }
  return count;
}

absl::Status ReadFloats(const Tensor& tensor, uint64_t first, absl::Span<float> out) {
  const ErrorPlace place = {.layer = tensor.name()};
  const int data_type = tensor.header.data_type();
  const ElementType* type = FindElementType(data_type);
  const uint64_t elements = tensor.ElementCount();
  if (type == nullptr || (data_type != TensorProto::FLOAT && data_type != TensorProto::FLOAT16 &&
                          data_type != TensorProto::BFLOAT16 && data_type != TensorProto::DOUBLE)) {
    return MakeError(v1::TENSOR_INVALID, absl::StrCat("the tensor has data type ", data_type, ", not a floating-point type"),
                     place);
  }
  if (first > elements || out.size() > elements - first) {
    return MakeError(v1::TENSOR_INVALID, "elements behind the end of the tensor were asked for", place);
  }
  if (out.empty()) {
    return absl::OkStatus();
  }
  if (tensor.payload == nullptr || (tensor.field != DataField::kRaw && tensor.field != type->typed)) {
    return MakeError(v1::TENSOR_INVALID, absl::StrCat("the tensor of data type ", data_type, " has ", FieldName(tensor.field)),
                     place);
  }
  absl::Status status;
  switch (data_type) {
    case TensorProto::FLOAT:
      status = tensor.payload->Read(first * sizeof(float), {reinterpret_cast<uint8_t*>(out.data()), out.size() * sizeof(float)});
      break;
    case TensorProto::DOUBLE:
      status = ReadFixed<double>(*tensor.payload, first, out, [](double value) { return static_cast<float>(value); });
      break;
    case TensorProto::FLOAT16:
      status = ReadHalves(tensor, first, out, FromFloat16);
      break;
    default:
      status = ReadHalves(tensor, first, out, FromBfloat16);
      break;
  }
  return AtPlace(status, place);
}

absl::StatusOr<TensorProto> ToProto(const Tensor& tensor) {
  TensorProto proto = tensor.header;
  if (tensor.payload == nullptr) {
    return proto;
  }
  std::string data(tensor.payload->size(), '\0');
  MP_RETURN_IF_ERROR(tensor.payload->Read(0, {reinterpret_cast<uint8_t*>(data.data()), data.size()}));
  if (tensor.field == DataField::kRaw) {
    proto.set_raw_data(std::move(data));
    return proto;
  }
  std::string field;
  AppendTag(field, static_cast<uint32_t>(tensor.field), WireType::kLength);
  AppendVarint(field, data.size());
  field += data;
  if (!proto.MergeFromString(field)) {
    return MakeError(v1::TENSOR_INVALID, absl::StrCat("the packed values in ", FieldName(tensor.field), " are damaged"),
                     {.layer = tensor.name()});
  }
  return proto;
}

Tensor FromProto(TensorProto proto) {
  Tensor tensor;
  TensorProto data;  // one data field alone
  if (proto.has_raw_data()) {
    tensor.field = DataField::kRaw;
    data.mutable_raw_data()->swap(*proto.mutable_raw_data());
  } else if (proto.float_data_size() > 0) {
    tensor.field = DataField::kFloat;
    data.mutable_float_data()->Swap(proto.mutable_float_data());
  } else if (proto.int32_data_size() > 0) {
    tensor.field = DataField::kInt32;
    data.mutable_int32_data()->Swap(proto.mutable_int32_data());
  } else if (proto.int64_data_size() > 0) {
    tensor.field = DataField::kInt64;
    data.mutable_int64_data()->Swap(proto.mutable_int64_data());
  } else if (proto.double_data_size() > 0) {
    tensor.field = DataField::kDouble;
    data.mutable_double_data()->Swap(proto.mutable_double_data());
  } else if (proto.uint64_data_size() > 0) {
    tensor.field = DataField::kUint64;
    data.mutable_uint64_data()->Swap(proto.mutable_uint64_data());
  } else if (proto.string_data_size() > 0) {
    tensor.field = DataField::kString;
  }
  if (tensor.field == DataField::kRaw) {
    tensor.payload = std::make_shared<MemoryPayload>(std::move(*data.mutable_raw_data()));
  } else if (tensor.field != DataField::kNone && tensor.field != DataField::kString) {
    const std::string serialized = data.SerializeAsString();
    FieldCursor cursor(AsBytes(serialized));
    WireField field;
    cursor.Next(field);
    tensor.payload =
        std::make_shared<MemoryPayload>(std::string(reinterpret_cast<const char*>(field.content.data()), field.content.size()));
  }
  proto.clear_raw_data();
  tensor.header = std::move(proto);
  return tensor;
}

}  // namespace modelpress::engine
