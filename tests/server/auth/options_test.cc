#include "server/auth/options.h"

#include <gtest/gtest.h>

#include "tests/server/base/status_testing.h"

namespace modelpress::server {
namespace {

const TlsOptions kTls{.cert = "c", .key = "k", .client_ca = ""};
const AuthOptions kAuth{.credentials_file = "f"};

absl::Status Check(bool loopback, bool insecure_plaintext, const TlsOptions& tls, const AuthOptions& auth) {
  return CheckExposure("host:1", loopback, insecure_plaintext, tls, auth);
}

TEST(ExposureTest, OtherMachinesNeedTlsAndNames) {
  EXPECT_OK(Check(/*loopback=*/true, false, {}, {}));
  EXPECT_OK(Check(true, false, {}, kAuth));
  EXPECT_OK(Check(true, false, kTls, {}));
  EXPECT_OK(Check(/*loopback=*/false, false, kTls, kAuth));
  EXPECT_OK(Check(false, /*insecure_plaintext=*/true, {}, {}));
  EXPECT_OK(Check(false, true, {}, kAuth));
  EXPECT_OK(Check(false, false, kTls, {.anonymous = true}));
  const struct {
    TlsOptions tls;
    AuthOptions auth;
    std::string told;  // what to do about it
  } cases[] = {{{}, {}, "--tls_cert"},
               {{}, kAuth, "--tls_cert"},
               {{}, {.anonymous = true}, "--tls_cert"},
               {kTls, {}, "--credentials_file"}};
  for (const auto& [tls, auth, told] : cases) {
    const absl::Status status = Check(false, false, tls, auth);
    EXPECT_REASON(status, REQUEST_INVALID);
    EXPECT_NE(status.message().find(told), std::string::npos) << status;
  }
}

TEST(ExposureTest, ContradictionsAreTold) {
  const struct {
    TlsOptions tls;
    AuthOptions auth;
    std::string told;
  } cases[] = {
      {{.cert = "c"}, {}, "--tls_key"},
      {{.key = "k"}, {}, "--tls_cert"},
      {{.client_ca = "a"}, kAuth, "--tls_cert"},
      {{.cert = "c", .key = "k", .client_certificate_optional = true}, kAuth, "--tls_client_ca"},
      {{.cert = "c", .key = "k", .client_ca = "a"}, {}, "--credentials_file"},
      {{.cert = "c", .key = "k", .client_ca = "a"},
       {.jwks_file = "j", .jwt_issuer = "i", .jwt_audience = "a"},
       "--credentials_file"},
      {{}, {.jwks_file = "j"}, "--jwt_issuer"},
      {{}, {.jwks_file = "j", .jwt_issuer = "i"}, "--jwt_audience"},
      {{}, {.jwt_audience = "a"}, "--jwks_file"},
      {{}, {.credentials_file = "f", .anonymous = true}, "--anonymous"},
  };
  for (const auto& [tls, auth, told] : cases) {
    const absl::Status status = Check(/*loopback=*/true, false, tls, auth);
    EXPECT_REASON(status, REQUEST_INVALID) << told;
    EXPECT_NE(status.message().find(told), std::string::npos) << status;
  }
  EXPECT_OK(Check(false, false, {.cert = "c", .key = "k", .client_ca = "a"}, {.anonymous = true}));
}

}  // namespace
}  // namespace modelpress::server
