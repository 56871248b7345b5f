// Keys, certificates and tokens for tests, made on the spot: no secret, however worthless, lies in the tree, and nothing expires.
#ifndef MODELPRESS_TESTS_SERVER_AUTH_TEST_KEYS_H_
#define MODELPRESS_TESTS_SERVER_AUTH_TEST_KEYS_H_

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"

struct _cjose_jwk_int;  // NOLINT(bugprone-reserved-identifier): libcjose's name for it

namespace modelpress::server {

// A certificate with its key.
class TestCertificate {
 public:
  struct Names {
    std::string common_name;
    std::vector<std::string> alternatives;  // as OpenSSL writes them: "DNS:localhost", "URI:spiffe://x/y"
  };
  // Signs itself and may sign others.
  static TestCertificate MakeCa(const std::string& common_name);
  TestCertificate Sign(const Names& names, absl::Duration valid_for = absl::Hours(1)) const;

  std::string cert_pem() const;
  std::string key_pem() const;

 private:
  TestCertificate(const Names& names, const TestCertificate* issuer, absl::Duration valid_for);
  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> certificate_;
};

// A key that signs JWTs.
class TestJwtKey {
 public:
  static TestJwtKey Rsa(const std::string& kid, size_t bits = 2048);
  // P-256
  static TestJwtKey Ec(const std::string& kid);
  static TestJwtKey Symmetric(const std::string& secret);

  // The key as JSON, as a JWKS file has it.
  std::string PublicJson() const;
  std::string PrivateJson() const;
  std::string kid() const;
  // A JWT with `claims` (JSON, or whatever it is) as they stand. The header has `alg`, `kid` and `more`: names and JSON lists or
  // objects.
  std::string Sign(const std::string& algorithm, const std::string& claims) const { return Sign(algorithm, claims, kid()); }
  std::string Sign(const std::string& algorithm, const std::string& claims, const std::string& kid,
                   const std::map<std::string, std::string>& more = {}) const;

 private:
  TestJwtKey(_cjose_jwk_int* key, const std::string& kid);
  std::shared_ptr<_cjose_jwk_int> key_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_AUTH_TEST_KEYS_H_
