// What a call says of its caller, line by line: "a:" a value of the metadata `authorization`, "p:" of `modelpress-project`, "t:"
// of `traceparent`, "u:", "d:" and "c:" URIs, DNS names and the common name of a verified certificate.
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/auth/access_control.h"
#include "server/base/sha256.h"
#include "server/log/trace.h"
#include "server/rpc/names.h"
#include "tests/fuzz/fuzzing.h"
#include "tests/fuzz/jwt_keys.h"
#include "tests/server/base/fake_clock.h"

namespace modelpress::server {
namespace {

// Everybody that the server knows: two by token, one by certificate, and who has a token of the issuer.
class Gate {
 public:
  Gate() : reader_(absl::StrCat("mp_", std::string(43, 'A'))), admin_(absl::StrCat("mp_", std::string(43, 'B'))) {
    options_.credentials_file = folder_.Write(
        "credentials",
        absl::StrCat("token { sha256: '", Sha256Hex(reader_), "' principal: 'reader' project: 'vision' role: READER }",
                     "token { sha256: '", Sha256Hex(admin_), "' principal: 'root' project: 'ops' role: ADMIN }",
                     "certificate { uri: 'spiffe://x/y' project: 'mesh' role: WRITER }",
                     "certificate { dns: 'a.example' principal: 'host' project: 'mesh' role: WRITER }"));
    options_.jwks_file = folder_.Write("jwks.json", kJwks);
    options_.jwt_issuer = "https://issuer";
    options_.jwt_audience = "modelpress";
    access_ = AccessControl::Open(options_, clock_, metrics_).value();
  }

  void Admit(const CallIdentity& call) {
    for (const Role needed : {Role::kReader, Role::kAdmin}) {
      const absl::StatusOr<Caller> caller = access_->Admit(call, needed);
      RequireClear(caller.status());
      if (!caller.ok()) {
        continue;
      }
      Require(caller->role >= needed, "the role that is needed");
      Require(CheckProject(caller->project, "").ok(), "a project that can be named");
      Require(OwnProject(call, caller->principal) == caller->project ||
                  (caller->role == Role::kAdmin && caller->project == call.project.front()),
              "only admins speak for others");
      const std::optional<TraceContext> trace = ParseTraceparent(caller->traceparent);
      Require(trace.has_value(), "every call has a trace");
      if (call.traceparent.size() == 1) {
        const std::optional<TraceContext> came = ParseTraceparent(call.traceparent.front());
        Require(!came.has_value() || came->trace_id == trace->trace_id, "the caller's trace goes on");
      }
    }
  }

 private:
  // By what was shown, as the files have it.
  std::string OwnProject(const CallIdentity& call, const std::string& principal) const {
    if (call.authorization.empty()) {
      return principal == "spiffe://x/y" || principal == "host" ? "mesh" : "";
    }
    const std::string& shown = call.authorization.front();
    Require(call.authorization.size() == 1 && shown.size() > 7 && absl::AsciiStrToLower(shown.substr(0, 7)) == "bearer ",
            "one bearer token");
    const std::string token = shown.substr(7);
    if (token == reader_ || token == admin_) {
      return token == reader_ && principal == "reader" ? "vision" : principal == "root" ? "ops" : "";
    }
    for (const auto& parts : kJwtParts) {
      const std::string with_signature = absl::StrCat(parts[0], ".", parts[1], ".");
      if (token.starts_with(with_signature) && principal == "alice") {
        return "vision";
      }
    }
    return "";
  }

  InputFolder folder_;
  FakeClock clock_;
  Metrics metrics_;
  AuthOptions options_;
  const std::string reader_;
  const std::string admin_;
  std::unique_ptr<AccessControl> access_;
};

void Run(absl::string_view input) {
  static Gate gate;
  CallIdentity call{.peer = "ipv4:192.0.2.1:1"};
  PeerCertificate certificate;
  for (const absl::string_view line : absl::StrSplit(input, '\n')) {
    if (line.size() < 2 || line[1] != ':') {
      continue;
    }
    std::string value(line.substr(2));
    switch (line[0]) {
      case 'a':
        call.authorization.push_back(std::move(value));
        break;
      case 'p':
        call.project.push_back(std::move(value));
        break;
      case 't':
        call.traceparent.push_back(std::move(value));
        break;
      case 'u':
        certificate.uris.push_back(std::move(value));
        break;
      case 'd':
        certificate.dns_names.push_back(std::move(value));
        break;
      case 'c':
        certificate.common_name = std::move(value);
        break;
      default:
        break;
    }
  }
  if (!certificate.uris.empty() || !certificate.dns_names.empty() || !certificate.common_name.empty()) {
    call.certificate = std::move(certificate);
  }
  gate.Admit(call);
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
