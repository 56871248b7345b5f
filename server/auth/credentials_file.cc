#include "server/auth/credentials_file.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "server/base/sha256.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

// So that scanners of source code and logs find tokens that got there.
constexpr char kTokenPrefix[] = "mp_";
constexpr size_t kTokenBytes = 32;
constexpr size_t kMaxPrincipal = 255;

absl::Status Mistake(absl::string_view message) { return MakeError(v1::REQUEST_INVALID, message); }

// Keeps the first mistake.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstError(const std::string& path) : path_(path) {}
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (status_.ok()) {
      status_ = MakeError(v1::REQUEST_INVALID, message, {.file = path_, .line = line + 1, .column = column + 1});
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  const std::string& path_;
  absl::Status status_;
};

absl::StatusOr<Principal> MakePrincipal(const std::string& name, const std::string& project, Credentials::Role role) {
  if (!IsPrincipalName(name)) {
    return Mistake("`principal` is not 1 to 255 printable ASCII characters");
  }
  MP_RETURN_IF_ERROR(CheckProject(project, ""));
  switch (role) {
    case Credentials::READER:
      return Principal{name, project, Role::kReader};
    case Credentials::WRITER:
      return Principal{name, project, Role::kWriter};
    case Credentials::ADMIN:
      return Principal{name, project, Role::kAdmin};
    default:
      return Mistake("`role` is not READER, WRITER or ADMIN");
  }
}

absl::StatusOr<absl::Time> ParseExpiry(const std::string& text) {
  if (text.empty()) {
    return absl::InfiniteFuture();
  }
  absl::Time time;
  std::string error;
  // absl takes "infinite-future" and spaces around as well.
  if (!absl::ascii_isdigit(text.front()) || absl::ascii_isspace(text.back()) ||
      !absl::ParseTime(absl::RFC3339_full, text, &time, &error)) {
    return Mistake(absl::StrCat("`expire_time` '", absl::CHexEscape(text), "' is not a time as 2027-01-31T12:00:00Z (RFC 3339)"));
  }
  return time;
}

}  // namespace

bool IsPrincipalName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxPrincipal && std::ranges::all_of(name, absl::ascii_isprint);
}

std::optional<Role> RoleFromName(absl::string_view name) {
  for (const Role role : {Role::kReader, Role::kWriter, Role::kAdmin}) {
    if (name == RoleName(role)) {
      return role;
    }
  }
  return std::nullopt;
}

std::string RoleName(Role role) {
  switch (role) {
    case Role::kReader:
      return "reader";
    case Role::kWriter:
      return "writer";
    case Role::kAdmin:
      return "admin";
  }
  return "";
}

absl::Status CredentialTable::AddToken(const Credentials::Token& token) {
  if (!IsSha256Hex(token.sha256())) {
    return Mistake("`sha256` is not 64 lower-case hex digits; `modelpressd create-token` prints whole entries");
  }
  MP_ASSIGN_OR_RETURN(Principal principal, MakePrincipal(token.principal(), token.project(), token.role()));
  MP_ASSIGN_OR_RETURN(const absl::Time expires, ParseExpiry(token.expire_time()));
  if (!tokens_.emplace(token.sha256(), TokenEntry{std::move(principal), expires}).second) {
    return Mistake("its `sha256` came before; each token has one entry");
  }
  return absl::OkStatus();
}

absl::Status CredentialTable::AddCertificate(const Credentials::Certificate& certificate) {
  const std::string& name = certificate.has_uri()   ? certificate.uri()
                            : certificate.has_dns() ? certificate.dns()
                                                    : certificate.common_name();
  if (name.empty()) {
    return Mistake("one of `uri`, `dns` and `common_name` is needed");
  }
  MP_ASSIGN_OR_RETURN(Principal principal, MakePrincipal(certificate.principal().empty() ? name : certificate.principal(),
                                                         certificate.project(), certificate.role()));
  if (!certificates_.emplace(std::pair(certificate.name_case(), name), std::move(principal)).second) {
    return Mistake("its name came before; each name has one entry");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const CredentialTable>> CredentialTable::Parse(const std::string& text, const std::string& path) {
  Credentials credentials;
  FirstError error(path);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  google::protobuf::TextFormat::ParseInfoTree places;
  parser.WriteLocationsTo(&places);
  if (!parser.ParseFromString(text, &credentials)) {
    return error.status().ok() ? MakeError(v1::REQUEST_INVALID, "not protobuf text", {.file = path}) : error.status();
  }
  auto table = std::make_shared<CredentialTable>();
  auto at = [&](const absl::Status& status, const std::string& field, int index) {
    const auto* descriptor = Credentials::descriptor()->FindFieldByName(field);
    return AtPlace(status, {.file = path, .line = places.GetLocation(descriptor, index).line + 1});
  };
  for (int i = 0; i < credentials.token_size(); ++i) {
    MP_RETURN_IF_ERROR(at(table->AddToken(credentials.token(i)), "token", i));
  }
  for (int i = 0; i < credentials.certificate_size(); ++i) {
    MP_RETURN_IF_ERROR(at(table->AddCertificate(credentials.certificate(i)), "certificate", i));
  }
  return table;
}

const CredentialTable::TokenEntry* CredentialTable::FindToken(const std::string& token) const {
  const std::string hash = Sha256Hex(token);
  const auto found = tokens_.find(hash);
  const bool same = found != tokens_.end() && CRYPTO_memcmp(found->first.data(), hash.data(), hash.size()) == 0;
  return same ? &found->second : nullptr;
}

absl::StatusOr<std::optional<Principal>> CredentialTable::FindCertificate(const PeerCertificate& certificate) const {
  const std::vector<std::string> common_names = {certificate.common_name};
  const std::pair<NameKind, const std::vector<std::string>*> kinds[] = {{Credentials::Certificate::kUri, &certificate.uris},
                                                                        {Credentials::Certificate::kDns, &certificate.dns_names},
                                                                        {Credentials::Certificate::kCommonName, &common_names}};
  for (const auto& [kind, names] : kinds) {
    const Principal* principal = nullptr;
    for (const std::string& name : *names) {
      const auto found = certificates_.find({kind, name});
      if (found == certificates_.end()) {
        continue;
      }
      if (principal != nullptr && principal != &found->second) {
        return NotAuthenticated(cause::kUnknownCertificate, "the client certificate has the names of several principals");
      }
      principal = &found->second;
    }
    if (principal != nullptr) {
      return *principal;
    }
  }
  return std::nullopt;
}

absl::StatusOr<std::optional<Principal>> TokenAuthenticator::Authenticate(const Presented& presented) {
  if (!presented.token.has_value() || presented.token->size() < kMinToken) {
    return std::nullopt;
  }
  const std::shared_ptr<const CredentialTable> table = file_.Get();
  const CredentialTable::TokenEntry* entry = table->FindToken(*presented.token);
  if (entry == nullptr) {
    return std::nullopt;
  }
  if (entry->expires <= clock_.Now()) {
    return NotAuthenticated(cause::kExpired,
                            absl::StrCat("the token has expired at ", absl::FormatTime(entry->expires), "; ask for another"));
  }
  return entry->principal;
}

absl::StatusOr<std::optional<Principal>> CertificateAuthenticator::Authenticate(const Presented& presented) {
  if (presented.token.has_value() || !presented.certificate.has_value()) {
    return std::nullopt;
  }
  return file_.Get()->FindCertificate(*presented.certificate);
}

absl::StatusOr<NewToken> CreateToken(const std::string& principal, const std::string& project, const std::string& role,
                                     absl::Time expires) {
  if (!IsPrincipalName(principal)) {
    return Mistake("--principal is needed: 1 to 255 printable ASCII characters");
  }
  MP_RETURN_IF_ERROR(CheckProject(project, ""));
  Credentials credentials;
  Credentials::Token& entry = *credentials.add_token();
  Credentials::Role parsed = Credentials::ROLE_UNSPECIFIED;
  if (!RoleFromName(role).has_value() || !Credentials::Role_Parse(absl::AsciiStrToUpper(role), &parsed)) {
    return Mistake("--role is reader, writer or admin");
  }
  std::string bytes(kTokenBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), kTokenBytes) != 1) {
    return MakeError(v1::INTERNAL_ERROR, "the system gives no random numbers");
  }
  NewToken made;
  made.token = absl::StrCat(kTokenPrefix, absl::WebSafeBase64Escape(bytes));
  entry.set_sha256(Sha256Hex(made.token));
  entry.set_principal(principal);
  entry.set_project(project);
  entry.set_role(parsed);
  if (expires != absl::InfiniteFuture()) {
    entry.set_expire_time(absl::FormatTime(absl::RFC3339_sec, expires, absl::UTCTimeZone()));
  }
  google::protobuf::TextFormat::PrintToString(credentials, &made.entry);
  return made;
}

}  // namespace modelpress::server
