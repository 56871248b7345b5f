// What the targets of calibration data do with a file.
#ifndef MODELPRESS_TESTS_FUZZ_READ_DATA_H_
#define MODELPRESS_TESTS_FUZZ_READ_DATA_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/calibration_data.h"
#include "engine/runtime/npz.h"
#include "onnx/onnx_pb.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {

// Reads at most 1 MiB of the elements.
inline void ReadArray(ArrayReader& reader) {
  uint64_t elements = 1;
  for (const int64_t dim : reader.dims()) {
    elements = dim == 0 ? 0 : std::min<uint64_t>(elements * std::min<uint64_t>(dim, 1 << 20), 1 << 20);
  }
  // The element's size is not told by the reader; a byte each is always there.
  for (uint64_t done = 0; done < elements;) {
    std::vector<uint8_t> bytes(std::min<uint64_t>(elements - done, 1000));
    const absl::Status status = reader.Read(absl::MakeSpan(bytes));
    RequireClear(status);
    if (!status.ok()) {
      return;
    }
    done += bytes.size();
  }
}

// Reads the file as data for models of one and of two inputs.
inline void ReadAsCalibrationData(const FileSet& files, const std::string& name) {
  const InputSpec x = {.name = "x", .data_type = onnx::TensorProto::FLOAT, .dims = {-1, 3}};
  const InputSpec ids = {.name = "ids", .data_type = onnx::TensorProto::INT64, .any_shape = true, .optional = true};
  for (const std::vector<InputSpec>& inputs : {std::vector<InputSpec>{x}, std::vector<InputSpec>{x, ids}}) {
    const absl::StatusOr<std::unique_ptr<CalibrationData>> data = CalibrationData::Open(files, name, inputs, {.batches = 2});
    RequireClear(data.status());
    for (int64_t i = 0; data.ok() && i < (*data)->batch_count(); ++i) {
      Require((*data)->Next().ok(), "a batch that was checked can be read");
    }
  }
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_FUZZ_READ_DATA_H_
