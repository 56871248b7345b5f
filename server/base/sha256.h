#ifndef MODELPRESS_SERVER_BASE_SHA256_H_
#define MODELPRESS_SERVER_BASE_SHA256_H_

#include <openssl/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"

namespace modelpress::server {

// SHA-256 of bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  void Update(const void* data, size_t size);
  // Lower-case hex of all bytes so far; nothing may be added afterwards.
  std::string HexDigest();

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const;
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

// Adds the bytes of the file open as `fd`, from its start to its end, to `hash`; returns their number. `path` is for errors.
// CANCELLED once a stop is requested.
absl::StatusOr<uint64_t> HashFile(int fd, const std::string& path, Sha256& hash, const std::stop_token& stop = {});

// Lower-case hex of the SHA-256 of `bytes`.
std::string Sha256Hex(const std::string& bytes);

// True for 64 lower-case hex digits.
bool IsSha256Hex(const std::string& text);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_SHA256_H_
