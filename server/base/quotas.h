#ifndef MODELPRESS_SERVER_BASE_QUOTAS_H_
#define MODELPRESS_SERVER_BASE_QUOTAS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace modelpress::server {

// What one project may use; 0: no limit.
struct ProjectQuota {
  uint64_t bytes = 0;  // of all its files and of what its unfinished uploads announce; content that two names share counts twice
  int running = 0;     // operations that run at the same time; more wait
  int pending = 0;     // operations that wait
  int workspaces = 0;
};

// The quota of every project. Immutable.
class Quotas {
 public:
  Quotas() = default;
  // `exceptions` by project; all others have `standard`.
  Quotas(ProjectQuota standard, std::map<std::string, ProjectQuota> exceptions)
      : standard_(standard), exceptions_(std::move(exceptions)) {}

  const ProjectQuota& Of(const std::string& project) const {
    const auto exception = exceptions_.find(project);
    return exception == exceptions_.end() ? standard_ : exception->second;
  }

 private:
  ProjectQuota standard_;
  std::map<std::string, ProjectQuota> exceptions_;
};

// QUOTA_EXCEEDED with the metadata `quota` ("bytes", "pending" or "workspaces"), `limit` and `used`. `wanted`: by how much `used`
// was to grow.
absl::Status QuotaExceeded(absl::string_view quota, uint64_t limit, uint64_t used, uint64_t wanted);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_BASE_QUOTAS_H_
