#include "server/base/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace modelpress::server {

std::array<uint64_t, 2> RandomBits() {
  std::array<uint64_t, 2> random;
  // Requests of up to 256 bytes are never cut short or interrupted once the kernel's pool is ready; until then the call may be
  // interrupted. Without a source of randomness ids could repeat, and nothing is safe any more.
  while (getrandom(random.data(), sizeof(random), 0) != static_cast<ssize_t>(sizeof(random))) {
    if (errno != EINTR) {
      std::perror("getrandom");
      std::abort();
    }
  }
  return random;
}

}  // namespace modelpress::server
