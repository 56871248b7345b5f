#include "engine/model/file_set.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

absl::Status StorageError(const std::string& name, absl::string_view what, int error) {
  return MakeError(v1::STORAGE_ERROR, absl::StrCat(what, ": ", std::generic_category().message(error)), {.file = name});
}

}  // namespace

InputFile::InputFile(std::string name, int fd, const uint8_t* data, uint64_t size)
    : name_(std::move(name)), fd_(fd), data_(data), size_(size) {}

InputFile::~InputFile() {
  if (data_ != nullptr) {
    munmap(const_cast<uint8_t*>(data_), size_);
  }
  if (fd_ >= 0) {
    close(fd_);
  }
}

absl::StatusOr<std::shared_ptr<const InputFile>> InputFile::Open(const std::string& name, const std::string& path,
                                                                 bool keep_descriptor) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) {
    return StorageError(name, "cannot open the stored file", errno);
  }
  // Owns fd from here on.
  std::shared_ptr<InputFile> file(new InputFile(name, fd, nullptr, 0));
  struct stat info{};
  if (fstat(fd, &info) != 0) {
    return StorageError(name, "cannot read the stored file", errno);
  }
  if (!S_ISREG(info.st_mode)) {
    return MakeError(v1::STORAGE_ERROR, "the stored file is no regular file", {.file = name});
  }
  if (info.st_size > 0) {
    void* data = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      return StorageError(name, "cannot map the stored file", errno);
    }
    // Parsing jumps from one tensor's header to the next: reading ahead would pull in the data between.
    madvise(data, info.st_size, MADV_RANDOM);
    file->data_ = static_cast<const uint8_t*>(data);
    file->size_ = info.st_size;
  }
  if (!keep_descriptor) {
    close(std::exchange(file->fd_, -1));
  }
  return file;
}

absl::Status InputFile::ReadAt(uint64_t offset, absl::Span<uint8_t> out) const {
  if (fd_ < 0) {
    if (offset > size_ || size_ - offset < out.size()) {
      return MakeError(v1::STORAGE_ERROR, "the stored file is shorter than what is to be read of it", {.file = name_});
    }
    std::copy_n(data_ + offset, out.size(), out.begin());
    return absl::OkStatus();
  }
  while (!out.empty()) {
    ssize_t count = pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return StorageError(name_, "cannot read the stored file", errno);
    }
    if (count == 0) {
      return MakeError(v1::STORAGE_ERROR, "the stored file has become shorter while it was read", {.file = name_});
    }
    offset += count;
    out.remove_prefix(count);
  }
  return absl::OkStatus();
}

absl::Status FileSet::OpenAll(size_t max_descriptors) {
  for (const auto& [name, path] : paths_) {
    MP_ASSIGN_OR_RETURN(opened_[name], InputFile::Open(name, path, /*keep_descriptor=*/opened_.size() < max_descriptors));
  }
  return absl::OkStatus();
}

bool FileSet::Contains(absl::string_view name) const { return paths_.contains(std::string(name)); }

absl::StatusOr<std::shared_ptr<const InputFile>> FileSet::Open(absl::string_view name) const {
  auto it = paths_.find(std::string(name));
  if (it == paths_.end()) {
    return WithMetadata(MakeError(v1::FILE_NOT_FOUND, "there is no such file; upload it first", {.file = std::string(name)}),
                        "missing", name);
  }
  if (auto opened = opened_.find(it->first); opened != opened_.end()) {
    return opened->second;
  }
  return InputFile::Open(it->first, it->second);
}

std::vector<std::string> FileSet::ListBelow(absl::string_view folder) const {
  const std::string prefix = absl::StrCat(folder, "/");
  std::vector<std::string> names;
  for (auto it = paths_.lower_bound(prefix); it != paths_.end() && it->first.compare(0, prefix.size(), prefix) == 0; ++it) {
    names.push_back(it->first.substr(prefix.size()));
  }
  return names;
}

}  // namespace modelpress::engine
