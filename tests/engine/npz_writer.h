// Writes NumPy's files, for tests.
#ifndef MODELPRESS_TESTS_ENGINE_NPZ_WRITER_H_
#define MODELPRESS_TESTS_ENGINE_NPZ_WRITER_H_

#include <zip.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace modelpress::engine {

// A .npy file around `bytes`. `descr` is NumPy's type string, e.g. "<f4"; version 1, 2 or 3.
inline std::string NpyBytes(const std::string& descr, const std::vector<int64_t>& dims, const std::string& bytes,
                            bool fortran_order = false, int version = 1) {
  std::string shape;
  for (const int64_t dim : dims) {
    shape += std::to_string(dim) + ", ";
  }
  const std::string order = fortran_order ? "True" : "False";
  std::string header = "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': (" + shape + "), }";
  const size_t length_bytes = version == 1 ? 2 : 4;
  while ((8 + length_bytes + header.size() + 1) % 64 != 0) {
    header += ' ';
  }
  header += '\n';
  std::string length;
  for (size_t i = 0; i < length_bytes; ++i) {
    length += static_cast<char>(header.size() >> (8 * i));
  }
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' + length + header + bytes;
}

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline std::string FloatNpy(const std::vector<int64_t>& dims, const std::vector<float>& values) {
  return NpyBytes("<f4", dims, BytesOf(values));
}

using NpzMembers = std::vector<std::pair<std::string, std::string>>;  // name without ".npy", bytes

// As numpy.savez, or numpy.savez_compressed, writes it.
inline void WriteNpz(const std::string& path, const NpzMembers& members, bool compressed = false) {
  zip_t* zip = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, nullptr);
  ASSERT_NE(zip, nullptr) << path;
  for (const auto& [name, bytes] : members) {
    zip_source_t* source = zip_source_buffer(zip, bytes.data(), bytes.size(), 0);
    const zip_int64_t index = zip_file_add(zip, (name + ".npy").c_str(), source, 0);
    ASSERT_GE(index, 0) << name;
    ASSERT_EQ(zip_set_file_compression(zip, index, compressed ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 0), 0);
  }
  ASSERT_EQ(zip_close(zip), 0);
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_ENGINE_NPZ_WRITER_H_
