#ifndef MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_
#define MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "google/protobuf/message.h"
#include "modelpress/v1/compression.grpc.pb.h"
#include "server/base/clock.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/rpc/call_files.h"
#include "server/rpc/calls.h"
#include "server/rpc/unary.h"
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

  Reactor* CreateQuantConfig(Context* context, const v1::CreateQuantConfigRequest* request, Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* QuantizePreprocess(Context* context, const v1::QuantizePreprocessRequest* request, Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* QuantizeModel(Context* context, const v1::QuantizeModelRequest* request, Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* Calibrate(Context* context, const v1::CalibrateRequest* request, Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* SaveModel(Context* context, const v1::SaveModelRequest* request, Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* CreatePruneRetrainModel(Context* context, const v1::CreatePruneRetrainModelRequest* request,
                                   Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* RestorePruneRetrainModel(Context* context, const v1::RestorePruneRetrainModelRequest* request,
                                    Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* AutoChannelPruneSearch(Context* context, const v1::AutoChannelPruneSearchRequest* request,
                                  Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* CreateQuantRetrainConfig(Context* context, const v1::CreateQuantRetrainConfigRequest* request,
                                    Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* CreateQuantRetrainModel(Context* context, const v1::CreateQuantRetrainModelRequest* request,
                                   Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* RestoreQuantRetrainModel(Context* context, const v1::RestoreQuantRetrainModelRequest* request,
                                    Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* SaveQuantRetrainModel(Context* context, const v1::SaveQuantRetrainModelRequest* request,
                                 Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* CreateCompressedRetrainModel(Context* context, const v1::CreateCompressedRetrainModelRequest* request,
                                        Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* RestoreCompressedRetrainModel(Context* context, const v1::RestoreCompressedRetrainModelRequest* request,
                                         Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* SaveCompressedRetrainModel(Context* context, const v1::SaveCompressedRetrainModelRequest* request,
                                      Operation* operation) override {
    return Serve(context, request, operation);
  }
  Reactor* SavePruneRetrainModel(Context* context, const v1::SavePruneRetrainModelRequest* request,
                                 Operation* operation) override {
    return Serve(context, request, operation);
  }

 private:
  template <typename Request>
  Reactor* Serve(Context* context, const Request* request, Operation* operation) {
    return ServeUnary(context, calls_, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
      Request complete = *request;
      MP_ASSIGN_OR_RETURN(const CallFiles files, FilesOf(complete));
      MP_ASSIGN_OR_RETURN(*operation, Accept(caller, complete, Canonical(complete), complete.workspace(), complete.options(), files));
      return absl::OkStatus();
    });
  }
  // The request without what makes no difference to its result.
  template <typename Request>
  static Request Canonical(const Request& request) {
    Request canonical = request;
    canonical.clear_workspace();
    v1::CallOptions& options = *canonical.mutable_options();
    options.clear_request_id();
    options.clear_execution_timeout();
    options.clear_no_cache();
    return canonical;
  }
  absl::StatusOr<Operation> Accept(const Caller& caller, const google::protobuf::Message& request,
                                   const google::protobuf::Message& canonical, const std::string& workspace_name,
                                   const v1::CallOptions& options, const CallFiles& files);
  absl::StatusOr<std::vector<v1::File>> PinInputs(const WorkspaceKey& workspace, const std::vector<Input>& inputs);

  WorkspaceStore& workspaces_;
  JobStore& jobs_;
  JobEvents& events_;
  IdGenerator& ids_;
  Calls& calls_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_COMPRESSION_SERVICE_H_
