#include "server/rpc/calls.h"

#include <algorithm>

#include "engine/base/status.h"

namespace modelpress::server {

absl::StatusOr<Caller> Calls::Enter(const grpc::ServerContextBase&, Role) {
  std::lock_guard lock(mutex_);
  if (draining_) {
    return MakeError(v1::SERVER_DRAINING, "the server is about to stop; try again at another one or in a moment");
  }
  ++count_;
  return Caller();
}

void Calls::Leave() {
  std::lock_guard lock(mutex_);
  if (--count_ == 0) {
    ended_.notify_all();
  }
}

bool Calls::draining() const {
  std::lock_guard lock(mutex_);
  return draining_;
}

void Calls::Drain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

void Calls::AwaitEnd(absl::Duration patience) {
  std::unique_lock lock(mutex_);
  ended_.wait_for(lock, absl::ToChronoMilliseconds(std::min(patience, absl::Hours(1000))), [this] { return count_ == 0; });
}

}  // namespace modelpress::server
