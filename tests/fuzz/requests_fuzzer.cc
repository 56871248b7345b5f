// A request of each method of the Compression service (first byte: which), from its bytes to the names of the files that the call
// would read and write, all of which stay inside the workspace.
#include <array>
#include <cstdint>
#include <set>
#include <string>

#include "absl/strings/str_split.h"
#include "server/rpc/call_files.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void RequireInside(const std::string& path) {
  Require(!path.empty() && path.size() <= 1024 && path.find('\0') == std::string::npos, "a path that files can have");
  for (const absl::string_view component : absl::StrSplit(path, '/')) {
    Require(!component.empty() && component != "." && component != ".." && component.size() <= 255, "a path's component");
  }
}

template <typename Request>
void Serve(absl::string_view bytes) {
  Request request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return;  // gRPC answers it
  }
  const absl::StatusOr<CallFiles> files = FilesOf(request);
  RequireClear(files.status());
  if (!files.ok()) {
    return;
  }
  const absl::Status checked = CheckFiles(*files);
  RequireClear(checked);
  // The job keeps the completed request, and the child reads it.
  Request again;
  Require(again.ParseFromString(request.SerializeAsString()), "a request that was completed can be stored");
  if (!checked.ok()) {
    return;
  }
  for (const Input& input : files->inputs) {
    Require(!input.field.empty(), "an input has a field");
    RequireInside(input.path);
  }
  std::set<std::string> outputs;
  for (const Output& output : files->outputs) {
    RequireInside(output.path);
    Require(outputs.insert(output.path).second, "no file is written twice");
  }
}

constexpr std::array kServe = {
    Serve<v1::CreateQuantConfigRequest>,
    Serve<v1::QuantizePreprocessRequest>,
    Serve<v1::QuantizeModelRequest>,
    Serve<v1::CalibrateRequest>,
    Serve<v1::SaveModelRequest>,
    Serve<v1::CreatePruneRetrainModelRequest>,
    Serve<v1::RestorePruneRetrainModelRequest>,
    Serve<v1::SavePruneRetrainModelRequest>,
    Serve<v1::AutoChannelPruneSearchRequest>,
    Serve<v1::CreateQuantRetrainConfigRequest>,
    Serve<v1::CreateQuantRetrainModelRequest>,
    Serve<v1::RestoreQuantRetrainModelRequest>,
    Serve<v1::SaveQuantRetrainModelRequest>,
    Serve<v1::CreateCompressedRetrainModelRequest>,
    Serve<v1::RestoreCompressedRetrainModelRequest>,
    Serve<v1::SaveCompressedRetrainModelRequest>,
};

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using modelpress::server::kServe;
  if (size > 0) {
    kServe[data[0] % kServe.size()](modelpress::AsText(data + 1, size - 1));
  }
  return 0;
}
