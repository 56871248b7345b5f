#include "engine/base/status.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/base/limits.h"
#include "engine/base/utf8.h"
#include "google/rpc/error_details.pb.h"

namespace modelpress {
namespace {

constexpr absl::string_view kErrorInfoUrl = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kDomain[] = "modelpress";

std::optional<google::rpc::ErrorInfo> GetInfo(const absl::Status& status) {
  auto payload = status.GetPayload(kErrorInfoUrl);
  google::rpc::ErrorInfo info;
  if (!payload.has_value() || !info.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return info;
}

void SetInfo(absl::Status& status, const google::rpc::ErrorInfo& info) {
  const std::string bytes = info.SerializeAsString();
  // Not from the std::string itself: GCC and Clang have different names for that constructor, and abseil is built with one of
  // them.
  status.SetPayload(kErrorInfoUrl, absl::Cord(absl::string_view(bytes)));
}

// Fills `info` from the parts of `place` that it lacks.
void FillPlace(google::rpc::ErrorInfo& info, const ErrorPlace& place) {
  auto& metadata = *info.mutable_metadata();
  auto fill = [&metadata](absl::string_view key, const std::string& value) {
    if (!value.empty() && !metadata.contains(std::string(key))) {
      metadata[std::string(key)] = AsUtf8(value, kMaxErrorPlaceBytes);
    }
  };
  fill("field", place.field);
  fill("file", place.file);
  fill("line", place.line > 0 ? absl::StrCat(place.line) : "");
  fill("column", place.column > 0 ? absl::StrCat(place.column) : "");
  fill("layer", place.layer);
}

std::string Find(const google::rpc::ErrorInfo& info, const std::string& key) {
  auto it = info.metadata().find(key);
  return it == info.metadata().end() ? "" : it->second;
}

// The text in front of the message that says where.
std::string PlaceText(const google::rpc::ErrorInfo& info) {
  std::string text = Find(info, "file");
  for (const char* key : {"line", "column"}) {
    if (std::string value = Find(info, key); !text.empty() && !value.empty()) {
      text += ":" + value;
    }
  }
  if (!text.empty()) {
    text += ": ";
  }
  if (std::string layer = Find(info, "layer"); !layer.empty()) {
    absl::StrAppend(&text, "layer '", layer, "': ");
  }
  return text;
}

}  // namespace

absl::StatusCode CodeOf(v1::Reason reason) {
  switch (reason) {
    case v1::WORKSPACE_NOT_FOUND:
    case v1::FILE_NOT_FOUND:
    case v1::UPLOAD_NOT_FOUND:
    case v1::OPERATION_NOT_FOUND:
      return absl::StatusCode::kNotFound;
    case v1::REQUEST_ID_REUSED:
    case v1::WORKSPACE_EXISTS:
      return absl::StatusCode::kAlreadyExists;
    case v1::WORKSPACE_BUSY:
    case v1::OPERATION_RUNNING:
    case v1::FILE_CHANGED:
    case v1::CONFIG_CHANGED:
      return absl::StatusCode::kFailedPrecondition;
    case v1::UPLOAD_OFFSET_MISMATCH:
    case v1::RANGE_INVALID:
      return absl::StatusCode::kOutOfRange;
    case v1::AUTHENTICATION_FAILED:
      return absl::StatusCode::kUnauthenticated;
    case v1::ACCESS_DENIED:
      return absl::StatusCode::kPermissionDenied;
    case v1::STORAGE_FULL:
    case v1::QUOTA_EXCEEDED:
    case v1::RESOURCE_LIMIT:
      return absl::StatusCode::kResourceExhausted;
    case v1::OPERATION_CANCELLED:
      return absl::StatusCode::kCancelled;
    case v1::OPERATION_DEADLINE:
      return absl::StatusCode::kDeadlineExceeded;
    case v1::SERVER_DRAINING:
    case v1::STORAGE_UNAVAILABLE:
    case v1::UPLOAD_BUSY:
    case v1::DOWNLOAD_BUSY:
      return absl::StatusCode::kUnavailable;
    case v1::STORAGE_ERROR:
    case v1::ENGINE_CRASHED:
    case v1::INTERNAL_ERROR:
    case v1::OUTPUT_INVALID:
      return absl::StatusCode::kInternal;
    case v1::REASON_UNSPECIFIED:
      return absl::StatusCode::kUnknown;
    default:
      return absl::StatusCode::kInvalidArgument;  // the caller's bytes
  }
}

absl::Status MakeError(v1::Reason reason, absl::string_view message, const ErrorPlace& place) {
  google::rpc::ErrorInfo info;
  info.set_reason(v1::Reason_Name(reason));
  info.set_domain(kDomain);
  FillPlace(info, place);
  absl::Status status(CodeOf(reason), absl::StrCat(PlaceText(info), AsUtf8(message, kMaxErrorMessageBytes)));
  SetInfo(status, info);
  return status;
}

absl::Status AtPlace(const absl::Status& status, const ErrorPlace& place) {
  std::optional<google::rpc::ErrorInfo> info = GetInfo(status);
  if (status.ok() || !info.has_value()) {
    return status;
  }
  // The place is part of the text: take the old one off before the new one goes on.
  absl::string_view message = status.message();
  std::string old_text = PlaceText(*info);
  if (message.substr(0, old_text.size()) == old_text) {
    message.remove_prefix(old_text.size());
  }
  FillPlace(*info, place);
  absl::Status placed(status.code(), absl::StrCat(PlaceText(*info), message));
  SetInfo(placed, *info);
  return placed;
}

absl::Status WithMetadata(const absl::Status& status, absl::string_view key, absl::string_view value) {
  std::optional<google::rpc::ErrorInfo> info = GetInfo(status);
  if (!info.has_value()) {
    return status;
  }
  (*info->mutable_metadata())[std::string(key)] = AsUtf8(value, kMaxErrorMessageBytes);
  absl::Status result = status;
  SetInfo(result, *info);
  return result;
}

v1::Reason ReasonOf(const absl::Status& status) {
  std::optional<google::rpc::ErrorInfo> info = GetInfo(status);
  v1::Reason reason = v1::REASON_UNSPECIFIED;
  if (info.has_value()) {
    v1::Reason_Parse(info->reason(), &reason);
  }
  return reason;
}

ErrorPlace PlaceOf(const absl::Status& status) {
  std::optional<google::rpc::ErrorInfo> info = GetInfo(status);
  if (!info.has_value()) {
    return {};
  }
  auto number = [&info](const char* key) { return std::atoi(Find(*info, key).c_str()); };
  return {.field = Find(*info, "field"),
          .file = Find(*info, "file"),
          .line = number("line"),
          .column = number("column"),
          .layer = Find(*info, "layer")};
}

std::map<std::string, std::string> MetadataOf(const absl::Status& status) {
  std::optional<google::rpc::ErrorInfo> info = GetInfo(status);
  if (!info.has_value()) {
    return {};
  }
  return {info->metadata().begin(), info->metadata().end()};
}

bool IsInfrastructureError(const absl::Status& status) {
  switch (ReasonOf(status)) {
    case v1::STORAGE_ERROR:
    case v1::STORAGE_FULL:
    case v1::SERVER_DRAINING:
    case v1::ENGINE_CRASHED:
      return true;
    default:
      return absl::IsUnavailable(status);
  }
}

}  // namespace modelpress
