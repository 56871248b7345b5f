#include "server/rpc/stream_places.h"

namespace modelpress::server {

bool StreamPlaces::Enter(const std::string& project) {
  const std::lock_guard lock(mutex_);
  const auto held = held_.find(project);
  if ((held == held_.end() ? 0 : held->second) >= free_) {
    return false;
  }
  --free_;
  ++held_[project];
  return true;
}

void StreamPlaces::Leave(const std::string& project) {
  const std::lock_guard lock(mutex_);
  ++free_;
  const auto held = held_.find(project);
  if (--held->second == 0) {
    held_.erase(held);
  }
}

}  // namespace modelpress::server
