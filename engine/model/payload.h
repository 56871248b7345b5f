// The element bytes of a tensor, exactly as they stand in its data field (raw_data, or the packed content of float_data,
// int32_data, ...), without saying where they are: in memory, in a mapped input file, or computed on demand. Pieces can be
// read in any order and by several threads, so that no tensor ever has to be in memory as a whole.
#ifndef MODELPRESS_ENGINE_MODEL_PAYLOAD_H_
#define MODELPRESS_ENGINE_MODEL_PAYLOAD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/model/file_set.h"

namespace modelpress::engine {

// A run of bytes of an input file.
struct FileRange {
  std::shared_ptr<const InputFile> file;
  uint64_t offset = 0;
  uint64_t size = 0;
};

class Payload {
 public:
  virtual ~Payload() = default;

  // Number of bytes. Known before anything is computed.
  virtual uint64_t size() const = 0;
  // Fills `out` with the bytes from `offset` on; offset + out.size() <= size(). Thread-safe and deterministic: the same
  // bytes however the ranges are cut. Fails only where the source is bad (a weight that is not finite) or unreadable.
  virtual absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const = 0;
  // Where the payload is an unchanged run of an input file: that run, so that a writer can copy it inside the kernel.
  virtual const FileRange* AsFileRange() const { return nullptr; }
};

using PayloadPtr = std::shared_ptr<const Payload>;

// Bytes held in memory: small or freshly computed data.
class MemoryPayload final : public Payload {
 public:
  explicit MemoryPayload(std::string bytes) : bytes_(std::move(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }
  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const override;

 private:
  std::string bytes_;
};

// Bytes of an input file.
class FilePayload final : public Payload {
 public:
  explicit FilePayload(FileRange range) : range_(std::move(range)) {}
  uint64_t size() const override { return range_.size; }
  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const override;
  const FileRange* AsFileRange() const override { return &range_; }

 private:
  FileRange range_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_PAYLOAD_H_
