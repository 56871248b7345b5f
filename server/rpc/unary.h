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
#include "server/rpc/calls.h"
#include "server/rpc/status.h"

namespace modelpress::server {

// Answers with what `body` (absl::Status(const Caller&)) returns, or with why the caller may not call (Calls::Enter). Request and
// response stay valid while it runs.
template <typename Body>
grpc::ServerUnaryReactor* ServeUnary(grpc::CallbackServerContext* context, Calls& calls, Role needed, Body body) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::StatusOr<Caller> caller = calls.Enter(*context, needed);
  if (!caller.ok()) {
    reactor->Finish(ToGrpcStatus(caller.status()));
    return reactor;
  }
  calls.Run([reactor, &calls, caller = *std::move(caller), body = std::move(body)] {
    reactor->Finish(ToGrpcStatus(body(caller)));
    calls.Leave();
  });
  return reactor;
}

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_UNARY_H_
