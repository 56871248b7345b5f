#include "server/daemon/daemon.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/base/posix.h"
#include "server/blobs/directory_blob_store.h"
#include "server/jobs/sql_job_store.h"
#include "server/rpc/call_observer.h"
#include "server/sql/schema.h"
#include "server/worker/owner.h"
#include "server/workspaces/sql_workspace_store.h"

namespace modelpress::server {
namespace {

constexpr int kMaxMessageBytes = 4 << 20;
constexpr int kBlockingThreads = 8;  // for disk and database; more only queue at the same disk

// For the last answers to leave and for clients to close their connections; those that do not are closed.
constexpr absl::Duration kConnectionGrace = absl::Milliseconds(300);

// Plugins of gRPC are switched on for the whole process, once, before the first server is built.
void EnableGrpcPlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
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
  if (!options.listen.empty() && !options.insecure_plaintext && !IsLoopback(options.listen)) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("--listen=", options.listen,
                                                       " would serve plaintext to other machines; listen on localhost, or give "
                                                       "--insecure_plaintext where something else protects the connection"));
  }
  std::unique_ptr<Daemon> daemon(new Daemon(options));
  MP_RETURN_IF_ERROR(daemon->OpenStores());
  MP_RETURN_IF_ERROR(daemon->StartMetrics());
  MP_RETURN_IF_ERROR(daemon->StartWorkers());
  MP_RETURN_IF_ERROR(daemon->StartRpc());
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

absl::Status Daemon::StartWorkers() {
  MP_ASSIGN_OR_RETURN(options_.worker.owner, ThisOwner());
  counters_.SetWorkers(options_.workers);
  for (int i = 0; i < options_.workers; ++i) {
    workers_.push_back(std::make_unique<Worker>(options_.worker, WorkerContext{*jobs_, *blobs_, *events_, counters_, clock_}));
    workers_.back()->Start();
  }
  return absl::OkStatus();
}

absl::Status Daemon::StartRpc() {
  if (options_.listen.empty()) {
    return absl::OkStatus();
  }
  EnableGrpcPlugins();
  executor_ = std::make_unique<Executor>(kBlockingThreads);
  calls_.emplace(*executor_);
  compression_.emplace(*workspaces_, *jobs_, *events_, operation_ids_, *calls_);
  workspaces_service_.emplace(TransferContext{*workspaces_, *blobs_, *calls_, counters_}, workspace_ids_);
  operations_.emplace(*jobs_, *events_, *calls_);

  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
  // Two servers on one port would each get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 30'000);
  builder.RegisterService(&*compression_);
  builder.RegisterService(&*workspaces_service_);
  builder.RegisterService(&*operations_);
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

void Daemon::Stop() {
  const absl::Time deadline = absl::Now() + options_.drain_timeout;
  if (rpc_ != nullptr) {
    rpc_->GetHealthCheckService()->SetServingStatus(false);
  }
  for (const auto& worker : workers_) {
    worker->StopClaiming();
  }
  if (rpc_ != nullptr) {
    calls_->Drain();
    events_->Notify();  // long polls look again and answer
    calls_->AwaitEnd(deadline);
    rpc_->Shutdown(absl::ToChronoTime(absl::Now() + kConnectionGrace));
    rpc_.reset();
    executor_.reset();
  }
  for (const auto& worker : workers_) {
    worker->Stop(std::max(deadline - absl::Now(), absl::ZeroDuration()));
  }
  workers_.clear();
}

}  // namespace modelpress::server
