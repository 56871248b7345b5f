// The program `modelpress`, apart from its process: arguments in, exit code and text out (docs/cli.md).
#ifndef MODELPRESS_CLIENT_CPP_CLI_H_
#define MODELPRESS_CLIENT_CPP_CLI_H_

#include <ostream>
#include <stop_token>
#include <string>
#include <vector>

namespace modelpress::client {

struct CliStreams {
  std::ostream& out;
  std::ostream& err;
  bool err_is_terminal = false;
  int width = 80;  // columns of the terminal
};

// `arguments` without the program's name. A request to `stop` is Ctrl-C.
int RunCli(const std::vector<std::string>& arguments, const CliStreams& streams, const std::stop_token& stop);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_CLI_H_
