// How much may be written to a folder for convenience, without taking the space from what has to be written.
#ifndef MODELPRESS_ENGINE_BASE_DISK_SPACE_H_
#define MODELPRESS_ENGINE_BASE_DISK_SPACE_H_

#include <cstdint>
#include <string>

namespace modelpress::engine {

// Bytes that a file in `folder` may take that could be done without: half of what is free, and what the process may write to one
// file. 0 where there is no such folder.
uint64_t SpareSpace(const std::string& folder);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_BASE_DISK_SPACE_H_
