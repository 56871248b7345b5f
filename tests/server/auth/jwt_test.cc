#include "server/auth/jwt.h"

#include <gtest/gtest.h>

#include <map>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "tests/server/auth/test_keys.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

// RSA keys take their time to make.
const TestJwtKey& RsaKey() {
  static const auto& key = *new TestJwtKey(TestJwtKey::Rsa("rsa"));
  return key;
}
const TestJwtKey& EcKey() {
  static const auto& key = *new TestJwtKey(TestJwtKey::Ec("ec"));
  return key;
}

std::string Set(const std::vector<std::string>& keys) { return absl::StrCat("{\"keys\": [", absl::StrJoin(keys, ", "), "]}"); }

// Claims by name, as JSON values; good ones unless changed.
using Claims = std::map<std::string, std::string>;
Claims Good(absl::Time now) {
  return {{"iss", "\"https://issuer\""}, {"aud", "\"modelpress\""},
          {"sub", "\"alice\""},          {"exp", absl::StrCat(absl::ToUnixSeconds(now) + 600)},
          {"project", "\"vision\""},     {"role", "\"writer\""}};
}
std::string Text(const Claims& claims) {
  return absl::StrCat(
      "{",
      absl::StrJoin(claims, ", ",
                    [](std::string* out, const auto& claim) { absl::StrAppend(out, "\"", claim.first, "\": ", claim.second); }),
      "}");
}

std::string CauseOf(const absl::Status& status) {
  EXPECT_REASON(status, AUTHENTICATION_FAILED);
  return MetadataOf(status)["cause"];
}

TEST(KeySetTest, AllAlgorithmsWithTheirKeys) {
  ASSERT_OK_AND_ASSIGN(const auto keys, KeySet::Parse(Set({RsaKey().PublicJson(), EcKey().PublicJson()}), "f"));
  for (const char* algorithm : {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}) {
    EXPECT_EQ(keys->Verify(RsaKey().Sign(algorithm, "{\"a\": 1}")).value_or("error"), "{\"a\": 1}") << algorithm;
  }
  EXPECT_EQ(keys->Verify(EcKey().Sign("ES256", "{}")).value_or("error"), "{}");
}

TEST(KeySetTest, ForeignKeysSignNothing) {
  ASSERT_OK_AND_ASSIGN(const auto keys, KeySet::Parse(Set({RsaKey().PublicJson(), EcKey().PublicJson()}), "f"));
  const TestJwtKey stranger = TestJwtKey::Ec("ec");
  EXPECT_EQ(CauseOf(keys->Verify(stranger.Sign("ES256", "{}")).status()), cause::kSignature);
  EXPECT_EQ(CauseOf(keys->Verify(EcKey().Sign("ES256", "{}", "another")).status()), cause::kUnknownKey);
  EXPECT_EQ(CauseOf(keys->Verify(EcKey().Sign("ES256", "{}", "")).status()), cause::kUnknownKey);
  // Each half of one good token and another.
  const std::vector<std::string> one = absl::StrSplit(EcKey().Sign("ES256", "{}"), '.');
  const std::vector<std::string> two = absl::StrSplit(EcKey().Sign("ES256", "{\"role\": \"admin\"}"), '.');
  EXPECT_EQ(CauseOf(keys->Verify(absl::StrCat(one[0], ".", two[1], ".", one[2])).status()), cause::kSignature);
}

TEST(KeySetTest, TheKeyDecidesTheAlgorithm) {
  ASSERT_OK_AND_ASSIGN(const auto keys, KeySet::Parse(Set({RsaKey().PublicJson(), EcKey().PublicJson()}), "f"));
  // A signature with the public key as an HMAC secret, which a verifier that believes `alg` takes for the owner's.
  for (const std::string& secret : {RsaKey().PublicJson(), Set({RsaKey().PublicJson(), EcKey().PublicJson()})}) {
    const TestJwtKey hmac = TestJwtKey::Symmetric(secret);
    EXPECT_EQ(CauseOf(keys->Verify(hmac.Sign("HS256", "{}", "rsa")).status()), cause::kAlgorithm);
  }
  // Another kind of key under the `kid` of this one.
  EXPECT_EQ(CauseOf(keys->Verify(EcKey().Sign("ES256", "{}", "rsa")).status()), cause::kAlgorithm);
  EXPECT_EQ(CauseOf(keys->Verify(RsaKey().Sign("RS256", "{}", "ec")).status()), cause::kAlgorithm);
  // No signature at all, in some spellings.
  const std::string good_signature = std::vector<std::string>(absl::StrSplit(RsaKey().Sign("RS256", "{}"), '.'))[2];
  for (const char* none : {"none", "None", "NONE", "", "rs256"}) {
    const std::string header = absl::WebSafeBase64Escape(absl::StrCat(R"({"alg": ")", none, R"(", "kid": "rsa"})"));
    const std::string unsigned_part = absl::StrCat(header, ".", absl::WebSafeBase64Escape("{}"), ".");
    EXPECT_EQ(CauseOf(keys->Verify(unsigned_part).status()), cause::kMalformed);
    EXPECT_EQ(CauseOf(keys->Verify(absl::StrCat(unsigned_part, good_signature)).status()), cause::kAlgorithm) << none;
  }
  // An `alg` that the key itself does not allow.
  const std::string ps_only = absl::StrCat(R"({"alg": "PS256", "use": "sig", )", RsaKey().PublicJson().substr(1));
  ASSERT_OK_AND_ASSIGN(const auto strict, KeySet::Parse(Set({ps_only}), "f"));
  EXPECT_OK(strict->Verify(RsaKey().Sign("PS256", "{}")));
  EXPECT_EQ(CauseOf(strict->Verify(RsaKey().Sign("RS256", "{}")).status()), cause::kAlgorithm);
}

TEST(KeySetTest, GarbageIsMalformed) {
  ASSERT_OK_AND_ASSIGN(const auto keys, KeySet::Parse(Set({EcKey().PublicJson()}), "f"));
  const std::string good = EcKey().Sign("ES256", "{}");
  const std::vector<std::string> parts = absl::StrSplit(good, '.');
  const std::string rest = absl::StrCat(".", parts[1], ".", parts[2]);
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string("..."), absl::StrCat(good, ".x"), absl::StrCat(good, "="),
        absl::StrCat(good, "\n"), absl::StrCat(" ", good), absl::StrCat(good, std::string(1, '\0')), parts[0],
        absl::StrCat(".", rest), absl::StrCat("AAAA", rest), absl::StrCat(absl::WebSafeBase64Escape("[]"), rest),
        absl::StrCat(absl::WebSafeBase64Escape(R"({"alg": "none", "alg": "ES256", "kid": "ec"})"), rest),
        absl::StrCat(absl::WebSafeBase64Escape(std::string(6000, '[')), rest), std::string(kMaxToken + 1, 'x')}) {
    EXPECT_EQ(CauseOf(keys->Verify(bad).status()), cause::kMalformed) << bad;
  }
  EXPECT_EQ(CauseOf(keys->Verify(EcKey().Sign("ES256", "{}", "ec", {{"crit", R"(["b64"])"}})).status()), cause::kMalformed);
  // What a header says about keys is not even looked at.
  EXPECT_OK(keys->Verify(EcKey().Sign("ES256", "{}", "ec", {{"jwk", TestJwtKey::Ec("ec").PublicJson()}})));
}

TEST(KeySetTest, FilesThatAreRefused) {
  const std::string good = EcKey().PublicJson();
  const struct {
    std::string text;
    std::string told;
  } cases[] = {
      {"", "not a JSON Web Key Set"},
      {"[]", "not a JSON Web Key Set"},
      {"{\"keys\": {}}", "not a JSON Web Key Set"},
      {absl::StrCat("{\"keys\": [], \"keys\": [", good, "]}"), "not a JSON Web Key Set"},
      {std::string(100'000, '['), "not a JSON Web Key Set"},
      {Set({}), "no key"},
      {Set({"1"}), "not an object"},
      {Set({good, good}), "`kid` came before"},
      {Set({TestJwtKey::Ec("").PublicJson()}), "no `kid`"},
      {Set({good, EcKey().PrivateJson()}), "secret"},
      {Set({good, TestJwtKey::Symmetric("s").PrivateJson()}), "secret"},
      {Set({TestJwtKey::Rsa("short", 1024).PublicJson()}), "1024 bits"},
      {Set({R"({"kty": "EC", "crv": "P-256", "kid": "k", "x": "AAAA", "y": "AAAA"})"}), "not a key"},
      {Set({R"({"kty": "RSA", "kid": "k"})"}), "not a key"},
      {Set({R"({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AAAA"})"}), "no key"},
      {Set({absl::StrCat(R"({"use": "enc", )", good.substr(1))}), "no key"},
      {Set({absl::StrCat(R"({"key_ops": ["encrypt"], )", good.substr(1))}), "no key"},
      {Set({absl::StrCat(R"({"alg": "RS256", )", good.substr(1))}), "no key"},
  };
  for (const auto& [text, told] : cases) {
    const absl::Status status = KeySet::Parse(text, "the-file").status();
    EXPECT_REASON(status, REQUEST_INVALID) << text.substr(0, 200);
    EXPECT_NE(status.message().find(told), std::string::npos) << status;
    EXPECT_EQ(PlaceOf(status).file, "the-file");
  }
  // A key that is not for us does not spoil the others.
  EXPECT_OK(KeySet::Parse(Set({R"({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AAAA"})", good}), "f"));
}

TEST(ClaimsTest, Rules) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  const ClaimRules rules{.issuer = "https://issuer", .audience = "modelpress", .project_claim = "project", .role_claim = "role"};
  const auto at = [now](int seconds) { return absl::StrCat(absl::ToUnixSeconds(now) + seconds); };
  ASSERT_OK_AND_ASSIGN(const VerifiedClaims good, CheckClaims(Text(Good(now)), rules, now));
  EXPECT_EQ(good.principal.name, "alice");
  EXPECT_EQ(good.principal.project, "vision");
  EXPECT_EQ(good.principal.role, Role::kWriter);
  EXPECT_EQ(good.expires, now + absl::Seconds(600));

  const struct {
    std::string name;
    std::string value;  // "": without it
    std::string cause;  // "": good
  } cases[] = {
      {"iss", "\"https://other\"", cause::kIssuer},
      {"iss", "", cause::kIssuer},
      {"iss", "[\"https://issuer\"]", cause::kIssuer},
      {"aud", "\"other\"", cause::kAudience},
      {"aud", "", cause::kAudience},
      {"aud", "[]", cause::kAudience},
      {"aud", "[\"other\", \"modelpress\"]", ""},
      {"aud", "{\"modelpress\": 1}", cause::kAudience},
      {"aud", "\"modelpress2\"", cause::kAudience},
      {"exp", "", cause::kClaims},
      {"exp", absl::StrCat("\"", at(600), "\""), cause::kClaims},
      {"exp", "1e300", cause::kClaims},
      {"exp", "-1", cause::kExpired},
      {"exp", "null", cause::kClaims},
      {"exp", "9223372036854775808", cause::kClaims},
      {"exp", at(-60), cause::kExpired},
      {"exp", at(-59), ""},
      {"exp", absl::StrCat(at(-60), ".5"), ""},
      {"nbf", at(61), cause::kNotYetValid},
      {"nbf", at(60), ""},
      {"nbf", "\"now\"", cause::kClaims},
      {"nbf", at(-100), ""},
      {"sub", "", cause::kClaims},
      {"sub", "\"\"", cause::kClaims},
      {"sub", "7", cause::kClaims},
      {"sub", "\"a\\nb\"", cause::kClaims},
      {"sub", absl::StrCat("\"", std::string(256, 's'), "\""), cause::kClaims},
      {"sub", "\"J\u00fcrgen\"", cause::kClaims},
      {"project", "", cause::kClaims},
      {"project", "\"\"", cause::kClaims},
      {"project", "\"../other\"", cause::kClaims},
      {"project", "[\"vision\"]", cause::kClaims},
      {"role", "", cause::kClaims},
      {"role", "\"root\"", cause::kClaims},
      {"role", "\"ADMIN\"", cause::kClaims},
      {"role", "[]", cause::kClaims},
      {"role", "[\"offline_access\", \"reader\"]", ""},
      {"role", "2", cause::kClaims},
      {"iat", "\"yesterday\"", ""},
  };
  for (const auto& [name, value, cause] : cases) {
    Claims claims = Good(now);
    value.empty() ? void(claims.erase(name)) : void(claims[name] = value);
    const absl::Status status = CheckClaims(Text(claims), rules, now).status();
    if (cause.empty()) {
      EXPECT_OK(status) << name << " " << value;
    } else {
      EXPECT_EQ(CauseOf(status), cause) << name << " " << value;
    }
  }
  Claims roles = Good(now);
  roles["role"] = R"(["admin", "reader"])";
  EXPECT_EQ(CheckClaims(Text(roles), rules, now)->principal.role, Role::kAdmin);
  // Other names, of which one has dots as some identity providers want it.
  Claims renamed = Good(now);
  renamed["https://x/team"] = "\"speech\"";
  EXPECT_EQ(
      CheckClaims(Text(renamed),
                  {.issuer = rules.issuer, .audience = rules.audience, .project_claim = "https://x/team", .role_claim = "role"},
                  now)
          ->principal.project,
      "speech");
}

TEST(ClaimsTest, TwiceIsOnceTooOften) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  const ClaimRules rules{.issuer = "https://issuer", .audience = "modelpress", .project_claim = "project", .role_claim = "role"};
  const std::string good = Text(Good(now));
  for (const std::string& bad :
       {absl::StrCat(R"({"role": "admin", )", good.substr(1)), absl::StrCat(R"({"x": {"y": 1, "y": 1}, )", good.substr(1)),
        absl::StrCat(good, good), std::string("[]"), std::string("null"), std::string(), std::string("\xff")}) {
    EXPECT_EQ(CauseOf(CheckClaims(bad, rules, now).status()), cause::kClaims) << bad;
  }
  // The same name in different objects is none of that.
  EXPECT_OK(CheckClaims(absl::StrCat(R"({"x": {"role": 1}, "z": [{"y": 1}, {"y": 1}], )", good.substr(1)), rules, now));
}

class JwtAuthenticatorTest : public ::testing::Test {
 protected:
  JwtAuthenticatorTest() {
    Write(EcKey());
    auto file = WatchedFile<KeySet>::Open(path_, clock_, KeySet::Parse, [](const absl::Status&) {});
    EXPECT_OK(file);
    authenticator_.emplace(
        *std::move(file),
        ClaimRules{.issuer = "https://issuer", .audience = "modelpress", .project_claim = "project", .role_claim = "role"},
        clock_);
  }
  void Write(const TestJwtKey& key) { WriteTestFile(path_, Set({key.PublicJson()})); }
  std::string Ask(const std::string& token) {
    const auto principal = authenticator_->Authenticate({.token = token, .certificate = std::nullopt});
    return !principal.ok() ? MetadataOf(principal.status())["cause"] : principal->has_value() ? (*principal)->name : "";
  }

  FakeClock clock_;
  TestFolder folder_;
  const std::string path_ = folder_.path() + "/jwks.json";
  std::optional<JwtAuthenticator> authenticator_;
};

TEST_F(JwtAuthenticatorTest, RemembersUntilItExpires) {
  const std::string token = EcKey().Sign("ES256", Text(Good(clock_.Now())));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Ask(token), "alice");
  }
  clock_.Advance(absl::Seconds(659));
  EXPECT_EQ(Ask(token), "alice");
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Ask(token), cause::kExpired);
}

TEST_F(JwtAuthenticatorTest, AWithdrawnKeyVouchesForNothingAnyMore) {
  const TestJwtKey next = TestJwtKey::Ec("next");
  const std::string token = EcKey().Sign("ES256", Text(Good(clock_.Now())));
  const std::string next_token = next.Sign("ES256", Text(Good(clock_.Now())));
  EXPECT_EQ(Ask(token), "alice");
  EXPECT_EQ(Ask(next_token), cause::kUnknownKey);
  Write(next);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Ask(token), cause::kUnknownKey);
  EXPECT_EQ(Ask(next_token), "alice");
}

TEST_F(JwtAuthenticatorTest, OtherTokensAreNotItsBusiness) {
  EXPECT_EQ(Ask(absl::StrCat("mp_", std::string(43, 'x'))), "");
  const auto none = authenticator_->Authenticate({.token = std::nullopt, .certificate = PeerCertificate{}});
  EXPECT_TRUE(none.ok() && !none->has_value());
}

}  // namespace
}  // namespace modelpress::server
