#include "server/rpc/calls.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "grpc/grpc_security_constants.h"
#include "grpcpp/security/auth_context.h"
#include "server/log/trace.h"

namespace modelpress::server {
namespace {

std::vector<std::string> Values(const grpc::ServerContextBase& context, const char* name) {
  const auto [begin, end] = context.client_metadata().equal_range(name);
  std::vector<std::string> values;
  for (auto value = begin; value != end; ++value) {
    values.emplace_back(value->second.data(), value->second.size());
  }
  return values;
}

std::vector<std::string> Values(const grpc::AuthContext& context, const char* property) {
  std::vector<std::string> values;
  for (const grpc::string_ref& value : context.FindPropertyValues(property)) {
    values.emplace_back(value.data(), value.size());
  }
  return values;
}

// Names stand in the context only where TLS has verified the certificate: the server either verifies or asks for none.
std::optional<PeerCertificate> CertificateOf(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr) {
    return std::nullopt;
  }
  PeerCertificate certificate{.uris = Values(*auth, GRPC_PEER_URI_PROPERTY_NAME),
                              .dns_names = Values(*auth, GRPC_PEER_DNS_PROPERTY_NAME),
                              .common_name = ""};
  const std::vector<std::string> common_names = Values(*auth, GRPC_X509_CN_PROPERTY_NAME);
  if (common_names.size() == 1) {
    certificate.common_name = common_names.front();
  }
  const bool none = certificate.uris.empty() && certificate.dns_names.empty() && certificate.common_name.empty();
  return none ? std::nullopt : std::optional(std::move(certificate));
}

CallIdentity IdentityOf(const grpc::ServerContextBase& context) {
  return {.authorization = Values(context, "authorization"),
          .project = Values(context, "modelpress-project"),
          .traceparent = Values(context, kTraceparent),
          .certificate = CertificateOf(context),
          .peer = context.peer()};
}

}  // namespace

absl::StatusOr<Caller> Calls::Enter(const grpc::ServerContextBase& context, Role needed) {
  absl::StatusOr<Caller> caller = access_.Admit(IdentityOf(context), needed);
  if (!caller.ok()) {
    return caller;
  }
  std::lock_guard lock(mutex_);
  if (draining_) {
    return MakeError(v1::SERVER_DRAINING, "the server is about to stop; try again at another one or in a moment");
  }
  ++count_;
  records_.Admit(context, *caller, needed);
  return caller;
}

void Calls::Leave() {
  std::lock_guard lock(mutex_);
  if (--count_ == 0) {
    ended_.notify_all();
  }
}

bool Calls::draining() const {
  std::lock_guard lock(mutex_);
  return draining_;
}

void Calls::Drain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

void Calls::AwaitEnd(absl::Duration patience) {
  std::unique_lock lock(mutex_);
  ended_.wait_for(lock, absl::ToChronoMilliseconds(std::min(patience, absl::Hours(1000))), [this] { return count_ == 0; });
}

}  // namespace modelpress::server
