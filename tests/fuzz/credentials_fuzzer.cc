// The file of hashed tokens and certificate names: whoever is in it can be used as a caller.
#include <memory>
#include <optional>
#include <string>

#include "server/auth/credentials_file.h"
#include "server/rpc/names.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void RequireUsable(const Principal& principal) {
  Require(IsPrincipalName(principal.name), "a principal that logs can hold");
  Require(CheckProject(principal.project, "").ok(), "a project that can be named");
}

void Run(const std::string& text) {
  const absl::StatusOr<std::shared_ptr<const CredentialTable>> table = CredentialTable::Parse(text, "credentials");
  RequireClear(table.status());
  if (!table.ok()) {
    Require(PlaceOf(table.status()).file == "credentials", "the mistake has a place");
    return;
  }
  // The seeds have an entry for this token and for these names.
  const std::string token = "mp_" + std::string(43, 'A');
  if (const CredentialTable::TokenEntry* entry = (*table)->FindToken(token); entry != nullptr) {
    RequireUsable(entry->principal);
  }
  Require((*table)->FindToken(token + "A") == nullptr, "another token is not known");
  const absl::StatusOr<std::optional<Principal>> principal =
      (*table)->FindCertificate({.uris = {"spiffe://x/y", text}, .dns_names = {"a.example"}, .common_name = "press"});
  RequireClear(principal.status());
  if (principal.ok() && principal->has_value()) {
    RequireUsable(**principal);
  }
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(std::string(modelpress::AsText(data, size)));
  return 0;
}
