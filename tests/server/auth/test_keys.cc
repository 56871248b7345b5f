#include "tests/server/auth/test_keys.h"

#include <cjose/jwk.h>
#include <cjose/jws.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdlib>
#include <functional>

#include "absl/log/check.h"
#include "absl/strings/str_join.h"

namespace modelpress::server {
namespace {

std::string Written(const std::function<int(BIO*)>& write) {
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> bio(BIO_new(BIO_s_mem()), BIO_free_all);
  CHECK_EQ(write(bio.get()), 1);
  char* data = nullptr;
  const auto size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<size_t>(size)};
}

void AddExtension(X509* certificate, int nid, const std::string& value) {
  const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> extension(
      X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str()), X509_EXTENSION_free);
  CHECK(extension != nullptr) << value;
  CHECK_EQ(X509_add_ext(certificate, extension.get(), -1), 1);
}

std::string Json(const cjose_jwk_t* key, bool with_secret) {
  cjose_err error = {};
  const std::unique_ptr<char, decltype(&std::free)> json(cjose_jwk_to_json(key, with_secret, &error), std::free);
  CHECK(json != nullptr) << error.message;
  return json.get();
}

}  // namespace

TestCertificate::TestCertificate(const Names& names, const TestCertificate* issuer, absl::Duration valid_for)
    : key_(EVP_EC_gen("P-256"), EVP_PKEY_free), certificate_(X509_new(), X509_free) {
  static_assert(sizeof(time_t) == 8);
  X509* const x509 = certificate_.get();
  CHECK_EQ(X509_set_version(x509, X509_VERSION_3), 1);
  ASN1_INTEGER_set(X509_get_serialNumber(x509), std::rand());
  X509_gmtime_adj(X509_getm_notBefore(x509), -3600);
  X509_gmtime_adj(X509_getm_notAfter(x509), absl::ToInt64Seconds(valid_for));
  X509_set_pubkey(x509, key_.get());
  if (!names.common_name.empty()) {
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x509), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(names.common_name.c_str()), -1, -1, 0);
  }
  const TestCertificate& signer = issuer == nullptr ? *this : *issuer;
  X509_set_issuer_name(x509, X509_get_subject_name(signer.certificate_.get()));
  AddExtension(x509, NID_basic_constraints, issuer == nullptr ? "critical,CA:TRUE" : "critical,CA:FALSE");
  if (!names.alternatives.empty()) {
    AddExtension(x509, NID_subject_alt_name, absl::StrJoin(names.alternatives, ","));
  }
  CHECK_GT(X509_sign(x509, signer.key_.get(), EVP_sha256()), 0);
}

TestCertificate TestCertificate::MakeCa(const std::string& common_name) {
  return TestCertificate({.common_name = common_name, .alternatives = {}}, nullptr, absl::Hours(1));
}

TestCertificate TestCertificate::Sign(const Names& names, absl::Duration valid_for) const {
  return TestCertificate(names, this, valid_for);
}

std::string TestCertificate::cert_pem() const {
  return Written([this](BIO* bio) { return PEM_write_bio_X509(bio, certificate_.get()); });
}

std::string TestCertificate::key_pem() const {
  return Written(
      [this](BIO* bio) { return PEM_write_bio_PKCS8PrivateKey(bio, key_.get(), nullptr, nullptr, 0, nullptr, nullptr); });
}

TestJwtKey::TestJwtKey(_cjose_jwk_int* key, const std::string& kid) : key_(key, cjose_jwk_release) {
  CHECK(key != nullptr);
  if (!kid.empty()) {
    CHECK(cjose_jwk_set_kid(key, kid.data(), kid.size(), nullptr));
  }
}

TestJwtKey TestJwtKey::Rsa(const std::string& kid, size_t bits) {
  const unsigned char exponent[] = {1, 0, 1};
  return TestJwtKey(cjose_jwk_create_RSA_random(bits, exponent, sizeof(exponent), nullptr), kid);
}

TestJwtKey TestJwtKey::Ec(const std::string& kid) {
  return TestJwtKey(cjose_jwk_create_EC_random(CJOSE_JWK_EC_P_256, nullptr), kid);
}

TestJwtKey TestJwtKey::Symmetric(const std::string& secret) {
  return TestJwtKey(cjose_jwk_create_oct_spec(reinterpret_cast<const uint8_t*>(secret.data()), secret.size(), nullptr), "");
}

std::string TestJwtKey::PublicJson() const { return Json(key_.get(), false); }
std::string TestJwtKey::PrivateJson() const { return Json(key_.get(), true); }

std::string TestJwtKey::kid() const {
  const char* kid = cjose_jwk_get_kid(key_.get(), nullptr);
  return kid == nullptr ? "" : kid;
}

std::string TestJwtKey::Sign(const std::string& algorithm, const std::string& claims, const std::string& kid,
                             const std::map<std::string, std::string>& more) const {
  cjose_err error = {};
  const std::unique_ptr<cjose_header_t, decltype(&cjose_header_release)> header(cjose_header_new(&error), cjose_header_release);
  CHECK(cjose_header_set(header.get(), CJOSE_HDR_ALG, algorithm.c_str(), &error));
  CHECK(kid.empty() || cjose_header_set(header.get(), CJOSE_HDR_KID, kid.c_str(), &error));
  for (const auto& [name, value] : more) {
    CHECK(cjose_header_set_raw(header.get(), name.c_str(), value.c_str(), &error));
  }
  const std::unique_ptr<cjose_jws_t, decltype(&cjose_jws_release)> jws(
      cjose_jws_sign(key_.get(), header.get(), reinterpret_cast<const uint8_t*>(claims.data()), claims.size(), &error),
      cjose_jws_release);
  CHECK(jws != nullptr) << error.message;
  const char* text = nullptr;
  CHECK(cjose_jws_export(jws.get(), &text, &error));
  return text;
}

}  // namespace modelpress::server
