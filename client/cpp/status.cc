#include "client/cpp/status.h"

#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/cpp/utf8.h"
#include "google/rpc/error_details.pb.h"

namespace modelpress::client {
namespace {

constexpr char kUrlPrefix[] = "type.googleapis.com/";

template <typename Detail>
std::string UrlOf() {
  return absl::StrCat(kUrlPrefix, Detail::descriptor()->full_name());
}

template <typename Detail>
std::optional<Detail> GetDetail(const absl::Status& status) {
  auto payload = status.GetPayload(UrlOf<Detail>());
  Detail detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return detail;
}

// The same status and payloads with another text.
absl::Status WithMessage(const absl::Status& status, absl::string_view message) {
  absl::Status changed(status.code(), message);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { changed.SetPayload(url, payload); });
  return changed;
}

absl::Status MakeLocal(absl::StatusCode code, absl::string_view reason, absl::string_view message, const std::string& file) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain("modelpress");
  if (!file.empty()) {
    (*info.mutable_metadata())["file"] = ValidUtf8(file);
  }
  absl::Status status(code, file.empty() ? std::string(message) : absl::StrCat(file, ": ", message));
  status.SetPayload(UrlOf<google::rpc::ErrorInfo>(), absl::Cord(info.SerializeAsString()));
  return status;
}

}  // namespace

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  details.message = std::string(status.message());
  if (auto info = GetDetail<google::rpc::ErrorInfo>(status)) {
    details.reason = info->reason();
    details.metadata = {info->metadata().begin(), info->metadata().end()};
    details.field = details.metadata["field"];
    details.file = details.metadata["file"];
    details.layer = details.metadata["layer"];
    if (!absl::SimpleAtoi(details.metadata["line"], &details.line)) {
      details.line = 0;
    }
    if (!absl::SimpleAtoi(details.metadata["column"], &details.column)) {
      details.column = 0;
    }
  }
  if (auto failure = GetDetail<google::rpc::PreconditionFailure>(status)) {
    for (const auto& violation : failure->violations()) {
      if (violation.type() == "MISSING") {
        details.missing_files.push_back(violation.subject());
      }
    }
  }
  return details;
}

absl::Status FromRpc(const google::rpc::Status& status) {
  // A code outside the canonical range becomes kUnknown in absl::Status::code().
  absl::Status converted(static_cast<absl::StatusCode>(status.code()), status.message());
  for (const auto& detail : status.details()) {
    converted.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return converted;
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) {
    return absl::OkStatus();
  }
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details()) && details.code() == static_cast<int>(status.error_code())) {
    return FromRpc(details);
  }
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

absl::Status LocalError(absl::StatusCode code, v1::Reason reason, absl::string_view message, const std::string& file) {
  return MakeLocal(code, v1::Reason_Name(reason), message, file);
}

absl::Status LocalIoError(absl::string_view what, const std::string& file, int error_number) {
  if (error_number == ENOENT) {
    return LocalError(absl::StatusCode::kNotFound, v1::FILE_NOT_FOUND, "there is no such file or folder on this machine", file);
  }
  return MakeLocal(absl::StatusCode::kInternal, kLocalIoReason, absl::StrCat(what, ": ", strerror(error_number)), file);
}

absl::Status WithFileName(const absl::Status& status, const std::map<std::string, std::string>& local_names) {
  auto info = GetDetail<google::rpc::ErrorInfo>(status);
  if (!info.has_value() || !info->metadata().contains("file")) {
    return status;
  }
  const std::string name = info->metadata().at("file");
  auto local = local_names.find(name);
  if (local == local_names.end()) {
    return status;
  }
  (*info->mutable_metadata())["file"] = ValidUtf8(local->second);
  std::string message(status.message());
  if (absl::StartsWith(message, absl::StrCat(name, ":"))) {
    message.replace(0, name.size(), local->second);
  }
  absl::Status changed = WithMessage(status, message);
  changed.SetPayload(UrlOf<google::rpc::ErrorInfo>(), absl::Cord(info->SerializeAsString()));
  return changed;
}

absl::Status WithNote(const absl::Status& status, absl::string_view note) {
  return WithMessage(status, absl::StrCat(status.message(), "; ", note));
}

}  // namespace modelpress::client
