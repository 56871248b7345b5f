#ifndef MODELPRESS_SERVER_METRICS_PROCESS_METRICS_H_
#define MODELPRESS_SERVER_METRICS_PROCESS_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <memory>
#include <string>

namespace modelpress::server {

// One gauge without labels.
prometheus::MetricFamily GaugeFamily(const std::string& name, const std::string& help, double value);

// What the kernel knows of this process, under the names that Prometheus' own client libraries give
// (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics). What cannot be read is left out.
std::shared_ptr<prometheus::Collectable> MakeProcessMetrics();

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_METRICS_PROCESS_METRICS_H_
