#include "server/rpc/names.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"

namespace modelpress::server {
namespace {

constexpr size_t kMaxComponent = 255;
constexpr size_t kMaxPath = 1024;
constexpr size_t kMaxId = 63;

absl::Status BadName(absl::string_view message, const std::string& field) {
  return MakeError(v1::NAME_INVALID, message, {.field = field});
}

absl::Status BadRequest(absl::string_view message, const std::string& field) {
  return MakeError(v1::REQUEST_INVALID, message, {.field = field});
}

// Input may hold anything: it is quoted and cut before it goes into a text.
std::string Quote(absl::string_view text) {
  constexpr size_t kShown = 100;
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, kShown)), text.size() > kShown ? "..." : "", "'");
}

bool IsHex(char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); }

// Takes one code point off the front of `text`; -1 if it is not well-formed UTF-8 (Unicode 15, table 3-7).
int32_t TakeCodePoint(absl::string_view& text) {
  const auto first = static_cast<unsigned char>(text[0]);
  int length = 0;
  int32_t point = 0;
  if (first < 0x80) {
    text.remove_prefix(1);
    return first;
  }
  if ((first & 0xE0) == 0xC0) {
    length = 2;
    point = first & 0x1F;
  } else if ((first & 0xF0) == 0xE0) {
    length = 3;
    point = first & 0x0F;
  } else if ((first & 0xF8) == 0xF0) {
    length = 4;
    point = first & 0x07;
  } else {
    return -1;
  }
  if (text.size() < length) {
    return -1;
  }
  for (int i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0) != 0x80) {
      return -1;
    }
    point = point << 6 | (next & 0x3F);
  }
  constexpr int32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (point < kSmallest[length] || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) {
    return -1;
  }
  text.remove_prefix(length);
  return point;
}

absl::Status CheckComponent(absl::string_view component, const std::string& path, const std::string& field) {
  if (component.empty()) {
    return BadName(
        absl::StrCat("path ", Quote(path), " is absolute, ends in '/' or has an empty component; give a relative path"), field);
  }
  if (component == "." || component == "..") {
    return BadName(absl::StrCat("path ", Quote(path), " has a component '", component, "'; give the path without it"), field);
  }
  if (component.size() > kMaxComponent) {
    return BadName(absl::StrCat("path ", Quote(path), " has a component of ", component.size(), " bytes; at most ", kMaxComponent,
                                " are allowed"),
                   field);
  }
  for (absl::string_view rest = component; !rest.empty();) {
    const int32_t point = TakeCodePoint(rest);
    if (point < 0) {
      return BadName(absl::StrCat("path ", Quote(path), " is not UTF-8"), field);
    }
    if (point < 0x20 || (point >= 0x7F && point < 0xA0)) {
      return BadName(absl::StrCat("path ", Quote(path), " has a control character"), field);
    }
    if (point == '\\') {
      return BadName(absl::StrCat("path ", Quote(path), " has a '\\'; components are separated by '/'"), field);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckId(absl::string_view kind, const std::string& id, const std::string& field) {
  const bool legal = !id.empty() && id.size() <= kMaxId && absl::ascii_islower(id[0]) &&
                     std::ranges::all_of(id, [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-'; });
  return legal
             ? absl::OkStatus()
             : BadName(absl::StrCat(kind, " ", Quote(id), " is not 1 to 63 of a-z, 0-9 and '-', beginning with a letter"), field);
}

// Ids of uploads and operations are made by the server; others are refused before they reach a store.
bool IsServerId(absl::string_view id) {
  return !id.empty() && id.size() <= kMaxId &&
         std::ranges::all_of(id, [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c); });
}

}  // namespace

absl::Status CheckWorkspaceId(const std::string& id, const std::string& field) { return CheckId("workspace id", id, field); }

absl::Status CheckProject(const std::string& project, const std::string& field) { return CheckId("project", project, field); }

absl::Status CheckPath(const std::string& path, const std::string& field) {
  if (path.empty()) {
    return BadRequest("a path in the workspace is needed", field);
  }
  if (path.size() > kMaxPath) {
    return BadName(absl::StrCat("path ", Quote(path), " has ", path.size(), " bytes; at most ", kMaxPath, " are allowed"), field);
  }
  for (absl::string_view component : absl::StrSplit(path, '/')) {
    MP_RETURN_IF_ERROR(CheckComponent(component, path, field));
  }
  return absl::OkStatus();
}

absl::Status CheckSha256(const std::string& sha256, const std::string& field) {
  if (sha256.size() != 64 || !std::ranges::all_of(sha256, IsHex)) {
    return BadRequest("a SHA-256 of 64 lower-case hex digits is needed", field);
  }
  return absl::OkStatus();
}

absl::Status CheckRequestId(const std::string& request_id, const std::string& field) {
  if (request_id.empty()) {
    return absl::OkStatus();
  }
  const std::string lower = absl::AsciiStrToLower(request_id);
  bool legal = lower.size() == 36;
  for (size_t i = 0; legal && i < lower.size(); ++i) {
    legal = i == 8 || i == 13 || i == 18 || i == 23 ? lower[i] == '-' : IsHex(lower[i]);
  }
  return legal ? absl::OkStatus()
               : BadRequest(absl::StrCat("request id ", Quote(request_id), " is not a UUID (8-4-4-4-12 hex digits)"), field);
}

absl::StatusOr<std::string> ParseWorkspaceName(const std::string& name, const std::string& field) {
  absl::string_view rest = name;
  if (name.empty()) {
    return BadRequest("a workspace name is needed: 'workspaces/{id}'", field);
  }
  if (!absl::ConsumePrefix(&rest, "workspaces/")) {
    return BadName(absl::StrCat(Quote(name), " is not 'workspaces/{id}'"), field);
  }
  std::string id(rest);
  MP_RETURN_IF_ERROR(CheckWorkspaceId(id, field));
  return id;
}

absl::StatusOr<FileName> ParseFileName(const std::string& name, const std::string& field) {
  const std::vector<std::string> parts = absl::StrSplit(name, absl::MaxSplits("/files/", 1));
  if (parts.size() != 2) {
    return name.empty() ? BadRequest("a file name is needed: 'workspaces/{id}/files/{path}'", field)
                        : BadName(absl::StrCat(Quote(name), " is not 'workspaces/{id}/files/{path}'"), field);
  }
  MP_ASSIGN_OR_RETURN(std::string workspace, ParseWorkspaceName(parts[0], field));
  MP_RETURN_IF_ERROR(CheckPath(parts[1], field));
  return FileName{workspace, parts[1]};
}

absl::StatusOr<UploadName> ParseUploadName(const std::string& name, const std::string& field) {
  const std::vector<std::string> parts = absl::StrSplit(name, absl::MaxSplits("/uploads/", 1));
  if (parts.size() != 2 || !IsServerId(parts[1])) {
    return name.empty() ? BadRequest("an upload name is needed: 'workspaces/{id}/uploads/{upload}'", field)
                        : BadName(absl::StrCat(Quote(name), " is not 'workspaces/{id}/uploads/{upload}'"), field);
  }
  MP_ASSIGN_OR_RETURN(std::string workspace, ParseWorkspaceName(parts[0], field));
  return UploadName{workspace, parts[1]};
}

absl::StatusOr<std::string> ParseOperationName(const std::string& name, const std::string& field) {
  absl::string_view rest = name;
  if (name.empty()) {
    return BadRequest("an operation name is needed: 'operations/{id}'", field);
  }
  if (!absl::ConsumePrefix(&rest, "operations/") || !IsServerId(rest)) {
    return BadName(absl::StrCat(Quote(name), " is not 'operations/{id}'"), field);
  }
  return std::string(rest);
}

std::string FormatWorkspaceName(const std::string& workspace_id) { return absl::StrCat("workspaces/", workspace_id); }

std::string FormatFileName(const std::string& workspace_id, const std::string& path) {
  return absl::StrCat("workspaces/", workspace_id, "/files/", path);
}

std::string FormatUploadName(const std::string& workspace_id, const std::string& upload_id) {
  return absl::StrCat("workspaces/", workspace_id, "/uploads/", upload_id);
}

}  // namespace modelpress::server
