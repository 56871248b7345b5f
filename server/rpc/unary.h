// How calls with one request and one answer are served.
//
// gRPC runs reactions on a few threads of its own (two on a small machine). Everything that touches the disk or the database
// therefore runs on an Executor: one slow fdatasync(2) of an upload must not hold up health checks and status queries. The hop
// costs some 10 us.
#ifndef MODELPRESS_SERVER_RPC_UNARY_H_
#define MODELPRESS_SERVER_RPC_UNARY_H_

#include <utility>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "server/base/executor.h"
#include "server/rpc/status.h"

namespace modelpress::server {

// Answers with what `body` (returns absl::Status) returns. Request and response stay valid while it runs.
template <typename Body>
grpc::ServerUnaryReactor* ServeUnary(grpc::CallbackServerContext* context, Executor& executor, Body body) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  executor.Run([reactor, body = std::move(body)] { reactor->Finish(ToGrpcStatus(body())); });
  return reactor;
}

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_UNARY_H_
