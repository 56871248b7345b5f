#include "server/base/sha256.h"

#include <fcntl.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

constexpr size_t kPiece = size_t{1} << 20;

// OpenSSL's digest calls fail only without memory or without its default provider: nothing could go on then.
void Require(bool success) {
  if (!success) {
    std::fputs("OpenSSL has no SHA-256\n", stderr);
    std::abort();
  }
}

}  // namespace

void Sha256::Free::operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  Require(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
}

void Sha256::Update(const void* data, size_t size) { Require(EVP_DigestUpdate(context_.get(), data, size) == 1); }

std::string Sha256::HexDigest() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  Require(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest.data()), size));
}

absl::StatusOr<uint64_t> HashFile(int fd, const std::string& path, Sha256& hash, const std::stop_token& stop) {
  posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  std::vector<char> buffer(kPiece);
  uint64_t size = 0;
  while (true) {
    if (stop.stop_requested()) {
      return absl::CancelledError(absl::StrCat("hashing ", path, " was stopped"));
    }
    MP_ASSIGN_OR_RETURN(size_t count, ReadFully(fd, path, size, absl::MakeSpan(buffer)));
    hash.Update(buffer.data(), count);
    size += count;
    if (count < buffer.size()) {
      return size;
    }
  }
}

std::string Sha256Hex(const std::string& bytes) {
  Sha256 hash;
  hash.Update(bytes.data(), bytes.size());
  return hash.HexDigest();
}

bool IsSha256Hex(const std::string& text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace modelpress::server
