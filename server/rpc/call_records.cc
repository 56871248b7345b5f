#include "server/rpc/call_records.h"

#include <utility>

namespace modelpress::server {

void CallRecords::Begin(const grpc::ServerContextBase& context) {
  std::lock_guard lock(mutex_);
  records_.insert_or_assign(&context, CallRecord());
}

void CallRecords::Admit(const grpc::ServerContextBase& context, const Caller& caller, Role needed) {
  std::lock_guard lock(mutex_);
  if (const auto record = records_.find(&context); record != records_.end()) {
    record->second = {.admitted = true, .caller = caller, .needed = needed};
  }
}

CallRecord CallRecords::End(const grpc::ServerContextBase& context) {
  std::lock_guard lock(mutex_);
  auto node = records_.extract(&context);
  return node.empty() ? CallRecord() : std::move(node.mapped());
}

}  // namespace modelpress::server
