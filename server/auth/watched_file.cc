#include "server/auth/watched_file.h"

#include <sys/stat.h>

#include "server/base/posix.h"

namespace modelpress::server {
namespace {

// Far more than anybody's callers need, and little memory.
constexpr size_t kMaxFile = 16 << 20;

// Time stamps of files are coarse: a file that was written to less than this ago may be written to again without its stamp
// changing.
constexpr absl::Duration kSettles = absl::Seconds(2);

}  // namespace

bool FileWatch::Changed() {
  Stamp stamp;
  struct stat status = {};
  if (stat(path_.c_str(), &status) == 0) {
    stamp = {.modified = absl::TimeFromTimespec(status.st_mtim), .inode = status.st_ino, .size = status.st_size};
  }
  if (stamp == stamp_ && settled_) {
    return false;
  }
  settled_ = clock_.Now() - stamp.modified > kSettles;
  stamp_ = stamp;
  absl::StatusOr<std::string> text = ReadSmallFile(path_, kMaxFile);
  if (text == text_) {
    return false;
  }
  text_ = std::move(text);
  return true;
}

}  // namespace modelpress::server
