#ifndef MODELPRESS_SERVER_DAEMON_REFLECTION_H_
#define MODELPRESS_SERVER_DAEMON_REFLECTION_H_

#include "grpcpp/server_builder.h"

namespace modelpress::server {

// Whether the server offers gRPC reflection, by which anybody can list services and messages. gRPC's library switches it on for
// all servers of a process that it is linked into.
void SetReflection(grpc::ServerBuilder& builder, bool on);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_DAEMON_REFLECTION_H_
