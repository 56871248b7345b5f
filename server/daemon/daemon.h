// The roles `serve` and `work`: what runs, in which order it starts and in which it stops.
#ifndef MODELPRESS_SERVER_DAEMON_DAEMON_H_
#define MODELPRESS_SERVER_DAEMON_DAEMON_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server.h"
#include "server/auth/access_control.h"
#include "server/auth/options.h"
#include "server/auth/tls.h"
#include "server/base/clock.h"
#include "server/base/executor.h"
#include "server/base/ids.h"
#include "server/base/quotas.h"
#include "server/blobs/blob_store.h"
#include "server/daemon/health.h"
#include "server/housekeeping/housekeeper.h"
#include "server/jobs/job_events.h"
#include "server/jobs/job_store.h"
#include "server/metrics/metrics.h"
#include "server/rpc/calls.h"
#include "server/rpc/compression_service.h"
#include "server/rpc/operations_service.h"
#include "server/rpc/workspaces_service.h"
#include "server/sql/database.h"
#include "server/worker/admission.h"
#include "server/worker/worker.h"
#include "server/workspaces/workspace_store.h"

namespace modelpress::server {

struct DaemonOptions {
  std::string data_folder;
  std::string database;             // as OpenDatabase takes it; "": a file in data_folder
  std::string listen;               // "host:port", port 0 picks one; "": no RPCs (role `work`)
  bool insecure_plaintext = false;  // plaintext and unknown callers on other than loopback addresses
  TlsOptions tls;
  AuthOptions auth;
  bool reflection = false;    // gRPC reflection on other than loopback addresses too; it asks nobody for credentials
  std::string health_listen;  // as listen; plaintext everywhere, grpc.health.v1.Health only; "": off
  absl::Duration health_interval = absl::Seconds(5);
  std::string metrics_listen;  // as listen; "": off
  int workers = 1;             // threads that each work on one operation at a time
  absl::Duration drain_timeout = absl::Seconds(30);
  Quotas quotas;
  WorkerOptions worker;              // scratch_folder and owner are set by the daemon
  HousekeepingOptions housekeeping;  // data_folder, rescuer.scratch_folder, .lease and .retries are set by the daemon
  AdmissionOptions admission;
};

// True for "localhost", 127.0.0.0/8 and "[::1]" with a port.
bool IsLoopback(const std::string& address);

// Start order: data folder, stores, events, metrics, housekeeping, workers, gRPC (a caller that gets through finds everything
// working). Stop order: health (on its own port until the very end) says NOT_SERVING; workers claim nothing more; long polls
// answer; gRPC takes no more calls and those that run get until the drain timeout; running children get until the same moment,
// then are killed and their jobs go back to the queue; stores close. Each part is destroyed after those that use it: members are
// declared in start order.
class Daemon {
 public:
  // Fails with a text for the operator: a folder that cannot be written, an address that is in use, plaintext where it is not
  // allowed.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options);
  // Stop().
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  int port() const { return port_; }                                            // 0 without RPCs
  int health_port() const { return health_ == nullptr ? 0 : health_->port(); }  // 0: off
  int metrics_port() const { return metrics_ == nullptr ? 0 : metrics_->port(); }

  Metrics& metrics() { return counters_; }

  // Drains and stops; returns when everything has ended, some moments after the drain timeout at the latest. Safe to call again.
  void Stop();

 private:
  explicit Daemon(const DaemonOptions& options);
  absl::Status OpenStores();
  absl::Status StartMetrics();
  void StartHousekeeping();
  absl::Status StartWorkers();
  absl::Status StartRpc();
  absl::Status StartHealth();

  DaemonOptions options_;
  SystemClock clock_;
  RandomIdGenerator operation_ids_;
  RandomIdGenerator workspace_ids_;
  Metrics counters_;
  std::unique_ptr<Database> database_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<WorkspaceStore> workspaces_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<JobEvents> events_;
  std::unique_ptr<MetricsServer> metrics_;
  std::unique_ptr<Housekeeper> housekeeper_;
  std::unique_ptr<Machine> machine_;
  std::unique_ptr<Admission> admission_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<TlsCredentials> tls_;
  // Services before the executors: their tasks use them, so these end first.
  std::optional<Calls> calls_;
  std::optional<CompressionService> compression_;
  std::optional<WorkspacesService> workspaces_service_;
  std::optional<OperationsService> operations_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Executor> transfers_;
  std::unique_ptr<grpc::Server> rpc_;
  std::unique_ptr<HealthServer> health_;
  std::unique_ptr<HealthMonitor> health_monitor_;
  int port_ = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_DAEMON_DAEMON_H_
