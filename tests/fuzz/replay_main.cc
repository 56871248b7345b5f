// Gives files, or the files of folders, to a fuzz target: REPLAY [--suffix=.npz]... [--max_bytes=N] PATH...; both options hold
// for the folders behind them. Fails where none was found: a test that replays nothing shows nothing.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "tests/fuzz/fuzzing.h"

namespace {

int Replay(const std::vector<std::string>& arguments) {
  std::vector<std::string> suffixes;
  uintmax_t max_bytes = UINTMAX_MAX;
  std::vector<std::filesystem::path> files;
  for (const std::string& argument : arguments) {
    absl::string_view value = argument;
    if (absl::ConsumePrefix(&value, "--suffix=")) {
      suffixes.emplace_back(value);
    } else if (absl::ConsumePrefix(&value, "--max_bytes=")) {
      max_bytes = std::stoull(std::string(value));
    } else if (std::filesystem::is_directory(argument)) {
      for (const auto& entry : std::filesystem::recursive_directory_iterator(argument)) {
        const bool wanted = suffixes.empty() || std::any_of(suffixes.begin(), suffixes.end(), [&](const std::string& suffix) {
                              return absl::EndsWith(entry.path().string(), suffix);
                            });
        if (entry.is_regular_file() && wanted && entry.file_size() <= max_bytes) {
          files.push_back(entry.path());
        }
      }
    } else if (std::filesystem::exists(argument)) {
      files.emplace_back(argument);
    }
  }
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    std::fprintf(stderr, "%s\n", file.c_str());  // the last one is that which stopped the process
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  std::printf("%zu inputs\n", files.size());
  return files.empty() ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Replay(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return EXIT_FAILURE;
  }
}
