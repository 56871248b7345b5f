// What operations need, estimated before any of their files is read.
#ifndef MODELPRESS_SERVER_JOBS_COST_H_
#define MODELPRESS_SERVER_JOBS_COST_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"

namespace modelpress::server {

// Bytes of an operation's input files.
struct InputSizes {
  uint64_t models = 0;  // model files that the request names
  uint64_t beside = 0;  // what else lies in their folders: external data, or nothing that matters
  uint64_t others = 0;  // calibration data, record files, configurations
};

// What one operation may have on this server at most; 0: no limit.
struct CostLimits {
  uint64_t memory_bytes = 0;  // ChildLimits.memory_bytes
  uint64_t disk_bytes = 0;    // size of the file system with the data folder
};

// What an operation of `method` ("SaveModel") is expected to need at its peak: memory that its process has resident, disk for
// outputs and temporary files. By a table of measurements (cost.cc): base + factor * (models + beside); calibration data is read
// batch by batch and costs nothing. Networks with large intermediate tensors can need more: the sizes of files do not tell that.
// Never more than the limits, which end what goes beyond them.
JobCost EstimateCost(const std::string& method, const InputSizes& sizes, const CostLimits& limits);

// RESOURCE_LIMIT if even the least that such an operation can do with (a model that is run has its weights in memory, a model
// that is saved is written) is above the limits: it can never run here.
absl::Status CheckCost(const std::string& method, const InputSizes& sizes, const CostLimits& limits);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_JOBS_COST_H_
