#include "server/daemon/health.h"

#include <mutex>
#include <utility>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/daemon/reflection.h"

namespace modelpress::server {

// A setting of the whole process, which gRPC reads unprotected.
void EnableHealthService() {
  static std::once_flag once;
  std::call_once(once, [] { grpc::EnableDefaultHealthCheckService(true); });
}

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const std::string& address) {
  EnableHealthService();
  std::unique_ptr<HealthServer> health(new HealthServer);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &health->port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(4 << 10);
  SetReflection(builder, false);
  builder.RegisterCallbackGenericService(&health->others_);
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr || health->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address,
                                               ": the address is in use or not of this machine; give another --health_listen"));
  }
  return health;
}

HealthServer::~HealthServer() {
  if (server_ != nullptr) {
    server_->Shutdown(absl::ToChronoTime(absl::Now()));
  }
}

HealthMonitor::HealthMonitor(std::vector<grpc::HealthCheckServiceInterface*> services, absl::Duration interval, Check check)
    : services_(std::move(services)), interval_(interval), check_(std::move(check)), thread_([this] { Watch(); }) {}

HealthMonitor::~HealthMonitor() {
  Drain();
  thread_.join();
}

void HealthMonitor::Drain() {
  std::lock_guard lock(mutex_);
  if (!std::exchange(draining_, true)) {
    for (grpc::HealthCheckServiceInterface* service : services_) {
      service->SetServingStatus(false);
    }
  }
  draining_changed_.notify_all();
}

void HealthMonitor::Watch() {
  std::unique_lock lock(mutex_);
  while (!draining_) {
    lock.unlock();
    const absl::Status status = check_();
    lock.lock();
    if (draining_) {
      return;
    }
    Set(status);
    draining_changed_.wait_for(lock, absl::ToChronoNanoseconds(interval_), [this] { return draining_; });
  }
}

void HealthMonitor::Set(const absl::Status& status) {
  if (status.ok() != serving_) {
    serving_ = status.ok();
    if (serving_) {
      LOG(INFO) << "health: serving again";
    } else {
      LOG(ERROR) << "health: not serving: " << status.message();
    }
    for (grpc::HealthCheckServiceInterface* service : services_) {
      service->SetServingStatus(serving_);
    }
  }
}

}  // namespace modelpress::server
