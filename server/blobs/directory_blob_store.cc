#include "server/blobs/directory_blob_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/base/sha256.h"

namespace modelpress::server {
namespace {

constexpr int kFanOut = 256;  // folders
// So much is written before the kernel is asked to start putting it on the disk: enough for long requests, little enough
// that hashing what comes next overlaps with it.
constexpr uint64_t kWriteBackSize = uint64_t{8} << 20;

absl::Status CheckDigest(const std::string& sha256) {
  if (!IsSha256Hex(sha256)) {
    return MakeError(v1::REQUEST_INVALID,
                     absl::StrCat("'", sha256, "' is no SHA-256; it must be 64 hexadecimal digits in lower case"),
                     {.field = "sha256"});
  }
  return absl::OkStatus();
}

// Size of the regular file at `path`; nullopt if there is none.
absl::StatusOr<std::optional<uint64_t>> FileSize(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) {
      return std::optional<uint64_t>();
    }
    return ErrnoError(errno, "look at", path);
  }
  return S_ISREG(info.st_mode) ? std::optional<uint64_t>(info.st_size) : std::nullopt;
}

// Asks the kernel to start writing a part of a file to the disk (length 0: to the end). Only a hint: errors show at fdatasync.
void StartWriteBack(int fd, uint64_t offset, uint64_t length) {
  sync_file_range(fd, static_cast<off_t>(offset), static_cast<off_t>(length), SYNC_FILE_RANGE_WRITE);
}

absl::Status SyncData(int fd, const std::string& path) {
  return fdatasync(fd) == 0 ? absl::OkStatus() : ErrnoError(errno, "sync", path);
}

// Visits the regular files in `folder` until `visit` returns false. One that goes meanwhile is left out.
absl::Status ListFiles(const std::string& folder, absl::FunctionRef<bool(const std::string&, const struct stat&)> visit) {
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(opendir(folder.c_str()), closedir);
  if (entries == nullptr) {
    return ErrnoError(errno, "read", folder);
  }
  while (true) {
    errno = 0;
    const dirent* entry = readdir(entries.get());
    if (entry == nullptr) {
      return errno == 0 ? absl::OkStatus() : ErrnoError(errno, "read", folder);
    }
    struct stat info;
    if (fstatat(dirfd(entries.get()), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode) &&
        !visit(entry->d_name, info)) {
      return absl::OkStatus();
    }
  }
}

class Reader final : public BlobReader {
 public:
  Reader(UniqueFd file, std::string path, uint64_t size) : file_(std::move(file)), path_(std::move(path)), size_(size) {}

  uint64_t size() const override { return size_; }

  absl::StatusOr<size_t> ReadAt(uint64_t offset, absl::Span<char> out) const override {
    size_t wanted = offset >= size_ ? 0 : std::min<uint64_t>(out.size(), size_ - offset);
    MP_ASSIGN_OR_RETURN(size_t count, ReadFully(file_.get(), path_, offset, out.first(wanted)));
    if (count != wanted) {
      return MakeError(v1::STORAGE_ERROR,
                       absl::StrCat("stored content ", path_, " is damaged: it was cut short while it was read"));
    }
    return count;
  }

 private:
  const UniqueFd file_;
  const std::string path_;
  const uint64_t size_;
};

}  // namespace

class DirectoryBlobStore::Writer final : public BlobWriter {
 public:
  // `size` bytes are in `file` already.
  Writer(DirectoryBlobStore& store, UniqueFd file, std::string path, BlobInfo expected, uint64_t size)
      : store_(store),
        file_(std::move(file)),
        path_(std::move(path)),
        expected_(std::move(expected)),
        size_(size),
        written_back_(size) {
    if (size == 0) {
      hash_.emplace();
    }
  }

  uint64_t committed_size() const override { return size_; }

  absl::Status Append(absl::Span<const char> data) override {
    MP_RETURN_IF_ERROR(CheckOpen());
    if (verified_.has_value()) {
      return MakeError(v1::INTERNAL_ERROR, absl::StrCat("the bytes of the upload ", path_, " were verified already"));
    }
    if (data.size() > expected_.size_bytes - size_) {
      return MakeError(v1::DIGEST_MISMATCH, absl::StrCat("more bytes were sent than the ", expected_.size_bytes,
                                                         " announced; announce the right size"));
    }
    size_t done = 0;
    while (done < data.size()) {
      ssize_t count = pwrite(file_.get(), data.data() + done, data.size() - done, static_cast<off_t>(size_ + done));
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count < 0) {
        absl::Status status = ErrnoError(errno, "write", path_);
        // The size of the file is what counts as committed.
        return ftruncate(file_.get(), static_cast<off_t>(size_)) == 0 ? status : ErrnoError(errno, "cut", path_);
      }
      done += count;
    }
    size_ += data.size();
    if (size_ - written_back_ >= kWriteBackSize) {
      StartWriteBack(file_.get(), written_back_, size_ - written_back_);
      written_back_ = size_;
    }
    if (hash_.has_value()) {
      hash_->Update(data.data(), data.size());
    }
    return absl::OkStatus();
  }

  absl::Status Verify() override {
    if (!verified_.has_value()) {
      verified_ = Compare();
    }
    return *verified_;
  }

  absl::Status Finish() override {
    MP_RETURN_IF_ERROR(CheckOpen());
    finished_ = true;
    absl::Status status = Verify();
    if (status.ok()) {
      // After an error here nobody knows which bytes reached the disk: the upload begins anew then.
      status = SyncData(file_.get(), path_);
    }
    {
      MP_ASSIGN_OR_RETURN(UniqueFd lock, store_.LockNames());
      MP_RETURN_IF_ERROR(CheckName());
      // Replacing the content repairs what a disk may have damaged, but would take it from adopted files that are links to it.
      if (status.ok() && !store_.IsLinked(expected_.sha256)) {
        status = store_.Replace(file_, path_, expected_);
      }
      if (status.ok()) {
        status = store_.Touch(expected_.sha256);  // the last byte may have come long ago
      }
      if (!status.ok()) {
        unlink(path_.c_str());
      }
      MP_RETURN_IF_ERROR(status);
    }
    return SyncFolder(store_.FanOutFolder(expected_.sha256));
  }

 private:
  absl::Status CheckOpen() const {
    return finished_ ? MakeError(v1::INTERNAL_ERROR, absl::StrCat("the upload ", path_, " has ended already")) : absl::OkStatus();
  }

  absl::Status Compare() {
    if (size_ != expected_.size_bytes) {
      return MakeError(v1::DIGEST_MISMATCH,
                       absl::StrCat(size_, " bytes were sent, ", expected_.size_bytes, " were announced; send it again"));
    }
    if (!hash_.has_value()) {
      hash_.emplace();
      MP_RETURN_IF_ERROR(HashFile(file_.get(), path_, *hash_).status());
    }
    if (std::string digest = hash_->HexDigest(); digest != expected_.sha256) {
      return MakeError(v1::DIGEST_MISMATCH, absl::StrCat("the bytes sent have SHA-256 ", digest, ", announced was ",
                                                         expected_.sha256, "; send it again"));
    }
    return absl::OkStatus();
  }

  // UPLOAD_NOT_FOUND if the upload was discarded since, so that its name is gone or is another's.
  absl::Status CheckName() const {
    struct stat mine;
    struct stat named;
    if (fstat(file_.get(), &mine) != 0) {
      return ErrnoError(errno, "look at", path_);
    }
    if (stat(path_.c_str(), &named) != 0 || named.st_ino != mine.st_ino) {
      return MakeError(v1::UPLOAD_NOT_FOUND, "the upload was given up while its bytes came in; start it again");
    }
    return absl::OkStatus();
  }

  DirectoryBlobStore& store_;
  UniqueFd file_;
  const std::string path_;
  const BlobInfo expected_;
  uint64_t size_;
  uint64_t written_back_;  // how far StartWriteBack came
  // As bytes come. None where some came through another writer: then all are hashed at the end, once for an upload. At the
  // beginning it would be once for every stream, and whoever opens streams again and again would keep everybody waiting.
  std::optional<Sha256> hash_;
  std::optional<absl::Status> verified_;
  bool finished_ = false;
};

absl::StatusOr<std::unique_ptr<DirectoryBlobStore>> DirectoryBlobStore::OpenFolder(const std::string& folder) {
  for (const char* name : {"/blobs", "/uploads"}) {
    MP_RETURN_IF_ERROR(MakeFolder(folder + name));
  }
  // All of them now, so that no blob has to care whether the name of its folder is durable.
  for (int i = 0; i < kFanOut; ++i) {
    MP_RETURN_IF_ERROR(MakeFolder(absl::StrFormat("%s/blobs/%02x", folder, i)));
  }
  MP_RETURN_IF_ERROR(SyncFolder(folder + "/blobs"));
  MP_RETURN_IF_ERROR(SyncFolder(folder));
  return std::unique_ptr<DirectoryBlobStore>(new DirectoryBlobStore(folder));
}

std::string DirectoryBlobStore::FanOutFolder(const std::string& sha256) const {
  return absl::StrCat(folder_, "/blobs/", absl::ClippedSubstr(sha256, 0, 2));
}

std::string DirectoryBlobStore::Path(const std::string& sha256) const {
  return absl::StrCat(FanOutFolder(sha256), "/", absl::ClippedSubstr(sha256, 2));
}

absl::StatusOr<std::string> DirectoryBlobStore::UploadPath(const std::string& upload_id) const {
  auto legal = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  if (upload_id.empty() || upload_id.size() > 63 || !std::all_of(upload_id.begin(), upload_id.end(), legal)) {
    return MakeError(v1::NAME_INVALID,
                     absl::StrCat("'", upload_id, "' is no upload id; take the name that StartUpload returned"));
  }
  return absl::StrCat(folder_, "/uploads/", upload_id);
}

absl::StatusOr<bool> DirectoryBlobStore::Contains(const BlobInfo& blob) {
  MP_RETURN_IF_ERROR(CheckDigest(blob.sha256));
  MP_ASSIGN_OR_RETURN(std::optional<uint64_t> size, FileSize(Path(blob.sha256)));
  return size == blob.size_bytes;
}

absl::StatusOr<std::unique_ptr<BlobReader>> DirectoryBlobStore::Open(const std::string& sha256) {
  MP_RETURN_IF_ERROR(CheckDigest(sha256));
  std::string path = Path(sha256);
  MP_ASSIGN_OR_RETURN(UniqueFd file, OpenFile(path, O_RDONLY));
  struct stat info;
  if (fstat(file.get(), &info) != 0) {
    return ErrnoError(errno, "look at", path);
  }
  return std::make_unique<Reader>(std::move(file), std::move(path), info.st_size);
}

absl::StatusOr<uint64_t> DirectoryBlobStore::CommittedSize(const std::string& upload_id) {
  MP_ASSIGN_OR_RETURN(std::string path, UploadPath(upload_id));
  MP_ASSIGN_OR_RETURN(std::optional<uint64_t> size, FileSize(path));
  return size.value_or(0);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> DirectoryBlobStore::OpenWriter(const std::string& upload_id,
                                                                           const BlobInfo& expected) {
  MP_RETURN_IF_ERROR(CheckDigest(expected.sha256));
  MP_ASSIGN_OR_RETURN(std::string path, UploadPath(upload_id));
  UniqueFd file;
  {
    // Otherwise the last writer might give the file its name as a blob between our open and our flock.
    MP_ASSIGN_OR_RETURN(UniqueFd lock, LockNames());
    MP_ASSIGN_OR_RETURN(file, OpenFile(path, O_RDWR | O_CREAT, 0640));
    if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      return errno == EWOULDBLOCK ? absl::FailedPreconditionError("another stream sends bytes of this upload at the moment")
                                  : ErrnoError(errno, "lock", path);
    }
  }
  struct stat info;
  if (fstat(file.get(), &info) != 0) {
    return ErrnoError(errno, "look at", path);
  }
  uint64_t size = info.st_size;
  if (size > expected.size_bytes) {  // only a damaged file system can do that
    if (ftruncate(file.get(), 0) != 0) {
      return ErrnoError(errno, "cut", path);
    }
    size = 0;
  }
  return std::make_unique<Writer>(*this, std::move(file), std::move(path), expected, size);
}

absl::Status DirectoryBlobStore::DiscardUpload(const std::string& upload_id) {
  MP_ASSIGN_OR_RETURN(std::string path, UploadPath(upload_id));
  MP_ASSIGN_OR_RETURN(UniqueFd lock, LockNames());
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoError(errno, "remove", path);
  }
  return absl::OkStatus();
}

absl::StatusOr<BlobInfo> DirectoryBlobStore::Adopt(const std::string& folder, const std::string& name,
                                                   const std::stop_token& stop) {
  const std::string path = absl::StrCat(folder, "/", name);
  const size_t slash = name.rfind('/');
  const std::string parent_name = slash == std::string::npos ? "" : name.substr(0, slash);
  const std::string base = slash == std::string::npos ? name : name.substr(slash + 1);
  MP_ASSIGN_OR_RETURN(const UniqueFd top, OpenFile(folder, O_PATH | O_DIRECTORY));
  MP_ASSIGN_OR_RETURN(const UniqueFd parent, OpenFolderBeneath(top, parent_name, path));
  // Neither followed nor waited for: there may be a symbolic link or a pipe.
  const UniqueFd file(openat(parent.get(), base.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat info;
  if (file.get() < 0 || fstat(file.get(), &info) != 0) {
    return ErrnoError(errno, "open", path);
  }
  if (!S_ISREG(info.st_mode) || info.st_nlink != 1) {
    return MakeError(v1::STORAGE_ERROR, absl::StrCat(path, " is not a regular file with one name"));
  }
  if (info.st_uid != geteuid() && fchown(file.get(), geteuid(), getegid()) != 0) {
    return ErrnoError(errno, "take over", path);
  }
  StartWriteBack(file.get(), 0, 0);
  Sha256 hash;
  BlobInfo blob;
  MP_ASSIGN_OR_RETURN(blob.size_bytes, HashFile(file.get(), path, hash, stop));
  blob.sha256 = hash.HexDigest();
  // Without the lock: it takes long. Also where the content is here already, which nobody is to learn from the time it takes.
  MP_RETURN_IF_ERROR(SyncData(file.get(), path));
  {
    MP_ASSIGN_OR_RETURN(const UniqueFd lock, LockNames());
    MP_ASSIGN_OR_RETURN(const bool exists, Contains(blob));
    MP_RETURN_IF_ERROR(exists ? LinkBack(parent.get(), base, blob) : Link(file, parent.get(), base, blob));
    MP_RETURN_IF_ERROR(Touch(blob.sha256));
  }
  // Also where it existed: whoever made it may not have come to this yet.
  MP_RETURN_IF_ERROR(SyncFolder(FanOutFolder(blob.sha256)));
  return blob;
}

absl::StatusOr<bool> DirectoryBlobStore::Keep(const BlobInfo& blob) {
  MP_RETURN_IF_ERROR(CheckDigest(blob.sha256));
  MP_ASSIGN_OR_RETURN(const UniqueFd lock, LockNames());
  MP_ASSIGN_OR_RETURN(const bool exists, Contains(blob));
  if (exists) {
    MP_RETURN_IF_ERROR(Touch(blob.sha256));
  }
  return exists;
}

absl::Status DirectoryBlobStore::ForEach(absl::FunctionRef<bool(const StoredBlob&)> visit) {
  absl::Status status;
  bool go_on = true;
  for (int i = 0; i < kFanOut && go_on; ++i) {
    const std::string prefix = absl::StrFormat("%02x", i);
    status.Update(ListFiles(absl::StrCat(folder_, "/blobs/", prefix), [&](const std::string& name, const struct stat& info) {
      std::string sha256 = prefix + name;
      if (IsSha256Hex(sha256)) {
        go_on = visit({std::move(sha256), static_cast<uint64_t>(info.st_size), absl::TimeFromTimespec(info.st_mtim)});
      }
      return go_on;
    }));
  }
  return status;
}

absl::StatusOr<std::optional<uint64_t>> DirectoryBlobStore::RemoveIfOlder(const std::string& sha256, absl::Time cutoff) {
  MP_RETURN_IF_ERROR(CheckDigest(sha256));
  const std::string path = Path(sha256);
  MP_ASSIGN_OR_RETURN(const std::optional<UniqueFd> lock, TryLockFile(NamesLock()));
  if (!lock.has_value()) {
    return std::nullopt;
  }
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) {
      return std::nullopt;
    }
    return ErrnoError(errno, "look at", path);
  }
  if (info.st_nlink > 1 || absl::TimeFromTimespec(info.st_mtim) >= cutoff) {
    return std::nullopt;
  }
  if (unlink(path.c_str()) != 0) {
    return ErrnoError(errno, "remove", path);
  }
  return static_cast<uint64_t>(info.st_size);
}

absl::Status DirectoryBlobStore::ForEachUpload(absl::FunctionRef<bool(const StoredUpload&)> visit) {
  return ListFiles(folder_ + "/uploads", [&](const std::string& name, const struct stat& info) {
    return !UploadPath(name).ok() || visit({name, static_cast<uint64_t>(info.st_size), absl::TimeFromTimespec(info.st_mtim)});
  });
}

absl::StatusOr<int64_t> DirectoryBlobStore::RemoveStrays(absl::Time cutoff) {
  int64_t removed = 0;
  absl::Status status;
  auto remove_from = [&](const std::string& folder, absl::FunctionRef<bool(const std::string&)> is_ours) {
    status.Update(ListFiles(folder, [&](const std::string& name, const struct stat& info) {
      if (!is_ours(name) && absl::TimeFromTimespec(info.st_mtim) < cutoff &&
          unlink(absl::StrCat(folder, "/", name).c_str()) == 0) {
        ++removed;
      }
      return true;
    }));
  };
  remove_from(folder_ + "/uploads", [this](const std::string& name) { return UploadPath(name).ok(); });
  for (int i = 0; i < kFanOut; ++i) {
    const std::string prefix = absl::StrFormat("%02x", i);
    remove_from(absl::StrCat(folder_, "/blobs/", prefix),
                [&prefix](const std::string& name) { return IsSha256Hex(prefix + name); });
  }
  MP_RETURN_IF_ERROR(status);
  return removed;
}

absl::Status DirectoryBlobStore::Replace(const UniqueFd& file, const std::string& path, const BlobInfo& blob) {
  const std::string blob_path = Path(blob.sha256);
  if (renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, blob_path.c_str(), RENAME_EXCHANGE) != 0) {
    return Rename(file, AT_FDCWD, path, blob);  // there is none, or the file system cannot do this
  }
  return fchmod(file.get(), 0440) == 0 ? absl::OkStatus() : ErrnoError(errno, "make read-only", blob_path);
}

absl::Status DirectoryBlobStore::Rename(const UniqueFd& file, int parent, const std::string& name, const BlobInfo& blob) {
  const std::string blob_path = Path(blob.sha256);
  if (renameat(parent, name.c_str(), AT_FDCWD, blob_path.c_str()) != 0) {
    return ErrnoError(errno, "rename", absl::StrCat(name, " to ", blob_path));
  }
  // Not before: an upload that a crash leaves behind must stay writable.
  return fchmod(file.get(), 0440) == 0 ? absl::OkStatus() : ErrnoError(errno, "make read-only", blob_path);
}

absl::Status DirectoryBlobStore::Link(const UniqueFd& file, int parent, const std::string& name, const BlobInfo& blob) {
  const std::string blob_path = Path(blob.sha256);
  if (linkat(parent, name.c_str(), AT_FDCWD, blob_path.c_str(), 0) != 0) {
    return Rename(file, parent, name, blob);  // no links here, or damaged content that has to go
  }
  return fchmod(file.get(), 0440) == 0 ? absl::OkStatus() : ErrnoError(errno, "make read-only", blob_path);
}

absl::Status DirectoryBlobStore::LinkBack(int parent, const std::string& name, const BlobInfo& blob) {
  if (unlinkat(parent, name.c_str(), 0) != 0) {
    return ErrnoError(errno, "remove", name);
  }
  [[maybe_unused]] const int linked = linkat(AT_FDCWD, Path(blob.sha256).c_str(), parent, name.c_str(), 0);
  return absl::OkStatus();
}

absl::Status DirectoryBlobStore::Touch(const std::string& sha256) {
  const std::string path = Path(sha256);
  return utimensat(AT_FDCWD, path.c_str(), nullptr, 0) == 0 ? absl::OkStatus() : ErrnoError(errno, "touch", path);
}

bool DirectoryBlobStore::IsLinked(const std::string& sha256) const {
  struct stat info;
  return stat(Path(sha256).c_str(), &info) == 0 && info.st_nlink > 1;
}

}  // namespace modelpress::server
