// The filter of ListOperations (operations.proto).
#ifndef MODELPRESS_SERVER_RPC_OPERATIONS_FILTER_H_
#define MODELPRESS_SERVER_RPC_OPERATIONS_FILTER_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// REQUEST_INVALID with field "filter".
absl::StatusOr<JobFilter> ParseFilter(const std::string& filter);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_OPERATIONS_FILTER_H_
