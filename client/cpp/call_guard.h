// Ends a blocking gRPC call when the caller asks for it or when nothing moves any more.
#ifndef MODELPRESS_CLIENT_CPP_CALL_GUARD_H_
#define MODELPRESS_CLIENT_CPP_CALL_GUARD_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"

namespace modelpress::client {

// Cancels `context` when `stop` is requested.
class StopGuard {
 public:
  StopGuard(grpc::ClientContext& context, const std::stop_token& stop)
      : stop_(stop), callback_(stop, [&context] { context.TryCancel(); }) {}
  // The call's status, where the guard ended the call with the guard's reason.
  absl::Status Explain(const absl::Status& status) const;

 private:
  std::stop_token stop_;
  std::stop_callback<std::function<void()>> callback_;
};

// Cancels `context` when Touch() was not called for `idle_timeout`.
class IdleGuard {
 public:
  IdleGuard(grpc::ClientContext& context, absl::Duration idle_timeout);
  void Touch();
  // As StopGuard; an idle stream is UNAVAILABLE.
  absl::Status Explain(const absl::Status& status);

 private:
  void Watch(const std::stop_token& done);

  grpc::ClientContext& context_;
  const absl::Duration idle_timeout_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  absl::Time deadline_;   // guarded by mutex_
  bool expired_ = false;  // guarded by mutex_
  std::jthread watcher_;  // last: it uses the others
};

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_CALL_GUARD_H_
