#include "server/jobs/cost.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"

namespace modelpress::server {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Memory and disk: base in MiB, and factor for the bytes of the models.
struct Needs {
  double memory_mib;
  double memory_factor;
  double disk_mib;
  double disk_factor;
  bool runs_model;    // in ONNX Runtime
  bool writes_model;  // at least as large as the one that it reads
};

// Peaks of docs/benchmarks.md (modelpress_child_peak_rss_bytes; a child that does nothing yet has some 45 MB):
//   SaveModel on 102 MB: 123 MB, on 346 MB: 162 MB. Large tensors are mapped, not read. It writes the model for simulation (as
//   large as the model), the one for the device (a quarter) and a report.
constexpr Needs kSave{96, 0.75, 16, 2, false, true};
//   Pruning 47 MB: 62 MB, 102 MB: 105 MB.
constexpr Needs kRewrite{96, 1, 16, 1.5, false, false};
//   Models that are run: 5 MB: 380 to 560 MB (224x224 images), 2 MB: 226 to 330 MB, 1 MB: 100 MB, independent of the number of
//   samples. What intermediate tensors take is not bounded by any of this (720x720 images through 7 MB: 7.5 GB). The float model,
//   its quantized copy and their weights in ONNX Runtime's layout make four times the model. Spilled tensors take what is free
//   and no more than half of it, so that they are not counted.
constexpr Needs kRun{544, 4, 64, 4, true, false};
constexpr Needs kConfigure{64, 0.5, 1, 0, false, false};

struct Row {
  absl::string_view method;
  const Needs* needs;
};

constexpr std::array<Row, 16> kTable{{
    {"CreateQuantConfig", &kConfigure},
    {"QuantizePreprocess", &kRun},
    {"QuantizeModel", &kRun},
    {"Calibrate", &kRun},
    {"SaveModel", &kSave},
    {"CreatePruneRetrainModel", &kRewrite},
    {"RestorePruneRetrainModel", &kRewrite},
    {"AutoChannelPruneSearch", &kRun},
    {"CreateQuantRetrainConfig", &kConfigure},
    {"CreateQuantRetrainModel", &kRewrite},
    {"RestoreQuantRetrainModel", &kRewrite},
    {"SaveQuantRetrainModel", &kSave},
    {"CreateCompressedRetrainModel", &kRewrite},
    {"RestoreCompressedRetrainModel", &kRewrite},
    {"SaveCompressedRetrainModel", &kSave},
    {"SavePruneRetrainModel", &kSave},
}};

// nullptr: unknown.
const Needs* NeedsOf(const std::string& method) {
  const auto row = std::find_if(kTable.begin(), kTable.end(), [&method](const Row& row) { return row.method == method; });
  return row == kTable.end() ? nullptr : row->needs;
}

uint64_t Bytes(double base_mib, double factor, uint64_t bytes) {
  return static_cast<uint64_t>(base_mib * static_cast<double>(kMiB) + factor * static_cast<double>(bytes));
}

uint64_t AtMost(uint64_t limit, uint64_t bytes) { return limit == 0 ? bytes : std::min(limit, bytes); }

absl::Status CheckOne(absl::string_view what, uint64_t least, uint64_t limit) {
  if (limit == 0 || least <= limit) {
    return absl::OkStatus();
  }
  return MakeError(v1::RESOURCE_LIMIT,
                   absl::StrCat("the operation needs at least ", least / kMiB, " MiB of ", what, ", this server has ",
                                limit / kMiB, " MiB for it; ask its operator for more"));
}

}  // namespace

JobCost EstimateCost(const std::string& method, const InputSizes& sizes, const CostLimits& limits) {
  const Needs* needs = NeedsOf(method);
  if (needs == nullptr) {
    return {};
  }
  const uint64_t bytes = sizes.models + sizes.beside;
  return {.memory_bytes = AtMost(limits.memory_bytes, Bytes(needs->memory_mib, needs->memory_factor, bytes)),
          .disk_bytes = AtMost(limits.disk_bytes, Bytes(needs->disk_mib, needs->disk_factor, bytes))};
}

absl::Status CheckCost(const std::string& method, const InputSizes& sizes, const CostLimits& limits) {
  const Needs* needs = NeedsOf(method);
  if (needs == nullptr) {
    return absl::OkStatus();
  }
  MP_RETURN_IF_ERROR(CheckOne("memory", needs->runs_model ? sizes.models : 0, limits.memory_bytes));
  return CheckOne("disk", needs->writes_model ? sizes.models : 0, limits.disk_bytes);
}

}  // namespace modelpress::server
