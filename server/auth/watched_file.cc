#include "server/auth/watched_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/base/posix.h"

namespace modelpress::server {
namespace {

// Far more than anybody's callers need, and little memory.
constexpr size_t kMaxFile = 16 << 20;

// Time stamps of files are coarse: a file that was written to less than this ago may be written to again without its stamp
// changing.
constexpr absl::Duration kSettles = absl::Seconds(2);

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  MP_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(path, O_RDONLY | O_NONBLOCK));
  std::string text;
  while (true) {
    char buffer[16 << 10];
    const ssize_t size = read(fd.get(), buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) {
      continue;
    }
    if (size < 0) {
      return ErrnoError(errno, "read", path);
    }
    if (size == 0) {
      return text;
    }
    text.append(buffer, static_cast<size_t>(size));
    if (text.size() > kMaxFile) {
      return MakeError(v1::REQUEST_INVALID, absl::StrCat("the file is larger than ", kMaxFile, " bytes"), {.file = path});
    }
  }
}

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
  absl::StatusOr<std::string> text = ReadAll(path_);
  if (text == text_) {
    return false;
  }
  text_ = std::move(text);
  return true;
}

}  // namespace modelpress::server
