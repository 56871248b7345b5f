// JSON Web Tokens (RFC 7519), signed (RFC 7515) by the keys of a JWKS file (RFC 7517), with the advice of RFC 8725.
#ifndef MODELPRESS_SERVER_AUTH_JWT_H_
#define MODELPRESS_SERVER_AUTH_JWT_H_

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"
#include "server/auth/options.h"
#include "server/auth/watched_file.h"
#include "server/base/clock.h"

struct _cjose_jwk_int;  // NOLINT(bugprone-reserved-identifier): libcjose's name for it

namespace modelpress::server {

// The public keys of those who issue tokens. Immutable.
class KeySet {
 public:
  // A JWK set. Keys that are not for signatures, or of kinds that cannot be used here (Ed25519, by libcjose), are left out, as
  // sets of identity providers often have some. REQUEST_INVALID, naming the key, for the rest that does not fit: not JSON, no
  // usable key, a key without `kid` or with that of another, a symmetric or private key (a secret that does not belong here), RSA
  // below 2048 bits.
  static absl::StatusOr<std::shared_ptr<const KeySet>> Parse(const std::string& text, const std::string& path);

  // The text of the claims of `token`, if it is signed by one of the keys; AUTHENTICATION_FAILED with the cause if not.
  // Takes RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and ES512, each with keys of its own kind (and curve) only,
  // whatever the token claims; never `none` or HMAC.
  absl::StatusOr<std::string> Verify(const std::string& token) const;

 private:
  struct Release {
    void operator()(_cjose_jwk_int* key) const;
  };
  struct Key {
    std::unique_ptr<_cjose_jwk_int, Release> key;
    std::vector<std::string> algorithms;  // that it may be used with
  };
  std::map<std::string, Key> keys_;  // by kid
};

// What is required of the claims and read from them.
struct ClaimRules {
  std::string issuer;
  std::string audience;
  std::string project_claim;
  std::string role_claim;
};

struct VerifiedClaims {
  Principal principal;
  absl::Time expires;
};

// Checks `iss`, `aud` (text or list), `exp` (needed) and `nbf` at `now`, allowing for clocks that differ by a minute, and reads
// the principal: name `sub`, project and role (reader, writer or admin; of a list the highest that is one of these) from their
// claims. AUTHENTICATION_FAILED with the cause. Claims that come twice are refused.
absl::StatusOr<VerifiedClaims> CheckClaims(const std::string& claims, const ClaimRules& rules, absl::Time now);

// Knows a caller by a JWT. Tokens that were found good are remembered until they expire or the key set changes, so that a
// signature is checked once.
class JwtAuthenticator final : public Authenticator {
 public:
  // `clock` must outlive it.
  JwtAuthenticator(std::unique_ptr<WatchedFile<KeySet>> keys, ClaimRules rules, const Clock& clock)
      : keys_(std::move(keys)), rules_(std::move(rules)), clock_(clock) {}
  absl::StatusOr<std::optional<Principal>> Authenticate(const Presented& presented) override;

 private:
  void Remember(const std::string& hash, const std::shared_ptr<const KeySet>& keys, const VerifiedClaims& claims, absl::Time now);

  const std::unique_ptr<WatchedFile<KeySet>> keys_;
  const ClaimRules rules_;
  const Clock& clock_;
  std::mutex mutex_;
  std::shared_ptr<const KeySet> known_by_;                 // the keys that those in `known_` were checked with
  std::unordered_map<std::string, VerifiedClaims> known_;  // by SHA-256 of the token
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_JWT_H_
