#include "server/auth/access_control.h"

#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include "absl/strings/str_cat.h"
#include "server/log/trace.h"
#include "tests/server/auth/test_keys.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

class AccessControlTest : public ::testing::Test {
 protected:
  AccessControlTest() {
    std::string file = "certificate { common_name: \"press\" project: \"vision\" role: READER }\n";
    for (const auto& [role, token] :
         {std::pair("reader", &reader_), std::pair("writer", &writer_), std::pair("admin", &admin_)}) {
      const absl::StatusOr<NewToken> made = CreateToken(role, "vision", role, absl::InfiniteFuture());
      EXPECT_OK(made);
      *token = absl::StrCat("Bearer ", made->token);
      absl::StrAppend(&file, made->entry);
    }
    options_.credentials_file = folder_.path() + "/credentials";
    WriteTestFile(options_.credentials_file, file);
    Open();
  }
  void Open() {
    auto access = AccessControl::Open(options_, clock_, metrics_);
    ASSERT_OK(access);
    access_ = *std::move(access);
  }
  absl::StatusOr<Caller> Admit(const CallIdentity& call, Role needed = Role::kReader) { return access_->Admit(call, needed); }
  static CallIdentity With(const std::string& authorization, const std::vector<std::string>& project = {}) {
    return {.authorization = {authorization}, .project = project};
  }
  double Failures(const std::string& reason) const {
    for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
      for (const prometheus::ClientMetric& metric : family.metric) {
        if (family.name == "modelpress_auth_failures_total" && metric.label.front().value == reason) {
          return metric.counter.value;
        }
      }
    }
    return 0;
  }
  std::string CauseOf(const CallIdentity& call) {
    const absl::Status status = Admit(call).status();
    EXPECT_REASON(status, AUTHENTICATION_FAILED);
    return MetadataOf(status)["cause"];
  }

  FakeClock clock_;
  Metrics metrics_;
  TestFolder folder_;
  AuthOptions options_;
  std::string reader_;
  std::string writer_;
  std::string admin_;
  std::unique_ptr<AccessControl> access_;
};

TEST_F(AccessControlTest, RolesContainEachOther) {
  const std::string* tokens[] = {&reader_, &writer_, &admin_};
  const Role roles[] = {Role::kReader, Role::kWriter, Role::kAdmin};
  for (int has = 0; has < 3; ++has) {
    for (int needs = 0; needs < 3; ++needs) {
      const absl::StatusOr<Caller> caller = Admit(With(*tokens[has]), roles[needs]);
      if (has >= needs) {
        ASSERT_OK(caller);
        EXPECT_EQ(caller->project, "vision");
        EXPECT_EQ(caller->role, roles[has]);
        EXPECT_EQ(caller->principal, RoleName(roles[has]));
      } else {
        EXPECT_REASON(caller, ACCESS_DENIED);
        EXPECT_EQ(MetadataOf(caller.status())["role"], RoleName(roles[has]));
        EXPECT_EQ(MetadataOf(caller.status())["needed"], RoleName(roles[needs]));
      }
    }
  }
  EXPECT_EQ(Failures("denied"), 3);
}

TEST_F(AccessControlTest, AuthorizationMustBeOneBearerToken) {
  const std::string token = writer_.substr(7);
  EXPECT_OK(Admit(With(absl::StrCat("bEARER ", token))));  // RFC 9110: the scheme is case-insensitive
  for (const std::string& bad :
       {std::string(), std::string("Bearer"), std::string("Bearer "), token, absl::StrCat("Basic ", token),
        absl::StrCat("Bearer  ", token), absl::StrCat("Bearer ", token, " "), absl::StrCat("Bearer ", token, "\n"),
        absl::StrCat("Bearer\t", token), absl::StrCat(" Bearer ", token),
        absl::StrCat("Bearer ", token.substr(0, 20), " ", token.substr(20)), absl::StrCat("Bearer ", token, "\xc3\xbc"),
        absl::StrCat("Bearer ", std::string(kMaxToken, 'x'))}) {
    EXPECT_EQ(CauseOf(With(bad)), cause::kMalformed) << bad.substr(0, 100);
  }
  EXPECT_EQ(CauseOf({.authorization = {writer_, writer_}}), cause::kMalformed);
  EXPECT_EQ(CauseOf(With(absl::StrCat("Bearer mp_", std::string(43, 'x')))), cause::kUnknownToken);
  EXPECT_EQ(CauseOf({}), cause::kMissing);
  EXPECT_EQ(Failures(cause::kMissing), 1);
  EXPECT_EQ(Failures(cause::kUnknownToken), 1);
}

TEST_F(AccessControlTest, OnlyAdminsSpeakForOtherProjects) {
  ASSERT_OK_AND_ASSIGN(const Caller elsewhere, Admit(With(admin_, {"speech"})));
  EXPECT_EQ(elsewhere.project, "speech");
  ASSERT_OK_AND_ASSIGN(const Caller own, Admit(With(writer_, {"vision"})));
  EXPECT_EQ(own.project, "vision");
  // Nothing tells whether there is such a project.
  const absl::Status one = Admit(With(writer_, {"speech"})).status();
  const absl::Status other = Admit(With(writer_, {"nowhere"})).status();
  EXPECT_REASON(one, ACCESS_DENIED);
  EXPECT_REASON(other, ACCESS_DENIED);
  EXPECT_EQ(one.message(), other.message());
  EXPECT_EQ(MetadataOf(one), MetadataOf(other));
  EXPECT_REASON(Admit(With(admin_, {"../speech"})), NAME_INVALID);
  EXPECT_REASON(Admit(With(admin_, {""})), NAME_INVALID);
  EXPECT_REASON(Admit(With(admin_, {"vision", "speech"})), REQUEST_INVALID);
}

TEST_F(AccessControlTest, CertificatesStandInForTokensButNotForBadOnes) {
  const PeerCertificate press{.uris = {}, .dns_names = {}, .common_name = "press"};
  const PeerCertificate stranger{.uris = {}, .dns_names = {}, .common_name = "stranger"};
  EXPECT_EQ(Admit({.certificate = press})->principal, "press");
  EXPECT_EQ(CauseOf({.certificate = stranger}), cause::kUnknownCertificate);
  EXPECT_EQ(Admit({.authorization = {writer_}, .certificate = press})->principal, "writer");
  EXPECT_EQ(Admit({.authorization = {writer_}, .certificate = stranger})->principal, "writer");
  EXPECT_EQ(CauseOf({.authorization = {"Bearer x"}, .certificate = press}), cause::kUnknownToken);
}

TEST_F(AccessControlTest, JwtsBesideTokens) {
  const TestJwtKey key = TestJwtKey::Ec("k");
  options_.jwks_file = folder_.path() + "/jwks.json";
  options_.jwt_issuer = "i";
  options_.jwt_audience = "a";
  options_.jwt_role_claim = "modelpress-role";
  WriteTestFile(options_.jwks_file, absl::StrCat("{\"keys\": [", key.PublicJson(), "]}"));
  Open();
  const std::string claims =
      absl::StrCat(R"({"iss": "i", "aud": "a", "sub": "alice", "project": "speech", "modelpress-role": "writer", "exp": )",
                   absl::ToUnixSeconds(clock_.Now()) + 10, "}");
  ASSERT_OK_AND_ASSIGN(const Caller caller, Admit(With(absl::StrCat("Bearer ", key.Sign("ES256", claims)))));
  EXPECT_EQ(caller.principal, "alice");
  EXPECT_EQ(caller.project, "speech");
  EXPECT_EQ(Admit(With(reader_))->principal, "reader");
  EXPECT_EQ(CauseOf(With("Bearer a.b.c")), cause::kMalformed);
  EXPECT_EQ(CauseOf(With(absl::StrCat("Bearer ", TestJwtKey::Ec("k").Sign("ES256", claims)))), cause::kSignature);
}

TEST_F(AccessControlTest, WithoutCredentialsEverybodyIsTheDefaultProjectsAdmin) {
  options_ = {};
  Open();
  ASSERT_OK_AND_ASSIGN(const Caller caller, Admit({}, Role::kAdmin));
  EXPECT_EQ(caller.principal, "anonymous");
  EXPECT_EQ(caller.project, "default");
  // Clients that are set up for another server send what they have.
  EXPECT_OK(Admit(With("Bearer whatever")));
}

TEST_F(AccessControlTest, TraceIsCarriedOrBegun) {
  const std::string header = FormatTraceparent(ContinueTrace(""));
  const auto trace_id = [this](const std::vector<std::string>& traceparent) {
    const absl::StatusOr<Caller> caller = Admit({.authorization = {reader_}, .traceparent = traceparent});
    EXPECT_OK(caller);
    return ParseTraceparent(caller->traceparent)->trace_id;
  };
  const std::string came = ParseTraceparent(header)->trace_id;
  EXPECT_EQ(trace_id({header}), came);
  EXPECT_NE(trace_id({}), came);
  EXPECT_NE(trace_id({"garbage"}), came);
  EXPECT_NE(trace_id({header, header}), came);
}

TEST_F(AccessControlTest, BadFilesAreToldAtTheStart) {
  for (std::string AuthOptions::* file : {&AuthOptions::credentials_file, &AuthOptions::jwks_file}) {
    AuthOptions options;
    options.*file = folder_.path() + "/none";
    EXPECT_NE(AccessControl::Open(options, clock_, metrics_).status().message().find("/none"), std::string::npos);
    options.*file = folder_.path() + "/bad";
    WriteTestFile(folder_.path() + "/bad", "{{{");
    EXPECT_NE(AccessControl::Open(options, clock_, metrics_).status().message().find("/bad"), std::string::npos);
  }
}

}  // namespace
}  // namespace modelpress::server
