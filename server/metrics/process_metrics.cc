#include "server/metrics/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

namespace modelpress::server {
namespace {

std::string ReadProc(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Field `number` of /proc/self/stat, counted from 1 as in proc_pid_stat(5); fields before the fourth are not asked for.
std::optional<uint64_t> StatField(const std::string& stat, int number) {
  const size_t name_end = stat.rfind(')');  // the name, field 2, may hold anything
  if (name_end == std::string::npos) {
    return std::nullopt;
  }
  std::istringstream fields(stat.substr(name_end + 1));
  std::string state;
  fields >> state;
  uint64_t value = 0;
  for (int i = 4; i <= number; ++i) {
    std::string text;
    fields >> text;
    value = std::strtoull(text.c_str(), nullptr, 10);
  }
  return fields ? std::optional(value) : std::nullopt;
}

// Seconds since 1970 at which the machine started.
std::optional<uint64_t> BootSeconds() {
  std::istringstream lines(ReadProc("/proc/stat"));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("btime ")) {
      return std::strtoull(line.c_str() + 6, nullptr, 10);
    }
  }
  return std::nullopt;
}

class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families;
    const std::string stat = ReadProc("/proc/self/stat");
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    const auto page = static_cast<double>(sysconf(_SC_PAGESIZE));
    if (const std::optional<uint64_t> pages = StatField(stat, 24); pages.has_value()) {
      families.push_back(GaugeFamily("process_resident_memory_bytes", "Resident memory, without that of operations' processes",
                                     static_cast<double>(*pages) * page));
    }
    const std::optional<uint64_t> start = StatField(stat, 22);
    const std::optional<uint64_t> boot = BootSeconds();
    if (start.has_value() && boot.has_value()) {
      families.push_back(GaugeFamily("process_start_time_seconds", "Start of the process since 1970",
                                     static_cast<double>(*boot) + static_cast<double>(*start) / ticks));
    }
    const std::optional<uint64_t> user = StatField(stat, 14);
    const std::optional<uint64_t> system = StatField(stat, 15);
    if (user.has_value() && system.has_value()) {
      prometheus::MetricFamily cpu;
      cpu.name = "process_cpu_seconds_total";
      cpu.help = "CPU time, without that of operations' processes";
      cpu.type = prometheus::MetricType::Counter;
      cpu.metric.emplace_back().counter.value = static_cast<double>(*user + *system) / ticks;
      families.push_back(std::move(cpu));
    }
    std::error_code error;
    const std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
    if (!error) {
      // The iterator has one of its own.
      const auto count = std::distance(descriptors, std::filesystem::directory_iterator()) - 1;
      families.push_back(GaugeFamily("process_open_fds", "Open file descriptors", static_cast<double>(count)));
    }
    rlimit limit = {};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
      families.push_back(
          GaugeFamily("process_max_fds", "File descriptors that may be open", static_cast<double>(limit.rlim_cur)));
    }
    return families;
  }
};

}  // namespace

prometheus::MetricFamily GaugeFamily(const std::string& name, const std::string& help, double value) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = prometheus::MetricType::Gauge;
  family.metric.emplace_back().gauge.value = value;
  return family;
}

std::shared_ptr<prometheus::Collectable> MakeProcessMetrics() { return std::make_shared<ProcessMetrics>(); }

}  // namespace modelpress::server
