// Requests of the API as calls of the engine, and what the engine has made as responses.
#ifndef MODELPRESS_SERVER_WORKER_DISPATCH_H_
#define MODELPRESS_SERVER_WORKER_DISPATCH_H_

#include "absl/status/statusor.h"
#include "engine/functions/functions.h"
#include "google/protobuf/any.pb.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {

// Runs the request's function. `context` has everything but what the request's own options say, which is filled in here. With
// validate_only no file was written and the response names none. INTERNAL_ERROR for a request that this program does not know.
absl::StatusOr<RunResult> Dispatch(const google::protobuf::Any& request, engine::CallContext& context);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_DISPATCH_H_
