#ifndef MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_
#define MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_

#include <string>
#include <vector>

#include "modelpress/v1/compression.grpc.pb.h"
#include "server/base/clock.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
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

  grpc::ServerUnaryReactor* SaveModel(grpc::CallbackServerContext* context, const v1::SaveModelRequest* request,
                                      google::longrunning::Operation* operation) override;
  grpc::ServerUnaryReactor* SavePruneRetrainModel(grpc::CallbackServerContext* context,
                                                  const v1::SavePruneRetrainModelRequest* request,
                                                  google::longrunning::Operation* operation) override;

 private:
  // A file that the call reads: the path and the request field that gave it.
  struct Input {
    std::string path;
    std::string field;
    bool with_folder;  // everything in its folder as well, where external data lies
  };

  absl::StatusOr<google::longrunning::Operation> Accept(const std::string& method, const google::protobuf::Message& request,
                                                        const std::string& workspace_name, const std::string& save_path,
                                                        const v1::CallOptions& options, const std::vector<Input>& inputs);
  absl::StatusOr<std::vector<v1::File>> PinInputs(const std::string& workspace, const std::vector<Input>& inputs);

  WorkspaceStore& workspaces_;
  JobStore& jobs_;
  JobEvents& events_;
  IdGenerator& ids_;
  Calls& calls_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_
