// Measures every call: modelpress_rpc_duration_seconds{method,code}.
#ifndef MODELPRESS_SERVER_METRICS_RPC_INTERCEPTOR_H_
#define MODELPRESS_SERVER_METRICS_RPC_INTERCEPTOR_H_

#include <memory>

#include "grpcpp/support/server_interceptor.h"
#include "server/metrics/metrics.h"

namespace modelpress::server {

// `metrics` must outlive the server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeMetricsInterceptorFactory(Metrics& metrics);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_METRICS_RPC_INTERCEPTOR_H_
