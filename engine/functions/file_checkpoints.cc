#include "engine/functions/file_checkpoints.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/base/disk_space.h"
#include "engine/base/sha256.h"
#include "hwy/targets.h"

namespace modelpress::engine {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

constexpr absl::string_view kTemporarySuffix = ".new";

// The first line of the file, with the line feed.
std::string HeaderOf(const std::string& key, absl::string_view bytes) {
  Sha256 digest;
  digest.Update({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  return absl::StrCat("modelpress checkpoint, engine ", MODELPRESS_VERSION, ", instructions ", hwy::SupportedTargets(), ", key ",
                      key, ", bytes ", bytes.size(), ", sha256 ", digest.Finish(), "\n");
}

}  // namespace

FileCheckpoints::FileCheckpoints(std::string folder, std::function<void(const std::string& line)> log, uint64_t max_bytes)
    : folder_(std::move(folder)), log_(std::move(log)), max_bytes_(max_bytes) {}

std::string FileCheckpoints::PathOf(const std::string& key) const { return absl::StrCat(folder_, "/", key); }

std::optional<std::string> FileCheckpoints::Load(const std::string& key) {
  const std::string path = PathOf(key);
  const File file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) {
    if (errno != ENOENT) {
      log_(absl::StrCat("checkpoint ", key, " cannot be read: ", std::generic_category().message(errno)));
    }
    return std::nullopt;
  }
  std::string bytes;
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (!error && size <= max_bytes_) {
    bytes.resize(size);
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file.get()));
  }
  const size_t line = std::min(bytes.find('\n') + 1, bytes.size());
  std::string header = bytes.substr(0, line);
  bytes.erase(0, line);
  if (header != HeaderOf(key, bytes)) {
    constexpr size_t kShown = 200;
    log_(absl::StrCat("checkpoint ", key, " is damaged, or of another engine or machine, and is ignored: it begins with '",
                      absl::CHexEscape(header.substr(0, kShown)), "'"));
    return std::nullopt;
  }
  return bytes;
}

uint64_t FileCheckpoints::BytesOfOthers(const std::string& key) const {
  uint64_t bytes = 0;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(folder_, error); !error && entry != std::filesystem::directory_iterator();
       entry.increment(error)) {
    std::error_code gone;
    const std::string name = entry->path().filename().string();
    if (const uint64_t size = entry->file_size(gone); !gone && name != key && name != absl::StrCat(key, kTemporarySuffix)) {
      bytes += size;
    }
  }
  return bytes;
}

void FileCheckpoints::Save(const std::string& key, const std::string& bytes) {
  const std::string header = HeaderOf(key, bytes);
  const uint64_t size = header.size() + bytes.size();
  if (BytesOfOthers(key) + size > max_bytes_ || size > SpareSpace(folder_)) {
    log_(absl::StrCat("checkpoint ", key, " is not saved: there is no room for its ", size, " bytes"));
    return;
  }
  const std::string path = PathOf(key);
  const std::string temporary = absl::StrCat(path, kTemporarySuffix);
  File file(std::fopen(temporary.c_str(), "wbe"));
  bool is_written = file != nullptr && std::fwrite(header.data(), 1, header.size(), file.get()) == header.size() &&
                    std::fwrite(bytes.data(), 1, bytes.size(), file.get()) == bytes.size();
  is_written = file != nullptr && std::fclose(file.release()) == 0 && is_written;
  if (!is_written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    log_(absl::StrCat("checkpoint ", key, " is not saved: ", std::generic_category().message(errno)));
    std::remove(temporary.c_str());
  }
}

}  // namespace modelpress::engine
