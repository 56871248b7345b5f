// An event of a child that was taken over (run_protocol.proto), as the worker treats it: limited, its error read, the files of
// its response given the names and digests of outputs.
#include <string>
#include <vector>

#include "engine/base/utf8.h"
#include "server/jobs/job_store.h"
#include "server/rpc/names.h"
#include "server/worker/request.h"
#include "server/worker/retries.h"
#include "server/worker/run_limits.h"
#include "server/worker/run_protocol.pb.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(absl::string_view bytes) {
  RunEvent event;
  if (!event.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) || !LimitEvent(event).ok()) {
    return;
  }
  Require(event.progress().stage().size() <= 64, "a stage that the job's row can hold");
  const RunResult& result = event.result();
  Require(result.warnings_size() <= 1000, "few warnings");
  for (const std::string& warning : result.warnings()) {
    Require(warning.size() <= 4096 && ValidUtf8Prefix(warning) == warning.size(), "warnings that can be stored");
  }
  if (result.has_error()) {
    ReasonOf(FromRpcStatus(result.error()));
  }
  std::vector<OutputFile> outputs;
  outputs.reserve(result.outputs_size());
  for (const RunResult::Output& output : result.outputs()) {
    if (CheckPath(output.name(), "").ok()) {
      outputs.push_back({.path = output.name(), .sha256 = std::string(64, 'a'), .size_bytes = 1});
    }
  }
  const absl::StatusOr<google::protobuf::Any> named = NameOutputs(result.response(), "w", outputs);
  if (named.ok()) {
    const absl::Status checked = EditFiles(*named, [](v1::File& file) {
                                   Require(ParseFileName(file.name(), "").ok(), "a file of the workspace");
                                   Require(file.sha256() == std::string(64, 'a'), "the digest is the worker's");
                                   return absl::OkStatus();
                                 }).status();
    Require(checked.ok(), "a response that was named can be read");
  }
  ExecutionTimeout(result.response());
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
