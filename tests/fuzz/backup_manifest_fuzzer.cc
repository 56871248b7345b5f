// The manifest of a backup, which is read when it is verified, restored or brought up to date; there is nothing else in the
// folder.
#include <string>

#include "server/backup/backup.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(absl::string_view manifest) {
  static InputFolder folder;
  folder.Write("manifest.json", manifest);
  const absl::Status status = VerifyBackup(folder.path()).status();
  Require(!status.ok(), "there is no database");
  RequireClear(status);
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
