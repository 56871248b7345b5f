// A JSON Web Key Set; whatever keys it has, a token that none of them signed is refused.
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/auth/jwt.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(const std::string& text) {
  const absl::StatusOr<std::shared_ptr<const KeySet>> keys = KeySet::Parse(text, "jwks.json");
  RequireClear(keys.status());
  if (!keys.ok()) {
    Require(PlaceOf(keys.status()).file == "jwks.json", "the mistake has a place");
    return;
  }
  // The seeds' keys are called so. An integer of 256 bytes is a signature by its form.
  for (const char* header : {R"({"alg":"RS256","kid":"rsa"})", R"({"alg":"PS512","kid":"rsa"})", R"({"alg":"ES256","kid":"ec"})",
                             R"({"alg":"none","kid":"ec"})", R"({"alg":"HS256","kid":"rsa"})"}) {
    for (const size_t bytes : {1, 64, 256}) {
      const absl::StatusOr<std::string> claims =
          (*keys)->Verify(absl::StrCat(absl::WebSafeBase64Escape(header), ".", absl::WebSafeBase64Escape("{}"), ".",
                                       absl::WebSafeBase64Escape(std::string(bytes, '\1'))));
      Require(!claims.ok(), "nobody signed it");
      RequireClear(claims.status());
    }
  }
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(std::string(modelpress::AsText(data, size)));
  return 0;
}
