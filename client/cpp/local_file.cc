#include "client/cpp/local_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/cpp/status.h"

namespace modelpress::client {
namespace {

// The folder of an absolute or relative path.
std::string FolderOf(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == std::string::npos) {
    return ".";
  }
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

absl::StatusOr<InputFile> InputFile::Open(const std::string& path) {
  // Without O_NONBLOCK opening a named pipe would wait for its writer.
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return LocalIoError("cannot open the file", path, errno);
  }
  InputFile file(path, fd, 0);
  struct stat info{};
  if (fstat(fd, &info) != 0) {
    return LocalIoError("cannot read the file's size", path, errno);
  }
  if (!S_ISREG(info.st_mode)) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::NAME_INVALID, "is not a regular file; give the path of a file",
                      path);
  }
  file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

InputFile::~InputFile() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

absl::Status InputFile::ReadAt(uint64_t offset, uint64_t count, std::string& bytes) const {
  bytes.resize(count);
  uint64_t done = 0;
  while (done < count) {
    ssize_t got = pread(fd_, bytes.data() + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return LocalIoError("cannot read the file", path_, errno);
    }
    if (got == 0) {
      return LocalError(absl::StatusCode::kFailedPrecondition, v1::FILE_CHANGED,
                        "became shorter while it was read; call again when nothing writes to it", path_);
    }
    done += static_cast<uint64_t>(got);
  }
  return absl::OkStatus();
}

absl::StatusOr<MappedFile> MappedFile::Map(const std::string& path) {
  MPC_ASSIGN_OR_RETURN(InputFile file, InputFile::Open(path));
  if (file.size() == 0) {
    return MappedFile({});
  }
  void* address = mmap(nullptr, file.size(), PROT_READ, MAP_PRIVATE, file.fd(), 0);
  if (address == MAP_FAILED) {
    return LocalIoError("cannot map the file", path, errno);
  }
  return MappedFile({static_cast<const char*>(address), file.size()});
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) {
    munmap(const_cast<char*>(bytes_.data()), bytes_.size());
  }
}

absl::StatusOr<StagedFile> StagedFile::Create(const std::string& final_path) {
  // A short name of its own: one derived from the final name could exceed the limit of 255 bytes.
  std::string temporary_path = absl::StrCat(FolderOf(final_path), "/.modelpress-XXXXXX");
  int fd = mkostemp(temporary_path.data(), O_CLOEXEC);
  if (fd < 0) {
    return LocalIoError("cannot create a file in the folder", FolderOf(final_path), errno);
  }
  StagedFile file(final_path, std::move(temporary_path), fd);
  if (fchmod(fd, 0640) != 0) {
    return LocalIoError("cannot set the file's mode", final_path, errno);
  }
  return file;
}

StagedFile::~StagedFile() {
  if (fd_ >= 0) {
    close(fd_);
  }
  if (!temporary_path_.empty()) {
    unlink(temporary_path_.c_str());
  }
}

absl::Status StagedFile::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written < 0) {
      return LocalIoError("cannot write the file", final_path_, errno);
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status StagedFile::Finish() {
  if (fsync(fd_) != 0) {
    return LocalIoError("cannot write the file", final_path_, errno);
  }
  if (close(std::exchange(fd_, -1)) != 0) {
    return LocalIoError("cannot write the file", final_path_, errno);
  }
  return absl::OkStatus();
}

absl::Status StagedFile::Commit() {
  if (rename(temporary_path_.c_str(), final_path_.c_str()) != 0) {
    return LocalIoError("cannot put the file in place", final_path_, errno);
  }
  temporary_path_.clear();
  return absl::OkStatus();
}

absl::Status MakeFolders(const std::string& folder) {
  for (size_t slash = folder.find('/', 1);; slash = folder.find('/', slash + 1)) {
    std::string upper = folder.substr(0, slash);
    bool last = slash == std::string::npos;
    if (!upper.empty() && mkdir(upper.c_str(), last ? 0750 : 0777) != 0 && errno != EEXIST) {
      return LocalIoError("cannot create the folder", upper, errno);
    }
    if (last) {
      return absl::OkStatus();
    }
  }
}

absl::Status CheckFolderUsable(const std::string& folder) {
  std::string existing = folder;
  struct stat info{};
  while (stat(existing.c_str(), &info) != 0 && errno == ENOENT && existing != "/" && existing != ".") {
    existing = FolderOf(existing);
  }
  if (stat(existing.c_str(), &info) != 0) {
    return LocalIoError("cannot use the folder of save_path", existing, errno);
  }
  if (!S_ISDIR(info.st_mode)) {
    return LocalIoError("cannot use the folder of save_path", existing, ENOTDIR);
  }
  if (access(existing.c_str(), W_OK | X_OK) != 0) {
    return LocalIoError("cannot write into the folder", existing, errno);
  }
  return absl::OkStatus();
}

}  // namespace modelpress::client
