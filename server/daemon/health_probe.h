#ifndef MODELPRESS_SERVER_DAEMON_HEALTH_PROBE_H_
#define MODELPRESS_SERVER_DAEMON_HEALTH_PROBE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace modelpress::server {

// Asks grpc.health.v1.Health at `target`, over TLS if `tls_ca` (PEM: who vouches for the server) is given, else over plaintext.
// OK if it answers SERVING within `timeout`, else UNAVAILABLE.
absl::Status ProbeHealth(const std::string& target, absl::Duration timeout, const std::string& tls_ca = "");

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_DAEMON_HEALTH_PROBE_H_
