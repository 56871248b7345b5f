#include "engine/model/wire.h"

#include <algorithm>
#include <optional>

#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

constexpr int kMaxVarintBytes = 10;

// Takes a varint off the front of `rest`.
std::optional<uint64_t> TakeVarint(Bytes& rest) {
  uint64_t value = 0;
  for (int i = 0; i < kMaxVarintBytes && i < rest.size(); ++i) {
    value |= static_cast<uint64_t>(rest[i] & 0x7f) << (7 * i);
    if ((rest[i] & 0x80) == 0) {
      rest.remove_prefix(i + 1);
      return value;
    }
  }
  return std::nullopt;
}

}  // namespace

bool FieldCursor::Next(WireField& field) {
  Bytes rest = rest_;
  std::optional<uint64_t> tag = TakeVarint(rest);
  if (!tag.has_value() || *tag > UINT32_MAX || *tag >> 3 == 0) {
    return false;
  }
  field.number = static_cast<uint32_t>(*tag >> 3);
  field.type = static_cast<WireType>(*tag & 7);
  uint64_t size = 0;
  switch (field.type) {
    case WireType::kVarint: {
      Bytes after = rest;
      if (!TakeVarint(after).has_value()) {
        return false;
      }
      size = rest.size() - after.size();
      break;
    }
    case WireType::kFixed64:
      size = 8;
      break;
    case WireType::kFixed32:
      size = 4;
      break;
    case WireType::kLength: {
      std::optional<uint64_t> length = TakeVarint(rest);
      if (!length.has_value()) {
        return false;
      }
      size = *length;
      break;
    }
    default:
      return false;
  }
  if (size > rest.size()) {
    return false;
  }
  field.content = rest.subspan(0, size);
  rest.remove_prefix(size);
  field.whole = rest_.subspan(0, rest_.size() - rest.size());
  rest_ = rest;
  return true;
}

void AppendVarint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) {
    out.push_back(static_cast<char>(value | 0x80));
  }
  out.push_back(static_cast<char>(value));
}

void AppendTag(std::string& out, uint32_t number, WireType type) { AppendVarint(out, number << 3 | static_cast<uint32_t>(type)); }

size_t PositionOf(absl::string_view message, uint32_t number) {
  FieldCursor cursor(AsBytes(message));
  WireField field;
  size_t position = 0;
  // Numbers go down only where the fields unknown to the schema start: these come last.
  for (uint32_t last = 0; !cursor.done() && cursor.Next(field) && field.number < number && field.number >= last;) {
    last = field.number;
    position += field.whole.size();
  }
  return position;
}

absl::Status VarintReader::Next(uint64_t& value) {
  constexpr size_t kBufferBytes = 1 << 16;
  if (end_ - begin_ < kMaxVarintBytes && next_ < payload_.size()) {
    std::vector<uint8_t> unread(buffer_.begin() + begin_, buffer_.begin() + end_);
    size_t more = static_cast<size_t>(std::min<uint64_t>(kBufferBytes, payload_.size() - next_));
    buffer_.resize(unread.size() + more);
    std::copy(unread.begin(), unread.end(), buffer_.begin());
    MP_RETURN_IF_ERROR(payload_.Read(next_, absl::MakeSpan(buffer_).subspan(unread.size())));
    next_ += more;
    begin_ = 0;
    end_ = buffer_.size();
  }
  Bytes rest = Bytes(buffer_).subspan(begin_, end_ - begin_);
  std::optional<uint64_t> taken = TakeVarint(rest);
  if (!taken.has_value()) {
    return MakeError(v1::TENSOR_INVALID, "the packed integers end in the middle of a number; write the model again");
  }
  value = *taken;
  begin_ = end_ - rest.size();
  return absl::OkStatus();
}

}  // namespace modelpress::engine
