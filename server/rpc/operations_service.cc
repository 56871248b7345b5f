#include "server/rpc/operations_service.h"

#include <mutex>
#include <utility>

#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/base/clock.h"
#include "server/rpc/convert.h"
#include "server/rpc/limits.h"
#include "server/rpc/names.h"
#include "server/rpc/operations_filter.h"
#include "server/rpc/unary.h"

namespace modelpress::server {
// Looks at the job when the call begins and when it is to end, on the executor; between looks it holds no thread. Made after
// Enter.
class OperationsService::WaitReactor final : public grpc::ServerUnaryReactor {
 public:
  WaitReactor(OperationsService& service, Caller caller, std::string id, absl::Duration deadline,
              google::longrunning::Operation* response)
      : service_(service), caller_(std::move(caller)), id_(std::move(id)), deadline_(deadline), response_(response) {
    service_.calls_.Run([this] { Look(); });
  }

  void OnCancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    service_.events_.Wake(ticket_);
  }
  void OnDone() override {
    service_.calls_.Leave();
    delete this;
  }

 private:
  void Look() {
    const uint64_t seen = service_.events_.generation();
    const absl::StatusOr<Job> job = service_.jobs_.Find(caller_.project, id_);
    {
      std::lock_guard lock(mutex_);
      const absl::Duration rest = deadline_ - SteadyNow();
      if (job.ok() && !job->done() && !cancelled_ && !service_.calls_.draining() && rest > absl::ZeroDuration()) {
        ticket_ = service_.events_.AwaitEnd(id_, seen, rest, [this] { service_.calls_.Run([this] { Look(); }); });
        return;
      }
    }
    if (job.ok()) {
      *response_ = ToOperation(*job);
    }
    Finish(ToGrpcStatus(job.status()));
  }

  OperationsService& service_;
  const Caller caller_;
  const std::string id_;
  const absl::Duration deadline_;  // as SteadyNow()
  google::longrunning::Operation* const response_;
  std::mutex mutex_;
  bool cancelled_ = false;
  uint64_t ticket_ = 0;  // none yet: Wake knows no ticket 0
};

grpc::ServerUnaryReactor* OperationsService::GetOperation(grpc::CallbackServerContext* context,
                                                          const google::longrunning::GetOperationRequest* request,
                                                          google::longrunning::Operation* response) {
  return ServeUnary(context, calls_, Role::kReader, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::string id, ParseOperationName(request->name(), "name"));
    MP_ASSIGN_OR_RETURN(const Job job, jobs_.Find(caller.project, id));
    *response = ToOperation(job);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* OperationsService::ListOperations(grpc::CallbackServerContext* context,
                                                            const google::longrunning::ListOperationsRequest* request,
                                                            google::longrunning::ListOperationsResponse* response) {
  return ServeUnary(context, calls_, Role::kReader, [=, this](const Caller& caller) -> absl::Status {
    if (request->name() != "operations") {
      return MakeError(v1::NAME_INVALID, "the name of the collection is 'operations'", {.field = "name"});
    }
    MP_ASSIGN_OR_RETURN(const JobFilter filter, ParseFilter(request->filter()));
    static_assert(kJobPageBytes < kMaxMessageBytes);
    MP_ASSIGN_OR_RETURN(const JobPage page, jobs_.List(caller.project, filter, request->page_size(), request->page_token()));
    for (const Job& job : page.jobs) {
      *response->add_operations() = ToOperation(job);
    }
    response->set_next_page_token(page.next_page_token);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* OperationsService::CancelOperation(grpc::CallbackServerContext* context,
                                                             const google::longrunning::CancelOperationRequest* request,
                                                             google::protobuf::Empty*) {
  return ServeUnary(context, calls_, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::string id, ParseOperationName(request->name(), "name"));
    MP_RETURN_IF_ERROR(jobs_.RequestCancel(caller.project, id).status());
    events_.Notify();
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* OperationsService::DeleteOperation(grpc::CallbackServerContext* context,
                                                             const google::longrunning::DeleteOperationRequest* request,
                                                             google::protobuf::Empty*) {
  return ServeUnary(context, calls_, Role::kWriter, [=, this](const Caller& caller) -> absl::Status {
    MP_ASSIGN_OR_RETURN(const std::string id, ParseOperationName(request->name(), "name"));
    MP_RETURN_IF_ERROR(jobs_.Delete(caller.project, id));
    events_.Notify();
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* OperationsService::WaitOperation(grpc::CallbackServerContext* context,
                                                           const google::longrunning::WaitOperationRequest* request,
                                                           google::longrunning::Operation* response) {
  const auto refuse = [context](const absl::Status& status) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(status));
    return reactor;
  };
  absl::StatusOr<Caller> caller = calls_.Enter(*context, Role::kReader);
  if (!caller.ok()) {
    return refuse(caller.status());
  }
  const absl::StatusOr<std::string> id = ParseOperationName(request->name(), "name");
  if (!id.ok()) {
    calls_.Leave();
    return refuse(id.status());
  }
  absl::Duration deadline = absl::InfiniteDuration();
  if (request->has_timeout()) {
    deadline = SteadyNow() + FromProto(request->timeout());
  }
  return new WaitReactor(*this, *std::move(caller), *id, deadline, response);
}

}  // namespace modelpress::server
