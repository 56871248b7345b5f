#include "server/auth/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace modelpress::server {
namespace {

constexpr std::chrono::seconds kRefresh(1);

template <auto function>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    function(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Context = std::unique_ptr<SSL_CTX, Free<SSL_CTX_free>>;

// OpenSSL would ask on the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

// The first of OpenSSL's complaints; none is left.
std::string SslError() {
  const unsigned long error = ERR_get_error();  // NOLINT(google-runtime-int): OpenSSL's
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(error);
  return reason == nullptr ? "unknown error" : reason;
}

std::vector<Certificate> ReadCertificates(const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  std::vector<Certificate> certificates;
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, NoPassword, nullptr)) {
    certificates.emplace_back(certificate);
  }
  ERR_clear_error();  // the end of the file is an error too
  return certificates;
}

}  // namespace

absl::StatusOr<absl::Time> CheckChainAndKey(const std::string& chain, const std::string& key, const std::string& files) {
  auto refuse = [&files](absl::string_view message) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat(files, ": ", message));
  };
  ERR_clear_error();
  const std::vector<Certificate> certificates = ReadCertificates(chain);
  if (certificates.empty()) {
    return refuse("no certificate in PEM");
  }
  const Bio bio(BIO_new_mem_buf(key.data(), static_cast<int>(key.size())));
  const Key private_key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassword, nullptr));
  if (private_key == nullptr) {
    return refuse(absl::StrCat("no private key in PEM, or one with a password (", SslError(), ")"));
  }
  const Context context(SSL_CTX_new(TLS_server_method()));
  if (context == nullptr || SSL_CTX_use_certificate(context.get(), certificates.front().get()) != 1) {
    return refuse(absl::StrCat("the certificate cannot be used: ", SslError()));
  }
  if (SSL_CTX_use_PrivateKey(context.get(), private_key.get()) != 1 || SSL_CTX_check_private_key(context.get()) != 1) {
    return refuse(absl::StrCat("the key does not belong to the first certificate: ", SslError()));
  }
  tm expires = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificates.front().get()), &expires) != 1) {
    return refuse("the certificate does not say when it expires");
  }
  return absl::FromTM(expires, absl::UTCTimeZone());
}

absl::Status CheckCertificates(const std::string& pem, const std::string& file) {
  return ReadCertificates(pem).empty() ? MakeError(v1::REQUEST_INVALID, "no certificate in PEM", {.file = file})
                                       : absl::OkStatus();
}

absl::Status TlsCredentials::MemoryFile::Replace(const std::string& content) {
  UniqueFd next(memfd_create("modelpress-tls", MFD_CLOEXEC));
  if (next.get() < 0) {
    return ErrnoError(errno, "make", "memory file");
  }
  for (size_t done = 0; done < content.size();) {
    const ssize_t written = write(next.get(), content.data() + done, content.size() - done);
    if (written < 0 && errno != EINTR) {
      return ErrnoError(errno, "write", "memory file");
    }
    done += static_cast<size_t>(std::max<ssize_t>(written, 0));
  }
  if (fd_.get() < 0) {
    fd_ = std::move(next);
  } else if (dup3(next.get(), fd_.get(), O_CLOEXEC) < 0) {  // at once, and under the same path
    return ErrnoError(errno, "replace", "memory file");
  }
  return absl::OkStatus();
}

std::string TlsCredentials::MemoryFile::path() const { return absl::StrCat("/proc/self/fd/", fd_.get()); }

TlsCredentials::TlsCredentials(const TlsOptions& options, const Clock& clock, Metrics& metrics)
    : options_(options),
      clock_(clock),
      metrics_(metrics),
      cert_(options.cert, clock),
      key_(options.key, clock),
      client_ca_(options.client_ca, clock) {}

absl::StatusOr<std::unique_ptr<TlsCredentials>> TlsCredentials::Open(const TlsOptions& options, const Clock& clock,
                                                                     Metrics& metrics) {
  std::unique_ptr<TlsCredentials> tls(new TlsCredentials(options, clock, metrics));
  MP_RETURN_IF_ERROR(tls->Refresh());
  tls->MakeCredentials();
  tls->refresher_ = std::thread([tls = tls.get()] {
    std::unique_lock lock(tls->mutex_);
    while (!tls->stop_requested_.wait_for(lock, kRefresh, [tls] { return tls->stop_; })) {
      if (const absl::Status status = tls->Refresh(); !status.ok()) {
        tls->metrics_.ReloadFailed("tls");
        LOG(ERROR) << "TLS files have changed but cannot be used, the state of before stays: " << status.message();
      }
    }
  });
  return tls;
}

TlsCredentials::~TlsCredentials() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_requested_.notify_all();
  if (refresher_.joinable()) {
    refresher_.join();
  }
}

absl::Status TlsCredentials::RefreshIdentity() {
  const bool cert_changed = cert_.Changed();
  if (!key_.Changed() && !cert_changed) {
    return absl::OkStatus();
  }
  MP_RETURN_IF_ERROR(cert_.text().status());
  MP_RETURN_IF_ERROR(key_.text().status());
  MP_ASSIGN_OR_RETURN(const absl::Time expires,
                      CheckChainAndKey(*cert_.text(), *key_.text(), absl::StrCat(cert_.path(), ", ", key_.path())));
  MP_RETURN_IF_ERROR(identity_.Replace(absl::StrCat(*key_.text(), "\n", *cert_.text())));
  metrics_.TlsCertificateExpires(expires);
  LOG(INFO) << "TLS certificate " << cert_.path() << " is valid until " << absl::FormatTime(expires);
  if (expires <= clock_.Now()) {
    LOG(ERROR) << "TLS certificate " << cert_.path() << " has expired: clients will refuse it";
  }
  struct stat status = {};
  if (stat(key_.path().c_str(), &status) == 0 && (status.st_mode & S_IRWXO) != 0) {
    LOG(WARNING) << "TLS key " << key_.path() << " can be read or written by every user of this machine; take their rights away";
  }
  return absl::OkStatus();
}

absl::Status TlsCredentials::RefreshClientCa() {
  if (options_.client_ca.empty() || !client_ca_.Changed()) {
    return absl::OkStatus();
  }
  MP_RETURN_IF_ERROR(client_ca_.text().status());
  MP_RETURN_IF_ERROR(CheckCertificates(*client_ca_.text(), client_ca_.path()));
  return roots_.Replace(*client_ca_.text());
}

absl::Status TlsCredentials::Refresh() {
  const absl::Status identity = RefreshIdentity();
  const absl::Status client_ca = RefreshClientCa();
  return identity.ok() ? client_ca : identity;
}

void TlsCredentials::MakeCredentials() {
  const std::string roots = options_.client_ca.empty() ? "" : roots_.path();
  provider_ = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(identity_.path(), identity_.path(), roots,
                                                                                   /*refresh_interval_sec=*/1);
  grpc::experimental::TlsServerCredentialsOptions options(provider_);
  options.watch_identity_key_cert_pairs();
  if (!roots.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(options_.client_certificate_optional
                                      ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                                      : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  credentials_ = grpc::experimental::TlsServerCredentials(options);
}

}  // namespace modelpress::server
