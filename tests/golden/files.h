// Files of golden cases and of tests on them.
#ifndef MODELPRESS_TESTS_GOLDEN_FILES_H_
#define MODELPRESS_TESTS_GOLDEN_FILES_H_

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "engine/model/file_set.h"

namespace modelpress::engine {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  return content.str();
}

// A folder that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "modelpress-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Names of the folders in `folder` that have a file called `file`, sorted.
inline std::vector<std::string> CasesWith(const std::filesystem::path& folder, const std::string& file) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (std::filesystem::exists(entry.path() / file)) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Every file of a folder, by its name there.
inline FileSet FilesIn(const std::filesystem::path& folder) {
  std::map<std::string, std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths[entry.path().filename().string()] = entry.path().string();
  }
  return FileSet(paths);
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_GOLDEN_FILES_H_
