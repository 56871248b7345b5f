#include "server/base/ids.h"

#include <array>
#include <cstdint>

#include "server/base/random.h"

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
  const std::array<uint64_t, 2> random = RandomBits();
  std::string id(1, prefix_);
  AppendDigits(id, static_cast<uint64_t>(absl::ToUnixMillis(clock_.Now())), 10);
  AppendDigits(id, random[0], 8);
  AppendDigits(id, random[1], 8);
  return id;
}

}  // namespace modelpress::server
