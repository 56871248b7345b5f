#ifndef MODELPRESS_SERVER_AUTH_CREDENTIALS_FILE_H_
#define MODELPRESS_SERVER_AUTH_CREDENTIALS_FILE_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"
#include "server/auth/credentials.pb.h"
#include "server/auth/watched_file.h"
#include "server/base/clock.h"

namespace modelpress::server {

// Tokens are random, so one fast hash keeps them secret: with 256 bits there is nothing to guess, and what makes slow, salted
// hashes (bcrypt, Argon2) necessary for passwords would only make every call slow. This holds because shorter tokens are refused
// when they are shown, whatever the file says: base64url of 256 bits has 43 characters.
inline constexpr size_t kMinToken = 43;

// The content of --credentials_file, checked and ready to be asked. Immutable.
class CredentialTable {
 public:
  // `path` is for errors: REQUEST_INVALID with file and, for mistakes in the text, line and column.
  static absl::StatusOr<std::shared_ptr<const CredentialTable>> Parse(const std::string& text, const std::string& path);

  struct TokenEntry {
    Principal principal;
    absl::Time expires;
  };
  // nullptr: not in the file. The entry may have expired.
  const TokenEntry* FindToken(const std::string& token) const;

  // The entry with one of the certificate's names: URIs go before DNS names, those before the common name. nullopt: none.
  // AUTHENTICATION_FAILED if several of one kind lead to different principals.
  absl::StatusOr<std::optional<Principal>> FindCertificate(const PeerCertificate& certificate) const;

 private:
  using NameKind = Credentials::Certificate::NameCase;

  absl::Status AddToken(const Credentials::Token& token);
  absl::Status AddCertificate(const Credentials::Certificate& certificate);

  // By hex of the SHA-256. How long a look-up takes tells something about stored hashes at best, never about tokens: who wants to
  // use that has to find tokens for hashes of a form that they choose.
  std::map<std::string, TokenEntry> tokens_;
  std::map<std::pair<NameKind, std::string>, Principal> certificates_;
};

// Knows a caller by its token.
class TokenAuthenticator final : public Authenticator {
 public:
  // Both must outlive it.
  TokenAuthenticator(WatchedFile<CredentialTable>& file, const Clock& clock) : file_(file), clock_(clock) {}
  absl::StatusOr<std::optional<Principal>> Authenticate(const Presented& presented) override;

 private:
  WatchedFile<CredentialTable>& file_;
  const Clock& clock_;
};

// Knows a caller by its certificate, where it shows no token: a token is shown on purpose, so it must not be outdone by a
// certificate that comes with the machine or the mesh, nor a bad one be covered up by it.
class CertificateAuthenticator final : public Authenticator {
 public:
  // `file` must outlive it.
  explicit CertificateAuthenticator(WatchedFile<CredentialTable>& file) : file_(file) {}
  absl::StatusOr<std::optional<Principal>> Authenticate(const Presented& presented) override;

 private:
  WatchedFile<CredentialTable>& file_;
};

struct NewToken {
  std::string token;  // the secret
  std::string entry;  // for the file, as text
};

// Makes a random token. `expires`: absl::InfiniteFuture() is never. REQUEST_INVALID or NAME_INVALID naming the flag to blame.
absl::StatusOr<NewToken> CreateToken(const std::string& principal, const std::string& project, const std::string& role,
                                     absl::Time expires);

// "reader", "writer" or "admin".
std::optional<Role> RoleFromName(absl::string_view name);
std::string RoleName(Role role);

// What a principal may be called: 1 to 255 bytes, printable ASCII, so that it can stand in any log.
bool IsPrincipalName(absl::string_view name);

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_CREDENTIALS_FILE_H_
