// Immutable content by SHA-256. A blob exists completely or not at all, whenever the machine stops.
#ifndef MODELPRESS_SERVER_BLOBS_BLOB_STORE_H_
#define MODELPRESS_SERVER_BLOBS_BLOB_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
  // Verifies and makes the blob. DIGEST_MISMATCH discards the bytes. Durable when it returns.
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
  // Opens or begins the upload. One writer per upload at a time: FAILED_PRECONDITION (UPLOAD_OFFSET_MISMATCH is the caller's to
  // say) if another holds it.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> OpenWriter(const std::string& upload_id, const BlobInfo& expected) = 0;
  virtual absl::Status DiscardUpload(const std::string& upload_id) = 0;  // no error if it is gone

  // Takes a finished file that our own child wrote, on the same file system, into the store: hashes, syncs, renames.
  virtual absl::StatusOr<BlobInfo> Adopt(const std::string& path) = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BLOBS_BLOB_STORE_H_
