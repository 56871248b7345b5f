// Checkpoints in a folder, one file each.
#ifndef MODELPRESS_ENGINE_FUNCTIONS_FILE_CHECKPOINTS_H_
#define MODELPRESS_ENGINE_FUNCTIONS_FILE_CHECKPOINTS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "engine/base/checkpoints.h"

namespace modelpress::engine {

// A file holds one line that tells the version of the engine, the instruction set of the machine (on another one, an inference
// may round otherwise), key, size and SHA-256 of what follows. One whose line is not exactly that is ignored, and logged.
//
// A file is written under another name and renamed: whenever the process is killed, the whole old or the whole new one is there.
// Nothing is flushed to the disk, as a process that ends takes nothing with it; what a loss of power tears apart no longer has
// its digest.
class FileCheckpoints final : public Checkpoints {
 public:
  static constexpr uint64_t kMaxBytes = uint64_t{1} << 30;

  // `folder` exists and belongs to one call. What does not fit `max_bytes` of all files together, or would take more than half of
  // the free space, is not saved.
  FileCheckpoints(std::string folder, std::function<void(const std::string& line)> log, uint64_t max_bytes = kMaxBytes);

  std::optional<std::string> Load(const std::string& key) override;
  void Save(const std::string& key, const std::string& bytes) override;

 private:
  std::string PathOf(const std::string& key) const;
  // Of all files but that of `key`.
  uint64_t BytesOfOthers(const std::string& key) const;

  const std::string folder_;
  const std::function<void(const std::string&)> log_;
  const uint64_t max_bytes_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_FILE_CHECKPOINTS_H_
