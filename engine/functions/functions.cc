#include "engine/functions/functions.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {
// "_fake_quant_model.onnx" has to fit behind the prefix in a file name of 255 bytes.
constexpr size_t kMaxPrefix = 233;
constexpr size_t kMaxComponent = 255;
}  // namespace

absl::StatusOr<SavePath> SavePath::Parse(const std::string& save_path) {
  auto error = [&](absl::string_view message) {
    return MakeError(v1::NAME_INVALID, absl::StrCat("save_path '", save_path, "' ", message), {.field = "save_path"});
  };
  if (absl::StartsWith(save_path, "/")) {
    return error("is absolute; it must be a path inside the workspace");
  }
  SavePath result;
  const size_t slash = save_path.rfind('/');
  result.prefix = slash == std::string::npos ? save_path : save_path.substr(slash + 1);
  result.folder = slash == std::string::npos ? "" : save_path.substr(0, slash);
  if (result.prefix.size() > kMaxPrefix) {
    return error(absl::StrCat("has a prefix of ", result.prefix.size(), " bytes; ", kMaxPrefix, " is the most"));
  }
  std::vector<std::string> components;
  if (!result.folder.empty()) {
    components = absl::StrSplit(result.folder, '/');
  }
  for (const std::string& component : components) {
    if (component.empty() || component.size() > kMaxComponent) {
      return error("has a folder name that is empty or longer than 255 bytes");
    }
  }
  components.push_back(result.prefix);
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
  return result;
}

std::string SavePath::FileName(const std::string& base) const { return prefix.empty() ? base : absl::StrCat(prefix, "_", base); }

std::string SavePath::WorkspaceName(const std::string& file_name) const {
  return folder.empty() ? file_name : absl::StrCat(folder, "/", file_name);
}

}  // namespace modelpress::engine
