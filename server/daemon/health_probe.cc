#include "server/daemon/health_probe.h"

#include <future>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/byte_buffer.h"

namespace modelpress::server {
namespace {

// gRPC ships the service but not its messages; these are all that is needed of them: an empty HealthCheckRequest (the server as a
// whole), and a HealthCheckResponse with status (field 1) SERVING (1).
constexpr char kServing[] = "\x08\x01";

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) {
    return "";
  }
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

absl::Status ProbeHealth(const std::string& target, absl::Duration timeout, const std::string& tls_ca) {
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = tls_ca;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // the answer of a proxy says nothing about the server
  grpc::GenericStub stub(grpc::CreateCustomChannel(
      target, tls_ca.empty() ? grpc::InsecureChannelCredentials() : grpc::SslCredentials(tls), arguments));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const grpc::Slice empty;
  const grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  const grpc::Status status = done.get_future().get();
  if (!status.ok()) {
    return absl::UnavailableError(absl::StrCat(target, " cannot be asked: ", status.error_message()));
  }
  return Bytes(response) == kServing ? absl::OkStatus() : absl::UnavailableError(absl::StrCat(target, " is not serving"));
}

}  // namespace modelpress::server
