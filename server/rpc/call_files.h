// Which files a compression call reads and writes, by the documented meaning of its fields. The rest of accepting a call is the
// same for all methods.
#ifndef MODELPRESS_SERVER_RPC_CALL_FILES_H_
#define MODELPRESS_SERVER_RPC_CALL_FILES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "modelpress/v1/compression.pb.h"

namespace modelpress::server {

enum class InputKind {
  kFile,
  kFileIfThere,   // a file that the call also writes and need not find
  kModel,         // everything in its folder as well, where external data lies
  kFileOrFolder,  // the file, or if there is none of that name everything below the folder
};

struct Input {
  std::string path;   // in the workspace
  std::string field;  // the request field that gave it
  InputKind kind = InputKind::kFile;
};

struct Output {
  std::string path;
  std::string field;
};

struct CallFiles {
  std::vector<Input> inputs;
  std::vector<Output> outputs;  // those whose names follow from the request; external data and the like lie beside them
};

// REQUEST_INVALID where fields do not go together. Names that a request leaves to the service are filled in.
absl::StatusOr<CallFiles> FilesOf(v1::SaveModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::SavePruneRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::CreateQuantConfigRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::QuantizePreprocessRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::QuantizeModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::CalibrateRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::CreatePruneRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::RestorePruneRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::AutoChannelPruneSearchRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::CreateQuantRetrainConfigRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::CreateQuantRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::RestoreQuantRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::SaveQuantRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::CreateCompressedRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::RestoreCompressedRetrainModelRequest& request);
absl::StatusOr<CallFiles> FilesOf(v1::SaveCompressedRetrainModelRequest& request);

// Every name is legal, and no output has the name of another one or of a folder on the way to it. An output may have an input's
// name: the input was pinned before. NAME_INVALID, REQUEST_INVALID.
absl::Status CheckFiles(const CallFiles& files);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_RPC_CALL_FILES_H_
