// Where the configuration comes from: flags over environment over file over defaults.
#ifndef MODELPRESS_SERVER_CONFIG_LOAD_H_
#define MODELPRESS_SERVER_CONFIG_LOAD_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config/server_config.pb.h"

namespace modelpress::server {

struct LoadedConfig {
  ServerConfig config;  // only what somebody set
  // Who set it, by name of the setting: "flag --workers", "variable MODELPRESSD_WORKERS", "/etc/modelpressd.textproto:12".
  std::map<std::string, std::string> sources;
};

using NamedValues = std::vector<std::pair<std::string, std::string>>;

// `flags`: settings without the "--", in order; of two with one name the last counts. `environment`: NAME=value entries; those
// that do not begin with MODELPRESSD_ are not looked at. `file`: path of the configuration file; "" takes that of the variable
// MODELPRESSD_CONFIG, if any.
//
// REQUEST_INVALID, telling the place, for a name that is no setting's, a value of the wrong type or out of bounds, a file that
// cannot be read; nothing is ever ignored but what Kubernetes sets by itself for a service named modelpressd (MODELPRESSD_PORT,
// MODELPRESSD_PORT_50051_TCP, MODELPRESSD_SERVICE_HOST, ...).
absl::StatusOr<LoadedConfig> LoadConfig(const NamedValues& flags, const std::vector<std::string>& environment,
                                        const std::string& file);

// Every setting with its value in force, as a file for --config, who set it as a comment; passwords are replaced.
std::string PrintConfig(const LoadedConfig& loaded);

// The flags of all settings for --help, topic by topic.
std::string SettingsHelp();

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_CONFIG_LOAD_H_
