// What the fuzz targets share. A target is one file tests/fuzz/<name>_fuzzer.cc that defines LLVMFuzzerTestOneInput; the ordinary
// build links it with replay_main.cc, the preset `fuzz` with libFuzzer.
#ifndef MODELPRESS_TESTS_FUZZ_FUZZING_H_
#define MODELPRESS_TESTS_FUZZ_FUZZING_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/model/file_set.h"
#include "google/protobuf/stubs/logging.h"

namespace modelpress {

// Quiet, as it has something to say of many an input.
inline google::protobuf::LogHandler* const kOtherwise = google::protobuf::SetLogHandler(nullptr);

inline absl::string_view AsText(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

// Stops the process, which fuzzer and replay take for a finding.
inline void Require(bool condition, absl::string_view what) {
  if (!condition) {
    std::fprintf(stderr, "violated: %.*s\n", static_cast<int>(what.size()), what.data());
    std::abort();
  }
}

// Whatever the input, an error is the caller's and says why.
inline void RequireClear(const absl::Status& status) {
  if (!status.ok()) {
    const v1::Reason reason = ReasonOf(status);
    Require(reason != v1::REASON_UNSPECIFIED && reason != v1::INTERNAL_ERROR && reason != v1::OUTPUT_INVALID &&
                !status.message().empty(),
            status.ToString());
  }
}

// The input as a file with a name, beside fixed ones. There is one folder per process, which goes with it.
class InputFolder {
 public:
  InputFolder() {
    // Files in memory where there is such a folder: a reader opens one per input.
    const std::filesystem::path memory = "/dev/shm";
    const bool has_memory = std::filesystem::is_directory(memory);
    std::string name = ((has_memory ? memory : std::filesystem::temp_directory_path()) / "modelpress-fuzz-XXXXXX").string();
    Require(mkdtemp(name.data()) != nullptr, "a temporary folder");
    folder_ = name;
  }
  ~InputFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  InputFolder(const InputFolder&) = delete;
  InputFolder& operator=(const InputFolder&) = delete;

  // The file's path.
  std::string Write(const std::string& name, absl::string_view bytes) {
    const std::filesystem::path path = folder_ / name;
    std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return paths_[name] = path.string();
  }
  std::string path() const { return folder_.string(); }
  engine::FileSet files() const { return engine::FileSet(paths_); }

 private:
  std::filesystem::path folder_;
  std::map<std::string, std::string> paths_;
};

}  // namespace modelpress

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // MODELPRESS_TESTS_FUZZ_FUZZING_H_
