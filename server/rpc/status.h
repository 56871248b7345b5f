// The one place where an absl::Status becomes what goes over the wire.
#ifndef MODELPRESS_SERVER_RPC_STATUS_H_
#define MODELPRESS_SERVER_RPC_STATUS_H_

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace modelpress::server {

// Code, message and details: ErrorInfo always (a status without reason is a fault of ours: INTERNAL_ERROR); BadRequest where the
// error names a request field; PreconditionFailure of type "MISSING" where files are missing: those of the metadata `missing`
// (one per line), else `file`. For Operation.error; OK gives code 0.
google::rpc::Status ToRpcStatus(const absl::Status& status);

// The same with the google.rpc.Status in grpc-status-details-bin; texts are cut until all of it fits what clients take.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_STATUS_H_
