#include "server/rpc/status.h"

#include <map>
#include <string>

#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/base/utf8.h"
#include "google/rpc/error_details.pb.h"

namespace modelpress::server {
namespace {

constexpr size_t kMaxText = 1024;
constexpr size_t kMaxDescription = 512;
constexpr int kMaxMissing = 64;  // files that are listed one by one

// Clients take trailing metadata of 8 KiB by default. It carries the text by itself (percent-encoded, so that a byte may take
// three) and, in base64, the text again, the metadata and what else is said of it.
constexpr size_t kMaxMetadata = 8 << 10;
constexpr size_t kOtherMetadata = 256;
constexpr size_t kMaxDetails = (kMaxMetadata - kOtherMetadata - 3 * kMaxDescription) / 4 * 3;

std::string Find(const std::map<std::string, std::string>& metadata, const std::string& key) {
  auto it = metadata.find(key);
  return it == metadata.end() ? "" : it->second;
}

google::rpc::PreconditionFailure Missing(const std::string& files) {
  google::rpc::PreconditionFailure failure;
  for (absl::string_view file : absl::StrSplit(files, '\n')) {
    if (failure.violations_size() == kMaxMissing) {
      break;
    }
    auto* violation = failure.add_violations();
    violation->set_type("MISSING");
    violation->set_subject(std::string(file));
    violation->set_description("there is no such file");
  }
  return failure;
}

// An error of somebody else's code is ours.
absl::Status WithReason(const absl::Status& status) {
  return ReasonOf(status) == v1::REASON_UNSPECIFIED
             ? MakeError(v1::INTERNAL_ERROR, status.ToString(absl::StatusToStringMode::kDefault))
             : status;
}

// What callers are told of an error: not where the server keeps its files, nor what its database is. That is logged.
std::string PublicMessage(const absl::Status& status) {
  const v1::Reason reason = ReasonOf(status);
  const absl::string_view message = status.message();
  if (reason != v1::STORAGE_ERROR && reason != v1::STORAGE_FULL && reason != v1::STORAGE_UNAVAILABLE) {
    return std::string(message);
  }
  std::string text;
  if (absl::StartsWith(message, "database ")) {
    text = reason == v1::STORAGE_FULL          ? "the server's disk is full; free space there and try again"
           : reason == v1::STORAGE_UNAVAILABLE ? "the server's database cannot be reached at the moment; try again"
                                               : "the server's database failed; its log says more";
  } else {  // files by their last names
    for (const absl::string_view word : absl::StrSplit(message, ' ')) {
      absl::StrAppend(&text, text.empty() ? "" : " ", absl::StartsWith(word, "/") ? word.substr(word.rfind('/') + 1) : word);
    }
  }
  LOG_IF(WARNING, text != message) << "callers are not told all of this: " << status;
  return text;
}

// Of an error with a reason, `public_message` being that of it. `max_text`: bytes of a text of any length.
google::rpc::Status Convert(const absl::Status& status, const std::string& public_message, size_t max_text) {
  google::rpc::Status rpc;
  const std::map<std::string, std::string> metadata = MetadataOf(status);
  const std::string message = AsUtf8(public_message, max_text);
  rpc.set_code(static_cast<int>(status.code()));
  rpc.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(v1::Reason_Name(ReasonOf(status)));
  info.set_domain("modelpress");
  for (const auto& [key, value] : metadata) {
    (*info.mutable_metadata())[key] = AsUtf8(value, max_text);
  }
  rpc.add_details()->PackFrom(info);
  if (std::string field = Find(metadata, "field"); !field.empty()) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(field);
    violation->set_description(AsUtf8(message, kMaxDescription));
    rpc.add_details()->PackFrom(bad_request);
  }
  if (ReasonOf(status) == v1::FILE_NOT_FOUND) {
    std::string files = Find(metadata, "missing");
    files = files.empty() ? Find(metadata, "file") : files;
    if (!files.empty()) {
      rpc.add_details()->PackFrom(Missing(AsUtf8(files, max_text)));
    }
  }
  return rpc;
}

}  // namespace

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  if (status.ok()) {
    return {};
  }
  const absl::Status error = WithReason(status);
  return Convert(error, PublicMessage(error), kMaxText);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) {
    return grpc::Status::OK;
  }
  const absl::Status error = WithReason(status);
  const std::string message = PublicMessage(error);
  size_t max_text = kMaxText;
  google::rpc::Status rpc = Convert(error, message, max_text);
  while (rpc.ByteSizeLong() > kMaxDetails) {
    max_text /= 2;
    rpc = Convert(error, message, max_text);
  }
  return {static_cast<grpc::StatusCode>(rpc.code()), AsUtf8(rpc.message(), kMaxDescription), rpc.SerializeAsString()};
}

}  // namespace modelpress::server
