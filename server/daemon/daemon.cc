#include "server/daemon/daemon.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "grpc/support/time.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/base/posix.h"
#include "server/blobs/directory_blob_store.h"
#include "server/daemon/reflection.h"
#include "server/jobs/cost.h"
#include "server/jobs/sql_job_store.h"
#include "server/rpc/call_observer.h"
#include "server/rpc/limits.h"
#include "server/sql/schema.h"
#include "server/worker/isolation.h"
#include "server/worker/owner.h"
#include "server/workspaces/sql_workspace_store.h"

namespace modelpress::server {
namespace {

constexpr int kBlockingThreads = 8;  // for disk and database; more only queue at the same disk
constexpr int kTransferThreads = 8;  // for uploads and downloads, behind which short calls must not queue

// For the last answers to leave and for clients to close their connections; those that do not are closed.
constexpr int kConnectionGraceMs = 300;

void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.SetResourceQuota(grpc::ResourceQuota("rpc").Resize(kMaxRpcMemoryBytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kConnectionIdleMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
}

absl::Status MakeWritable(const std::string& folder) {
  MP_RETURN_IF_ERROR(MakeFolder(folder));
  if (access(folder.c_str(), R_OK | W_OK | X_OK) != 0) {
    return ErrnoError(errno, "write to", folder);
  }
  return absl::OkStatus();
}

}  // namespace

bool IsLoopback(const std::string& address) {
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon);
  in_addr numeric = {};
  const bool is_ipv4 = inet_pton(AF_INET, host.c_str(), &numeric) == 1;
  return colon != std::string::npos &&
         (host == "localhost" || host == "[::1]" || (is_ipv4 && ntohl(numeric.s_addr) >> 24 == IN_LOOPBACKNET));
}

Daemon::Daemon(const DaemonOptions& options) : options_(options), operation_ids_(clock_, 'o'), workspace_ids_(clock_, 'w') {}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options) {
  if (!options.listen.empty()) {
    MP_RETURN_IF_ERROR(
        CheckExposure(options.listen, IsLoopback(options.listen), options.insecure_plaintext, options.tls, options.auth));
  }
  std::unique_ptr<Daemon> daemon(new Daemon(options));
  MP_RETURN_IF_ERROR(daemon->OpenStores());
  MP_RETURN_IF_ERROR(daemon->StartMetrics());
  daemon->StartHousekeeping();
  MP_RETURN_IF_ERROR(daemon->StartWorkers());
  MP_RETURN_IF_ERROR(daemon->StartRpc());
  MP_RETURN_IF_ERROR(daemon->StartHealth());
  return daemon;
}

Daemon::~Daemon() { Stop(); }

absl::Status Daemon::OpenStores() {
  MP_RETURN_IF_ERROR(MakeWritable(options_.data_folder));
  options_.worker.scratch_folder = options_.data_folder + "/scratch";
  MP_RETURN_IF_ERROR(MakeWritable(options_.worker.scratch_folder));
  MP_ASSIGN_OR_RETURN(database_,
                      OpenDatabase(options_.database.empty() ? options_.data_folder + "/modelpress.db" : options_.database));
  jobs_ = std::make_unique<SqlJobStore>(*database_, clock_, options_.quotas);
  workspaces_ = std::make_unique<SqlWorkspaceStore>(*database_, clock_, options_.quotas);
  MP_ASSIGN_OR_RETURN(blobs_, DirectoryBlobStore::OpenFolder(options_.data_folder));
  events_ = std::make_unique<JobEvents>(*jobs_);
  return absl::OkStatus();
}

absl::Status Daemon::StartMetrics() {
  if (!options_.metrics_listen.empty()) {
    MP_ASSIGN_OR_RETURN(metrics_, MetricsServer::Start(options_.metrics_listen, counters_, *jobs_));
  }
  return absl::OkStatus();
}

void Daemon::StartHousekeeping() {
  HousekeepingOptions& options = options_.housekeeping;
  options.data_folder = options_.data_folder;
  options.rescuer.scratch_folder = options_.worker.scratch_folder;
  options.rescuer.lease = options_.worker.lease;
  options.rescuer.retries = options_.worker.retries;
  housekeeper_ =
      std::make_unique<Housekeeper>(options, HousekeepingContext{*jobs_, *workspaces_, *blobs_, *events_, counters_, clock_});
  housekeeper_->Start();
}

absl::Status Daemon::StartWorkers() {
  machine_ = std::make_unique<ThisMachine>(options_.data_folder);
  admission_ = std::make_unique<Admission>(options_.admission, *machine_, counters_);
  MP_ASSIGN_OR_RETURN(options_.worker.owner, ThisOwner());
  if (options_.workers > 0) {
    MP_RETURN_IF_ERROR(CheckIsolation(options_.worker.executable, options_.worker.isolation, counters_));
  }
  counters_.SetWorkers(options_.workers);
  for (int i = 0; i < options_.workers; ++i) {
    workers_.push_back(
        std::make_unique<Worker>(options_.worker, WorkerContext{*jobs_, *blobs_, *events_, counters_, clock_, *admission_}));
    workers_.back()->Start();
  }
  return absl::OkStatus();
}

absl::Status Daemon::StartRpc() {
  if (options_.listen.empty()) {
    return absl::OkStatus();
  }
  EnableHealthService();
  MP_ASSIGN_OR_RETURN(access_, AccessControl::Open(options_.auth, clock_, counters_));
  std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
  if (options_.tls.enabled()) {
    MP_ASSIGN_OR_RETURN(tls_, TlsCredentials::Open(options_.tls, clock_, counters_));
    credentials = tls_->credentials();
  }
  executor_ = std::make_unique<Executor>(kBlockingThreads);
  transfers_ = std::make_unique<Executor>(kTransferThreads);
  calls_.emplace(*executor_, *transfers_, *access_);
  CostLimits limits;
  if (options_.admission.enabled) {
    MP_ASSIGN_OR_RETURN(const DiskSpace disk, DiskSpaceOf(options_.data_folder));
    limits = {.memory_bytes = options_.worker.limits.memory_bytes, .disk_bytes = disk.size_bytes};
  }
  compression_.emplace(*workspaces_, *jobs_, *events_, operation_ids_, *calls_, limits);
  const uint64_t min_free_disk = options_.admission.enabled ? options_.admission.min_free_disk_bytes : 0;
  workspaces_service_.emplace(TransferContext{*workspaces_, *blobs_, *calls_, counters_, options_.data_folder, min_free_disk},
                              workspace_ids_);
  operations_.emplace(*jobs_, *events_, *calls_);

  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.listen, credentials, &port_);
  // Two servers on one port would each get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  SetLimits(builder);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 30'000);
  builder.RegisterService(&*compression_);
  builder.RegisterService(&*workspaces_service_);
  builder.RegisterService(&*operations_);
  SetReflection(builder, options_.reflection || IsLoopback(options_.listen));
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(MakeCallObserverFactory(counters_, calls_->records()));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  rpc_ = builder.BuildAndStart();
  if (rpc_ == nullptr || port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.listen,
                                               ": the address is in use or not of this machine; give another --listen"));
  }
  return absl::OkStatus();
}

absl::Status Daemon::StartHealth() {
  std::vector<grpc::HealthCheckServiceInterface*> services;
  if (!options_.health_listen.empty()) {
    MP_ASSIGN_OR_RETURN(health_, HealthServer::Start(options_.health_listen));
    services.push_back(health_->service());
  }
  if (rpc_ != nullptr) {
    services.push_back(rpc_->GetHealthCheckService());
  }
  if (services.empty()) {
    return absl::OkStatus();
  }
  health_monitor_ = std::make_unique<HealthMonitor>(std::move(services), options_.health_interval, [this] {
    // That there is no such operation is an answer of a database that works.
    absl::Status answer = jobs_->Find("", "").status();
    if (!absl::IsNotFound(answer)) {
      return answer;
    }
    return access(options_.data_folder.c_str(), R_OK | W_OK | X_OK) == 0 ? absl::OkStatus()
                                                                         : ErrnoError(errno, "write to", options_.data_folder);
  });
  return absl::OkStatus();
}

void Daemon::Stop() {
  const absl::Duration deadline = clock_.Elapsed() + options_.drain_timeout;
  if (health_monitor_ != nullptr) {
    health_monitor_->Drain();
  }
  for (const auto& worker : workers_) {
    worker->StopClaiming();
  }
  if (rpc_ != nullptr) {
    calls_->Drain();
    events_->WakeAll();  // long polls look again and answer
    calls_->AwaitEnd(deadline - clock_.Elapsed());
    health_monitor_.reset();  // it knows the server's health service
    rpc_->Shutdown(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(kConnectionGraceMs, GPR_TIMESPAN)));
    rpc_.reset();
    transfers_.reset();
    executor_.reset();
  }
  for (const auto& worker : workers_) {
    worker->Stop(std::max(deadline - clock_.Elapsed(), absl::ZeroDuration()));
  }
  workers_.clear();
  if (housekeeper_ != nullptr) {
    housekeeper_->Stop();
  }
  health_monitor_.reset();
  health_.reset();
}

}  // namespace modelpress::server
