// The worker's side of the child's isolation (server/sandbox): what is asked of a child, and what becomes of its answer.
#ifndef MODELPRESS_SERVER_WORKER_ISOLATION_H_
#define MODELPRESS_SERVER_WORKER_ISOLATION_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/metrics/metrics.h"
#include "server/sandbox/sandbox.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {

enum class IsolationMode {
  kRequire,     // no operation without every mechanism that is needed
  kBestEffort,  // what is to be had, with a warning for what is not
  kOff,         // for tests and debuggers
};

struct IsolationOptions {
  IsolationMode mode = IsolationMode::kBestEffort;
  std::optional<SandboxUser> user;  // that children become
};

// "require", "best_effort" or "off". REQUEST_INVALID.
absl::StatusOr<IsolationMode> ParseIsolationMode(absl::string_view text);

// The user of --child_user: a name, an id, or "", which is 65534 (by custom "nobody"). nullopt where children stay what the
// server is: it is not root, lacks a capability for it, or root was asked for. REQUEST_INVALID for a user that is not known, and
// for any where the server is not root.
absl::StatusOr<std::optional<SandboxUser>> ResolveChildUser(const std::string& name);

IsolationSpec SpecOf(const IsolationOptions& options);

// Makes a folder that the server has just made the child's own.
absl::Status GrantFolder(const std::string& folder, const IsolationOptions& options);

// Sets the metrics to what holds, and logs what does not as a warning, once for each state that a mechanism changes to.
void ReportIsolation(const std::vector<Mechanism>& mechanisms, Metrics& metrics);
void ReportIsolation(const Isolation& isolation, Metrics& metrics);

// At the start of a process with workers. Reports what is to be had; with kRequire it has a child of `executable` set it up and
// fails with a text for the operator if something is missing.
absl::Status CheckIsolation(const std::string& executable, const IsolationOptions& options, Metrics& metrics);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_ISOLATION_H_
