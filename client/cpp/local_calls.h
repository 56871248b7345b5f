// The documented functions on local paths: upload, call, wait, download, clean up.
#ifndef MODELPRESS_CLIENT_CPP_LOCAL_CALLS_H_
#define MODELPRESS_CLIENT_CPP_LOCAL_CALLS_H_

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"

namespace modelpress::client {

struct CallProgress {
  enum class Phase { kUpload, kQueue, kRun, kDownload };
  Phase phase = Phase::kUpload;
  std::string item = {};  // a file's name, or the engine's stage
  uint64_t done = 0;      // bytes of the file, or the stage's own unit
  uint64_t total = 0;     // 0: not known
};

struct LocalCallOptions {
  // Id of a workspace to use and keep; it is made if it is not there. Empty: a temporary one, deleted at the end.
  std::string workspace = {};
  // request_id is of use only with a named workspace: the same request then gets the same operation again.
  v1::CallOptions call = {};
  bool wait = true;  // false: return once the server accepted the call; needs a named workspace
  std::function<void(const CallProgress&)> progress = {};
  std::stop_token stop = {};  // cancels the operation, cleans up and ends the call with CANCELLED
};

struct LocalCallResult {
  google::longrunning::Operation operation = {};
  std::string workspace = {};           // the kept one; empty: it was temporary
  std::vector<std::string> files = {};  // absolute paths written, in the order of the response's fields
  std::vector<std::string> warnings = {};
  std::string report = {};  // JSON, with validate_only; empty: the method has none
};

// All of these take the request with paths of this machine in place of paths in the workspace, and without `workspace` and
// `options`. Models travel with their external data files, calibration data is a file or a folder of files (everything below it
// but hidden files). All results arrive under temporary names before the first one gets its final name; a failure leaves no file.
// In errors the server's file names are replaced by the local paths.
absl::StatusOr<LocalCallResult> CreateQuantConfigOnLocalPaths(Client& client, v1::CreateQuantConfigRequest request,
                                                              const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> QuantizePreprocessOnLocalPaths(Client& client, v1::QuantizePreprocessRequest request,
                                                               const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> QuantizeModelOnLocalPaths(Client& client, v1::QuantizeModelRequest request,
                                                          const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> CalibrateOnLocalPaths(Client& client, v1::CalibrateRequest request,
                                                      const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> SaveModelOnLocalPaths(Client& client, v1::SaveModelRequest request,
                                                      const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> CreatePruneRetrainModelOnLocalPaths(Client& client, v1::CreatePruneRetrainModelRequest request,
                                                                    const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> RestorePruneRetrainModelOnLocalPaths(Client& client, v1::RestorePruneRetrainModelRequest request,
                                                                     const LocalCallOptions& options);
// The file that override_prune_cfg of the configuration names (from the working directory, as documented) goes along.
absl::StatusOr<LocalCallResult> AutoChannelPruneSearchOnLocalPaths(Client& client, v1::AutoChannelPruneSearchRequest request,
                                                                   const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> CreateQuantRetrainConfigOnLocalPaths(Client& client, v1::CreateQuantRetrainConfigRequest request,
                                                                     const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> CreateQuantRetrainModelOnLocalPaths(Client& client, v1::CreateQuantRetrainModelRequest request,
                                                                    const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> RestoreQuantRetrainModelOnLocalPaths(Client& client, v1::RestoreQuantRetrainModelRequest request,
                                                                     const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> SaveQuantRetrainModelOnLocalPaths(Client& client, v1::SaveQuantRetrainModelRequest request,
                                                                  const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> CreateCompressedRetrainModelOnLocalPaths(Client& client,
                                                                         v1::CreateCompressedRetrainModelRequest request,
                                                                         const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> RestoreCompressedRetrainModelOnLocalPaths(Client& client,
                                                                          v1::RestoreCompressedRetrainModelRequest request,
                                                                          const LocalCallOptions& options);
absl::StatusOr<LocalCallResult> SaveCompressedRetrainModelOnLocalPaths(Client& client,
                                                                       v1::SaveCompressedRetrainModelRequest request,
                                                                       const LocalCallOptions& options);
// For a model that is exported already.
absl::StatusOr<LocalCallResult> SavePruneRetrainModelOnLocalPaths(Client& client, v1::SavePruneRetrainModelRequest request,
                                                                  const LocalCallOptions& options);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_LOCAL_CALLS_H_
