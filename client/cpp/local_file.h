// Files of this machine: reading, and writing in a way that never leaves half a file under its final name.
#ifndef MODELPRESS_CLIENT_CPP_LOCAL_FILE_H_
#define MODELPRESS_CLIENT_CPP_LOCAL_FILE_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace modelpress::client {

// An open regular file, for reading.
class InputFile {
 public:
  // FILE_NOT_FOUND, or LOCAL_IO if it cannot be read; INVALID_ARGUMENT if it is no regular file.
  static absl::StatusOr<InputFile> Open(const std::string& path);
  InputFile(InputFile&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  // Sets `bytes` to the `count` bytes at `offset`; FILE_CHANGED if the file does not hold them any more.
  absl::Status ReadAt(uint64_t offset, uint64_t count, std::string& bytes) const;
  int fd() const { return fd_; }

 private:
  InputFile(std::string path, int fd, uint64_t size) : path_(std::move(path)), fd_(fd), size_(size) {}
  std::string path_;
  int fd_;
  uint64_t size_;
};

// A mapped file; the view is empty for an empty file.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Map(const std::string& path);
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  absl::string_view bytes() const { return bytes_; }

 private:
  explicit MappedFile(absl::string_view bytes) : bytes_(bytes) {}
  absl::string_view bytes_;
};

// A file that is written under a temporary name in the folder of its final one. Gone unless committed.
class StagedFile {
 public:
  // The folder must exist.
  static absl::StatusOr<StagedFile> Create(const std::string& final_path);
  StagedFile(StagedFile&& other) noexcept
      : final_path_(std::move(other.final_path_)),
        temporary_path_(std::exchange(other.temporary_path_, {})),
        fd_(std::exchange(other.fd_, -1)) {}
  StagedFile& operator=(StagedFile&&) = delete;
  ~StagedFile();

  const std::string& final_path() const { return final_path_; }
  absl::Status Append(absl::string_view bytes);
  // Flushes to the disk and closes; the bytes are complete.
  absl::Status Finish();
  // Gives a finished file its final name, replacing what was there.
  absl::Status Commit();

 private:
  StagedFile(std::string final_path, std::string temporary_path, int fd)
      : final_path_(std::move(final_path)), temporary_path_(std::move(temporary_path)), fd_(fd) {}
  std::string final_path_;
  std::string temporary_path_;
  int fd_;
};

// Makes the folder and those above it where they are missing: the last one with mode 0750, those above 0777, both less
// the umask (save.md section 1.1). `folder` is absolute.
absl::Status MakeFolders(const std::string& folder);
// Whether files can be made in `folder`, or it in the folders above: an early answer that spares long work in vain.
absl::Status CheckFolderUsable(const std::string& folder);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_LOCAL_FILE_H_
