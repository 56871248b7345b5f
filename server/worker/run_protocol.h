// Framing of run_protocol.proto: every message with its length in front as a varint.
#ifndef MODELPRESS_SERVER_WORKER_RUN_PROTOCOL_H_
#define MODELPRESS_SERVER_WORKER_RUN_PROTOCOL_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"

namespace modelpress::server {

// Exit codes of `modelpressd run` that say more than a signal.
inline constexpr int kExitOutOfMemory = 71;  // an allocation failed: the memory limit

std::string Frame(const google::protobuf::MessageLite& message);

// Takes messages out of a stream of bytes that comes in pieces.
class FrameReader {
 public:
  void Append(absl::string_view bytes) { buffer_.append(bytes.data(), bytes.size()); }
  // True: `message` holds the next one. False: more bytes are needed. DATA_LOSS if the bytes are no message, or one of over 32
  // MiB.
  absl::StatusOr<bool> Next(google::protobuf::MessageLite& message);

 private:
  std::string buffer_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_RUN_PROTOCOL_H_
