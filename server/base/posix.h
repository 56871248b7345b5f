// What the stores need of POSIX files, with errors as statuses.
#ifndef MODELPRESS_SERVER_BASE_POSIX_H_
#define MODELPRESS_SERVER_BASE_POSIX_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace modelpress::server {

// Owns a file descriptor. Locks taken on it with flock(2) end with it.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// STORAGE_FULL where `error` (an errno) says that space or quota ran out, else STORAGE_ERROR: "ACTION PATH: REASON".
absl::Status ErrnoError(int error, const std::string& action, const std::string& path);

// open(2) with O_CLOEXEC added, never interrupted.
absl::StatusOr<UniqueFd> OpenFile(const std::string& path, int flags, unsigned mode = 0);

// Opens the folder `name` ("a/b", "" for `folder` itself) below the folder open as `folder`, as O_PATH: neither "..", an absolute
// path nor a symbolic link leads out of it or anywhere else. STORAGE_ERROR. `shown` is the path in errors.
absl::StatusOr<UniqueFd> OpenFolderBeneath(const UniqueFd& folder, const std::string& name, const std::string& shown);

// pread(2) until `out` is full or the file ends; returns the number of bytes.
absl::StatusOr<size_t> ReadFully(int fd, const std::string& path, uint64_t offset, absl::Span<char> out);

// All of a file that is small. REQUEST_INVALID if it is larger than `max_size`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_size);

// Raises this process's limit of open descriptors as far as it may; returns it.
uint64_t RaiseDescriptorLimit();

// Waits until the exclusive flock(2) of the file at `path`, which is made if missing, is held.
absl::StatusOr<UniqueFd> LockFile(const std::string& path);
// The same without waiting; nullopt: somebody else holds it.
absl::StatusOr<std::optional<UniqueFd>> TryLockFile(const std::string& path);

// Of the file system that `path` is on.
struct DiskSpace {
  uint64_t size_bytes = 0;
  uint64_t free_bytes = 0;  // to us: without what is reserved for root
};
absl::StatusOr<DiskSpace> DiskSpaceOf(const std::string& path);

// Makes the names in `folder` durable.
absl::Status SyncFolder(const std::string& folder);

// Makes `folder` (mode 0750 less umask) unless it exists. Not durable until its parent is synced.
absl::Status MakeFolder(const std::string& folder);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_POSIX_H_
