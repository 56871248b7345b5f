#include "server/config/options.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/base/quotas.h"
#include "server/worker/isolation.h"

namespace modelpress::server {
namespace {

absl::Status Require(bool condition, absl::string_view message) {
  return condition ? absl::OkStatus() : MakeError(v1::REQUEST_INVALID, message);
}

uint64_t MebiBytes(int64_t count) { return static_cast<uint64_t>(count) << 20; }

absl::StatusOr<Quotas> ToQuotas(const QuotaConfig& config) {
  const ProjectQuota standard{.bytes = config.quota_bytes(),
                              .running = config.quota_running(),
                              .pending = config.quota_pending(),
                              .workspaces = config.quota_workspaces()};
  std::map<std::string, ProjectQuota> exceptions;
  for (const ProjectQuotaConfig& quota : config.project_quota()) {
    MP_RETURN_IF_ERROR(Require(!quota.project().empty(), "a project_quota names no project"));
    const auto [entry, is_new] = exceptions.emplace(quota.project(), standard);
    MP_RETURN_IF_ERROR(Require(is_new, absl::StrCat("there are two project_quota of project '", quota.project(), "'")));
    ProjectQuota& exception = entry->second;
    exception.bytes = quota.has_bytes() ? quota.bytes() : standard.bytes;
    exception.running = quota.has_running() ? quota.running() : standard.running;
    exception.pending = quota.has_pending() ? quota.pending() : standard.pending;
    exception.workspaces = quota.has_workspaces() ? quota.workspaces() : standard.workspaces;
  }
  return Quotas(standard, std::move(exceptions));
}

}  // namespace

absl::StatusOr<DaemonOptions> ToDaemonOptions(const ServerConfig& config, DaemonRole role) {
  const Work& work = config.work();
  const int least_workers = role == DaemonRole::kWork ? 1 : 0;
  MP_RETURN_IF_ERROR(Require(!config.storage().data_dir().empty(), "data_dir is needed: give --data_dir=DIR"));
  MP_RETURN_IF_ERROR(Require(role == DaemonRole::kWork || !config.rpc().listen().empty(), "listen must not be empty"));
  MP_RETURN_IF_ERROR(Require(work.workers() >= least_workers, "workers must be 1 or more for the role work"));

  const int processors = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int threads = std::max(1, processors / std::max(1, work.workers()));
  DaemonOptions options;
  options.data_folder = config.storage().data_dir();
  options.database = config.storage().database();
  options.listen = role == DaemonRole::kServe ? config.rpc().listen() : "";
  options.insecure_plaintext = config.rpc().insecure_plaintext();
  const Security& security = config.security();
  options.tls = {.cert = security.tls_cert(),
                 .key = security.tls_key(),
                 .client_ca = security.tls_client_ca(),
                 .client_certificate_optional = security.tls_client_certificate_optional()};
  options.auth = {.credentials_file = security.credentials_file(),
                  .jwks_file = security.jwks_file(),
                  .jwt_issuer = security.jwt_issuer(),
                  .jwt_audience = security.jwt_audience(),
                  .jwt_project_claim = security.jwt_project_claim(),
                  .jwt_role_claim = security.jwt_role_claim(),
                  .anonymous = security.anonymous()};
  options.reflection = config.rpc().reflection();
  options.health_listen = config.rpc().health_listen();
  options.drain_timeout = absl::Seconds(config.rpc().drain_timeout_s());
  options.metrics_listen = config.observation().metrics_listen();
  options.workers = work.workers();
  MP_ASSIGN_OR_RETURN(options.quotas, ToQuotas(config.quotas()));
  options.worker.lease = absl::Seconds(work.lease_s());
  options.worker.max_execution = absl::Seconds(work.max_execution_s());
  options.worker.threads_per_operation = work.threads_per_operation() > 0 ? work.threads_per_operation() : threads;
  options.worker.limits.memory_bytes = MebiBytes(work.child_memory_limit_mb());
  options.worker.limits.cpu_seconds = static_cast<uint64_t>(work.child_cpu_limit_s());
  options.worker.limits.file_bytes = MebiBytes(work.child_file_limit_mb());
  options.worker.limits.disk_bytes = MebiBytes(work.child_disk_limit_mb());
  MP_ASSIGN_OR_RETURN(options.worker.isolation.mode, ParseIsolationMode(work.isolation()));
  MP_ASSIGN_OR_RETURN(options.worker.isolation.user, ResolveChildUser(work.child_user()));
  options.admission = {.enabled = work.admission(), .min_free_disk_bytes = MebiBytes(work.min_free_disk_mb())};
  const Housekeeping& housekeeping = config.housekeeping();
  options.housekeeping.interval = absl::Seconds(housekeeping.housekeeping_interval_s());
  options.housekeeping.workspace_ttl = absl::Hours(housekeeping.workspace_ttl_h());
  options.housekeeping.operation_ttl = absl::Hours(housekeeping.operation_ttl_h());
  options.housekeeping.upload_ttl = absl::Hours(housekeeping.upload_ttl_h());
  options.housekeeping.blob_grace = absl::Seconds(housekeeping.blob_grace_s());
  return options;
}

}  // namespace modelpress::server
