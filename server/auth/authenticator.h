// Who makes a call: one narrow interface, an implementation for each kind of credential.
#ifndef MODELPRESS_SERVER_AUTH_AUTHENTICATOR_H_
#define MODELPRESS_SERVER_AUTH_AUTHENTICATOR_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/caller.h"

namespace modelpress::server {

struct Principal {
  std::string name;
  std::string project;
  Role role = Role::kReader;
};

// The names in a client certificate that TLS has verified.
struct PeerCertificate {
  std::vector<std::string> uris;
  std::vector<std::string> dns_names;
  std::string common_name;  // "": none
};

// What a call shows of its caller.
struct Presented {
  std::optional<std::string> token;  // of `authorization: Bearer TOKEN`; at most kMaxToken printable ASCII characters
  std::optional<PeerCertificate> certificate;
};

// Longer ones are refused before anything looks at them.
inline constexpr size_t kMaxToken = 8 << 10;

// Why authentication failed: the metadata `cause` of AUTHENTICATION_FAILED and the label of modelpress_auth_failures_total.
namespace cause {
inline constexpr char kMissing[] = "missing";             // no credentials
inline constexpr char kMalformed[] = "malformed";         // not of the form that they must have
inline constexpr char kUnknownToken[] = "unknown_token";  // no such token in the credentials file
inline constexpr char kUnknownCertificate[] = "unknown_certificate";
inline constexpr char kExpired[] = "expired";
inline constexpr char kNotYetValid[] = "not_yet_valid";
inline constexpr char kIssuer[] = "issuer";
inline constexpr char kAudience[] = "audience";
inline constexpr char kUnknownKey[] = "unknown_key";  // a JWT's `kid`
inline constexpr char kAlgorithm[] = "algorithm";     // a JWT's `alg` is not allowed, or not one of its key
inline constexpr char kSignature[] = "signature";
inline constexpr char kClaims[] = "claims";  // a JWT does not tell who it is, or not in a form that can be used
}  // namespace cause

// AUTHENTICATION_FAILED with metadata `cause`. `message` must not hold the secret.
absl::Status NotAuthenticated(absl::string_view cause, absl::string_view message);

// Thread-safe.
class Authenticator {
 public:
  virtual ~Authenticator() = default;
  // Whose credentials these are; nullopt if they are not of a kind that this one knows, or unknown to it, so that the next may
  // look; an error if they are of its kind and bad.
  virtual absl::StatusOr<std::optional<Principal>> Authenticate(const Presented& presented) = 0;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_AUTHENTICATOR_H_
