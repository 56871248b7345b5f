#include "server/auth/jwt.h"

#include <cjose/jwk.h>
#include <cjose/jws.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"
#include "server/auth/credentials_file.h"
#include "server/base/sha256.h"
#include "server/rpc/names.h"

namespace modelpress::server {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;
constexpr size_t kMinRsaBits = 2048;
constexpr size_t kMaxRsaBits = 8192;  // the work of a check grows with the square
constexpr size_t kMaxRemembered = 10'000;
constexpr absl::Duration kSkew = absl::Seconds(60);
constexpr double kMaxTime = 1e11;  // seconds since 1970 that a token may name, which is the year 5138

// A JSON object; nullopt for anything else, for objects that say something twice (RFC 8725, section 2.8: readers differ in which
// they take) and for deep nesting.
std::optional<json> ParseObject(absl::string_view text) {
  std::vector<std::set<std::string>> names;  // of the objects around
  bool legal = true;
  const auto check = [&](int depth, json::parse_event_t event, const json& parsed) {
    legal = legal && depth <= kMaxDepth;
    if (event == json::parse_event_t::object_start) {
      names.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      names.pop_back();
    } else if (event == json::parse_event_t::key) {
      legal = legal && names.back().insert(parsed.get<std::string>()).second;
    }
    return true;
  };
  json value = json::parse(text.begin(), text.end(), check, /*allow_exceptions=*/false);
  return legal && value.is_object() ? std::optional(std::move(value)) : std::nullopt;
}

// The text of a member; "" if it is missing or something else.
std::string Text(const json& object, const std::string& name) {
  const auto member = object.find(name);
  return member != object.end() && member->is_string() ? member->get<std::string>() : "";
}

std::vector<std::string> AlgorithmsOfCurve(const std::string& curve) {
  if (curve == "P-256") {
    return {"ES256"};
  }
  if (curve == "P-384") {
    return {"ES384"};
  }
  return curve == "P-521" ? std::vector<std::string>{"ES512"} : std::vector<std::string>();
}

// What the key may be used with by its kind; nothing: not for us.
std::vector<std::string> AlgorithmsOf(const json& key) {
  std::vector<std::string> algorithms;
  if (Text(key, "kty") == "RSA") {
    algorithms = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"};
  } else if (Text(key, "kty") == "EC") {
    algorithms = AlgorithmsOfCurve(Text(key, "crv"));
  }
  if (key.contains("alg")) {
    std::erase_if(algorithms, [&](const std::string& algorithm) { return algorithm != Text(key, "alg"); });
  }
  const auto operations = key.find("key_ops");
  const bool verifies =
      operations == key.end() || (operations->is_array() && std::ranges::find(*operations, json("verify")) != operations->end());
  const bool signs = !key.contains("use") || Text(key, "use") == "sig";
  return verifies && signs ? algorithms : std::vector<std::string>();
}

bool IsBase64Url(absl::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '_'; });
}

struct ReleaseJws {
  void operator()(cjose_jws_t* jws) const { cjose_jws_release(jws); }
};

// `exp` and the like: seconds since 1970, with or without a fraction.
std::optional<absl::Time> TimeClaim(const json& claims, const std::string& name) {
  const auto claim = claims.find(name);
  if (claim == claims.end() || !claim->is_number()) {
    return std::nullopt;
  }
  const auto seconds = claim->get<double>();
  return std::isfinite(seconds) && std::fabs(seconds) < kMaxTime ? std::optional(absl::UnixEpoch() + absl::Seconds(seconds))
                                                                 : std::nullopt;
}

bool Contains(const json& claims, const std::string& name, const std::string& wanted) {
  const auto claim = claims.find(name);
  return claim != claims.end() &&
         (claim->is_array() ? std::ranges::find(*claim, json(wanted)) != claim->end() : *claim == json(wanted));
}

}  // namespace

void KeySet::Release::operator()(_cjose_jwk_int* key) const { cjose_jwk_release(key); }

absl::StatusOr<std::shared_ptr<const KeySet>> KeySet::Parse(const std::string& text, const std::string& path) {
  auto refuse = [&path](absl::string_view message) { return MakeError(v1::REQUEST_INVALID, message, {.file = path}); };
  const std::optional<json> set = ParseObject(text);
  if (!set.has_value() || !set->contains("keys") || !set->at("keys").is_array()) {
    return refuse("not a JSON Web Key Set: a JSON object with a list `keys`");
  }
  auto keys = std::make_shared<KeySet>();
  for (const json& key : set->at("keys")) {
    if (!key.is_object()) {
      return refuse("a member of `keys` is not an object");
    }
    const std::string kid = Text(key, "kid");
    const std::string shown = absl::StrCat("key '", absl::CHexEscape(kid.substr(0, 100)), "': ");
    if (Text(key, "kty") == "oct" || key.contains("d")) {
      return refuse(absl::StrCat(shown, "a secret key; the file must hold public keys only"));
    }
    std::vector<std::string> algorithms = AlgorithmsOf(key);
    if (algorithms.empty()) {
      continue;
    }
    if (kid.empty()) {
      return refuse("a key has no `kid`");
    }
    const std::string one = key.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
    cjose_err error = {};
    std::unique_ptr<_cjose_jwk_int, Release> imported(cjose_jwk_import(one.data(), one.size(), &error));
    if (imported == nullptr) {
      return refuse(absl::StrCat(shown, "not a key: ", error.message == nullptr ? "" : error.message));
    }
    if (const size_t bits = cjose_jwk_get_keysize(imported.get(), nullptr);
        Text(key, "kty") == "RSA" && (bits < kMinRsaBits || bits > kMaxRsaBits)) {
      return refuse(absl::StrCat(shown, "an RSA key of ", bits, " bits; ", kMinRsaBits, " to ", kMaxRsaBits, " are allowed"));
    }
    if (!keys->keys_.emplace(kid, Key{std::move(imported), std::move(algorithms)}).second) {
      return refuse(absl::StrCat(shown, "its `kid` came before"));
    }
  }
  if (keys->keys_.empty()) {
    return refuse("no key that signatures can be checked with (RSA, or EC with P-256, P-384 or P-521)");
  }
  return keys;
}

absl::StatusOr<std::string> KeySet::Verify(const std::string& token) const {
  const std::vector<absl::string_view> parts = absl::StrSplit(token, '.');
  std::string header_text;
  if (token.size() > kMaxToken || parts.size() != 3 || !std::ranges::all_of(parts, IsBase64Url) ||
      !absl::WebSafeBase64Unescape(parts[0], &header_text)) {
    return NotAuthenticated(cause::kMalformed, "the JWT is not three parts of base64url");
  }
  const std::optional<json> header = ParseObject(header_text);
  if (!header.has_value()) {
    return NotAuthenticated(cause::kMalformed, "the JWT's header is not a JSON object without repeated names");
  }
  if (header->contains("crit")) {  // RFC 7515, section 4.1.11: names what must be understood; nothing is here
    return NotAuthenticated(cause::kMalformed, "the JWT's header has `crit`");
  }
  const auto key = keys_.find(Text(*header, "kid"));
  if (key == keys_.end()) {
    return NotAuthenticated(cause::kUnknownKey, "the JWT's `kid` names no key of the server's key set");
  }
  const std::vector<std::string>& algorithms = key->second.algorithms;
  if (std::ranges::find(algorithms, Text(*header, "alg")) == algorithms.end()) {
    return NotAuthenticated(cause::kAlgorithm, "the JWT's `alg` is not one that its key may be used with");
  }
  cjose_err error = {};
  const std::unique_ptr<cjose_jws_t, ReleaseJws> jws(cjose_jws_import(token.data(), token.size(), &error));
  if (jws == nullptr) {
    return NotAuthenticated(cause::kMalformed, "the JWT is not a signed token");
  }
  if (!cjose_jws_verify(jws.get(), key->second.key.get(), &error)) {
    return NotAuthenticated(cause::kSignature, "the JWT's signature is wrong");
  }
  uint8_t* claims = nullptr;
  size_t size = 0;
  if (!cjose_jws_get_plaintext(jws.get(), &claims, &size, &error)) {
    return NotAuthenticated(cause::kMalformed, "the JWT has no claims");
  }
  return std::string(reinterpret_cast<const char*>(claims), size);
}

absl::StatusOr<VerifiedClaims> CheckClaims(const std::string& text, const ClaimRules& rules, absl::Time now) {
  const std::optional<json> parsed = ParseObject(text);
  if (!parsed.has_value()) {
    return NotAuthenticated(cause::kClaims, "the JWT's claims are not a JSON object without repeated names");
  }
  const json& claims = *parsed;
  if (Text(claims, "iss") != rules.issuer) {
    return NotAuthenticated(cause::kIssuer, "the JWT is not from the issuer that this server trusts");
  }
  if (!Contains(claims, "aud", rules.audience)) {
    return NotAuthenticated(cause::kAudience, "the JWT is not meant for this server: its `aud` is another");
  }
  const std::optional<absl::Time> expires = TimeClaim(claims, "exp");
  if (!expires.has_value()) {
    return NotAuthenticated(cause::kClaims, "the JWT has no time `exp`");
  }
  if (*expires + kSkew <= now) {
    return NotAuthenticated(cause::kExpired,
                            absl::StrCat("the JWT has expired at ", absl::FormatTime(*expires), "; get another"));
  }
  const std::optional<absl::Time> not_before = TimeClaim(claims, "nbf");
  if (claims.contains("nbf") && !not_before.has_value()) {
    return NotAuthenticated(cause::kClaims, "the JWT's `nbf` is not a time");
  }
  if (not_before.has_value() && *not_before - kSkew > now) {
    return NotAuthenticated(cause::kNotYetValid, absl::StrCat("the JWT is not valid before ", absl::FormatTime(*not_before)));
  }
  VerifiedClaims verified{.principal = {.name = Text(claims, "sub"), .project = Text(claims, rules.project_claim)},
                          .expires = *expires};
  if (!IsPrincipalName(verified.principal.name)) {
    return NotAuthenticated(cause::kClaims, "the JWT's `sub` is not 1 to 255 printable ASCII characters");
  }
  if (!CheckProject(verified.principal.project, "").ok()) {
    return NotAuthenticated(cause::kClaims,
                            absl::StrCat("the JWT's claim `", rules.project_claim,
                                         "` is not a project: 1 to 63 of a-z, 0-9 and '-', beginning with a letter"));
  }
  bool has_role = false;
  for (const Role role : {Role::kReader, Role::kWriter, Role::kAdmin}) {
    if (Contains(claims, rules.role_claim, RoleName(role))) {
      verified.principal.role = role;
      has_role = true;
    }
  }
  if (!has_role) {
    return NotAuthenticated(cause::kClaims,
                            absl::StrCat("the JWT's claim `", rules.role_claim, "` is not reader, writer or admin"));
  }
  return verified;
}

absl::StatusOr<std::optional<Principal>> JwtAuthenticator::Authenticate(const Presented& presented) {
  if (!presented.token.has_value() || !absl::StrContains(*presented.token, '.')) {
    return std::nullopt;
  }
  const std::shared_ptr<const KeySet> keys = keys_->Get();
  const absl::Time now = clock_.Now();
  const std::string hash = Sha256Hex(*presented.token);
  {
    std::lock_guard lock(mutex_);
    const auto known = known_.find(hash);
    if (known_by_ == keys && known != known_.end() && now < known->second.expires + kSkew) {
      return known->second.principal;
    }
  }
  MP_ASSIGN_OR_RETURN(const std::string claims, keys->Verify(*presented.token));
  MP_ASSIGN_OR_RETURN(VerifiedClaims verified, CheckClaims(claims, rules_, now));
  Remember(hash, keys, verified, now);
  return std::move(verified.principal);
}

void JwtAuthenticator::Remember(const std::string& hash, const std::shared_ptr<const KeySet>& keys, const VerifiedClaims& claims,
                                absl::Time now) {
  std::lock_guard lock(mutex_);
  if (known_by_ != keys) {
    known_.clear();
    known_by_ = keys;
  }
  if (known_.size() >= kMaxRemembered) {
    std::erase_if(known_, [now](const auto& known) { return known.second.expires + kSkew <= now; });
  }
  if (known_.size() >= kMaxRemembered) {
    known_.clear();  // checking some again is cheap
  }
  known_.emplace(hash, claims);
}

}  // namespace modelpress::server
