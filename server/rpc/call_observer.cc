#include "server/rpc/call_observer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/log/log.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "google/longrunning/operations.pb.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "modelpress/v1/operations.pb.h"
#include "server/base/clock.h"
#include "server/log/log.h"
#include "server/log/trace.h"

namespace modelpress::server {
namespace {

using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;
using grpc::experimental::ServerRpcInfo;

constexpr size_t kMaxText = 300;  // of a caller's text in the log

// Of a path such as "/modelpress.v1.Compression/SaveModel"; nullptr if no service of ours has it.
const MethodDescriptor* FindMethod(absl::string_view path) {
  absl::ConsumePrefix(&path, "/");
  const MethodDescriptor* method =
      google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(absl::StrReplaceAll(path, {{"/", "."}}));
  const bool is_ours = method != nullptr && (absl::StartsWith(method->full_name(), "modelpress.v1.") ||
                                             absl::StartsWith(method->full_name(), "google.longrunning."));
  return is_ours ? method : nullptr;
}

// The path as a label. gRPC calls its interceptors for methods that do not exist, too, whose names callers make up.
std::string MethodLabel(const MethodDescriptor* method, absl::string_view path) {
  return method != nullptr || path == "/grpc.health.v1.Health/Check" || path == "/grpc.health.v1.Health/Watch" ? std::string(path)
                                                                                                               : "unknown";
}

std::string Cut(absl::string_view text) { return std::string(text.substr(0, kMaxText)); }

// A text field of a message; "" where there is none of that name.
std::string Text(const Message& message, const std::string& name) {
  const auto* field = message.GetDescriptor()->FindFieldByName(name);
  const bool is_text =
      field != nullptr && !field->is_repeated() && field->type() == google::protobuf::FieldDescriptor::TYPE_STRING;
  return is_text ? message.GetReflection()->GetString(message, field) : "";
}

std::string RequestId(const Message& request) {
  const auto* options = request.GetDescriptor()->FindFieldByName("options");
  const bool has_options = options != nullptr && !options->is_repeated() && options->message_type() != nullptr;
  return has_options ? Text(request.GetReflection()->GetMessage(request, options), "request_id") : Text(request, "request_id");
}

google::rpc::ErrorInfo InfoOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (details.ParseFromString(status.error_details()) && details.details_size() > 0) {
    details.details(0).UnpackTo(&info);
  }
  return info;
}

class CallObserver final : public Interceptor {
 public:
  CallObserver(Metrics& metrics, CallRecords& records, ServerRpcInfo& info)
      : metrics_(metrics),
        records_(records),
        context_(*info.server_context()),
        path_(info.method()),
        method_(FindMethod(path_)),
        label_(MethodLabel(method_, path_)),
        start_(SteadyNow()) {
    records_.Begin(context_);
    metrics_.RpcStarted();
  }

  // A call that was broken off never gets as far as a status.
  ~CallObserver() override {
    const absl::Duration duration = SteadyNow() - start_;
    metrics_.RpcEnded(label_, code_, duration);
    const CallRecord record = records_.End(context_);
    // Of what was not admitted nothing is known but what a stranger says, at any rate they like: AccessControl logs some of it.
    if (record.admitted && (record.needed != Role::kReader || code_ != "OK")) {
      Log(record, duration);
    }
  }

  void Intercept(InterceptorBatchMethods* methods) override {
    using Hook = InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(Hook::POST_RECV_INITIAL_METADATA)) {
      peer_ = context_.peer();
    }
    if (methods->QueryInterceptionHookPoint(Hook::POST_RECV_MESSAGE) && method_ != nullptr) {
      SeeRequest(static_cast<const Message*>(methods->GetRecvMessage()));
    }
    if (methods->QueryInterceptionHookPoint(Hook::PRE_SEND_MESSAGE) && method_ != nullptr) {
      SeeResponse(static_cast<const Message*>(methods->GetSendMessage()));
    }
    if (methods->QueryInterceptionHookPoint(Hook::PRE_SEND_STATUS)) {
      SeeStatus(methods->GetSendStatus());
    }
    methods->Proceed();
  }

 private:
  // Of a stream the first message, which names what it is about.
  void SeeRequest(const Message* request) {
    if (request == nullptr || request_seen_) {
      return;
    }
    request_seen_ = true;
    request_id_ = RequestId(*request);
    for (const char* name : {"name", "upload", "file", "workspace"}) {
      if (resource_.empty()) {
        resource_ = Text(*request, name);
      }
    }
    SeeOperation(resource_);
  }

  void SeeResponse(const Message* response) {
    if (response == nullptr || method_->output_type() != google::longrunning::Operation::descriptor()) {
      return;
    }
    const auto& operation = static_cast<const google::longrunning::Operation&>(*response);
    SeeOperation(operation.name());
    modelpress::v1::OperationMetadata metadata;
    const bool is_answer = absl::StartsWith(method_->full_name(), "modelpress.v1.Compression.");
    if (is_answer && operation.done() && operation.metadata().UnpackTo(&metadata) && metadata.cached()) {
      metrics_.OperationCached();
    }
  }

  void SeeOperation(absl::string_view name) {
    if (absl::ConsumePrefix(&name, "operations/")) {
      operation_ = std::string(name);
    }
  }

  void SeeStatus(const grpc::Status& status) {
    code_ = absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code()));
    if (status.ok()) {
      return;
    }
    error_ = status.error_message();
    const google::rpc::ErrorInfo info = InfoOf(status);
    reason_ = info.reason();
    v1::Reason reason = v1::REASON_UNSPECIFIED;
    if (!v1::Reason_Parse(reason_, &reason)) {
      return;
    }
    metrics_.StoreFailed(reason);
    if (reason == v1::QUOTA_EXCEEDED && info.metadata().contains("quota")) {
      metrics_.QuotaRejected(info.metadata().at("quota"));
    }
  }

  void Log(const CallRecord& record, absl::Duration duration) const {
    LogFields fields = {{"rpc", Cut(path_)}, {"code", code_}, {"duration_s", absl::ToDoubleSeconds(duration)}};
    auto add = [&fields](const char* name, absl::string_view value) {
      if (!value.empty()) {
        fields.emplace_back(name, Cut(value));
      }
    };
    add("reason", reason_);
    add("error", error_);
    add("principal", record.caller.principal);
    add("project", record.caller.project);
    add("peer", peer_);
    add("resource", resource_);
    add("operation", operation_);
    add("request_id", request_id_);
    LogFields trace = TraceFields(record.caller.traceparent);
    std::ranges::move(trace, std::back_inserter(fields));
    const ScopedLogFields scope(std::move(fields));
    LOG(INFO) << "call " << label_.substr(label_.rfind('/') + 1) << ": " << code_;
  }

  Metrics& metrics_;
  CallRecords& records_;
  const grpc::ServerContextBase& context_;
  const std::string path_;
  const MethodDescriptor* const method_;
  const std::string label_;
  const absl::Duration start_;  // as SteadyNow()
  std::string code_ = "CANCELLED";
  std::string reason_;
  std::string error_;
  std::string peer_;
  bool request_seen_ = false;
  std::string resource_;
  std::string operation_;
  std::string request_id_;
};

class Factory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  Factory(Metrics& metrics, CallRecords& records) : metrics_(metrics), records_(records) {}
  Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override { return new CallObserver(metrics_, records_, *info); }

 private:
  Metrics& metrics_;
  CallRecords& records_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallObserverFactory(Metrics& metrics,
                                                                                               CallRecords& records) {
  return std::make_unique<Factory>(metrics, records);
}

}  // namespace modelpress::server
