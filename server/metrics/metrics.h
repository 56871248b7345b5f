// What the daemon counts, under the names that docs/server.md lists, for Prometheus.
#ifndef MODELPRESS_SERVER_METRICS_METRICS_H_
#define MODELPRESS_SERVER_METRICS_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "modelpress/v1/errors.pb.h"
#include "server/jobs/job_store.h"

namespace prometheus {
class Exposer;
}

namespace modelpress::server {

// Thread-safe.
class Metrics {
 public:
  Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // `state`: how it ended. From the start of the last attempt to the stored outcome.
  void OperationEnded(const std::string& method, v1::OperationMetadata::State state, absl::Duration duration);
  // From accepting to the start of the first attempt.
  void OperationStarted(const std::string& method, absl::Duration queue_wait);
  void ChildEnded(const std::string& method, uint64_t peak_rss_bytes);
  // `cause`: "SIGSEGV", "exit 3", "memory limit", ...: a child that ended without an answer, or was killed.
  void ChildDied(const std::string& cause);
  // An attempt is to be repeated, because of: "crash" (its child died of itself), "lost" (it or its worker was killed),
  // "drained".
  void OperationRetried(const std::string& cause) { retries_->Add({{"cause", cause}}).Increment(); }
  // A call was answered with the result of an earlier one.
  void OperationCached() { cached_->Increment(); }
  void SetWorkers(int count) { workers_->Set(count); }
  // Each wants one false after its true.
  void WorkerBusy(bool busy) { busy ? workers_busy_->Increment() : workers_busy_->Decrement(); }
  // Counts STORAGE_... reasons, no others.
  void StoreFailed(v1::Reason reason);
  void QuotaRejected(const std::string& quota) { quota_rejections_->Add({{"quota", quota}}).Increment(); }
  // Every RpcStarted wants one RpcEnded. `method` is one that exists.
  void RpcStarted() { rpcs_in_flight_->Increment(); }
  void RpcEnded(const std::string& method, const std::string& code, absl::Duration duration);
  void Uploaded(uint64_t bytes) { upload_bytes_->Increment(static_cast<double>(bytes)); }
  void Downloaded(uint64_t bytes) { download_bytes_->Increment(static_cast<double>(bytes)); }

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  template <typename T>
  using Family = prometheus::Family<T>*;

  std::shared_ptr<prometheus::Registry> registry_;
  Family<prometheus::Histogram> operation_duration_;
  Family<prometheus::Histogram> queue_wait_;
  Family<prometheus::Histogram> peak_rss_;
  Family<prometheus::Counter> child_deaths_;
  Family<prometheus::Histogram> rpc_duration_;
  Family<prometheus::Counter> retries_;
  Family<prometheus::Counter> store_errors_;
  Family<prometheus::Counter> quota_rejections_;
  prometheus::Counter* cached_;
  prometheus::Gauge* workers_;
  prometheus::Gauge* workers_busy_;
  prometheus::Gauge* rpcs_in_flight_;
  prometheus::Counter* upload_bytes_;
  prometheus::Counter* download_bytes_;
};

// Serves `metrics`, what is counted in `jobs` at each scrape, and what the kernel knows of this process (process_...), as
// /metrics over HTTP.
class MetricsServer {
 public:
  // `address`: "host:port", port 0 picks one. UNAVAILABLE if it cannot be listened on. Both must outlive it.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address, Metrics& metrics, JobStore& jobs);
  ~MetricsServer();
  int port() const;

 private:
  MetricsServer() = default;
  std::vector<std::shared_ptr<prometheus::Collectable>> collected_;  // the exposer does not keep them alive
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_METRICS_METRICS_H_
