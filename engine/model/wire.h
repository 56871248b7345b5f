// The protobuf wire format, as far as reading and writing models around their tensor data needs it.
#ifndef MODELPRESS_ENGINE_MODEL_WIRE_H_
#define MODELPRESS_ENGINE_MODEL_WIRE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/model/payload.h"

namespace modelpress::engine {

using Bytes = absl::Span<const uint8_t>;

inline Bytes AsBytes(absl::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

enum class WireType : int { kVarint = 0, kFixed64 = 1, kLength = 2, kFixed32 = 5 };

// One field of a message; the spans lie in the message.
struct WireField {
  uint32_t number = 0;
  WireType type = WireType::kVarint;
  Bytes whole;    // tag, length and value
  Bytes content;  // the value alone: for kVarint its encoding, for kLength the bytes after the length
};

// Walks the fields of one message.
class FieldCursor {
 public:
  explicit FieldCursor(Bytes message) : rest_(message) {}
  bool done() const { return rest_.empty(); }
  // Takes the next field. False if there is no well-formed one (truncated, field number 0, a group); the cursor then stays.
  bool Next(WireField& field);
  // Where the next field starts.
  const uint8_t* position() const { return rest_.data(); }

 private:
  Bytes rest_;
};

void AppendVarint(std::string& out, uint64_t value);
void AppendTag(std::string& out, uint32_t number, WireType type);
// The offset in a serialized message at which field `number` belongs: before the first field with that or a higher number.
size_t PositionOf(absl::string_view message, uint32_t number);

// Reads the varints of a packed field one after the other.
class VarintReader {
 public:
  // From byte `offset` of `payload` on, which must be the start of a varint.
  explicit VarintReader(const Payload& payload, uint64_t offset = 0) : payload_(payload), next_(offset) {}
  bool done() const { return begin_ == end_ && next_ == payload_.size(); }
  // Byte offset of the next varint.
  uint64_t position() const { return next_ - (end_ - begin_); }
  // TENSOR_INVALID if the varint is cut off or longer than 10 bytes.
  absl::Status Next(uint64_t& value);

 private:
  const Payload& payload_;
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0, end_ = 0;  // unread part of buffer_
  uint64_t next_;               // offset in the payload of what follows buffer_
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_WIRE_H_
