#include "server/base/posix.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::server {

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

absl::Status ErrnoError(int error, const std::string& action, const std::string& path) {
  bool full = error == ENOSPC || error == EDQUOT;
  return MakeError(full ? v1::STORAGE_FULL : v1::STORAGE_ERROR,
                   absl::StrCat("the server cannot ", action, " ", path, ": ", std::generic_category().message(error),
                                full ? "; free space there and try again" : ""));
}

absl::StatusOr<UniqueFd> OpenFile(const std::string& path, int flags, unsigned mode) {
  int fd = -1;
  do {
    fd = open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    return ErrnoError(errno, "open", path);
  }
  return UniqueFd(fd);
}

absl::StatusOr<size_t> ReadFully(int fd, const std::string& path, uint64_t offset, absl::Span<char> out) {
  size_t done = 0;
  while (done < out.size()) {
    ssize_t count = pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return ErrnoError(errno, "read", path);
    }
    if (count == 0) {
      break;
    }
    done += count;
  }
  return done;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_size) {
  // Does not wait for whoever writes into a pipe.
  MP_ASSIGN_OR_RETURN(const UniqueFd file, OpenFile(path, O_RDONLY | O_NONBLOCK));
  std::string text;
  while (true) {
    char buffer[16 << 10];
    const ssize_t size = read(file.get(), buffer, sizeof(buffer));
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
    if (text.size() > max_size) {
      return MakeError(v1::REQUEST_INVALID, absl::StrCat("the file is larger than ", max_size, " bytes"), {.file = path});
    }
  }
}

absl::StatusOr<UniqueFd> OpenFolderBeneath(const UniqueFd& folder, const std::string& name, const std::string& shown) {
  open_how how = {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  int fd = -1;
  do {  // EAGAIN: something was renamed in between
    fd = static_cast<int>(syscall(SYS_openat2, folder.get(), name.empty() ? "." : name.c_str(), &how, sizeof(how)));
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  if (fd < 0) {
    return ErrnoError(errno, "open", shown);
  }
  return UniqueFd(fd);
}

uint64_t RaiseDescriptorLimit() {
  rlimit descriptors = {};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  descriptors.rlim_cur = descriptors.rlim_max;
  setrlimit(RLIMIT_NOFILE, &descriptors);
  return descriptors.rlim_max;
}

namespace {

// flock(2), never interrupted. 0, or an errno.
int Lock(const UniqueFd& file, int operation) {
  while (flock(file.get(), operation) != 0) {
    if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

absl::StatusOr<UniqueFd> OpenLockFile(const std::string& path) { return OpenFile(path, O_RDWR | O_CREAT, 0640); }

}  // namespace

absl::StatusOr<UniqueFd> LockFile(const std::string& path) {
  MP_ASSIGN_OR_RETURN(UniqueFd file, OpenLockFile(path));
  const int error = Lock(file, LOCK_EX);
  return error == 0 ? absl::StatusOr<UniqueFd>(std::move(file)) : ErrnoError(error, "lock", path);
}

absl::StatusOr<std::optional<UniqueFd>> TryLockFile(const std::string& path) {
  MP_ASSIGN_OR_RETURN(UniqueFd file, OpenLockFile(path));
  const int error = Lock(file, LOCK_EX | LOCK_NB);
  if (error != 0 && error != EWOULDBLOCK) {
    return ErrnoError(error, "lock", path);
  }
  return error == 0 ? std::optional<UniqueFd>(std::move(file)) : std::nullopt;
}

absl::StatusOr<DiskSpace> DiskSpaceOf(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) {
    return ErrnoError(errno, "look at the file system of", path);
  }
  return DiskSpace{.size_bytes = uint64_t{info.f_blocks} * info.f_frsize, .free_bytes = uint64_t{info.f_bavail} * info.f_frsize};
}

absl::Status SyncFolder(const std::string& folder) {
  MP_ASSIGN_OR_RETURN(UniqueFd file, OpenFile(folder, O_RDONLY | O_DIRECTORY));
  if (fsync(file.get()) != 0) {
    return ErrnoError(errno, "sync", folder);
  }
  return absl::OkStatus();
}

absl::Status MakeFolder(const std::string& folder) {
  if (mkdir(folder.c_str(), 0750) != 0 && errno != EEXIST) {
    return ErrnoError(errno, "make folder", folder);
  }
  return absl::OkStatus();
}

}  // namespace modelpress::server
