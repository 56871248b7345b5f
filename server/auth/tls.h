#ifndef MODELPRESS_SERVER_AUTH_TLS_H_
#define MODELPRESS_SERVER_AUTH_TLS_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "server/auth/options.h"
#include "server/auth/watched_file.h"
#include "server/base/clock.h"
#include "server/base/posix.h"
#include "server/metrics/metrics.h"

namespace modelpress::server {

// Checks that OpenSSL would serve with this chain and key: both are PEM, the key is not encrypted and belongs to the first
// certificate, and neither is too weak. The time at which the first certificate expires. REQUEST_INVALID with `files` in the
// text.
absl::StatusOr<absl::Time> CheckChainAndKey(const std::string& chain, const std::string& key, const std::string& files);

// At least one certificate in PEM. REQUEST_INVALID with `file`.
absl::Status CheckCertificates(const std::string& pem, const std::string& file);

// TLS 1.2 or 1.3 with certificates that follow their files: new connections get what is in them a second or two after they
// changed, old ones go on. gRPC reloads by itself, but then takes whatever it finds, and a server whose key does not belong to
// its certificate (a mistake, or one of the two files not written yet) takes no connections; so it is given checked copies.
class TlsCredentials {
 public:
  // `options` is enabled. Both must outlive it.
  static absl::StatusOr<std::unique_ptr<TlsCredentials>> Open(const TlsOptions& options, const Clock& clock, Metrics& metrics);
  ~TlsCredentials();
  TlsCredentials(const TlsCredentials&) = delete;
  TlsCredentials& operator=(const TlsCredentials&) = delete;

  // For servers that are destroyed before this.
  const std::shared_ptr<grpc::ServerCredentials>& credentials() const { return credentials_; }

 private:
  // A file in memory with a path. Its content is replaced as a whole: whoever reads sees the old or the new one.
  class MemoryFile {
   public:
    absl::Status Replace(const std::string& content);
    std::string path() const;

   private:
    UniqueFd fd_;
  };

  TlsCredentials(const TlsOptions& options, const Clock& clock, Metrics& metrics);
  // Takes over files that have changed. The first bad one's error; those that can be used are.
  absl::Status Refresh();
  absl::Status RefreshIdentity();
  absl::Status RefreshClientCa();
  void MakeCredentials();

  const TlsOptions options_;
  const Clock& clock_;
  Metrics& metrics_;
  FileWatch cert_;
  FileWatch key_;
  FileWatch client_ca_;
  MemoryFile identity_;  // key and chain in one, so that both change at once
  MemoryFile roots_;
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider_;
  std::shared_ptr<grpc::ServerCredentials> credentials_;

  std::mutex mutex_;
  std::condition_variable stop_requested_;
  bool stop_ = false;
  std::thread refresher_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_SERVER_AUTH_TLS_H_
