// Immutable content by SHA-256. A blob exists completely or not at all, whenever the machine stops.
//
// What nothing refers to is garbage, which housekeeping removes with
//   WorkspaceStore::RemoveUnreferenced(sha256, [] { RemoveIfOlder(sha256, cutoff) })
// Why that never takes content that a file points to or is about to:
// 1. RemoveUnreferenced runs the removal while nothing can come to refer to the content, and only if neither a file, an
//    unfinished upload nor an input of an unfinished operation does. References made before are seen; those made after have to
//    find the content first.
// 2. An upload refers to its content from before its first byte until a file does (FinishUpload does both in one step). So
//    whoever finds the content to be there while the upload exists can rely on it until then.
// 3. The outputs of an operation are referred to only by JobStore::Finish, after they were adopted. In between, the file that
//    was adopted stays where it was as another link to the same content, and goes with its folder when the attempt has ended.
//    RemoveIfOlder leaves alone what has such a link. Looking for the link, making it, and the coming and going of blobs
//    exclude each other (one lock for all processes that share the store).
// 4. Whoever stores content, or finds it to be there and relies on it for a new reference (Adopt, Keep, BlobWriter::Finish),
//    touches it under the same lock, and RemoveIfOlder leaves alone what was touched since `cutoff`. That protects outputs
//    where the file system has no links, for the time between `cutoff` and now, and everything where a removal goes on although
//    its hold on the database was lost (1).
#ifndef MODELPRESS_SERVER_BLOBS_BLOB_STORE_H_
#define MODELPRESS_SERVER_BLOBS_BLOB_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace modelpress::server {

struct BlobInfo {
  std::string sha256;  // lower-case hex
  uint64_t size_bytes = 0;
};

// One blob opened for reading. Thread-safe.
class BlobReader {
 public:
  virtual ~BlobReader() = default;
  virtual uint64_t size() const = 0;
  // Reads up to out.size() bytes from `offset`; fewer only at the end.
  virtual absl::StatusOr<size_t> ReadAt(uint64_t offset, absl::Span<char> out) const = 0;
};

// Content on its way in, found again by its upload id after a restart. Used by one thread at a time.
class BlobWriter {
 public:
  virtual ~BlobWriter() = default;
  virtual uint64_t committed_size() const = 0;
  // STORAGE_FULL, STORAGE_ERROR; what was committed before stays.
  virtual absl::Status Append(absl::Span<const char> data) = 0;
  // Whether all bytes are there and have the announced digest: DIGEST_MISMATCH. Only Finish may follow.
  virtual absl::Status Verify() = 0;
  // Verifies and makes the blob. DIGEST_MISMATCH discards the bytes. Durable when it returns. It takes the same time whether the
  // content was here before or not; if it was, bytes may stay under the upload's id until DiscardUpload.
  virtual absl::Status Finish() = 0;
};

class BlobStore {
 public:
  virtual ~BlobStore() = default;
  virtual absl::StatusOr<bool> Contains(const BlobInfo& blob) = 0;
  // STORAGE_ERROR if it is not there: a name points to it, so it should be.
  virtual absl::StatusOr<std::unique_ptr<BlobReader>> Open(const std::string& sha256) = 0;
  // Where a process on this machine may read it.
  virtual std::string Path(const std::string& sha256) const = 0;

  // Bytes held for an upload; 0 if none.
  virtual absl::StatusOr<uint64_t> CommittedSize(const std::string& upload_id) = 0;
  // Opens or begins the upload, at once however much of it is there. One writer per upload at a time: FAILED_PRECONDITION
  // (UPLOAD_OFFSET_MISMATCH is the caller's to say) if another holds it.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> OpenWriter(const std::string& upload_id, const BlobInfo& expected) = 0;
  virtual absl::Status DiscardUpload(const std::string& upload_id) = 0;  // no error if it is gone

  // Takes the finished file `name` ("a/b.onnx") below `folder`, on the same file system, into the store: hashes, syncs, links.
  // Whoever wrote in `folder` may be hostile, but is dead: links and special files are not followed and not taken. The blob is
  // safe at least as long as the file stays. CANCELLED (without reason) soon after a stop is requested while it is hashed.
  virtual absl::StatusOr<BlobInfo> Adopt(const std::string& folder, const std::string& name, const std::stop_token& stop) = 0;
  // As Contains, and what is there counts as new from now on.
  virtual absl::StatusOr<bool> Keep(const BlobInfo& blob) = 0;

  // For housekeeping. A visitor that returns false ends the visit. What comes or goes meanwhile may be seen or not. What cannot
  // be read keeps nothing else from being visited, or removed, and is the error in the end.
  struct StoredBlob {
    std::string sha256;
    uint64_t size_bytes = 0;
    absl::Time touch_time;  // when it was stored, or somebody last relied on it
  };
  virtual absl::Status ForEach(absl::FunctionRef<bool(const StoredBlob&)> visit) = 0;
  // Removes a blob that was last touched before `cutoff` and that no adopted file is a link to (see above). Returns its size;
  // nullopt if it stays, or is gone. It also stays while blobs come or go in any thread or process: this waits for nobody,
  // because it is called in the midst of a change of the database, for which everybody waits.
  virtual absl::StatusOr<std::optional<uint64_t>> RemoveIfOlder(const std::string& sha256, absl::Time cutoff) = 0;
  struct StoredUpload {
    std::string id;
    uint64_t committed_size = 0;
    absl::Time write_time;  // when bytes last came
  };
  virtual absl::Status ForEachUpload(absl::FunctionRef<bool(const StoredUpload&)> visit) = 0;
  // Removes what no version of this program leaves here, if it was last written before `cutoff`. Returns how many files.
  virtual absl::StatusOr<int64_t> RemoveStrays(absl::Time cutoff) = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BLOBS_BLOB_STORE_H_
