#ifndef MODELPRESS_SERVER_CONFIG_OPTIONS_H_
#define MODELPRESS_SERVER_CONFIG_OPTIONS_H_

#include "absl/status/statusor.h"
#include "server/config/server_config.pb.h"
#include "server/daemon/daemon.h"

namespace modelpress::server {

enum class DaemonRole { kServe, kWork };

// What the daemon is told. `config` keeps the bounds of its settings (LoadConfig); REQUEST_INVALID where several together, or one
// for this role, make no sense.
absl::StatusOr<DaemonOptions> ToDaemonOptions(const ServerConfig& config, DaemonRole role);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_CONFIG_OPTIONS_H_
