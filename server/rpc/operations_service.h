#ifndef MODELPRESS_SERVER_RPC_OPERATIONS_SERVICE_H_
#define MODELPRESS_SERVER_RPC_OPERATIONS_SERVICE_H_

#include "google/longrunning/operations.grpc.pb.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/rpc/calls.h"

namespace modelpress::server {

// google.longrunning.Operations in full.
class OperationsService final : public google::longrunning::Operations::CallbackService {
 public:
  // All must outlive the service.
  OperationsService(JobStore& jobs, JobEvents& events, Calls& calls) : jobs_(jobs), events_(events), calls_(calls) {}

  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context,
                                         const google::longrunning::GetOperationRequest* request,
                                         google::longrunning::Operation* response) override;
  grpc::ServerUnaryReactor* ListOperations(grpc::CallbackServerContext* context,
                                           const google::longrunning::ListOperationsRequest* request,
                                           google::longrunning::ListOperationsResponse* response) override;
  grpc::ServerUnaryReactor* CancelOperation(grpc::CallbackServerContext* context,
                                            const google::longrunning::CancelOperationRequest* request,
                                            google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* DeleteOperation(grpc::CallbackServerContext* context,
                                            const google::longrunning::DeleteOperationRequest* request,
                                            google::protobuf::Empty* response) override;
  // A long poll: answers when the operation is done, after `timeout` (unset: the call's deadline), or when the server stops.
  grpc::ServerUnaryReactor* WaitOperation(grpc::CallbackServerContext* context,
                                          const google::longrunning::WaitOperationRequest* request,
                                          google::longrunning::Operation* response) override;

 private:
  class WaitReactor;

  JobStore& jobs_;
  JobEvents& events_;
  Calls& calls_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_OPERATIONS_SERVICE_H_
