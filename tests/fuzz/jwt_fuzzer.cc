// A JWT in a call: the input as the token, as the header and as the claims of one that bears somebody else's signature, and as
// claims that were signed.
#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/auth/credentials_file.h"
#include "server/auth/jwt.h"
#include "server/rpc/names.h"
#include "tests/fuzz/fuzzing.h"
#include "tests/fuzz/jwt_keys.h"

namespace modelpress::server {
namespace {

// Whatever else is changed of a token, only what was signed is believed.
void Verify(const KeySet& keys, const std::string& token) {
  const absl::StatusOr<std::string> claims = keys.Verify(token);
  RequireClear(claims.status());
  if (claims.ok()) {
    Require(*claims == kClaims, "the claims are those that were signed");
    Require(
        std::ranges::any_of(
            kJwtParts, [&](const auto& parts) { return absl::StartsWith(token, absl::StrCat(parts[0], ".", parts[1], ".")); }),
        "the header is one that was signed");
  }
}

void Check(const std::string& claims) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  const ClaimRules rules = {
      .issuer = "https://issuer", .audience = "modelpress", .project_claim = "project", .role_claim = "role"};
  const absl::StatusOr<VerifiedClaims> verified = CheckClaims(claims, rules, now);
  RequireClear(verified.status());
  if (verified.ok()) {
    Require(IsPrincipalName(verified->principal.name), "a principal that logs can hold");
    Require(CheckProject(verified->principal.project, "").ok(), "a project that can be named");
    Require(verified->expires > now - absl::Minutes(1), "claims that are valid now");
  }
}

void Run(const std::string& input) {
  static const auto& set = *new std::shared_ptr<const KeySet>(KeySet::Parse(kJwks, "jwks.json").value());
  const KeySet& keys = *set;
  Verify(keys, input);
  const std::string encoded = absl::WebSafeBase64Escape(input);
  for (const auto& parts : kJwtParts) {
    Verify(keys, absl::StrCat(encoded, ".", parts[1], ".", parts[2]));
    Verify(keys, absl::StrCat(parts[0], ".", encoded, ".", parts[2]));
    Verify(keys, absl::StrCat(parts[0], ".", parts[1], ".", encoded));
  }
  Check(input);
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(std::string(modelpress::AsText(data, size)));
  return 0;
}
