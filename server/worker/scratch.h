// The folders of operations in the scratch folder.
#ifndef MODELPRESS_SERVER_WORKER_SCRATCH_H_
#define MODELPRESS_SERVER_WORKER_SCRATCH_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace modelpress::server {

// Outputs of one attempt; goes with it.
std::string AttemptFolder(absl::string_view scratch, const std::string& id, int attempt);

// What attempts at one operation leave for those after them; goes when the operation has ended.
std::string CheckpointFolder(absl::string_view scratch, const std::string& id);
// The operation's id if `name` is that of a checkpoint folder.
std::optional<std::string> OperationOfCheckpointFolder(absl::string_view name);

// Removes a folder with all that is in it; a failure is logged, and left to housekeeping.
void RemoveTree(const std::string& path);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_SCRATCH_H_
