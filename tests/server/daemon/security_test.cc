// The daemon's door: TLS, certificates, tokens, roles and projects, over real sockets.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <future>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/protobuf/descriptor.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "server/auth/credentials_file.h"
#include "server/daemon/health_probe.h"
#include "tests/server/auth/test_keys.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

using Metadata = std::vector<std::pair<std::string, std::string>>;

// Reloads take a second in each of two places.
constexpr absl::Duration kReload = absl::Seconds(20);

class SecurityTest : public DaemonFixture {
 protected:
  SecurityTest()
      : ca_(TestCertificate::MakeCa("ca")), server_(ca_.Sign({.common_name = "", .alternatives = {"DNS:localhost"}})) {}

  std::string Path(const std::string& name) const { return absl::StrCat(folder_, "/", name); }
  // Whoever reads sees the old or the new file.
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name + ".new")) << text;
    EXPECT_EQ(chmod(Path(name + ".new").c_str(), S_IRUSR | S_IWUSR), 0);
    EXPECT_EQ(std::rename(Path(name + ".new").c_str(), Path(name).c_str()), 0);
    return Path(name);
  }
  void WriteServer(const TestCertificate& certificate) const {
    Write("server.pem", certificate.cert_pem());
    Write("server.key", certificate.key_pem());
  }

  DaemonOptions TlsOnly() const {
    DaemonOptions options = Options();
    WriteServer(server_);
    options.tls = {.cert = Path("server.pem"), .key = Path("server.key"), .client_ca = ""};
    return options;
  }
  // A token of each role of project "vision", and a writer's of "speech".
  DaemonOptions WithTokens(DaemonOptions options) {
    std::string file;
    for (const auto& [name, project, role] :
         {std::tuple("reader", "vision", "reader"), std::tuple("writer", "vision", "writer"),
          std::tuple("admin", "vision", "admin"), std::tuple("stranger", "speech", "writer")}) {
      const absl::StatusOr<NewToken> made = CreateToken(name, project, role, absl::InfiniteFuture());
      EXPECT_TRUE(made.ok()) << made.status();
      tokens_[name] = made->token;
      absl::StrAppend(&file, made->entry);
    }
    options.auth.credentials_file = Write("credentials", file);
    return options;
  }

  // A channel of its own: gRPC would share connections between equal ones.
  std::shared_ptr<grpc::Channel> Connect(const std::string& ca, const TestCertificate* client = nullptr) const {
    grpc::SslCredentialsOptions tls;
    tls.pem_root_certs = ca;
    if (client != nullptr) {
      tls.pem_cert_chain = client->cert_pem();
      tls.pem_private_key = client->key_pem();
    }
    return Connect(grpc::SslCredentials(tls));
  }
  std::shared_ptr<grpc::Channel> Connect(const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(absl::StrCat("localhost:", daemon_->port()), credentials, arguments);
  }

  Metadata As(const std::string& name, const Metadata& more = {}) const {
    Metadata metadata = more;
    metadata.emplace_back("authorization", "Bearer " + tokens_.at(name));
    return metadata;
  }

  // ListWorkspaces as the cheapest call there is. `names` gets what it lists.
  static grpc::Status List(const std::shared_ptr<grpc::Channel>& channel, const Metadata& metadata = {},
                           std::vector<std::string>* names = nullptr) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    for (const auto& [key, value] : metadata) {
      context.AddMetadata(key, value);
    }
    v1::ListWorkspacesResponse response;
    const grpc::Status status =
        v1::Workspaces::NewStub(channel)->ListWorkspaces(&context, v1::ListWorkspacesRequest(), &response);
    for (const v1::Workspace& workspace : response.workspaces()) {
      if (names != nullptr) {
        names->push_back(workspace.name());
      }
    }
    return status;
  }
  // Calls are made at once or fail; a connection on this machine now and then does not come about at the first try.
  static bool Works(const std::shared_ptr<grpc::Channel>& channel) {
    return channel->WaitForConnected(absl::ToChronoTime(absl::Now() + absl::Seconds(30))) && List(channel).ok();
  }
  static grpc::Status Make(const std::shared_ptr<grpc::Channel>& channel, const Metadata& metadata, const std::string& id) {
    grpc::ClientContext context;
    for (const auto& [key, value] : metadata) {
      context.AddMetadata(key, value);
    }
    v1::CreateWorkspaceRequest request;
    request.set_workspace_id(id);
    v1::Workspace workspace;
    return v1::Workspaces::NewStub(channel)->CreateWorkspace(&context, request, &workspace);
  }

  static bool HasReflection(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    const grpc::Slice empty;
    const grpc::ByteBuffer request(&empty, 1);
    grpc::ByteBuffer response;
    std::promise<grpc::Status> done;
    stub.UnaryCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", grpc::StubOptions(), &request,
                   &response, [&done](grpc::Status status) { done.set_value(std::move(status)); });
    return done.get_future().get().error_code() != grpc::StatusCode::UNIMPLEMENTED;
  }

  const TestCertificate ca_;
  const TestCertificate server_;
  std::map<std::string, std::string> tokens_;
};

TEST_F(SecurityTest, TlsServesThoseWhoTrustItsCa) {
  Start(TlsOnly());
  EXPECT_TRUE(Works(Connect(ca_.cert_pem())));
  EXPECT_EQ(List(Connect(grpc::InsecureChannelCredentials())).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(List(Connect(TestCertificate::MakeCa("ca").cert_pem())).error_code(), grpc::StatusCode::UNAVAILABLE);
  const std::string target = absl::StrCat("localhost:", daemon_->port());
  EXPECT_TRUE(ProbeHealth(target, absl::Seconds(10), ca_.cert_pem()).ok());
  EXPECT_FALSE(ProbeHealth(target, absl::Milliseconds(500)).ok());
}

TEST_F(SecurityTest, TlsIsServedToOtherMachinesWithTokensOnly) {
  DaemonOptions options = TlsOnly();
  options.listen = "0.0.0.0:0";
  EXPECT_NE(Daemon::Start(options).status().message().find("--credentials_file"), std::string::npos);
  Start(WithTokens(options));
  const auto channel = Connect(ca_.cert_pem());
  EXPECT_EQ(ReasonOf(List(channel)), "AUTHENTICATION_FAILED");
  EXPECT_EQ(MetadataOf(List(channel), "cause"), "missing");
  EXPECT_TRUE(List(channel, As("reader")).ok());
}

// New connections see the new certificate, those that stand go on; a key that does not fit changes nothing.
TEST_F(SecurityTest, CertificateRotation) {
  Start(TlsOnly());
  const auto old_channel = Connect(ca_.cert_pem());
  ASSERT_TRUE(List(old_channel).ok());

  const TestCertificate next_ca = TestCertificate::MakeCa("next");
  const TestCertificate next = next_ca.Sign({.common_name = "", .alternatives = {"DNS:localhost"}});
  Write("server.pem", next.cert_pem());  // the key has still to come
  const auto reload_failures = [this] {
    double failures = 0;
    for (const auto& family : daemon_->metrics().registry()->Collect()) {
      for (const auto& metric : family.metric) {
        failures += family.name == "modelpress_reload_failures_total" ? metric.counter.value : 0;
      }
    }
    return failures;
  };
  const absl::Time deadline = absl::Now() + kReload;
  while (reload_failures() == 0 && absl::Now() < deadline) {
    ASSERT_TRUE(Works(Connect(ca_.cert_pem())));
  }
  EXPECT_EQ(reload_failures(), 1);
  EXPECT_TRUE(Works(Connect(ca_.cert_pem())));

  Write("server.key", next.key_pem());
  bool rotated = false;
  while (!rotated && absl::Now() < deadline + kReload) {
    rotated = List(Connect(next_ca.cert_pem())).ok();
  }
  EXPECT_TRUE(rotated);
  EXPECT_FALSE(List(Connect(ca_.cert_pem())).ok());
  EXPECT_TRUE(List(old_channel).ok());
  EXPECT_EQ(reload_failures(), 1);
}

TEST_F(SecurityTest, ClientCertificatesRequired) {
  DaemonOptions options = TlsOnly();
  options.tls.client_ca = Write("ca.pem", ca_.cert_pem());
  options.auth.credentials_file = Write("credentials", R"(
certificate { uri: "spiffe://test/ns/ci/sa/press" principal: "press" project: "vision" role: WRITER }
certificate { common_name: "looker" project: "speech" role: READER }
certificate { dns: "host.example" project: "speech" role: READER }
)");
  Start(options);
  const TestCertificate press = ca_.Sign({.common_name = "whoever", .alternatives = {"URI:spiffe://test/ns/ci/sa/press"}});
  const TestCertificate looker = ca_.Sign({.common_name = "looker", .alternatives = {}});
  const TestCertificate host = ca_.Sign({.common_name = "", .alternatives = {"DNS:other.example", "DNS:host.example"}});
  const TestCertificate nobody = ca_.Sign({.common_name = "host.example", .alternatives = {"DNS:looker"}});
  const TestCertificate expired = ca_.Sign({.common_name = "looker", .alternatives = {}}, absl::Seconds(-60));
  const TestCertificate forged = TestCertificate::MakeCa("ca").Sign({.common_name = "looker", .alternatives = {}});
  ASSERT_TRUE(Make(Connect(ca_.cert_pem(), &press), {}, "w").ok());
  EXPECT_TRUE(Works(Connect(ca_.cert_pem(), &looker)));
  EXPECT_TRUE(Works(Connect(ca_.cert_pem(), &host)));
  EXPECT_EQ(ReasonOf(Make(Connect(ca_.cert_pem(), &looker), {}, "w2")), "ACCESS_DENIED");
  const grpc::Status unknown = List(Connect(ca_.cert_pem(), &nobody));
  EXPECT_EQ(ReasonOf(unknown), "AUTHENTICATION_FAILED");
  EXPECT_EQ(MetadataOf(unknown, "cause"), "unknown_certificate");
  EXPECT_EQ(List(Connect(ca_.cert_pem())).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(List(Connect(ca_.cert_pem(), &forged)).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(List(Connect(ca_.cert_pem(), &expired)).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, ClientCertificatesOptional) {
  DaemonOptions options = WithTokens(TlsOnly());
  options.tls.client_ca = Write("ca.pem", ca_.cert_pem());
  options.tls.client_certificate_optional = true;
  Start(options);
  const auto without = Connect(ca_.cert_pem());
  EXPECT_TRUE(List(without, As("reader")).ok());
  EXPECT_EQ(MetadataOf(List(without), "cause"), "missing");
  const TestCertificate forged = TestCertificate::MakeCa("ca").Sign({.common_name = "looker", .alternatives = {}});
  EXPECT_EQ(List(Connect(ca_.cert_pem(), &forged), As("reader")).error_code(), grpc::StatusCode::UNAVAILABLE);
  // From now on it is known by its certificate too.
  const TestCertificate looker = ca_.Sign({.common_name = "looker", .alternatives = {}});
  const auto with = Connect(ca_.cert_pem(), &looker);
  EXPECT_EQ(MetadataOf(List(with), "cause"), "unknown_certificate");
  Write("credentials", "certificate { common_name: \"looker\" project: \"vision\" role: READER }");
  const absl::Time deadline = absl::Now() + kReload;
  while (!List(with).ok() && absl::Now() < deadline) {
  }
  EXPECT_TRUE(List(with).ok());
  // And the tokens of before are gone.
  EXPECT_EQ(MetadataOf(List(without, As("reader")), "cause"), "unknown_token");
}

// Every method of every service, found by reflection: what each role may call, and that nobody gets in without a token. A new
// method is refused here until it is decided whether readers may call it.
TEST_F(SecurityTest, RoleMatrix) {
  const std::set<std::string> readers_may = {"GetWorkspace", "ListWorkspaces", "GetFile",        "ListFiles",
                                             "DownloadFile", "GetOperation",   "ListOperations", "WaitOperation"};
  const std::set<std::string> writers_may = {"CreateWorkspace", "DeleteWorkspace", "DeleteFile",      "StartUpload",
                                             "GetUpload",       "UploadBytes",     "CancelOperation", "DeleteOperation"};
  Start(WithTokens(Options()));
  const auto call = [this](const std::string& method, const Metadata& metadata) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    for (const auto& [key, value] : metadata) {
      context.AddMetadata(key, value);
    }
    // For the wire a call with a message each way is a stream with one each.
    class Stream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
     public:
      void Begin() {
        StartWriteLast(&request_, grpc::WriteOptions());
        StartRead(&response_);
        StartCall();
      }
      void OnReadDone(bool ok) override {
        if (ok) {
          StartRead(&response_);
        }
      }
      void OnDone(const grpc::Status& status) override { done_.set_value(status); }
      grpc::Status Await() { return done_.get_future().get(); }

     private:
      const grpc::Slice empty_;
      const grpc::ByteBuffer request_{&empty_, 1};
      grpc::ByteBuffer response_;
      std::promise<grpc::Status> done_;
    } stream;
    stub.PrepareBidiStreamingCall(&context, method, grpc::StubOptions(), &stream);
    stream.Begin();
    return stream.Await();
  };
  int methods = 0;
  for (const google::protobuf::FileDescriptor* file :
       {v1::CreateWorkspaceRequest::descriptor()->file(), v1::SaveModelRequest::descriptor()->file(),
        google::longrunning::Operation::descriptor()->file()}) {
    ASSERT_GT(file->service_count(), 0);
    for (int i = 0; i < file->service_count(); ++i) {
      const google::protobuf::ServiceDescriptor* service = file->service(i);
      for (int j = 0; j < service->method_count(); ++j) {
        ++methods;
        const google::protobuf::MethodDescriptor* method = service->method(j);
        const std::string name = absl::StrCat("/", service->full_name(), "/", method->name());
        const bool compresses = method->output_type() == google::longrunning::Operation::descriptor() &&
                                file == v1::SaveModelRequest::descriptor()->file();
        const bool for_readers = readers_may.contains(method->name());
        ASSERT_TRUE(for_readers || compresses || writers_may.contains(method->name())) << name << ": who may call it?";

        const grpc::Status stranger = call(name, {});
        EXPECT_EQ(stranger.error_code(), grpc::StatusCode::UNAUTHENTICATED) << name << stranger.error_message();
        EXPECT_EQ(call(name, {{"authorization", "Bearer x"}}).error_code(), grpc::StatusCode::UNAUTHENTICATED) << name;
        for (const char* who : {"reader", "writer", "admin"}) {
          const grpc::Status status = call(name, As(who));
          const bool allowed = for_readers || absl::string_view(who) != "reader";
          EXPECT_EQ(status.error_code() != grpc::StatusCode::PERMISSION_DENIED, allowed) << name << " as " << who;
          EXPECT_NE(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << name << " as " << who;
          EXPECT_NE(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << name << " as " << who;
          if (!allowed) {
            EXPECT_EQ(MetadataOf(status, "role"), "reader");
            EXPECT_EQ(MetadataOf(status, "needed"), "writer");
          }
        }
        EXPECT_EQ(call(name, As("writer", {{"modelpress-project", "speech"}})).error_code(), grpc::StatusCode::PERMISSION_DENIED)
            << name;
      }
    }
  }
  EXPECT_GE(methods, 30);
  EXPECT_TRUE(ProbeHealth(absl::StrCat("localhost:", daemon_->port()), absl::Seconds(5)).ok());
}

TEST_F(SecurityTest, ProjectsDoNotSeeEachOther) {
  Start(WithTokens(Options()));
  ASSERT_TRUE(Make(channel_, As("writer"), "w").ok());
  ASSERT_TRUE(Make(channel_, As("writer"), "only-vision").ok());
  // The same name in another project is another workspace.
  ASSERT_TRUE(Make(channel_, As("stranger"), "w").ok());
  EXPECT_EQ(ReasonOf(Make(channel_, As("stranger"), "w")), "WORKSPACE_EXISTS");
  std::vector<std::string> names;
  ASSERT_TRUE(List(channel_, As("stranger"), &names).ok());
  EXPECT_EQ(names, std::vector<std::string>{"workspaces/w"});
  // What is not one's own and what is not there at all look the same, but for the name that was asked for.
  const auto get = [this](const std::string& id) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + tokens_.at("stranger"));
    v1::GetWorkspaceRequest request;
    request.set_name("workspaces/" + id);
    v1::Workspace workspace;
    return workspaces_->GetWorkspace(&context, request, &workspace);
  };
  EXPECT_EQ(ReasonOf(get("only-vision")), "WORKSPACE_NOT_FOUND");
  EXPECT_EQ(ReasonOf(get("nowhere")), "WORKSPACE_NOT_FOUND");
  EXPECT_TRUE(get("w").ok());
  // An admin goes where they say.
  names.clear();
  ASSERT_TRUE(List(channel_, As("admin", {{"modelpress-project", "speech"}}), &names).ok());
  EXPECT_EQ(names, std::vector<std::string>{"workspaces/w"});
  names.clear();
  ASSERT_TRUE(List(channel_, As("admin", {{"modelpress-project", "unheard-of"}}), &names).ok());
  EXPECT_TRUE(names.empty());
}

TEST_F(SecurityTest, TokenRotation) {
  Start(WithTokens(Options()));
  const Metadata old = As("reader");
  ASSERT_TRUE(List(channel_, old).ok());
  WithTokens(Options());
  const absl::Time deadline = absl::Now() + kReload;
  while (List(channel_, old).ok() && absl::Now() < deadline) {
  }
  EXPECT_EQ(MetadataOf(List(channel_, old), "cause"), "unknown_token");
  EXPECT_TRUE(List(channel_, As("reader")).ok());
}

// The longest token gets through the transport, to be told what is wrong with it.
TEST_F(SecurityTest, LongTokensAreToldSo) {
  Start(WithTokens(Options()));
  EXPECT_EQ(MetadataOf(List(channel_, {{"authorization", absl::StrCat("Bearer ", std::string(kMaxToken - 7, 'x'))}}), "cause"),
            "unknown_token");
  EXPECT_EQ(MetadataOf(List(channel_, {{"authorization", absl::StrCat("Bearer ", std::string(kMaxToken, 'x'))}}), "cause"),
            "malformed");
  EXPECT_FALSE(
      List(Connect(grpc::InsecureChannelCredentials()), {{"authorization", absl::StrCat("Bearer ", std::string(100'000, 'x'))}})
          .ok());
  EXPECT_TRUE(List(channel_, As("reader")).ok());
}

// Tools may look at what there is to call on loopback only, unless told otherwise.
TEST_F(SecurityTest, ReflectionIsForLoopback) {
  DaemonOptions options = Options();
  Start(options);
  EXPECT_TRUE(HasReflection(channel_));
  Stop();
  options.listen = "0.0.0.0:0";
  options.insecure_plaintext = true;
  Start(options);
  EXPECT_FALSE(HasReflection(channel_));
  Stop();
  options.reflection = true;
  Start(options);
  EXPECT_TRUE(HasReflection(channel_));
}

TEST_F(SecurityTest, HealthPortNeedsNothing) {
  DaemonOptions options = WithTokens(TlsOnly());
  options.tls.client_ca = Write("ca.pem", ca_.cert_pem());
  options.health_listen = "localhost:0";
  Start(options);
  const std::string health = absl::StrCat("localhost:", daemon_->health_port());
  EXPECT_TRUE(ProbeHealth(health, absl::Seconds(10)).ok());
  // And has nothing else.
  const auto health_channel = grpc::CreateChannel(health, grpc::InsecureChannelCredentials());
  EXPECT_EQ(List(health_channel).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_FALSE(HasReflection(health_channel));
  options.data_folder += "-2";
  options.health_listen = health;
  EXPECT_NE(Daemon::Start(options).status().message().find("--health_listen"), std::string::npos);
  Stop();
  EXPECT_FALSE(ProbeHealth(health, absl::Milliseconds(200)).ok());
}

TEST_F(SecurityTest, WorkersHaveAHealthPortToo) {
  DaemonOptions options = Options();
  options.listen = "";
  options.workers = 1;
  options.health_listen = "localhost:0";
  auto worker = Daemon::Start(options);
  ASSERT_TRUE(worker.ok()) << worker.status();
  EXPECT_TRUE(ProbeHealth(absl::StrCat("localhost:", (*worker)->health_port()), absl::Seconds(10)).ok());
}

TEST_F(SecurityTest, HealthFollowsTheDataFolder) {
  DaemonOptions options = Options();
  options.health_listen = "localhost:0";
  options.health_interval = absl::Milliseconds(20);
  Start(options);
  const std::string health = absl::StrCat("localhost:", daemon_->health_port());
  const std::string main = absl::StrCat("localhost:", daemon_->port());
  const auto becomes = [](const std::string& target, bool serving) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (ProbeHealth(target, absl::Seconds(5)).ok() != serving && absl::Now() < deadline) {
    }
    return ProbeHealth(target, absl::Seconds(5)).ok() == serving;
  };
  ASSERT_EQ(std::rename(options.data_folder.c_str(), (options.data_folder + "-away").c_str()), 0);
  EXPECT_TRUE(becomes(health, false));
  EXPECT_TRUE(becomes(main, false));
  ASSERT_EQ(std::rename((options.data_folder + "-away").c_str(), options.data_folder.c_str()), 0);
  EXPECT_TRUE(becomes(health, true));
  EXPECT_TRUE(becomes(main, true));
}

// While calls still run, probes are told to send no more, on the port where they are asked.
TEST_F(SecurityTest, DrainingShowsOnTheHealthPort) {
  DaemonOptions options = WithTokens(TlsOnly());
  options.health_listen = "localhost:0";
  Start(options);
  const std::string health = absl::StrCat("localhost:", daemon_->health_port());
  ASSERT_TRUE(ProbeHealth(health, absl::Seconds(10)).ok());
  // An upload that sends nothing keeps the server from ending.
  const auto channel = Connect(ca_.cert_pem());
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + tokens_.at("writer"));
  v1::Upload upload;
  auto stream = v1::Workspaces::NewStub(channel)->UploadBytes(&context, &upload);
  ASSERT_TRUE(List(channel, As("reader")).ok());  // behind it on the same connection: now the server has it
  auto stopped = std::async(std::launch::async, [this] { daemon_->Stop(); });
  while (ProbeHealth(health, absl::Seconds(5)).ok()) {
  }
  const absl::Status told = ProbeHealth(health, absl::Seconds(5));
  EXPECT_NE(told.message().find("not serving"), std::string::npos) << told;
  while (List(channel, As("reader")).ok()) {  // health turns first
  }
  EXPECT_EQ(ReasonOf(List(channel, As("reader"))), "SERVER_DRAINING");
  stream->WritesDone();
  EXPECT_EQ(ReasonOf(stream->Finish()), "REQUEST_INVALID");
  stopped.get();
}

}  // namespace
}  // namespace modelpress::server
