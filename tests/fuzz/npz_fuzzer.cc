// An .npz archive: every member, and as calibration data.
#include <memory>
#include <string>

#include "tests/fuzz/fuzzing.h"
#include "tests/fuzz/read_data.h"

namespace modelpress::engine {
namespace {

void Run(absl::string_view bytes) {
  static InputFolder folder;
  folder.Write("d.npz", bytes);
  const absl::StatusOr<std::unique_ptr<NpzFile>> archive = NpzFile::Open(*folder.files().Open("d.npz"));
  RequireClear(archive.status());
  if (!archive.ok()) {
    return;
  }
  for (const std::string& name : (*archive)->names()) {
    const absl::StatusOr<std::unique_ptr<ArrayReader>> array = (*archive)->OpenArray(name);
    RequireClear(array.status());
    if (array.ok()) {
      ReadArray(**array);
    }
  }
  ReadAsCalibrationData(folder.files(), "d.npz");
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
