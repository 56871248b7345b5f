// The role `run`: the engine in a process of its own. Serves exactly one operation.
#ifndef MODELPRESS_SERVER_WORKER_RUN_H_
#define MODELPRESS_SERVER_WORKER_RUN_H_

namespace modelpress::server {

// Speaks run_protocol.proto on stdin and stdout. First thing in main, before threads start. Returns the exit code: 0 after an
// answer, or if stdin ended before there was anything to do.
int RunChild();

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_RUN_H_
