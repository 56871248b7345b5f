#ifndef MODELPRESS_SERVER_RPC_CALL_RECORDS_H_
#define MODELPRESS_SERVER_RPC_CALL_RECORDS_H_

#include <mutex>
#include <unordered_map>

#include "grpcpp/server_context.h"
#include "server/auth/caller.h"

namespace modelpress::server {

// What is found out about a call on its way in (Calls::Enter), for what is said about it at its end (call_observer.h).
struct CallRecord {
  bool admitted = false;  // else it ended before anything below was known
  Caller caller;
  Role needed = Role::kReader;
};

// The records of the calls that are being served, by their contexts. Thread-safe.
class CallRecords {
 public:
  void Begin(const grpc::ServerContextBase& context);
  // Does nothing if the call was not begun: nobody will ask for its record then.
  void Admit(const grpc::ServerContextBase& context, const Caller& caller, Role needed);
  CallRecord End(const grpc::ServerContextBase& context);

 private:
  std::mutex mutex_;
  std::unordered_map<const grpc::ServerContextBase*, CallRecord> records_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_CALL_RECORDS_H_
