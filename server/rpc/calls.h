// The calls that are being served: let in or not by who makes them, counted, so that the end of the server can wait for them, and
// refused once it drains.
#ifndef MODELPRESS_SERVER_RPC_CALLS_H_
#define MODELPRESS_SERVER_RPC_CALLS_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "server/auth/access_control.h"
#include "server/auth/caller.h"
#include "server/base/executor.h"
#include "server/rpc/call_records.h"

namespace modelpress::server {

// gRPC's own Server::Shutdown also waits for connections to close, which idle clients may take any time for, and resets calls
// that come in meanwhile as CANCELLED, which clients do not retry. Thread-safe.
class Calls {
 public:
  // All must outlive this.
  Calls(Executor& executor, Executor& transfers, AccessControl& access)
      : executor_(executor), transfers_(transfers), access_(access) {}

  // A call begins, for which its caller needs the role `needed`; every OK wants one Leave. Errors as AccessControl::Admit;
  // SERVER_DRAINING once Drain was called.
  absl::StatusOr<Caller> Enter(const grpc::ServerContextBase& context, Role needed);
  void Leave();
  bool draining() const;
  // Where Enter writes down who makes the call.
  CallRecords& records() { return records_; }

  // Refuses calls from now on.
  void Drain();
  // Returns when those that run have ended, after `patience` at the latest.
  void AwaitEnd(absl::Duration patience);

  // Runs what may block for moments: a look at the database, a change of it.
  void Run(std::function<void()> task) { executor_.Run(std::move(task)); }
  // Runs a step of a stream of bytes, which may take much longer and hold up other streams only.
  void RunTransfer(std::function<void()> task) { transfers_.Run(std::move(task)); }

 private:
  Executor& executor_;
  Executor& transfers_;
  AccessControl& access_;
  CallRecords records_;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  int count_ = 0;
  bool draining_ = false;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_CALLS_H_
