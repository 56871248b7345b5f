#include "server/base/ids.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace modelpress::server {
namespace {

constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuv";

void AppendDigits(std::string& id, uint64_t value, int digits) {
  for (int shift = 5 * (digits - 1); shift >= 0; shift -= 5) {
    id += kDigits[(value >> shift) & 31];
  }
}

}  // namespace

std::string RandomIdGenerator::NewId() {
  std::array<uint64_t, 2> random;
  // Requests of up to 256 bytes are never cut short or interrupted once the kernel's pool is ready; until then the call may be
  // interrupted. Without a source of randomness ids could repeat, and nothing is safe any more.
  while (getrandom(random.data(), sizeof(random), 0) != static_cast<ssize_t>(sizeof(random))) {
    if (errno != EINTR) {
      std::perror("getrandom");
      std::abort();
    }
  }
  std::string id(1, prefix_);
  AppendDigits(id, static_cast<uint64_t>(absl::ToUnixMillis(clock_.Now())), 10);
  AppendDigits(id, random[0], 8);
  AppendDigits(id, random[1], 8);
  return id;
}

}  // namespace modelpress::server
