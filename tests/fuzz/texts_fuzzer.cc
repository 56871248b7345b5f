// Texts from files and children on their way out: the first byte chooses the reason of an error, then come, with zero bytes
// between them, its message, file, layer and list of missing files. As an error it is UTF-8 that gRPC can send; as a log entry it
// is one line.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/log/log.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/utf8.h"
#include "google/rpc/status.pb.h"
#include "nlohmann/json.hpp"
#include "server/log/log.h"
#include "server/rpc/status.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

constexpr size_t kMaxMetadata = 8 << 10;  // that a client of gRPC takes by default, names and all
constexpr size_t kOtherMetadata = 256;

bool IsUtf8(absl::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

void SendError(uint8_t choice, const std::vector<std::string>& texts) {
  const auto reason = static_cast<v1::Reason>(choice);
  if (!v1::Reason_IsValid(reason)) {
    return;
  }
  absl::Status status = MakeError(reason, absl::StrCat("no: ", texts[0]), {.field = "options.request_id", .layer = texts[2]});
  if (!texts[3].empty()) {
    status = WithMetadata(status, "missing", texts[3]);
  }
  status = AtPlace(status, {.file = texts[1], .line = 1, .column = 1});
  const google::rpc::Status rpc = ToRpcStatus(status);
  Require(IsUtf8(rpc.message()), "a message of UTF-8");
  google::rpc::Status again;
  Require(again.ParseFromString(rpc.SerializeAsString()), "an error that an operation can hold");
  const grpc::Status sent = ToGrpcStatus(status);
  Require(IsUtf8(sent.error_message()), "a message of UTF-8");
  // Percent-encoded (all but printable ASCII and '%'), and in base64.
  size_t size = kOtherMetadata + (sent.error_details().size() + 2) / 3 * 4;
  for (const char c : sent.error_message()) {
    size += c >= ' ' && c <= '~' && c != '%' ? 1 : 3;
  }
  Require(size <= kMaxMetadata, "an error that reaches the caller");
}

class OneLine final : public absl::LogSink {
 public:
  void Send(const absl::LogEntry& entry) override {
    const std::string text = LogEntryAsText(entry);
    Require(std::ranges::none_of(text, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }),
            "a line of text, without control characters");
    const std::string line = LogEntryAsJson(entry);
    Require(line.find('\n') == std::string::npos && IsUtf8(line), "a line of JSON");
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    Require(json.is_object() && json.contains("message") && json.contains("operation"), "an entry as JSON");
  }
};

void Run(uint8_t choice, absl::string_view input) {
  std::vector<std::string> texts = absl::StrSplit(input, absl::MaxSplits('\0', 3));
  texts.resize(4);
  SendError(choice, texts);
  OneLine sink;
  const ScopedLogFields fields({{"operation", texts[1]}});
  LOG(INFO).ToSinkOnly(&sink) << texts[0];
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) {
    modelpress::server::Run(data[0], modelpress::AsText(data + 1, size - 1));
  }
  return 0;
}
