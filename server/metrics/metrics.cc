#include "server/metrics/metrics.h"

#include <prometheus/exposer.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/metrics/process_metrics.h"

namespace modelpress::server {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Histogram;

// Operations take from milliseconds (a test model) to hours.
const Histogram::BucketBoundaries& OperationSeconds() {
  static const auto& bounds = *new Histogram::BucketBoundaries{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000};
  return bounds;
}

const Histogram::BucketBoundaries& RpcSeconds() {
  static const auto& bounds = *new Histogram::BucketBoundaries{0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100};
  return bounds;
}

const Histogram::BucketBoundaries& RssBytes() {
  static const auto& bounds = *new Histogram::BucketBoundaries{64e6, 128e6, 256e6, 512e6, 1e9, 2e9, 4e9, 8e9, 16e9, 32e9, 64e9};
  return bounds;
}

// Looks at the stored jobs whenever Prometheus asks, so that the numbers are right for all processes that share the store.
class JobCounts final : public prometheus::Collectable {
 public:
  JobCounts(JobStore& jobs, Metrics& metrics) : jobs_(jobs), metrics_(metrics) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    const auto counts = jobs_.Count();
    const absl::StatusOr<std::optional<absl::Time>> oldest = jobs_.OldestPending();
    if (!counts.ok() || !oldest.ok()) {
      const absl::Status& status = counts.ok() ? oldest.status() : counts.status();
      LOG(ERROR) << "cannot count operations for metrics: " << status;
      metrics_.StoreFailed(ReasonOf(status));
      return {};
    }
    prometheus::MetricFamily family;
    family.name = "modelpress_operations";
    family.help = "Stored operations by method and state";
    family.type = prometheus::MetricType::Gauge;
    for (const auto& [key, count] : *counts) {
      prometheus::ClientMetric metric;
      metric.label = {{"method", key.first}, {"state", v1::OperationMetadata::State_Name(key.second)}};
      metric.gauge.value = static_cast<double>(count);
      family.metric.push_back(std::move(metric));
    }
    const absl::Duration waits =
        oldest->has_value() ? std::max(absl::Now() - **oldest, absl::ZeroDuration()) : absl::ZeroDuration();
    return {family,
            GaugeFamily("modelpress_oldest_pending_seconds",
                        "Time since the oldest operation that waits was accepted; 0: none waits", absl::ToDoubleSeconds(waits))};
  }

 private:
  JobStore& jobs_;
  Metrics& metrics_;
};

}  // namespace

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      operation_duration_(&BuildHistogram()
                               .Name("modelpress_operation_duration_seconds")
                               .Help("Time from the start of the last attempt to the stored outcome")
                               .Register(*registry_)),
      queue_wait_(&BuildHistogram()
                       .Name("modelpress_queue_wait_seconds")
                       .Help("Time from accepting an operation to the start of its first attempt")
                       .Register(*registry_)),
      peak_rss_(&BuildHistogram()
                     .Name("modelpress_child_peak_rss_bytes")
                     .Help("Peak resident memory of the process of one attempt")
                     .Register(*registry_)),
      child_deaths_(&BuildCounter()
                         .Name("modelpress_child_deaths_total")
                         .Help("Child processes that ended without an answer or were killed")
                         .Register(*registry_)),
      isolation_(&BuildGauge()
                      .Name("modelpress_child_isolation")
                      .Help("Whether engine processes are held by this mechanism (1) or not (0)")
                      .Register(*registry_)),
      rpc_duration_(&BuildHistogram()
                         .Name("modelpress_rpc_duration_seconds")
                         .Help("Time from the start of a call to its status")
                         .Register(*registry_)),
      auth_failures_(&BuildCounter()
                          .Name("modelpress_auth_failures_total")
                          .Help("Calls refused because of who made them")
                          .Register(*registry_)),
      reload_failures_(&BuildCounter()
                            .Name("modelpress_reload_failures_total")
                            .Help("Times that a file had changed and could not be used")
                            .Register(*registry_)),
      certificate_expiry_(&prometheus::BuildGauge()
                               .Name("modelpress_tls_certificate_expiry_timestamp_seconds")
                               .Help("When the TLS certificate that is served expires, in seconds since 1970")
                               .Register(*registry_)),
      retries_(&BuildCounter()
                    .Name("modelpress_operation_retries_total")
                    .Help("Attempts that are to be repeated")
                    .Register(*registry_)),
      store_errors_(&BuildCounter()
                         .Name("modelpress_store_errors_total")
                         .Help("Errors of database and file store that calls, workers and scrapes met")
                         .Register(*registry_)),
      quota_rejections_(&BuildCounter()
                             .Name("modelpress_quota_rejections_total")
                             .Help("Calls that were refused because of a quota")
                             .Register(*registry_)),
      cached_(&BuildCounter()
                   .Name("modelpress_operations_cached_total")
                   .Help("Calls that were answered with the result of an earlier operation")
                   .Register(*registry_)
                   .Add({})),
      workers_(&BuildGauge()
                    .Name("modelpress_workers")
                    .Help("Operations that this process can work on at a time")
                    .Register(*registry_)
                    .Add({})),
      workers_busy_(&BuildGauge()
                         .Name("modelpress_workers_busy")
                         .Help("Operations that this process works on")
                         .Register(*registry_)
                         .Add({})),
      rpcs_in_flight_(&BuildGauge()
                           .Name("modelpress_rpcs_in_flight")
                           .Help("Calls that are being served, long polls included")
                           .Register(*registry_)
                           .Add({})),
      upload_bytes_(&BuildCounter()
                         .Name("modelpress_upload_bytes_total")
                         .Help("Bytes received by UploadBytes and stored")
                         .Register(*registry_)
                         .Add({})),
      download_bytes_(&BuildCounter()
                           .Name("modelpress_download_bytes_total")
                           .Help("Bytes sent by DownloadFile")
                           .Register(*registry_)
                           .Add({})),
      admission_waiting_(&BuildGauge()
                              .Name("modelpress_admission_waiting")
                              .Help("1 while an operation waits for memory or disk of this process's machine")
                              .Register(*registry_)
                              .Add({})),
      housekeeping_duration_(&BuildHistogram()
                                  .Name("modelpress_housekeeping_duration_seconds")
                                  .Help("Time of one round of housekeeping")
                                  .Register(*registry_)
                                  .Add({}, OperationSeconds())),
      gc_removed_blobs_(&BuildCounter()
                             .Name("modelpress_gc_removed_blobs_total")
                             .Help("Stored contents that nothing referred to any more, removed by this process")
                             .Register(*registry_)
                             .Add({})),
      gc_freed_bytes_(&BuildCounter()
                           .Name("modelpress_gc_freed_bytes_total")
                           .Help("Bytes of the contents removed")
                           .Register(*registry_)
                           .Add({})),
      storage_bytes_(&BuildGauge()
                          .Name("modelpress_storage_bytes")
                          .Help("Bytes stored, as of the last round of housekeeping")
                          .Register(*registry_)),
      storage_free_bytes_(&BuildGauge()
                               .Name("modelpress_storage_free_bytes")
                               .Help("Bytes free on the file system of the data folder, as of the last round of housekeeping")
                               .Register(*registry_)
                               .Add({})) {
  BuildGauge()
      .Name("modelpress_build_info")
      .Help("1; the label tells the version")
      .Register(*registry_)
      .Add({{"version", MODELPRESS_VERSION}})
      .Set(1);
}

void Metrics::BlobRemoved(uint64_t bytes) {
  gc_removed_blobs_->Increment();
  gc_freed_bytes_->Increment(static_cast<double>(bytes));
}

void Metrics::SetStorageBytes(const std::string& kind, uint64_t bytes) {
  storage_bytes_->Add({{"kind", kind}}).Set(static_cast<double>(bytes));
}

void Metrics::OperationEnded(const std::string& method, v1::OperationMetadata::State state, absl::Duration duration) {
  operation_duration_->Add({{"method", method}, {"state", v1::OperationMetadata::State_Name(state)}}, OperationSeconds())
      .Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::OperationStarted(const std::string& method, absl::Duration queue_wait) {
  queue_wait_->Add({{"method", method}}, OperationSeconds()).Observe(absl::ToDoubleSeconds(queue_wait));
}

void Metrics::ChildEnded(const std::string& method, uint64_t peak_rss_bytes) {
  peak_rss_->Add({{"method", method}}, RssBytes()).Observe(static_cast<double>(peak_rss_bytes));
}

void Metrics::ChildDied(const std::string& cause) { child_deaths_->Add({{"cause", cause}}).Increment(); }

bool Metrics::SetIsolation(const std::string& mechanism, bool active) {
  const std::lock_guard lock(isolation_mutex_);
  const auto [state, is_new] = isolation_states_.try_emplace(mechanism, active);
  if (!is_new && state->second == active) {
    return false;
  }
  state->second = active;
  isolation_->Add({{"mechanism", mechanism}}).Set(active ? 1 : 0);
  return true;
}

void Metrics::StoreFailed(v1::Reason reason) {
  const std::string& name = v1::Reason_Name(reason);
  if (absl::StartsWith(name, "STORAGE_")) {
    store_errors_->Add({{"reason", name}}).Increment();
  }
}

void Metrics::RpcEnded(const std::string& method, const std::string& code, absl::Duration duration) {
  rpcs_in_flight_->Decrement();
  rpc_duration_->Add({{"method", method}, {"code", code}}, RpcSeconds()).Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::AuthFailed(const std::string& cause) { auth_failures_->Add({{"reason", cause}}).Increment(); }

void Metrics::ReloadFailed(const std::string& flag) { reload_failures_->Add({{"flag", flag}}).Increment(); }

void Metrics::TlsCertificateExpires(absl::Time time) {
  certificate_expiry_->Add({}).Set(static_cast<double>(absl::ToUnixSeconds(time)));
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address, Metrics& metrics,
                                                                    JobStore& jobs) {
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/1);
    server->collected_ = {metrics.registry(), std::make_shared<JobCounts>(jobs, metrics), MakeProcessMetrics()};
    for (const auto& collectable : server->collected_) {
      server->exposer_->RegisterCollectable(collectable);
    }
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, ": ", error.what(),
                                               "; give another address or --metrics_listen= to switch them off"));
  }
  return server;
}

MetricsServer::~MetricsServer() = default;

int MetricsServer::port() const {
  const std::vector<int> ports = exposer_->GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

}  // namespace modelpress::server
