// Framing of run_protocol.proto: every message with its length in front as a varint.
#ifndef MODELPRESS_SERVER_WORKER_RUN_PROTOCOL_H_
#define MODELPRESS_SERVER_WORKER_RUN_PROTOCOL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace modelpress::server {

// Exit codes of `modelpressd run` that say more than a signal.
inline constexpr int kExitOutOfMemory = 71;  // an allocation failed: the memory limit

std::string Frame(const google::protobuf::MessageLite& message);

// DATA_LOSS if `bytes`, a message of `type`, have more fields than any engine says, those of messages in it included (what an Any
// holds is not looked at), or are malformed. To be asked before they are parsed: an empty message takes two bytes of a frame, and
// some 70 of memory.
absl::Status CheckFieldCount(absl::string_view bytes, const google::protobuf::Descriptor& type);

// Takes messages out of a stream of bytes that comes in pieces.
class FrameReader {
 public:
  void Append(absl::string_view bytes) { buffer_.append(bytes.data(), bytes.size()); }
  // True: `message` holds the next one. False: more bytes are needed. DATA_LOSS if the bytes are no message, one of over 20
  // MiB, or one with more fields than CheckFieldCount takes.
  absl::StatusOr<bool> Next(google::protobuf::Message& message);

 private:
  std::string buffer_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_RUN_PROTOCOL_H_
