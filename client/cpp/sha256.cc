#include "client/cpp/sha256.h"

#include <array>
#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace modelpress::client {
namespace {

// OpenSSL's digest functions fail only without memory or without a SHA-256 provider; neither can be survived.
void Must(int result) {
  if (result != 1) {
    std::abort();
  }
}

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { Must(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr)); }

void Sha256::Update(absl::string_view bytes) { Must(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size())); }

std::string Sha256::Finish() {
  std::array<char, 32> digest{};
  Must(EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr));
  return absl::BytesToHexString({digest.data(), digest.size()});
}

}  // namespace modelpress::client
