// Who holds a lease, so that others on this machine can tell at once that it is dead.
#ifndef MODELPRESS_SERVER_WORKER_OWNER_H_
#define MODELPRESS_SERVER_WORKER_OWNER_H_

#include <string>

#include "absl/status/statusor.h"

namespace modelpress::server {

// "{boot id}/{pid namespace}/{pid}/{start time}" of this process. Unique for all time on all machines.
absl::StatusOr<std::string> ThisOwner();

// True if `owner` was a process that this one could see and that is gone. False for a living one and for those of other machines
// and containers, which may share the queue: their leases run out instead. (Every boot of every machine has an id of its own, and
// every container a namespace of its own.)
bool IsDeadOwner(const std::string& owner);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_WORKER_OWNER_H_
