#include "server/auth/tls.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/server/auth/test_keys.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

TEST(ChainAndKeyTest, BelongTogetherOrAreRefused) {
  const TestCertificate ca = TestCertificate::MakeCa("ca");
  const TestCertificate one = ca.Sign({.common_name = "one", .alternatives = {}});
  const TestCertificate two = ca.Sign({.common_name = "two", .alternatives = {}});
  ASSERT_OK_AND_ASSIGN(const absl::Time expires,
                       CheckChainAndKey(absl::StrCat(one.cert_pem(), ca.cert_pem()), one.key_pem(), "f"));
  EXPECT_LT(absl::AbsDuration(expires - absl::Now() - absl::Hours(1)), absl::Minutes(1));
  // Which file is which does not matter in one that holds both.
  EXPECT_OK(CheckChainAndKey(absl::StrCat(one.key_pem(), one.cert_pem()), absl::StrCat(one.cert_pem(), one.key_pem()), "f"));
  const std::string encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n";
  for (const auto& [chain, key] :
       {std::pair(std::string(), one.key_pem()), std::pair(one.cert_pem(), std::string()),
        std::pair(one.cert_pem(), two.key_pem()), std::pair(absl::StrCat(ca.cert_pem(), one.cert_pem()), one.key_pem()),
        std::pair(one.cert_pem(), encrypted), std::pair(std::string("garbage"), std::string("garbage")),
        std::pair(one.cert_pem().substr(0, 200), one.key_pem())}) {
    const absl::Status status = CheckChainAndKey(chain, key, "the-files").status();
    EXPECT_REASON(status, REQUEST_INVALID);
    EXPECT_NE(status.message().find("the-files"), std::string::npos) << status;
  }
  EXPECT_OK(CheckCertificates(ca.cert_pem(), "f"));
  EXPECT_REASON(CheckCertificates(ca.key_pem(), "f"), REQUEST_INVALID);
}

TEST(TlsCredentialsTest, BadFilesAreToldAtTheStart) {
  const FakeClock clock;
  Metrics metrics;
  const TestFolder folder;
  const TestCertificate ca = TestCertificate::MakeCa("ca");
  TlsOptions options{.cert = folder.path() + "/cert", .key = folder.path() + "/key", .client_ca = folder.path() + "/ca"};
  WriteTestFile(options.cert, ca.cert_pem());
  EXPECT_NE(TlsCredentials::Open(options, clock, metrics).status().message().find("/key"), std::string::npos);
  WriteTestFile(options.key, ca.key_pem());
  EXPECT_NE(TlsCredentials::Open(options, clock, metrics).status().message().find("/ca"), std::string::npos);
  WriteTestFile(options.client_ca, "none");
  EXPECT_NE(TlsCredentials::Open(options, clock, metrics).status().message().find("/ca"), std::string::npos);
  WriteTestFile(options.client_ca, ca.cert_pem());
  EXPECT_OK(TlsCredentials::Open(options, clock, metrics).status());
}

}  // namespace
}  // namespace modelpress::server
