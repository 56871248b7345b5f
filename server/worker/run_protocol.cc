#include "server/worker/run_protocol.h"

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"
#include "google/protobuf/wire_format_lite.h"

namespace modelpress::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// What LimitEvent leaves: a response of 3 MiB; outputs, whose names the response has as well, with 80 bytes more for each; 4 MiB
// of warnings; an error.
constexpr uint32_t kMaxMessage = 20 << 20;
// 100,000 outputs have four each.
constexpr int kMaxFields = 500'000;
constexpr size_t kMaxLengthBytes = 5;  // of a varint of 32 bits

// Takes one from `left` for every field. False: there are more, or the bytes are malformed.
bool CountFields(CodedInputStream& input, const Descriptor& type, int& left) {
  while (const uint32_t tag = input.ReadTag()) {
    const WireFormatLite::WireType wire_type = WireFormatLite::GetTagWireType(tag);
    // Groups, which could hold further fields, do not exist in proto3.
    if (--left < 0 || wire_type == WireFormatLite::WIRETYPE_START_GROUP) {
      return false;
    }
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    if (field == nullptr || field->message_type() == nullptr || wire_type != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&input, tag)) {
        return false;
      }
      continue;
    }
    int size = 0;
    if (!input.ReadVarintSizeAsInt(&size)) {
      return false;
    }
    const auto [limit, depth] = input.IncrementRecursionDepthAndPushLimit(size);
    if (depth < 0 || !CountFields(input, *field->message_type(), left) || !input.DecrementRecursionDepthAndPopLimit(limit)) {
      return false;
    }
  }
  return input.ConsumedEntireMessage();
}

}  // namespace

std::string Frame(const google::protobuf::MessageLite& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::util::SerializeDelimitedToZeroCopyStream(message, &stream);
  return bytes;
}

absl::Status CheckFieldCount(absl::string_view bytes, const Descriptor& type) {
  CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size()));
  int left = kMaxFields;
  return CountFields(input, type, left) ? absl::OkStatus()
                                        : absl::DataLossError("a message is malformed or has far too many fields");
}

absl::StatusOr<bool> FrameReader::Next(google::protobuf::Message& message) {
  // No more than these are looked at: libprotobuf takes longer varints for 32 bits too, and leaves out the rest of their bits.
  const size_t length_bytes = std::min(buffer_.size(), kMaxLengthBytes);
  CodedInputStream input(reinterpret_cast<const uint8_t*>(buffer_.data()), static_cast<int>(length_bytes));
  uint64_t size = 0;
  if (!input.ReadVarint64(&size)) {
    return length_bytes < kMaxLengthBytes ? absl::StatusOr<bool>(false) : absl::DataLossError("a message's length is malformed");
  }
  if (size > kMaxMessage) {
    return absl::DataLossError("a message is over 20 MiB long");
  }
  const auto begin = static_cast<size_t>(input.CurrentPosition());
  if (buffer_.size() - begin < size) {
    return false;
  }
  const absl::string_view bytes = absl::string_view(buffer_).substr(begin, size);
  if (absl::Status count = CheckFieldCount(bytes, *message.GetDescriptor()); !count.ok()) {
    return count;
  }
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::DataLossError("a message is malformed");
  }
  buffer_.erase(0, begin + size);
  return true;
}

}  // namespace modelpress::server
