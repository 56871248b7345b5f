#include "server/auth/access_control.h"

#include <algorithm>

#include "absl/log/log.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "server/auth/jwt.h"
#include "server/log/trace.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

// The token of `authorization: Bearer TOKEN` (RFC 6750, section 2.1).
absl::StatusOr<std::string> BearerToken(const std::vector<std::string>& authorization) {
  if (authorization.size() > 1) {
    return NotAuthenticated(cause::kMalformed, "the metadata `authorization` comes more than once");
  }
  absl::string_view token = authorization.front();
  if (token.size() > kMaxToken) {
    return NotAuthenticated(cause::kMalformed, absl::StrCat("the token is longer than ", kMaxToken, " bytes"));
  }
  constexpr absl::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(token, kScheme)) {
    return NotAuthenticated(cause::kMalformed, "the metadata `authorization` is not `Bearer TOKEN`");
  }
  token.remove_prefix(kScheme.size());
  if (token.empty() || !std::ranges::all_of(token, absl::ascii_isgraph)) {
    return NotAuthenticated(cause::kMalformed, "the token is empty, or has white space or characters that are not ASCII in it");
  }
  return std::string(token);
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Open(const AuthOptions& options, const Clock& clock,
                                                                   Metrics& metrics) {
  std::unique_ptr<AccessControl> access(new AccessControl(metrics));
  const auto on_error = [&metrics](const std::string& flag) {
    return [&metrics, flag](const absl::Status& status) {
      metrics.ReloadFailed(flag);
      LOG(ERROR) << "--" << flag << " has changed but cannot be used, the state of before stays: " << status.message();
    };
  };
  if (!options.credentials_file.empty()) {
    MP_ASSIGN_OR_RETURN(access->credentials_,
                        WatchedFile<CredentialTable>::Open(options.credentials_file, clock, CredentialTable::Parse,
                                                           on_error("credentials_file")));
    access->authenticators_.push_back(std::make_unique<CertificateAuthenticator>(*access->credentials_));
    access->authenticators_.push_back(std::make_unique<TokenAuthenticator>(*access->credentials_, clock));
  }
  if (!options.jwks_file.empty()) {
    MP_ASSIGN_OR_RETURN(auto keys, WatchedFile<KeySet>::Open(options.jwks_file, clock, KeySet::Parse, on_error("jwks_file")));
    access->authenticators_.push_back(std::make_unique<JwtAuthenticator>(
        std::move(keys), ClaimRules{options.jwt_issuer, options.jwt_audience, options.jwt_project_claim, options.jwt_role_claim},
        clock));
  }
  return access;
}

absl::StatusOr<Principal> AccessControl::Authenticate(const CallIdentity& call) {
  if (authenticators_.empty()) {
    const Caller everybody;
    return Principal{everybody.principal, everybody.project, everybody.role};
  }
  Presented presented{.token = std::nullopt, .certificate = call.certificate};
  if (!call.authorization.empty()) {
    MP_ASSIGN_OR_RETURN(presented.token, BearerToken(call.authorization));
  }
  for (const std::unique_ptr<Authenticator>& authenticator : authenticators_) {
    MP_ASSIGN_OR_RETURN(std::optional<Principal> principal, authenticator->Authenticate(presented));
    if (principal.has_value()) {
      return *std::move(principal);
    }
  }
  if (presented.token.has_value()) {
    return NotAuthenticated(cause::kUnknownToken, "the token is not known here");
  }
  return presented.certificate.has_value()
             ? NotAuthenticated(cause::kUnknownCertificate, "the client certificate is not known here; send a token")
             : NotAuthenticated(cause::kMissing, "the call has no credentials; send the metadata `authorization: Bearer TOKEN`");
}

absl::StatusOr<Caller> AccessControl::Check(const CallIdentity& call, Role needed) {
  MP_ASSIGN_OR_RETURN(const Principal principal, Authenticate(call));
  Caller caller{.principal = principal.name, .project = principal.project, .role = principal.role, .traceparent = ""};
  if (caller.role < needed) {
    const absl::Status denied = MakeError(v1::ACCESS_DENIED, absl::StrCat("'", caller.principal, "' has the role ",
                                                                          RoleName(caller.role), ", which may not do this"));
    return WithMetadata(WithMetadata(denied, "role", RoleName(caller.role)), "needed", RoleName(needed));
  }
  if (call.project.size() > 1) {
    return MakeError(v1::REQUEST_INVALID, "the metadata `modelpress-project` comes more than once");
  }
  if (!call.project.empty()) {
    MP_RETURN_IF_ERROR(CheckProject(call.project.front(), "modelpress-project"));
    if (caller.role != Role::kAdmin && call.project.front() != caller.project) {
      const absl::Status denied =
          MakeError(v1::ACCESS_DENIED, absl::StrCat("'", caller.principal, "' speaks for the project '", caller.project,
                                                    "' only; leave the metadata `modelpress-project` out"));
      return WithMetadata(WithMetadata(denied, "role", RoleName(caller.role)), "needed", RoleName(Role::kAdmin));
    }
    caller.project = call.project.front();
  }
  caller.traceparent =
      FormatTraceparent(ContinueTrace(call.traceparent.size() == 1 ? absl::string_view(call.traceparent.front()) : ""));
  return caller;
}

absl::StatusOr<Caller> AccessControl::Admit(const CallIdentity& call, Role needed) {
  absl::StatusOr<Caller> caller = Check(call, needed);
  if (!caller.ok()) {
    Refused(call, caller.status());
  }
  return caller;
}

void AccessControl::Refused(const CallIdentity& call, const absl::Status& status) {
  if (ReasonOf(status) == v1::AUTHENTICATION_FAILED) {
    metrics_.AuthFailed(MetadataOf(status)["cause"]);
  } else if (ReasonOf(status) == v1::ACCESS_DENIED) {
    metrics_.AuthFailed("denied");
  } else {
    return;  // a mistake as any other
  }
  // As every warning limited by the log's RepeatLimiter, which counts those that are left out.
  LOG(WARNING) << "call from " << call.peer << " refused: " << status.message();
}

}  // namespace modelpress::server
