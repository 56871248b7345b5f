// Writes models: the layout of every file is fixed first (all sizes are known), then tensors are streamed into place by a few
// threads, in fixed chunks, and hashed on the way. Nothing is visible under its final name before all of it is written and
// synced; on an error nothing is left behind.
#ifndef MODELPRESS_ENGINE_MODEL_WRITER_H_
#define MODELPRESS_ENGINE_MODEL_WRITER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model/model.h"

namespace modelpress::engine {

struct FilePlan;

// One model to write.
struct ModelFile {
  const Model* model = nullptr;
  std::string file_name;        // "x_deploy_model.onnx", in the output folder
  std::string external_suffix;  // "_deploy": external tensors go to "<tensor name>_deploy.external" (save.md section 11)
};

// Total serialized size in bytes from which tensors are moved out of the file, largest first, until it is below (save.md section
// 11).
inline constexpr uint64_t kExternalizeAt = 2'000'000'000;

struct WriteOptions {
  int threads = 1;
  uint64_t externalize_at = kExternalizeAt;
  // Bytes written so far of all bytes to write. Called from one thread at a time.
  std::function<void(uint64_t done, uint64_t total)> progress = {};
};

struct WrittenFile {
  std::string name;  // in the output folder
  uint64_t size = 0;
  std::string sha256;  // lower-case hex
};

// The output files of one engine call, in one folder. Everything is written under temporary names; Commit syncs and renames,
// the first time anything becomes visible. What was not committed is removed by the destructor.
class OutputFolder {
 public:
  // `directory` is created if missing: the last component with mode 0750, those above with 0777, both less the umask (save.md
  // section 1.1).
  static absl::StatusOr<std::unique_ptr<OutputFolder>> Create(const std::string& directory);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  // Writes models side by side. Chunks of both are interleaved so that a source tensor is still in cache for the second.
  // Errors: what a payload's Read returns (with the tensor's name as layer), STORAGE_FULL, STORAGE_ERROR.
  absl::Status AddModels(absl::Span<const ModelFile> models, const WriteOptions& options);
  // Writes `bytes`.
  absl::Status AddFile(const std::string& name, absl::string_view bytes);
  // Writes a copy of an input file, inside the kernel where it can.
  absl::Status AddCopy(const std::string& name, const InputFile& source, const WriteOptions& options = {});

  // What was added so far: models first, in the order given, each followed by its external data files.
  const std::vector<WrittenFile>& files() const { return files_; }
  // Where a not yet committed file lies, for checks before Commit.
  std::string StagedPath(const std::string& name) const;
  // Makes all files visible, mode 0640, replacing files of the same names.
  absl::Status Commit();

 private:
  explicit OutputFolder(std::string directory);
  absl::Status Write(std::vector<FilePlan> plans, const WriteOptions& options);

  std::string directory_;
  std::string staging_;  // a temporary folder inside directory_; empty once it is gone
  std::vector<WrittenFile> files_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_WRITER_H_
