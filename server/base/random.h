#ifndef MODELPRESS_SERVER_BASE_RANDOM_H_
#define MODELPRESS_SERVER_BASE_RANDOM_H_

#include <array>
#include <cstdint>

namespace modelpress::server {

// 128 bits of the kernel's randomness, fit for ids that nobody may guess. Thread-safe.
std::array<uint64_t, 2> RandomBits();

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_RANDOM_H_
