#include "engine/base/sha256.h"

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace modelpress::engine {

Sha256::Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }

void Sha256::Update(absl::Span<const uint8_t> bytes) { EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()); }

std::string Sha256::Finish() {
  std::string digest(EVP_MAX_MD_SIZE, '\0');
  unsigned size = 0;
  EVP_DigestFinal_ex(context_.get(), reinterpret_cast<uint8_t*>(digest.data()), &size);
  return absl::BytesToHexString(absl::string_view(digest).substr(0, size));
}

}  // namespace modelpress::engine
