// The caller's data for calibration: batches in order, checked against the model's inputs before any work starts
// (docs/calibration_data.md).
#ifndef MODELPRESS_ENGINE_RUNTIME_CALIBRATION_DATA_H_
#define MODELPRESS_ENGINE_RUNTIME_CALIBRATION_DATA_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/file_set.h"

namespace modelpress::engine {

struct InputSpec {
  std::string name;
  int data_type = 0;          // onnx.TensorProto.DataType
  std::vector<int64_t> dims;  // -1: any
  bool any_shape = false;     // the model says nothing about the shape, not even the rank
  bool optional = false;      // the model has a default (an initializer of that name)
};

struct HostTensor {
  int data_type = 0;
  std::vector<int64_t> dims;
  std::vector<uint8_t> bytes;  // elements, row-major, little-endian
};

// One batch: a tensor per input, in the order of the InputSpecs; data_type 0, dims and bytes empty where an optional one was not
// given.
using Batch = std::vector<HostTensor>;

struct CalibrationDataOptions {
  int64_t batch_size = 0;  // samples per batch where an array holds many; 0: the model's fixed first dimension, else see batches
  // How many are wanted; 0: all that are there. A free batch_size then divides the samples evenly among them.
  int64_t batches = 0;
};

// Batches are read one at a time and may be read again from the start; nothing is kept.
class CalibrationData {
 public:
  // `path`: a file or a folder of `files`, which is not needed after Open. Reads all batches that will be used once, so that NaN
  // in the last sample is refused before anything else starts. DATA_UNREADABLE, DATA_MISMATCH, DATA_TOO_SHORT, DATA_NOT_FINITE
  // with file, and input, batch and sample in the metadata as far as they are known.
  static absl::StatusOr<std::unique_ptr<CalibrationData>> Open(const FileSet& files, const std::string& path,
                                                               const std::vector<InputSpec>& inputs,
                                                               const CalibrationDataOptions& options);
  virtual ~CalibrationData() = default;
  virtual int64_t batch_count() const = 0;
  virtual int64_t sample_count() const = 0;  // sum of the first dimensions
  virtual uint64_t byte_count() const = 0;   // of all batches, as the model takes them
  virtual absl::Status Rewind() = 0;
  // The next batch. After the last one: OUT_OF_RANGE without reason.
  virtual absl::StatusOr<Batch> Next() = 0;
  // E.g. that more batches are there than are used.
  virtual const std::vector<std::string>& warnings() const = 0;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_RUNTIME_CALIBRATION_DATA_H_
