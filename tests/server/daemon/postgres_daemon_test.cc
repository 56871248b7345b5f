// Several processes' worth of daemons over one PostgreSQL database and one data folder.
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/server/base/test_folder.h"
#include "tests/server/sql/postgres_server.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

class PostgresDaemonTest : public DaemonFixture {
 protected:
  DaemonOptions SharedOptions() const {
    DaemonOptions options = Options();
    options.database = database_.url();
    options.worker.lease = absl::Seconds(5);
    return options;
  }
  // A daemon without RPCs, as `modelpressd work`.
  std::unique_ptr<Daemon> StartWork() const {
    DaemonOptions options = SharedOptions();
    options.listen = "";
    options.workers = 1;
    auto daemon = Daemon::Start(options);
    EXPECT_TRUE(daemon.ok()) << daemon.status();
    return daemon.ok() ? *std::move(daemon) : nullptr;
  }
  void PutModel() {
    MakeWorkspace("w");
    const char* source = std::getenv("MODELPRESS_SOURCE_DIR");
    ASSERT_NE(source, nullptr);
    const std::string golden = absl::StrCat(source, "/tests/golden/save/conv2d_bn_relu_linear/");
    PutFile("workspaces/w/files/model/m.onnx", ReadTestFile(golden + "modified.onnx"));
    PutFile("workspaces/w/files/record/r.txt", ReadTestFile(golden + "record.txt"));
  }
  // The same call again gives the same operation, whatever became of the first answer.
  static grpc::Status Submit(v1::Compression::Stub& stub, int number, std::string* name) {
    v1::SaveModelRequest request;
    request.set_workspace("workspaces/w");
    request.set_modified_onnx_file("model/m.onnx");
    request.set_record_file("record/r.txt");
    request.set_save_path(absl::StrCat("results/", number));
    request.mutable_options()->set_request_id(absl::StrCat("00000000-0000-4000-8000-", absl::Dec(number, absl::kZeroPad12)));
    grpc::ClientContext context;
    google::longrunning::Operation operation;
    const grpc::Status status = stub.SaveModel(&context, request, &operation);
    *name = operation.name();
    return status;
  }
  // The daemon ends before its database.
  void TearDown() override { Stop(); }

  // Calls until the answer is another than that the database cannot be reached just now.
  template <typename Call>
  static grpc::Status Retry(Call call) {
    const absl::Time deadline = absl::Now() + absl::Minutes(1);
    grpc::Status status;
    do {
      status = call();
    } while (status.error_code() == grpc::StatusCode::UNAVAILABLE && absl::Now() < deadline);
    return status;
  }

  TestPostgresDatabase database_;
};

TEST_F(PostgresDaemonTest, OneServesAndTheOtherWorks) {
  Start(SharedOptions());
  PutModel();
  const std::unique_ptr<Daemon> work = StartWork();
  ASSERT_NE(work, nullptr);
  for (int i = 0; i < 2; ++i) {
    std::string name;
    const grpc::Status status = Submit(*compression_, i, &name);
    ASSERT_TRUE(status.ok()) << status.error_message();
    const google::longrunning::Operation operation = Wait(name, 60);
    ASSERT_TRUE(operation.done());
    EXPECT_EQ(MetadataOf(operation).state(), v1::OperationMetadata::SUCCEEDED) << operation.error().ShortDebugString();
    EXPECT_EQ(MetadataOf(operation).attempt(), 1);
  }
}

TEST_F(PostgresDaemonTest, BothServeTheSame) {
  Start(SharedOptions());
  PutModel();
  DaemonOptions options = SharedOptions();
  options.workers = 1;
  auto other = Daemon::Start(options);
  ASSERT_TRUE(other.ok()) << other.status();
  auto channel = Connected(grpc::CreateChannel(absl::StrCat("localhost:", (*other)->port()), grpc::InsecureChannelCredentials()));
  std::string first;
  std::string second;
  ASSERT_TRUE(Submit(*compression_, 1, &first).ok());
  ASSERT_TRUE(Submit(*v1::Compression::NewStub(channel), 1, &second).ok());
  EXPECT_EQ(first, second);
  EXPECT_TRUE(Wait(first, 60).done());
}

TEST_F(PostgresDaemonTest, NothingIsLostWhenTheDatabaseServerIsKilled) {
  constexpr int kOperations = 6;
  Start(SharedOptions());
  PutModel();
  const std::unique_ptr<Daemon> work = StartWork();
  ASSERT_NE(work, nullptr);
  std::vector<std::string> names(kOperations);
  for (int i = 0; i < kOperations; ++i) {
    const grpc::Status status = Retry([&] { return Submit(*compression_, i, &names[i]); });
    ASSERT_TRUE(status.ok()) << status.error_message();
    if (i % 2 == 1) {
      PostgresServer::Shared().Kill();
      PostgresServer::Shared().Restart();
    }
  }
  for (const std::string& name : names) {
    google::longrunning::Operation operation;
    const absl::Time deadline = absl::Now() + absl::Minutes(2);
    while (!operation.done() && absl::Now() < deadline) {
      google::longrunning::WaitOperationRequest request;
      request.set_name(name);
      request.mutable_timeout()->set_seconds(10);
      const grpc::Status status = Retry([&] {
        grpc::ClientContext context;
        return operations_->WaitOperation(&context, request, &operation);
      });
      ASSERT_TRUE(status.ok()) << status.error_message();
    }
    EXPECT_EQ(MetadataOf(operation).state(), v1::OperationMetadata::SUCCEEDED) << operation.error().ShortDebugString();
  }
  google::longrunning::ListOperationsRequest list;
  list.set_name("operations");
  google::longrunning::ListOperationsResponse all;
  grpc::ClientContext context;
  ASSERT_TRUE(operations_->ListOperations(&context, list, &all).ok());
  EXPECT_EQ(all.operations_size(), kOperations);
}

}  // namespace
}  // namespace modelpress::server
