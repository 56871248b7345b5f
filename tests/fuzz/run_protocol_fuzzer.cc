// What a child process writes to its worker: frames, whole or in pieces, give the same messages.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "server/worker/run_protocol.h"
#include "server/worker/run_protocol.pb.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

// The messages, serialized, and how the stream ended.
std::vector<std::string> Messages(absl::string_view bytes, size_t piece) {
  FrameReader reader;
  std::vector<std::string> messages;
  for (size_t i = 0; i < bytes.size(); i += piece) {
    reader.Append(bytes.substr(i, piece));
    for (;;) {
      RunEvent event;
      const absl::StatusOr<bool> next = reader.Next(event);
      if (!next.ok()) {
        messages.emplace_back("malformed");
        return messages;
      }
      if (!*next) {
        break;
      }
      std::string message;
      event.SerializeToString(&message);
      messages.push_back(std::move(message));
    }
  }
  return messages;
}

void Run(absl::string_view bytes) {
  const std::vector<std::string> whole = Messages(bytes, std::max<size_t>(bytes.size(), 1));
  Require(Messages(bytes, 7) == whole, "pieces of a stream give the same messages as the whole");
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
