// What the worker needs of compression requests and responses, for all methods alike: fields are found by their types.
#ifndef MODELPRESS_SERVER_WORKER_REQUEST_H_
#define MODELPRESS_SERVER_WORKER_REQUEST_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/protobuf/any.pb.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// CallOptions.execution_timeout of a request; infinite if it has none.
absl::Duration ExecutionTimeout(const google::protobuf::Any& request);

// `response` with every File, whose name is a path in the workspace, given its full name, size and digest from `outputs`.
// INTERNAL_ERROR if it names a file that is not among them.
absl::StatusOr<google::protobuf::Any> NameOutputs(const google::protobuf::Any& response, const std::string& workspace_id,
                                                  const std::vector<OutputFile>& outputs);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_REQUEST_H_
