#include "engine/functions/functions.h"

#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {
// "_fake_quant_model.onnx" has to fit behind the prefix in a file name of 255 bytes.
constexpr size_t kMaxPrefix = 233;
constexpr size_t kMaxComponent = 255;
constexpr size_t kMaxFileName = 254;

absl::Status PathError(const std::string& field, const std::string& path, absl::string_view message) {
  return MakeError(v1::NAME_INVALID, absl::StrCat(field, " '", path, "' ", message), {.field = field});
}

// Folder and last component, which may be empty, of a path inside the workspace.
absl::StatusOr<std::pair<std::string, std::string>> SplitPath(const std::string& field, const std::string& path,
                                                              size_t max_last) {
  auto error = [&](absl::string_view message) { return PathError(field, path, message); };
  if (absl::StartsWith(path, "/")) {
    return error("is absolute; it must be a path inside the workspace");
  }
  const size_t slash = path.rfind('/');
  std::string last = slash == std::string::npos ? path : path.substr(slash + 1);
  std::string folder = slash == std::string::npos ? "" : path.substr(0, slash);
  if (last.size() > max_last) {
    return error(absl::StrCat("ends in a name of ", last.size(), " bytes; ", max_last, " is the most"));
  }
  std::vector<std::string> components;
  if (!folder.empty()) {
    components = absl::StrSplit(folder, '/');
  }
  for (const std::string& component : components) {
    if (component.empty() || component.size() > kMaxComponent) {
      return error("has a folder name that is empty or longer than 255 bytes");
    }
  }
  components.push_back(last);
  for (const std::string& component : components) {
    if (component == "." || component == "..") {
      return error("must not contain '.' or '..'");
    }
    for (unsigned char c : component) {
      if (c < 0x20 || c == 0x7F || c == '\\') {
        return error("contains a control character or a backslash");
      }
    }
  }
  return std::pair(std::move(folder), std::move(last));
}

}  // namespace

absl::StatusOr<SavePath> SavePath::Parse(const std::string& save_path) {
  MP_ASSIGN_OR_RETURN(auto parts, SplitPath("save_path", save_path, kMaxPrefix));
  return SavePath{.folder = std::move(parts.first), .prefix = std::move(parts.second)};
}

std::string SavePath::FileName(const std::string& base) const { return prefix.empty() ? base : absl::StrCat(prefix, "_", base); }

std::string SavePath::WorkspaceName(const std::string& file_name) const {
  return folder.empty() ? file_name : absl::StrCat(folder, "/", file_name);
}

absl::StatusOr<OutputFile> OutputFile::Parse(const std::string& field, const std::string& path) {
  MP_ASSIGN_OR_RETURN(auto parts, SplitPath(field, path, kMaxFileName));
  if (parts.second.empty()) {
    return PathError(field, path, "must be the name of a file");
  }
  return OutputFile{.folder = std::move(parts.first), .name = std::move(parts.second)};
}

std::string OutputFile::WorkspaceName() const { return folder.empty() ? name : absl::StrCat(folder, "/", name); }

StageCheckpoint CheckpointOf(const CallContext& context, const std::string& stage) {
  return {.checkpoints = context.checkpoints, .key = stage, .log = context.log};
}

absl::StatusOr<std::unique_ptr<OutputFolder>> CreateOutputFolder(const CallContext& context, const std::string& folder) {
  return OutputFolder::Create((std::filesystem::path(context.output_root) / folder).string());
}

}  // namespace modelpress::engine
