#include "client/cpp/local_path.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "client/cpp/status.h"
#include "client/cpp/utf8.h"

namespace modelpress::client {
namespace {

constexpr int kMaxLinks = 40;  // as the kernel's own limit

absl::StatusOr<std::string> ReadLink(const std::string& path) {
  std::array<char, PATH_MAX> target{};
  ssize_t size = readlink(path.c_str(), target.data(), target.size());
  if (size < 0) {
    return LocalIoError("cannot follow the link", path, errno);
  }
  return std::string(target.data(), static_cast<size_t>(size));
}

}  // namespace

std::string BaseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }

absl::StatusOr<std::string> ResolvePath(const std::string& path) {
  std::string start = path;
  if (path.empty() || path.front() != '/') {
    std::error_code error;
    std::filesystem::path current = std::filesystem::current_path(error);
    if (error) {
      return LocalIoError("cannot find the current folder", ".", error.value());
    }
    start = absl::StrCat(current.string(), "/", path);
  }
  // Components still to walk, the next one last.
  std::vector<std::string> rest = absl::StrSplit(start, '/', absl::SkipEmpty());
  std::reverse(rest.begin(), rest.end());
  std::vector<std::string> done;
  int links = 0;
  while (!rest.empty()) {
    std::string component = std::move(rest.back());
    rest.pop_back();
    if (component == ".") {
      continue;
    }
    if (component == "..") {
      if (!done.empty()) {
        done.pop_back();
      }
      continue;
    }
    std::string here;
    for (const std::string& part : done) {
      absl::StrAppend(&here, "/", part);
    }
    absl::StrAppend(&here, "/", component);
    struct stat info{};
    if (lstat(here.c_str(), &info) != 0 || !S_ISLNK(info.st_mode)) {
      done.push_back(std::move(component));
      continue;
    }
    if (++links > kMaxLinks) {
      return LocalIoError("cannot follow the link", path, ELOOP);
    }
    MPC_ASSIGN_OR_RETURN(std::string target, ReadLink(here));
    if (target.starts_with('/')) {
      done.clear();
    }
    std::vector<std::string> parts = absl::StrSplit(target, '/', absl::SkipEmpty());
    rest.insert(rest.end(), parts.rbegin(), parts.rend());
  }
  std::string resolved;
  for (const std::string& part : done) {
    absl::StrAppend(&resolved, "/", part);
  }
  return resolved.empty() ? "/" : resolved;
}

absl::StatusOr<SavePath> SplitSavePath(const std::string& save_path) {
  MPC_ASSIGN_OR_RETURN(std::string resolved, ResolvePath(save_path));
  if (save_path.empty() || save_path.back() == '/') {
    return SavePath{.folder = resolved, .prefix = ""};
  }
  size_t slash = resolved.rfind('/');
  SavePath split{.folder = slash == 0 ? "/" : resolved.substr(0, slash), .prefix = resolved.substr(slash + 1)};
  if (split.prefix.size() > kMaxPrefixBytes) {
    return LocalError(
        absl::StatusCode::kInvalidArgument, v1::NAME_INVALID,
        absl::StrCat("the last part of save_path has ", split.prefix.size(), " bytes; shorten it to at most ", kMaxPrefixBytes),
        save_path);
  }
  if (!split.prefix.empty()) {
    MPC_RETURN_IF_ERROR(CheckName(split.prefix, save_path));
  }
  return split;
}

absl::Status CheckName(absl::string_view name, const std::string& path) {
  auto invalid = [&](absl::string_view why) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::NAME_INVALID, absl::StrCat("the name ", why, "; rename it"), path);
  };
  if (name.empty() || name == "." || name == "..") {
    return invalid("is not that of a file");
  }
  if (name.size() > 255) {
    return invalid("is longer than 255 bytes");
  }
  if (ValidUtf8(name) != name) {
    return invalid("is not UTF-8");
  }
  if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F || c == '\\'; })) {
    return invalid("has a control character or a backslash");
  }
  return absl::OkStatus();
}

}  // namespace modelpress::client
