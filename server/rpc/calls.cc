#include "server/rpc/calls.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/log/trace.h"

namespace modelpress::server {

absl::StatusOr<Caller> Calls::Enter(const grpc::ServerContextBase& context, Role needed) {
  std::lock_guard lock(mutex_);
  if (draining_) {
    return MakeError(v1::SERVER_DRAINING, "the server is about to stop; try again at another one or in a moment");
  }
  ++count_;
  const auto header = context.client_metadata().find(kTraceparent);
  Caller caller;
  caller.traceparent = FormatTraceparent(ContinueTrace(
      header == context.client_metadata().end() ? absl::string_view() : absl::string_view(header->second.data(), header->second.size())));
  records_.Admit(context, caller, needed);
  return caller;
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

void Calls::AwaitEnd(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  ended_.wait_until(lock, absl::ToChronoTime(std::min(deadline, absl::Now() + absl::Hours(1000))),
                    [this] { return count_ == 0; });
}

}  // namespace modelpress::server
