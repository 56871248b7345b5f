// SHA-256 of byte streams, as lower-case hex.
#ifndef MODELPRESS_CLIENT_CPP_SHA256_H_
#define MODELPRESS_CLIENT_CPP_SHA256_H_

#include <openssl/evp.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace modelpress::client {

class Sha256 {
 public:
  Sha256();
  void Update(absl::string_view bytes);
  // 64 hex digits. The object takes no more bytes afterwards.
  std::string Finish();

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_SHA256_H_
