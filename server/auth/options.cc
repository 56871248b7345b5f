#include "server/auth/options.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::server {

absl::Status CheckExposure(const std::string& listen, bool loopback, bool insecure_plaintext, const TlsOptions& tls,
                           const AuthOptions& auth) {
  auto refuse = [](absl::string_view message) { return MakeError(v1::REQUEST_INVALID, message); };
  if (tls.cert.empty() != tls.key.empty()) {
    return refuse("--tls_cert and --tls_key go together; give both");
  }
  if (!tls.client_ca.empty() && !tls.enabled()) {
    return refuse("--tls_client_ca needs TLS; give --tls_cert and --tls_key as well");
  }
  if (tls.client_certificate_optional && tls.client_ca.empty()) {
    return refuse("--tls_client_certificate_optional needs --tls_client_ca");
  }
  if (auth.jwks_file.empty() != auth.jwt_issuer.empty() || auth.jwks_file.empty() != auth.jwt_audience.empty()) {
    return refuse("--jwks_file, --jwt_issuer and --jwt_audience go together; give all three");
  }
  if (auth.anonymous && auth.enabled()) {
    return refuse(
        "--anonymous lets everybody in, which --credentials_file and --jwks_file are there to prevent; give one of them");
  }
  if (!tls.client_ca.empty() && !auth.anonymous && auth.credentials_file.empty()) {
    return refuse(
        "--tls_client_ca needs --credentials_file with the names of certificates, or --anonymous to make everybody with a "
        "certificate an admin");
  }
  if (loopback || insecure_plaintext) {
    return absl::OkStatus();
  }
  if (!tls.enabled()) {
    return refuse(
        absl::StrCat("--listen=", listen,
                     " would serve plaintext to other machines; give --tls_cert and --tls_key, or listen on localhost, or "
                     "give --insecure_plaintext where something else protects the connection"));
  }
  if (!auth.enabled() && !auth.anonymous) {
    return refuse(absl::StrCat("--listen=", listen,
                               " would let everybody who reaches it do everything; give --credentials_file or --jwks_file, or "
                               "--anonymous if that is meant"));
  }
  return absl::OkStatus();
}

}  // namespace modelpress::server
