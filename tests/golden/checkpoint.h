// State dicts of golden cases as safetensors.
#ifndef MODELPRESS_TESTS_GOLDEN_CHECKPOINT_H_
#define MODELPRESS_TESTS_GOLDEN_CHECKPOINT_H_

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/element_type.h"
#include "engine/runtime/npz.h"
#include "gtest/gtest.h"
#include "tests/engine/safetensors_writer.h"

namespace modelpress::engine {

// The arrays of an .npz file, their names behind `prefix`.
inline std::vector<SafetensorsEntry> EntriesOfNpz(const std::filesystem::path& path, const std::string& prefix = "") {
  const std::unique_ptr<NpzFile> npz = *NpzFile::Open(*InputFile::Open(path.filename().string(), path.string()));
  std::vector<SafetensorsEntry> entries;
  entries.reserve(npz->names().size());
  for (const std::string& name : npz->names()) {
    const std::unique_ptr<ArrayReader> reader = *npz->OpenArray(name);
    uint64_t count = 1;
    for (int64_t dim : reader->dims()) {
      count *= dim;
    }
    std::vector<uint8_t> bytes(FindElementType(reader->data_type())->RawBytes(count));
    EXPECT_TRUE(reader->Read(absl::MakeSpan(bytes)).ok());
    entries.push_back({prefix + name,
                       reader->dims(),
                       {bytes.begin(), bytes.end()},
                       reader->data_type() == onnx::TensorProto::INT64 ? "I64" : "F32"});
  }
  return entries;
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_GOLDEN_CHECKPOINT_H_
