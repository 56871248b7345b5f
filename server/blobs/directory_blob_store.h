#ifndef MODELPRESS_SERVER_BLOBS_DIRECTORY_BLOB_STORE_H_
#define MODELPRESS_SERVER_BLOBS_DIRECTORY_BLOB_STORE_H_

#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>

#include "server/base/posix.h"
#include "server/blobs/blob_store.h"

namespace modelpress::server {

// Blobs as files of one folder, which several processes may share:
//
//   DIR/blobs/ab/cdef...  the blob with digest abcdef..., mode 0440
//   DIR/uploads/ID        the bytes so far of upload ID; its writer holds flock(2) on it
//   DIR/names.lock        held for the moment in which a name in uploads/ or blobs/ comes or goes
//
// A blob gets its name only after its digest was verified and its bytes were synced. An upload's bytes are not synced before:
// after a power failure some may be gone or, on some file systems, be zeros; the digest at the end finds that out and the upload
// begins anew. Thread-safe.
class DirectoryBlobStore final : public BlobStore {
 public:
  // Opens the store in `folder`, which exists; makes what is missing in it.
  static absl::StatusOr<std::unique_ptr<DirectoryBlobStore>> OpenFolder(const std::string& folder);

  absl::StatusOr<bool> Contains(const BlobInfo& blob) override;
  absl::StatusOr<std::unique_ptr<BlobReader>> Open(const std::string& sha256) override;
  std::string Path(const std::string& sha256) const override;
  // Reading the bytes of an upload that is gone on with, to hash them, is done here.
  absl::StatusOr<std::unique_ptr<BlobWriter>> OpenWriter(const std::string& upload_id, const BlobInfo& expected) override;
  absl::StatusOr<uint64_t> CommittedSize(const std::string& upload_id) override;
  // A writer that still holds the upload fails at its Finish.
  absl::Status DiscardUpload(const std::string& upload_id) override;
  // STORAGE_ERROR, with the file left where it is, if it is not a regular file with one name, reached without links. It becomes
  // the server's own, whoever owned it.
  absl::StatusOr<BlobInfo> Adopt(const std::string& folder, const std::string& name, const std::stop_token& stop) override;
  absl::StatusOr<bool> Keep(const BlobInfo& blob) override;
  absl::Status ForEach(absl::FunctionRef<bool(const StoredBlob&)> visit) override;
  absl::StatusOr<std::optional<uint64_t>> RemoveIfOlder(const std::string& sha256, absl::Time cutoff) override;
  absl::Status ForEachUpload(absl::FunctionRef<bool(const StoredUpload&)> visit) override;
  absl::StatusOr<int64_t> RemoveStrays(absl::Time cutoff) override;

 private:
  class Writer;

  explicit DirectoryBlobStore(std::string folder) : folder_(std::move(folder)) {}
  std::string FanOutFolder(const std::string& sha256) const;
  absl::StatusOr<std::string> UploadPath(const std::string& upload_id) const;
  std::string NamesLock() const { return folder_ + "/names.lock"; }
  absl::StatusOr<UniqueFd> LockNames() const { return LockFile(NamesLock()); }
  // All of these under LockNames. None is durable until the fan-out folder is synced.
  // `name` is that of a file in the folder open as `parent` (or AT_FDCWD).
  //
  // Gives the file, open as `file` and synced, its name as a blob, and takes its old one.
  absl::Status Rename(const UniqueFd& file, int parent, const std::string& name, const BlobInfo& blob);
  // The same for an upload at `path`. Where there is such a blob, that gets the upload's name and goes later
  // (RemoveOrphanedUploads of server/housekeeping): freeing it here takes time, by which whoever sends a content could tell that
  // somebody else has it.
  absl::Status Replace(const UniqueFd& file, const std::string& path, const BlobInfo& blob);
  // Gives it its name as a blob and leaves it the old one, where the file system has links.
  absl::Status Link(const UniqueFd& file, int parent, const std::string& name, const BlobInfo& blob);
  // Makes the name another one of the blob, which is there, where the file system has links.
  absl::Status LinkBack(int parent, const std::string& name, const BlobInfo& blob);
  absl::Status Touch(const std::string& sha256);
  // Whether an adopted file is a link to the blob.
  bool IsLinked(const std::string& sha256) const;

  const std::string folder_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BLOBS_DIRECTORY_BLOB_STORE_H_
