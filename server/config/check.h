#ifndef MODELPRESS_SERVER_CONFIG_CHECK_H_
#define MODELPRESS_SERVER_CONFIG_CHECK_H_

#include <string>
#include <vector>

#include "server/config/options.h"
#include "server/daemon/daemon.h"

namespace modelpress::server {

struct Finding {
  bool is_error = false;  // the daemon would not start or not work; else a warning
  std::string text;
};

// What can be found out about `options` without serving; nothing is made or changed: whether folders can be written to and lie on
// one file system, the database is of a version that this program knows, addresses are this machine's to listen on, the limits of
// `options.workers` operations fit into memory.
std::vector<Finding> CheckOptions(const DaemonOptions& options);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_CONFIG_CHECK_H_
