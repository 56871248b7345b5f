#include "client/cpp/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/cpp/status.h"

namespace modelpress::client {
namespace {

// More than any certificate chain or token takes.
constexpr size_t kMaxBytes = 1 << 20;
constexpr absl::string_view kNoTrace = "00000000000000000000000000000000";
constexpr absl::string_view kNoParent = "0000000000000000";

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  errno = 0;
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) {
    return LocalIoError("cannot open", path, errno);
  }
  std::string bytes(kMaxBytes + 1, '\0');
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file.get()));
  if (std::ferror(file.get()) != 0) {
    return LocalIoError("cannot read", path, errno);
  }
  if (bytes.size() > kMaxBytes) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID, "is too large for a certificate, key or token",
                      path);
  }
  return bytes;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  MPC_ASSIGN_OR_RETURN(const std::string bytes, ReadSmallFile(path));
  const absl::string_view token = absl::StripAsciiWhitespace(bytes);
  // What a header may hold (RFC 6750 section 2.1 allows less).
  if (token.empty() || !std::all_of(token.begin(), token.end(), [](char c) { return absl::ascii_isgraph(c); })) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID,
                      "must hold one token and nothing else; a token has neither spaces nor line breaks", path);
  }
  return std::string(token);
}

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

// Version 00 of W3C Trace Context, section 3.2.
bool IsTraceparent(absl::string_view text) {
  return text.size() == 55 && absl::StartsWith(text, "00-") && text[35] == '-' && text[52] == '-' && IsHex(text.substr(3, 32)) &&
         text.substr(3, 32) != kNoTrace && IsHex(text.substr(36, 16)) && text.substr(36, 16) != kNoParent &&
         IsHex(text.substr(53));
}

// Lower-case hex of `words` numbers, not all zero.
std::string RandomHex(int words, const std::function<uint64_t()>& random) {
  std::string text;
  for (int i = 0; i < words; ++i) {
    absl::StrAppendFormat(&text, "%016x", std::max<uint64_t>(random(), 1));
  }
  return text;
}

// The host of "host", "host:port", "[IPv6]", "[IPv6]:port" or an IPv6 address without brackets; "" for anything else.
absl::string_view HostOf(absl::string_view address) {
  absl::string_view host = address;
  absl::string_view port;
  if (absl::ConsumePrefix(&host, "[")) {
    const size_t end = host.find(']');
    if (end == absl::string_view::npos) {
      return "";
    }
    port = host.substr(end + 1);
    host = host.substr(0, end);
  } else if (std::ranges::count(address, ':') == 1) {
    port = address.substr(address.find(':'));
    host.remove_suffix(port.size());
  }
  const bool has_port = absl::ConsumePrefix(&port, ":");
  const bool is_valid = has_port ? !port.empty() && std::ranges::all_of(port, absl::ascii_isdigit) : port.empty();
  return is_valid ? host : "";
}

bool IsLoopbackAddress(absl::string_view address) {
  const std::string host(HostOf(address));
  in_addr ipv4 = {};
  if (inet_pton(AF_INET, host.c_str(), &ipv4) == 1) {
    return ntohl(ipv4.s_addr) >> IN_CLASSA_NSHIFT == IN_LOOPBACKNET;
  }
  in6_addr ipv6 = {};
  if (inet_pton(AF_INET6, host.c_str(), &ipv6) == 1) {
    return IN6_IS_ADDR_LOOPBACK(&ipv6);
  }
  return host == "localhost";
}

}  // namespace

bool IsLoopback(const std::string& target) {
  if (absl::StartsWith(target, "unix:") || absl::StartsWith(target, "unix-abstract:")) {
    return true;
  }
  absl::string_view addresses = target;
  for (absl::string_view scheme : {"dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&addresses, scheme)) {
      // An authority, which would stand between "//" and the next "/", stays part of the address, and makes it none.
      if (!absl::ConsumePrefix(&addresses, "///")) {
        absl::ConsumePrefix(&addresses, "/");
      }
      break;
    }
  }
  const std::vector<absl::string_view> each = absl::StrSplit(addresses, ',');
  return std::ranges::all_of(each, IsLoopbackAddress);
}

CallIdentity::CallIdentity(const ConnectionOptions& options, bool is_loopback, std::function<uint64_t()> random)
    : token_file_(options.token_file),
      project_(options.project),
      is_loopback_(is_loopback),
      random_(std::move(random)),
      traceparent_(IsTraceparent(options.traceparent) ? options.traceparent : "") {
  if (traceparent_.empty()) {
    trace_ = RandomHex(2, random_);
  }
}

absl::Status CallIdentity::Prepare(grpc::ClientContext& context) const {
  if (!token_file_.empty()) {
    MPC_ASSIGN_OR_RETURN(const std::string token, ReadToken(token_file_));
    if (is_loopback_) {
      context.AddMetadata("authorization", absl::StrCat("Bearer ", token));
    } else {
      context.set_credentials(grpc::AccessTokenCredentials(token));
    }
  }
  if (!project_.empty()) {
    context.AddMetadata("modelpress-project", project_);
  }
  // "00": nobody has recorded a span of this call.
  context.AddMetadata("traceparent",
                      traceparent_.empty() ? absl::StrCat("00-", trace_, "-", RandomHex(1, random_), "-00") : traceparent_);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(const std::string& target,
                                                                          const ConnectionOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return LocalError(absl::StatusCode::kInvalidArgument, v1::REQUEST_INVALID,
                      "a client's certificate and its key go together; give both, or none");
  }
  const bool tls = options.tls || !options.tls_ca.empty() || !options.tls_cert.empty() || !options.tls_server_name.empty();
  if (!tls && IsLoopback(target)) {
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions ssl;
  if (!options.tls_ca.empty()) {
    MPC_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadSmallFile(options.tls_ca));
  }
  if (!options.tls_cert.empty()) {
    MPC_ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadSmallFile(options.tls_cert));
    MPC_ASSIGN_OR_RETURN(ssl.pem_private_key, ReadSmallFile(options.tls_key));
  }
  return grpc::SslCredentials(ssl);
}

}  // namespace modelpress::client
