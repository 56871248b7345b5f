// SHA-256 of bytes that come in pieces.
#ifndef MODELPRESS_ENGINE_BASE_SHA256_H_
#define MODELPRESS_ENGINE_BASE_SHA256_H_

#include <openssl/evp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/types/span.h"

namespace modelpress::engine {

class Sha256 {
 public:
  Sha256();
  void Update(absl::Span<const uint8_t> bytes);
  // Lower-case hex. Nothing may follow.
  std::string Finish();

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_BASE_SHA256_H_
