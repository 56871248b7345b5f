// Weights as safetensors: the header is read, then the bytes of every tensor, which must lie in the file.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/formats/safetensors.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

void Run(absl::string_view bytes) {
  static InputFolder folder;
  folder.Write("w.safetensors", bytes);
  const absl::StatusOr<std::vector<Tensor>> tensors = ReadSafetensors(*folder.files().Open("w.safetensors"));
  RequireClear(tensors.status());
  if (!tensors.ok()) {
    return;
  }
  uint64_t total = 0;
  for (const Tensor& tensor : *tensors) {
    if (tensor.payload == nullptr) {
      continue;
    }
    total += tensor.payload->size();
    std::vector<uint8_t> data(std::min<uint64_t>(tensor.payload->size(), 4096));
    Require(tensor.payload->Read(tensor.payload->size() - data.size(), absl::MakeSpan(data)).ok(), "a tensor lies in the file");
  }
  Require(total <= bytes.size(), "no byte belongs to two tensors");
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
