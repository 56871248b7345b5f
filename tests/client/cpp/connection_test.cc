#include "client/cpp/connection.h"

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/cli.h"
#include "client/cpp/client.h"
#include "client/cpp/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/client/cpp/test_server.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::MatchesRegex;
using testing::Pair;

// Made once: a root, and what it has signed for a server (models.example, localhost) and a client.
const TempFolder& Certificates() {
  static const TempFolder& folder = *[] {
    auto* made = new TempFolder();
    const std::string commands = absl::StrCat("cd ", made->path().string(), R"( && {
      curve='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc'
      openssl req -x509 $curve -keyout root.key -out root.pem -subj /CN=root -days 2
      for name in server client; do
        openssl req $curve -keyout $name.key -out $name.csr -subj /CN=$name
        echo 'subjectAltName=DNS:models.example,DNS:localhost' > $name.ext
        openssl x509 -req -in $name.csr -CA root.pem -CAkey root.key -days 2 -extfile $name.ext -out $name.pem
      done
    } 2> openssl.log > openssl.log)");
    EXPECT_EQ(std::system(commands.c_str()), 0) << ReadFile(*made / "openssl.log");
    return made;
  }();
  return folder;
}

std::shared_ptr<grpc::ServerCredentials> ServerTls(bool mutual) {
  const TempFolder& folder = Certificates();
  grpc::SslServerCredentialsOptions options(mutual ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                                   : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  options.pem_root_certs = ReadFile(folder / "root.pem");
  options.pem_key_cert_pairs.push_back({ReadFile(folder / "server.key"), ReadFile(folder / "server.pem")});
  return grpc::SslServerCredentials(options);
}

class ConnectionTest : public testing::Test {
 protected:
  static std::string Certificate(const std::string& name) { return Certificates() / name; }

  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& target, const ConnectionOptions& connection,
                                                         absl::Duration timeout = absl::Seconds(20)) {
    Client::Options options;
    options.target = target;
    options.connection = connection;
    options.connect_timeout = timeout;
    return Client::Connect(options);
  }
  // Of a handshake that the other side refuses: it is tried again until the time is over.
  static void ExpectRefused(const std::string& target, const ConnectionOptions& connection) {
    const absl::Status status = Connect(target, connection, absl::Milliseconds(700)).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--tls-ca"));
  }
  static void ExpectWorks(const std::string& target, const ConnectionOptions& connection) {
    auto client = Connect(target, connection);
    ASSERT_TRUE(client.ok()) << client.status();
    EXPECT_TRUE((*client)->ListWorkspaces().ok());
  }
  static std::string Last(TestServer& server, const std::string& key) {
    std::lock_guard lock(server.state().mutex);
    const auto& metadata = server.state().metadata.back().second;
    return metadata.count(key) == 1 ? metadata.find(key)->second : "";
  }

  TempFolder folder_;
};

TEST(TargetTest, KnowsThisMachine) {
  std::ifstream file(MODELPRESS_TEST_DATA "/client/loopback_targets.json");
  const nlohmann::json targets = nlohmann::json::parse(file);
  ASSERT_FALSE(targets["this_machine"].empty() || targets["others"].empty());
  for (const std::string target : targets["this_machine"]) {
    EXPECT_TRUE(IsLoopback(target)) << target;
  }
  for (const std::string target : targets["others"]) {
    EXPECT_FALSE(IsLoopback(target)) << target;
  }
}

TEST_F(ConnectionTest, Tls) {
  TestServer server(ServerTls(/*mutual=*/false));
  const std::string localhost = absl::StrCat("localhost:", server.port());
  const std::string root = Certificate("root.pem");
  ExpectWorks(localhost, {.tls_ca = root});
  ExpectRefused(localhost, {.tls = true});  // the system does not know the root
  ExpectRefused(server.target(), {.tls_ca = root});
  ExpectWorks(server.target(), {.tls_ca = root, .tls_server_name = "models.example"});
  ExpectRefused(localhost, {.tls_ca = root, .tls_server_name = "other.example"});
}

TEST_F(ConnectionTest, MutualTls) {
  TestServer server(ServerTls(/*mutual=*/true));
  const std::string target = absl::StrCat("localhost:", server.port());
  const std::string root = Certificate("root.pem");
  ExpectWorks(target, {.tls_ca = root, .tls_cert = Certificate("client.pem"), .tls_key = Certificate("client.key")});
  auto without = Connect(target, {.tls_ca = root}, absl::Milliseconds(700));
  // With TLS 1.3 a client may take itself for connected before the server has refused it.
  EXPECT_FALSE(without.ok() && (*without)->ListWorkspaces().ok());
  for (const ConnectionOptions& half :
       {ConnectionOptions{.tls_cert = Certificate("client.pem")}, ConnectionOptions{.tls_key = Certificate("client.key")}}) {
    const absl::Status status = Connect(target, half).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("go together"));
  }
  EXPECT_TRUE(absl::IsNotFound(Connect(target, {.tls_ca = folder_ / "none.pem"}).status()));
}

TEST_F(ConnectionTest, EveryCallSaysWhoCalls) {
  TestServer server;
  const std::string token = WriteFile(folder_ / "token", " first\t\n");
  auto client = Connect(server.target(), {.token_file = token, .project = "vision"});
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->CreateWorkspace("w").ok());
  WriteFile(token, "second");  // rotated
  ASSERT_TRUE((*client)->Upload(WriteFile(folder_ / "f", "content"), "workspaces/w/files/f", {}).ok());
  auto staged = StagedFile::Create(folder_ / "copy");
  ASSERT_TRUE(staged.ok());
  ASSERT_TRUE((*client)->Download("workspaces/w/files/f", "", *staged, {}).ok());

  std::set<std::string> methods;
  std::set<std::string> traces;
  std::set<std::string> parents;
  std::lock_guard lock(server.state().mutex);
  for (const auto& [method, metadata] : server.state().metadata) {
    methods.insert(method);
    EXPECT_THAT(metadata, Contains(Pair("authorization", method == "CreateWorkspace" ? "Bearer first" : "Bearer second")));
    EXPECT_THAT(metadata, Contains(Pair("modelpress-project", "vision")));
    ASSERT_EQ(metadata.count("traceparent"), 1);
    const std::string traceparent = metadata.find("traceparent")->second;
    EXPECT_THAT(traceparent, MatchesRegex("00-[0-9a-f]{32}-[0-9a-f]{16}-00"));
    traces.insert(traceparent.substr(3, 32));
    parents.insert(traceparent.substr(36, 16));
  }
  EXPECT_THAT(methods, testing::IsSupersetOf({"CreateWorkspace", "StartUpload", "UploadBytes", "DownloadFile"}));
  EXPECT_EQ(traces.size(), 1) << "one for the client";
  EXPECT_EQ(parents.size(), server.state().metadata.size()) << "one for each call";
}

TEST_F(ConnectionTest, TheCallersTraceGoesOn) {
  TestServer server;
  const std::string given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  ExpectWorks(server.target(), {.traceparent = given});
  EXPECT_EQ(Last(server, "traceparent"), given);
  EXPECT_EQ(Last(server, "authorization"), "");
  EXPECT_EQ(Last(server, "modelpress-project"), "");
  for (const std::string& bad : {std::string("00"), given + "0", "ff" + given.substr(2), given.substr(0, 53) + "0A",
                                 "00-" + std::string(32, '0') + given.substr(35)}) {
    ExpectWorks(server.target(), {.traceparent = bad});
    EXPECT_THAT(Last(server, "traceparent"), MatchesRegex("00-[0-9a-f]{32}-[0-9a-f]{16}-00")) << bad;
  }
}

TEST_F(ConnectionTest, ATokenLeavesThisMachineOverTlsOnly) {
  const std::string token = WriteFile(folder_ / "token", "secret");
  TestServer plain;
  Client::Options options;
  // This machine, but as far as names tell it might be another one.
  options.target = absl::StrCat("0.0.0.0:", plain.port());
  options.credentials = grpc::InsecureChannelCredentials();
  options.connection.token_file = token;
  auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok()) << client.status();
  const absl::Status status = (*client)->ListWorkspaces().status();
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("security level"));
  EXPECT_THAT(plain.state().metadata, IsEmpty());

  TestServer secure(ServerTls(/*mutual=*/false));
  ExpectWorks(absl::StrCat("0.0.0.0:", secure.port()),
              {.tls_ca = Certificate("root.pem"), .tls_server_name = "models.example", .token_file = token});
  EXPECT_EQ(Last(secure, "authorization"), "Bearer secret");
}

TEST_F(ConnectionTest, BadTokenFilesAreNamed) {
  TestServer server;
  const std::string token = folder_ / "token";
  auto client = Connect(server.target(), {.token_file = token});
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(absl::IsNotFound((*client)->ListWorkspaces().status()));
  for (const std::string& bad : {std::string(), std::string(" \n"), std::string("two tokens"), std::string("two\nlines"),
                                 std::string("\xff"), std::string("nul\0", 4)}) {
    WriteFile(token, bad);
    const absl::Status status = (*client)->ListWorkspaces().status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("token: must hold one token and nothing else"));
  }
  EXPECT_THAT(server.state().metadata, IsEmpty());
}

// The program's flags and variables.
class ConnectionCliTest : public ConnectionTest {
 protected:
  int Run(const std::vector<std::string>& arguments) {
    out_.str("");
    err_.str("");
    return RunCli(arguments, {.out = out_, .err = err_}, {});
  }
  // With variables for the time of the call.
  int RunIn(const std::map<std::string, std::string>& variables, const std::vector<std::string>& arguments) {
    for (const auto& [name, value] : variables) {
      setenv(name.c_str(), value.c_str(), 1);
    }
    const int code = Run(arguments);
    for (const auto& [name, value] : variables) {
      unsetenv(name.c_str());
    }
    return code;
  }

  TestServer server_{ServerTls(/*mutual=*/true)};
  const std::string token_ = WriteFile(folder_ / "token", "secret\n");
  std::ostringstream out_;
  std::ostringstream err_;
};

TEST_F(ConnectionCliTest, FlagsInBothSpellings) {
  for (const char* dash : {"-", "_"}) {
    EXPECT_EQ(Run({"workspace", "list", absl::StrCat("--target=", server_.target()), "--tls",
                   absl::StrCat("--tls", dash, "ca=", Certificate("root.pem")),
                   absl::StrCat("--tls", dash, "cert=", Certificate("client.pem")),
                   absl::StrCat("--tls", dash, "key=", Certificate("client.key")),
                   absl::StrCat("--tls", dash, "server", dash, "name=models.example"),
                   absl::StrCat("--token", dash, "file=", token_), "--project=vision"}),
              0)
        << err_.str();
    EXPECT_EQ(Last(server_, "authorization"), "Bearer secret");
    EXPECT_EQ(Last(server_, "modelpress-project"), "vision");
  }
}

TEST_F(ConnectionCliTest, Variables) {
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  EXPECT_EQ(RunIn({{"MODELPRESS_TARGET", server_.target()},
                   {"MODELPRESS_TLS", "1"},
                   {"MODELPRESS_TLS_CA", Certificate("root.pem")},
                   {"MODELPRESS_TLS_CERT", Certificate("client.pem")},
                   {"MODELPRESS_TLS_KEY", Certificate("client.key")},
                   {"MODELPRESS_TLS_SERVER_NAME", "models.example"},
                   {"MODELPRESS_TOKEN_FILE", token_},
                   {"MODELPRESS_PROJECT", "vision"},
                   {"TRACEPARENT", trace}},
                  {"workspace", "list"}),
            0)
      << err_.str();
  EXPECT_EQ(Last(server_, "authorization"), "Bearer secret");
  EXPECT_EQ(Last(server_, "modelpress-project"), "vision");
  EXPECT_EQ(Last(server_, "traceparent"), trace);
}

TEST_F(ConnectionCliTest, ThisMachineIsReachedWithoutAProxy) {
  TestServer plain;
  const std::string nobody = "http://127.0.0.1:9";
  EXPECT_EQ(RunIn({{"MODELPRESS_TARGET", plain.target()},
                   {"grpc_proxy", nobody},
                   {"https_proxy", nobody},
                   {"http_proxy", nobody},
                   {"no_grpc_proxy", ""},
                   {"no_proxy", ""}},
                  {"workspace", "list"}),
            0)
      << err_.str();
}

TEST_F(ConnectionCliTest, ErrorsBeforeAnythingIsSent) {
  const std::string target = absl::StrCat("--target=", server_.target());
  EXPECT_EQ(Run({"workspace", "list", target, "--tls-ca=/nowhere.pem"}), kExitNotFound);
  EXPECT_THAT(err_.str(), HasSubstr("/nowhere.pem"));
  EXPECT_EQ(Run({"workspace", "list", target, absl::StrCat("--tls-cert=", Certificate("client.pem"))}), kExitInput);
  TestServer plain;
  EXPECT_EQ(Run({"workspace", "list", absl::StrCat("--target=", plain.target()), "--token-file=/nowhere"}), kExitNotFound);
  EXPECT_THAT(err_.str(), HasSubstr("/nowhere"));
  EXPECT_THAT(plain.state().metadata, IsEmpty());
}

TEST_F(ConnectionCliTest, NoCacheAndErrorsOfAccess) {
  TestServer server;
  const std::string model = WriteFile(folder_ / "m.onnx", "");
  const std::string record = WriteFile(folder_ / "r.txt", "record {}");
  const std::vector<std::string> save = {"save_model",
                                         "-q",
                                         "--modfied_onnx_file=" + model,
                                         "--record_file=" + record,
                                         "--save_path=" + (folder_ / "out/x"),
                                         "--target=" + server.target()};
  auto with = [&save](const std::string& flag) {
    std::vector<std::string> arguments = save;
    arguments.push_back(flag);
    return arguments;
  };
  ASSERT_EQ(Run(save), 0) << err_.str();
  EXPECT_FALSE(server.state().save_requests.back().options().no_cache());
  for (const char* flag : {"--no-cache", "--no_cache"}) {
    ASSERT_EQ(Run(with(flag)), 0) << err_.str();
    EXPECT_TRUE(server.state().save_requests.back().options().no_cache());
  }
  struct Case {
    v1::Reason reason;
    int code;
    int exit;
  };
  for (const Case& c : {Case{v1::AUTHENTICATION_FAILED, 16, kExitPermission}, Case{v1::ACCESS_DENIED, 7, kExitPermission},
                        Case{v1::QUOTA_EXCEEDED, 8, kExitTryLater}, Case{v1::STORAGE_UNAVAILABLE, 14, kExitUnavailable}}) {
    server.state().operation_error = TestServer::Error(c.reason, c.code, "no");
    EXPECT_EQ(Run(save), c.exit);
    EXPECT_EQ(err_.str(), absl::StrCat("modelpress: no [", v1::Reason_Name(c.reason), "]\n"));
  }
}

TEST_F(ConnectionCliTest, HelpNamesThem) {
  EXPECT_EQ(Run({"--help"}), 0);
  for (const char* text : {"--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name", "--token-file", "--project",
                           "MODELPRESS_TLS", "MODELPRESS_TOKEN_FILE"}) {
    EXPECT_THAT(out_.str(), HasSubstr(text));
  }
}

}  // namespace
}  // namespace modelpress::client
