#ifndef MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_
#define MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_

#include <string>
#include <vector>

#include "modelpress/v1/compression.grpc.pb.h"
#include "server/base/clock.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/rpc/call_files.h"
#include "server/rpc/calls.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

// Accepts compression calls: checks names, pins the input files to their digests and stores the job. The models are read by the
// child only.
class CompressionService final : public v1::Compression::CallbackService {
 public:
  // All must outlive the service.
  CompressionService(WorkspaceStore& workspaces, JobStore& jobs, JobEvents& events, IdGenerator& ids, Calls& calls)
      : workspaces_(workspaces), jobs_(jobs), events_(events), ids_(ids), calls_(calls) {}

  using Operation = google::longrunning::Operation;
  using Reactor = grpc::ServerUnaryReactor;
  using Context = grpc::CallbackServerContext;

  Reactor* CreateQuantConfig(Context* context, const v1::CreateQuantConfigRequest* request, Operation* operation) override;
  Reactor* QuantizePreprocess(Context* context, const v1::QuantizePreprocessRequest* request, Operation* operation) override;
  Reactor* QuantizeModel(Context* context, const v1::QuantizeModelRequest* request, Operation* operation) override;
  Reactor* Calibrate(Context* context, const v1::CalibrateRequest* request, Operation* operation) override;
  Reactor* SaveModel(Context* context, const v1::SaveModelRequest* request, Operation* operation) override;
  Reactor* SavePruneRetrainModel(Context* context, const v1::SavePruneRetrainModelRequest* request,
                                 Operation* operation) override;

 private:
  template <typename Request>
  Reactor* Serve(const std::string& method, Context* context, const Request* request, Operation* operation);
  absl::StatusOr<Operation> Accept(const std::string& method, const google::protobuf::Message& request,
                                   const std::string& workspace_name, const v1::CallOptions& options, const CallFiles& files);
  absl::StatusOr<std::vector<v1::File>> PinInputs(const std::string& workspace, const std::vector<Input>& inputs);

  WorkspaceStore& workspaces_;
  JobStore& jobs_;
  JobEvents& events_;
  IdGenerator& ids_;
  Calls& calls_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_
