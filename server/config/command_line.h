// modelpressd's command line: COMMAND and flags in any order, --name=value or --name value.
#ifndef MODELPRESS_SERVER_CONFIG_COMMAND_LINE_H_
#define MODELPRESS_SERVER_CONFIG_COMMAND_LINE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/config/load.h"

namespace modelpress::server {

// A flag that is no setting, of one command only.
struct CommandFlag {
  std::string name;
  std::string help;
  std::string standard;  // its value where it is not given
  bool is_bool = false;  // may stand without a value, for "true"
};

struct Command {
  std::string name;
  std::string help;
  bool takes_settings = true;  // and --config
  std::vector<CommandFlag> flags;
};

struct CommandLine {
  std::string command;  // "" with `help` or `version`
  bool help = false;
  bool version = false;
  std::string config_file;                   // --config
  NamedValues settings;                      // as given, in order
  std::map<std::string, std::string> flags;  // of the command, all of them
};

// `words`: without the program's name. REQUEST_INVALID for what is no command or flag, and for a flag that the command does not
// take.
// --help (-h) and --version anywhere win over everything.
absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> words, absl::Span<const Command> commands);

// The commands with their flags, and all settings, for --help.
std::string CommandHelp(absl::Span<const Command> commands);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_CONFIG_COMMAND_LINE_H_
