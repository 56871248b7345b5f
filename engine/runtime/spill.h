// Tensors of earlier batches on disk, and whether that pays. Private to activations.cc.
#ifndef MODELPRESS_ENGINE_RUNTIME_SPILL_H_
#define MODELPRESS_ENGINE_RUNTIME_SPILL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {

// What was measured over the batches so far.
struct SpillMeasure {
  int64_t batches = 0;         // so far
  int64_t all_batches = 0;     // of a pass
  uint64_t bytes = 0;          // written so far
  uint64_t allowed_bytes = 0;  // for all batches
  double run_seconds = 0;      // running the model, as it will take again
  double write_seconds = 0;
  double read_seconds = 0;  // reading back the first batch; the others take as long per byte
  uint64_t read_bytes = 0;
};

struct SpillChoice {
  bool pays = false;
  std::string words;
};

// For the one more pass that most calibrations need: it pays if writing and reading all batches takes less time than running them
// again, and all of them have space. Times and sizes are extrapolated in proportion.
SpillChoice ChooseSpill(const SpillMeasure& measure);

// A file without a name, which goes with the process at the latest.
class SpillFile {
 public:
  // STORAGE_ERROR.
  static absl::StatusOr<std::unique_ptr<SpillFile>> Create(const std::string& folder);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  // Adds a batch of tensors. STORAGE_FULL, STORAGE_ERROR; the file is of no use then.
  absl::Status Append(absl::Span<const TensorView> tensors);
  // Tensor `tensor` of batch `batch`; `memory` gets its elements. STORAGE_ERROR.
  absl::StatusOr<TensorView> Read(size_t batch, size_t tensor, std::vector<uint8_t>& memory) const;
  uint64_t size() const { return size_; }

 private:
  struct Entry {
    int data_type = 0;
    std::vector<int64_t> dims;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };

  explicit SpillFile(int fd) : fd_(fd) {}

  int fd_;
  uint64_t size_ = 0;
  std::vector<std::vector<Entry>> batches_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_SPILL_H_
