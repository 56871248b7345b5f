// What the daemon counts, under the names that docs/server.md lists, for Prometheus.
#ifndef MODELPRESS_SERVER_METRICS_METRICS_H_
#define MODELPRESS_SERVER_METRICS_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <mutex>
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
  // Whether engine processes are held by `mechanism` (server/sandbox). True if that is news.
  bool SetIsolation(const std::string& mechanism, bool active);
  // An attempt is to be repeated, because of: "failure" (its child died of itself, or a disk failed), "lost" (it or its worker
  // was killed), "drained".
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
  // `cause`: why a caller was not let in, of a small fixed set (server/auth/authenticator.h), or "denied".
  void AuthFailed(const std::string& cause);
  // A file of this flag (or "tls") has changed and cannot be used.
  void ReloadFailed(const std::string& flag);
  void TlsCertificateExpires(absl::Time time);
  void Uploaded(uint64_t bytes) { upload_bytes_->Increment(static_cast<double>(bytes)); }
  void Downloaded(uint64_t bytes) { download_bytes_->Increment(static_cast<double>(bytes)); }

  // Whether an operation waits for memory or disk as far as this process can tell.
  void SetAdmissionWaiting(bool waiting) { admission_waiting_->Set(waiting ? 1 : 0); }
  // Housekeeping: one round, removed content, and what is stored. `kind`: "blobs" or "uploads".
  void HousekeepingEnded(absl::Duration duration) { housekeeping_duration_->Observe(absl::ToDoubleSeconds(duration)); }
  void BlobRemoved(uint64_t bytes);
  void SetStorageBytes(const std::string& kind, uint64_t bytes);
  void SetStorageFreeBytes(uint64_t bytes) { storage_free_bytes_->Set(static_cast<double>(bytes)); }

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  template <typename T>
  using Family = prometheus::Family<T>*;

  std::shared_ptr<prometheus::Registry> registry_;
  Family<prometheus::Histogram> operation_duration_;
  Family<prometheus::Histogram> queue_wait_;
  Family<prometheus::Histogram> peak_rss_;
  Family<prometheus::Counter> child_deaths_;
  Family<prometheus::Gauge> isolation_;
  std::mutex isolation_mutex_;
  std::map<std::string, bool> isolation_states_;  // what isolation_ shows
  Family<prometheus::Histogram> rpc_duration_;
  Family<prometheus::Counter> auth_failures_;
  Family<prometheus::Counter> reload_failures_;
  Family<prometheus::Gauge> certificate_expiry_;
  Family<prometheus::Counter> retries_;
  Family<prometheus::Counter> store_errors_;
  Family<prometheus::Counter> quota_rejections_;
  prometheus::Counter* cached_;
  prometheus::Gauge* workers_;
  prometheus::Gauge* workers_busy_;
  prometheus::Gauge* rpcs_in_flight_;
  prometheus::Counter* upload_bytes_;
  prometheus::Counter* download_bytes_;
  prometheus::Gauge* admission_waiting_;
  prometheus::Histogram* housekeeping_duration_;
  prometheus::Counter* gc_removed_blobs_;
  prometheus::Counter* gc_freed_bytes_;
  Family<prometheus::Gauge> storage_bytes_;
  prometheus::Gauge* storage_free_bytes_;
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
