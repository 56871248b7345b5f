// What `modelpress` tells a shell.
#ifndef MODELPRESS_CLIENT_CPP_EXIT_CODE_H_
#define MODELPRESS_CLIENT_CPP_EXIT_CODE_H_

#include "absl/status/status.h"

namespace modelpress::client {

// The values are those of sysexits.h where it has one for the purpose.
enum ExitCode : int {
  kExitOk = 0,
  kExitUsage = 64,         // wrong command line
  kExitInput = 65,         // the input is wrong
  kExitNotFound = 66,      // a local file, or a name on the server
  kExitUnavailable = 69,   // no server answers
  kExitServer = 70,        // the server failed
  kExitExists = 73,        // the name is taken
  kExitLocalIo = 74,       // this machine's file system failed
  kExitTryLater = 75,      // a limit was hit or time ran out
  kExitPermission = 77,    // the server does not allow it
  kExitInterrupted = 130,  // Ctrl-C, or the operation was cancelled
};

// The table above as text for --help.
inline constexpr char kExitCodeHelp[] =
    "Exit codes: 0 ok; 64 wrong command line; 65 the input is wrong; 66 not found (local file or name on the server); "
    "69 no server answers; 70 the server failed; 73 the name is taken; 74 local input or output failed; 75 try again later "
    "(limit hit, time ran out); 77 not permitted; 130 interrupted or cancelled.";

ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_EXIT_CODE_H_
