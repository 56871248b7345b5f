// Page tokens: one that is accepted is one that was given.
#include <string>

#include "server/base/page_token.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(absl::string_view token) {
  const absl::StatusOr<std::string> key = DecodePageToken("operations", std::string(token));
  RequireClear(key.status());
  if (key.ok()) {
    Require(DecodePageToken("operations", EncodePageToken("operations", *key)).value() == *key, "the key comes back");
  }
  const std::string made = EncodePageToken("operations", std::string(token));
  Require(DecodePageToken("operations", made).value() == token, "a key comes back");
  Require(!DecodePageToken("workspaces", made).ok(), "a token is for one list");
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
