// Looks on at every call: metrics, and, of calls that were admitted, one line in the log at the end if it changed something or
// failed. Calls that only look and succeed, polls above all, leave no line; nor do strangers, who could write as many as they
// like.
#ifndef MODELPRESS_SERVER_RPC_CALL_OBSERVER_H_
#define MODELPRESS_SERVER_RPC_CALL_OBSERVER_H_

#include <memory>

#include "grpcpp/support/server_interceptor.h"
#include "server/metrics/metrics.h"
#include "server/rpc/call_records.h"

namespace modelpress::server {

// Both must outlive the server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallObserverFactory(Metrics& metrics,
                                                                                               CallRecords& records);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_CALL_OBSERVER_H_
