// What the paths of the documented functions mean (save.md section 1.1), and which names can travel.
#ifndef MODELPRESS_CLIENT_CPP_LOCAL_PATH_H_
#define MODELPRESS_CLIENT_CPP_LOCAL_PATH_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace modelpress::client {

// The file-name limit of 255 bytes less the longest suffix, "_fake_quant_model.onnx".
inline constexpr int kMaxPrefixBytes = 233;

struct SavePath {
  std::string folder;  // absolute, symbolic links resolved
  std::string prefix;  // "" gives "deploy_model.onnx"
};

// NAME_INVALID if the prefix is too long or cannot be a name on the server; LOCAL_IO if a link cannot be followed.
absl::StatusOr<SavePath> SplitSavePath(const std::string& save_path);

// `path` made absolute with symbolic links resolved, also dangling ones; parts that do not exist stay as they are.
absl::StatusOr<std::string> ResolvePath(const std::string& path);

// NAME_INVALID, with `path` and why, unless the name can be a component of File.name (workspaces.proto).
absl::Status CheckName(absl::string_view name, const std::string& path);

// The last component of a path.
std::string BaseName(const std::string& path);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_LOCAL_PATH_H_
