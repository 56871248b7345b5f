// Whether the service works, for those who watch over it (Kubernetes, load balancers): grpc.health.v1.Health.
#ifndef MODELPRESS_SERVER_DAEMON_HEALTH_H_
#define MODELPRESS_SERVER_DAEMON_HEALTH_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"

namespace modelpress::server {

// Switches gRPC's own health service on in all servers of this process that are built from now on.
void EnableHealthService();

// A server with the health service only, over plaintext and open to everybody: probes have neither certificates nor tokens.
class HealthServer {
 public:
  // `address`: "host:port", port 0 picks one. UNAVAILABLE if it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const std::string& address);
  ~HealthServer();
  int port() const { return port_; }
  grpc::HealthCheckServiceInterface* service() { return server_->GetHealthCheckService(); }

 private:
  HealthServer() = default;
  grpc::CallbackGenericService others_;  // says UNIMPLEMENTED; gRPC builds no server without any service
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

// Asks again and again whether everything works, and tells the health services.
class HealthMonitor {
 public:
  using Check = std::function<absl::Status()>;

  // Runs `check` every `interval` in a thread of its own. The services must live until Drain returns.
  HealthMonitor(std::vector<grpc::HealthCheckServiceInterface*> services, absl::Duration interval, Check check);
  // Returns once a check that runs has ended.
  ~HealthMonitor();
  HealthMonitor(const HealthMonitor&) = delete;
  HealthMonitor& operator=(const HealthMonitor&) = delete;

  // NOT_SERVING from now on.
  void Drain();

 private:
  void Watch();
  void Set(const absl::Status& status);

  const std::vector<grpc::HealthCheckServiceInterface*> services_;
  const absl::Duration interval_;
  const Check check_;
  std::mutex mutex_;
  std::condition_variable draining_changed_;
  bool draining_ = false;
  bool serving_ = true;
  std::thread thread_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_DAEMON_HEALTH_H_
