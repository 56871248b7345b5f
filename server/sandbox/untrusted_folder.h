// What the server does with a folder that a process which may be hostile writes, or wrote, to. No symbolic link in it is
// followed.
#ifndef MODELPRESS_SERVER_SANDBOX_UNTRUSTED_FOLDER_H_
#define MODELPRESS_SERVER_SANDBOX_UNTRUSTED_FOLDER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/sandbox/sandbox.h"

namespace modelpress::server {

// Gives `folder`, not what is in it, to a user, for it alone. STORAGE_ERROR.
absl::Status GiveFolder(const std::string& folder, const SandboxUser& user);

// True if what lies below `folder` takes more than `max_bytes` on the disk, is more than `max_entries` names, is nested deeper
// than any output is, or cannot be listed (a folder made unreadable on purpose). May be called while somebody writes there. Files
// that were removed but are still open are not seen.
bool TakesMoreThan(const std::string& folder, uint64_t max_bytes, uint64_t max_entries);

// Removes `folder` and everything below it, however deep and whatever its modes. Nobody may write there any more. STORAGE_ERROR;
// a folder that is not there is none.
absl::Status RemoveFolder(const std::string& folder);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_SANDBOX_UNTRUSTED_FOLDER_H_
