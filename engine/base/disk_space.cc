#include "engine/base/disk_space.h"

#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <limits>

namespace modelpress::engine {

uint64_t SpareSpace(const std::string& folder) {
  struct statvfs info{};
  struct rlimit limit{};
  if (statvfs(folder.c_str(), &info) != 0 || getrlimit(RLIMIT_FSIZE, &limit) != 0) {
    return 0;
  }
  // Beyond the limit of one file the kernel would end the process.
  return std::min<uint64_t>(uint64_t{info.f_bavail} * info.f_frsize / 2,
                            limit.rlim_cur == RLIM_INFINITY ? std::numeric_limits<uint64_t>::max() : limit.rlim_cur);
}

}  // namespace modelpress::engine
