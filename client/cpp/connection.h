// How a client reaches a server that wants to know who calls: TLS, a token, and what travels with every call.
#ifndef MODELPRESS_CLIENT_CPP_CONNECTION_H_
#define MODELPRESS_CLIENT_CPP_CONNECTION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/client_context.h"
#include "grpcpp/security/credentials.h"

namespace modelpress::client {

// Whether every address of a gRPC target is this machine, so that plaintext is safe. What cannot be told for certain is not:
// names other than localhost, escapes, name servers of one's own.
bool IsLoopback(const std::string& target);

// Files are PEM.
struct ConnectionOptions {
  bool tls = false;      // also to this machine; other targets, and any of the next four, mean TLS anyway
  std::string tls_ca;    // roots to trust instead of the system's
  std::string tls_cert;  // the client's certificate chain and its key (mTLS): both or none
  std::string tls_key;
  std::string tls_server_name;  // what the server's certificate is made for; empty: the target's host
  // A bearer token, and what surrounds it in white space. Read anew for every call, so that a new one is taken up.
  std::string token_file;
  std::string project;      // for administrators: the project to act in
  std::string traceparent;  // W3C Trace Context of whoever calls; empty or malformed: a trace of this client's own
};

// Makes contexts of calls. Thread-safe.
class CallIdentity {
 public:
  // `random`: uniform numbers.
  CallIdentity(const ConnectionOptions& options, bool is_loopback, std::function<uint64_t()> random);

  // Adds `authorization`, `modelpress-project` and `traceparent`. Nothing is sent where it fails: FILE_NOT_FOUND, LOCAL_IO,
  // REQUEST_INVALID for a file without exactly one token. A token for another machine goes by credentials that gRPC sends over
  // secured channels only.
  absl::Status Prepare(grpc::ClientContext& context) const;

 private:
  const std::string token_file_;
  const std::string project_;
  const bool is_loopback_;
  const std::function<uint64_t()> random_;
  std::string traceparent_;  // given; empty: made for each call in `trace_`
  std::string trace_;
};

// Plaintext for a loopback target without any wish for TLS, else TLS. INVALID_ARGUMENT: a certificate without its key or the
// other way round; the errors of reading the files.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(const std::string& target,
                                                                          const ConnectionOptions& options);

}  // namespace modelpress::client

#endif  // MODELPRESS_CLIENT_CPP_CONNECTION_H_
