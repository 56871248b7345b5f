#include "server/worker/scratch.h"

#include <filesystem>
#include <system_error>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace modelpress::server {
namespace {

constexpr char kCheckpoint[] = ".checkpoint";  // ids have no dot

}  // namespace

std::string AttemptFolder(absl::string_view scratch, const std::string& id, int attempt) {
  return absl::StrCat(scratch, "/", id, "-", attempt);
}

std::string CheckpointFolder(absl::string_view scratch, const std::string& id) {
  return absl::StrCat(scratch, "/", id, kCheckpoint);
}

std::optional<std::string> OperationOfCheckpointFolder(absl::string_view name) {
  return absl::ConsumeSuffix(&name, kCheckpoint) ? std::optional<std::string>(name) : std::nullopt;
}

void RemoveTree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) {
    LOG(WARNING) << "cannot remove " << path << ": " << error.message();
  }
}

}  // namespace modelpress::server
