// Builds safetensors files in code, for tests.
#ifndef MODELPRESS_TESTS_ENGINE_SAFETENSORS_WRITER_H_
#define MODELPRESS_TESTS_ENGINE_SAFETENSORS_WRITER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace modelpress::engine {

struct SafetensorsEntry {
  std::string name;
  std::vector<int64_t> shape;
  std::string bytes;
  std::string type = "F32";
};

inline SafetensorsEntry FloatEntry(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values) {
  return {name, shape, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float))};
}

inline std::string WriteSafetensors(const std::vector<SafetensorsEntry>& entries) {
  nlohmann::ordered_json header;
  std::string data;
  for (const SafetensorsEntry& entry : entries) {
    header[entry.name] = {
        {"dtype", entry.type}, {"shape", entry.shape}, {"data_offsets", {data.size(), data.size() + entry.bytes.size()}}};
    data += entry.bytes;
  }
  const std::string text = header.dump();
  std::string file;
  for (int shift = 0; shift < 64; shift += 8) {
    file.push_back(static_cast<char>(static_cast<uint64_t>(text.size()) >> shift));
  }
  return file + text + data;
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_ENGINE_SAFETENSORS_WRITER_H_
