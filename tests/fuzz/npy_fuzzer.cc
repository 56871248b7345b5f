// Arrays in files of their own: .npy, and ONNX's TensorProto (.pb).
#include <memory>

#include "tests/fuzz/fuzzing.h"
#include "tests/fuzz/read_data.h"

namespace modelpress::engine {
namespace {

void Run(absl::string_view bytes) {
  static InputFolder folder;
  folder.Write("d.npy", bytes);
  folder.Write("d.pb", bytes);
  const absl::StatusOr<std::unique_ptr<ArrayReader>> array = OpenNpy(*folder.files().Open("d.npy"));
  RequireClear(array.status());
  if (array.ok()) {
    ReadArray(**array);
  }
  ReadAsCalibrationData(folder.files(), "d.npy");
  ReadAsCalibrationData(folder.files(), "d.pb");
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
