#include "server/rpc/operations_service.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/rpc/convert.h"
#include "server/rpc/names.h"
#include "server/rpc/unary.h"

namespace modelpress::server {
namespace {

absl::Status BadFilter(absl::string_view message) {
  return MakeError(v1::REQUEST_INVALID,
                   absl::StrCat(message,
                                "; terms are `workspace = \"workspaces/x\"`, `method = \"SaveModel\"`, `state = RUNNING`, "
                                "`done = true`, joined by \" AND \""),
                   {.field = "filter"});
}

// `"text"` -> text.
absl::StatusOr<std::string> Quoted(const std::string& key, absl::string_view value) {
  if (value.size() < 3 || !absl::ConsumePrefix(&value, "\"") || !absl::ConsumeSuffix(&value, "\"") ||
      value.find('"') != absl::string_view::npos) {
    return BadFilter(absl::StrCat("the value of '", key, "' is not a text in double quotes"));
  }
  return std::string(value);
}

absl::Status AddTerm(absl::string_view term, JobFilter& filter) {
  const std::vector<absl::string_view> sides = absl::StrSplit(term, absl::MaxSplits('=', 1));
  if (sides.size() != 2) {
    return BadFilter("a term has no '='");
  }
  const std::string key(absl::StripAsciiWhitespace(sides[0]));
  const absl::string_view value = absl::StripAsciiWhitespace(sides[1]);
  auto once = [&key](bool is_set) { return is_set ? BadFilter(absl::StrCat("'", key, "' comes twice")) : absl::OkStatus(); };
  if (key == "workspace") {
    MP_RETURN_IF_ERROR(once(filter.workspace.has_value()));
    MP_ASSIGN_OR_RETURN(const std::string name, Quoted(key, value));
    MP_RETURN_IF_ERROR(ParseWorkspaceName(name, "filter").status());
    filter.workspace = name;
  } else if (key == "method") {
    MP_RETURN_IF_ERROR(once(filter.method.has_value()));
    MP_ASSIGN_OR_RETURN(filter.method, Quoted(key, value));
  } else if (key == "state") {
    MP_RETURN_IF_ERROR(once(filter.state.has_value()));
    v1::OperationMetadata::State state = v1::OperationMetadata::STATE_UNSPECIFIED;
    if (!v1::OperationMetadata::State_Parse(std::string(value), &state) || state == v1::OperationMetadata::STATE_UNSPECIFIED) {
      return BadFilter("the value of 'state' is not PENDING, RUNNING, CANCELLING, SUCCEEDED, FAILED or CANCELLED");
    }
    filter.state = state;
  } else if (key == "done") {
    MP_RETURN_IF_ERROR(once(filter.done.has_value()));
    if (value != "true" && value != "false") {
      return BadFilter("the value of 'done' is not true or false");
    }
    filter.done = value == "true";
  } else {
    return BadFilter("a term begins with none of the known names");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobFilter> ParseFilter(const std::string& filter) {
  JobFilter parsed;
  if (absl::StripAsciiWhitespace(filter).empty()) {
    return parsed;
  }
  for (absl::string_view term : absl::StrSplit(filter, " AND ")) {
    MP_RETURN_IF_ERROR(AddTerm(term, parsed));
  }
  return parsed;
}

// Looks at the job after every change of the store, on the executor; between looks it holds no thread. Made after Enter.
class OperationsService::WaitReactor final : public grpc::ServerUnaryReactor {
 public:
  WaitReactor(OperationsService& service, Caller caller, std::string id, absl::Time deadline, google::longrunning::Operation* response)
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
      const absl::Duration rest = deadline_ - absl::Now();
      if (job.ok() && !job->done() && !cancelled_ && !service_.calls_.draining() && rest > absl::ZeroDuration()) {
        ticket_ = service_.events_.Await(seen, rest, [this] { service_.calls_.Run([this] { Look(); }); });
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
  const absl::Time deadline_;
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
    MP_ASSIGN_OR_RETURN(const int page_size, CheckPageSize(request->page_size()));
    MP_ASSIGN_OR_RETURN(const JobPage page, jobs_.List(caller.project, filter, page_size, request->page_token()));
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
  absl::Time deadline = absl::InfiniteFuture();
  if (request->has_timeout()) {
    deadline = absl::Now() + FromProto(request->timeout());
  }
  return new WaitReactor(*this, *std::move(caller), *id, deadline, response);
}

}  // namespace modelpress::server
