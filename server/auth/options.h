// What an operator sets about transport and identity; flags map on it one to one (server/main.cc).
#ifndef MODELPRESS_SERVER_AUTH_OPTIONS_H_
#define MODELPRESS_SERVER_AUTH_OPTIONS_H_

#include <string>

#include "absl/status/status.h"

namespace modelpress::server {

// TLS of the gRPC port; all empty: plaintext. Files are PEM and may be replaced while the server runs.
struct TlsOptions {
  std::string cert;       // the server's chain, its own certificate first
  std::string key;        // of the first certificate, not encrypted
  std::string client_ca;  // certificates that those of clients must lead to; "": clients are not asked for one
  // With client_ca: true lets clients in that have none (they then need a token), false ends their connection.
  bool client_certificate_optional = false;

  bool enabled() const { return !cert.empty(); }
};

// Who may call. Nothing set: everybody is the admin of project "default", where CheckExposure allows that.
struct AuthOptions {
  std::string credentials_file;  // server/auth/credentials.proto as text: hashed tokens and names of client certificates
  std::string jwks_file;         // JSON Web Key Set (RFC 7517): those who issue JWTs
  std::string jwt_issuer;        // `iss` that a JWT must have; needed with jwks_file
  std::string jwt_audience;      // `aud` that it must contain; needed with jwks_file
  std::string jwt_project_claim = "project";
  std::string jwt_role_claim = "role";
  bool anonymous = false;  // everybody is the admin of project "default", wherever the call comes from

  bool enabled() const { return !credentials_file.empty() || !jwks_file.empty(); }
};

// Refuses options that contradict each other or that would let strangers in without anybody having said so: on other than
// loopback addresses a server needs TLS and callers that it can tell apart. `insecure_plaintext`: something else (a mesh, a
// proxy, a private network) sees to both. REQUEST_INVALID with a text for the operator that says what to do.
absl::Status CheckExposure(const std::string& listen, bool loopback, bool insecure_plaintext, const TlsOptions& tls,
                           const AuthOptions& auth);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_OPTIONS_H_
