// PEM files of the server's TLS: chain, key and the authorities of clients.
#include <string>

#include "server/auth/tls.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(const std::string& pem) {
  RequireClear(CheckCertificates(pem, "ca.pem"));
  RequireClear(CheckChainAndKey(pem, pem, "cert.pem and key.pem").status());
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(std::string(modelpress::AsText(data, size)));
  return 0;
}
