#include "server/worker/run_protocol.h"

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"

namespace modelpress::server {
namespace {

constexpr uint32_t kMaxMessage = 32 << 20;
constexpr size_t kMaxLengthBytes = 5;  // of a varint of 32 bits

}  // namespace

std::string Frame(const google::protobuf::MessageLite& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::util::SerializeDelimitedToZeroCopyStream(message, &stream);
  return bytes;
}

absl::StatusOr<bool> FrameReader::Next(google::protobuf::MessageLite& message) {
  // No more than these are looked at: libprotobuf takes longer varints for 32 bits too, and leaves out the rest of their bits.
  const size_t length_bytes = std::min(buffer_.size(), kMaxLengthBytes);
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(buffer_.data()), static_cast<int>(length_bytes));
  uint64_t size = 0;
  if (!input.ReadVarint64(&size)) {
    return length_bytes < kMaxLengthBytes ? absl::StatusOr<bool>(false) : absl::DataLossError("a message's length is malformed");
  }
  if (size > kMaxMessage) {
    return absl::DataLossError("a message is over 32 MiB long");
  }
  const auto begin = static_cast<size_t>(input.CurrentPosition());
  if (buffer_.size() - begin < size) {
    return false;
  }
  if (!message.ParseFromArray(buffer_.data() + begin, static_cast<int>(size))) {
    return absl::DataLossError("a message is malformed");
  }
  buffer_.erase(0, begin + size);
  return true;
}

}  // namespace modelpress::server
