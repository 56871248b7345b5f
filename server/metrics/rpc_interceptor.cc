#include "server/metrics/rpc_interceptor.h"

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/clock.h"

namespace modelpress::server {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;
using grpc::experimental::ServerRpcInfo;

class MetricsInterceptor final : public Interceptor {
 public:
  MetricsInterceptor(Metrics& metrics, const char* method) : metrics_(metrics), method_(method), start_(SteadyNow()) {}

  // A call that was broken off never gets as far as a status.
  ~MetricsInterceptor() override { metrics_.RpcEnded(method_, code_, SteadyNow() - start_); }

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      code_ = absl::StatusCodeToString(static_cast<absl::StatusCode>(methods->GetSendStatus().error_code()));
    }
    methods->Proceed();
  }

 private:
  Metrics& metrics_;
  const std::string method_;
  const absl::Duration start_;  // as SteadyNow()
  std::string code_ = "CANCELLED";
};

class Factory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Metrics& metrics) : metrics_(metrics) {}
  Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override { return new MetricsInterceptor(metrics_, info->method()); }

 private:
  Metrics& metrics_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeMetricsInterceptorFactory(Metrics& metrics) {
  return std::make_unique<Factory>(metrics);
}

}  // namespace modelpress::server
