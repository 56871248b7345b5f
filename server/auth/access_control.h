#ifndef MODELPRESS_SERVER_AUTH_ACCESS_CONTROL_H_
#define MODELPRESS_SERVER_AUTH_ACCESS_CONTROL_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/auth/authenticator.h"
#include "server/auth/caller.h"
#include "server/auth/credentials_file.h"
#include "server/auth/options.h"
#include "server/base/clock.h"
#include "server/metrics/metrics.h"

namespace modelpress::server {

// What a call brings along that says who makes it, unchecked.
struct CallIdentity {
  // All values of the metadata of that name.
  std::vector<std::string> authorization;
  std::vector<std::string> project;  // modelpress-project
  std::vector<std::string> traceparent;
  std::optional<PeerCertificate> certificate;  // verified by TLS
  std::string peer;                            // address, for the log
};

// The one gate that every call goes through. Thread-safe.
class AccessControl {
 public:
  // Reads the files that `options` (CheckExposure) names; an error tells what is wrong with which. Both must outlive it.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Open(const AuthOptions& options, const Clock& clock, Metrics& metrics);

  // Who makes the call, if they may call what needs the role `needed`. AUTHENTICATION_FAILED with metadata `cause`; ACCESS_DENIED
  // if the role does not suffice, or if somebody who is no admin names another project than their own, whether there is such a
  // project or not; NAME_INVALID for what is no name of a project. Refusals are counted, and some logged without secrets.
  absl::StatusOr<Caller> Admit(const CallIdentity& call, Role needed);

 private:
  explicit AccessControl(Metrics& metrics) : metrics_(metrics) {}
  absl::StatusOr<Principal> Authenticate(const CallIdentity& call);
  absl::StatusOr<Caller> Check(const CallIdentity& call, Role needed);
  void Refused(const CallIdentity& call, const absl::Status& status);

  Metrics& metrics_;
  std::unique_ptr<WatchedFile<CredentialTable>> credentials_;
  std::vector<std::unique_ptr<Authenticator>> authenticators_;  // none: everybody is the admin of project "default"
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_ACCESS_CONTROL_H_
