#include "server/worker/scratch.h"

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/sandbox/untrusted_folder.h"

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
  if (const absl::Status removed = RemoveFolder(path); !removed.ok()) {
    LOG(WARNING) << removed.message();
  }
}

}  // namespace modelpress::server
