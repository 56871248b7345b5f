#include "server/worker/run_protocol.h"

#include "absl/status/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"

namespace modelpress::server {
namespace {

constexpr uint32_t kMaxMessage = 32 << 20;
constexpr size_t kMaxVarint32 = 5;

}  // namespace

std::string Frame(const google::protobuf::MessageLite& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::util::SerializeDelimitedToZeroCopyStream(message, &stream);
  return bytes;
}

absl::StatusOr<bool> FrameReader::Next(google::protobuf::MessageLite& message) {
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(buffer_.data()),
                                               static_cast<int>(buffer_.size()));
  uint32_t size = 0;
  if (!input.ReadVarint32(&size)) {
    return buffer_.size() < kMaxVarint32 ? absl::StatusOr<bool>(false) : absl::DataLossError("a message's length is malformed");
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
