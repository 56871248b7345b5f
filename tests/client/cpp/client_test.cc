#include "client/cpp/client.h"

#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/cpp/test_server.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

using google::longrunning::Operation;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kName[] = "workspaces/w/files/f";

class ClientTest : public testing::Test {
 protected:
  std::unique_ptr<Client> Connect() {
    Client::Options options;
    options.target = server_.target();
    options.chunk_bytes = 1000;
    options.retry = {.max_attempts = 4, .initial_backoff = absl::Milliseconds(1), .max_backoff = absl::Milliseconds(2)};
    options.poll_interval = absl::Milliseconds(5);
    options.idle_timeout = idle_timeout_;
    auto client = Client::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return std::move(*client);
  }

  absl::StatusOr<v1::File> Download(Client& client, const std::string& path, const TransferOptions& options = {}) {
    absl::StatusOr<StagedFile> staged = StagedFile::Create(path);
    if (!staged.ok()) {
      return staged.status();
    }
    absl::StatusOr<v1::File> file = client.Download(kName, "", *staged, options);
    if (!file.ok()) {
      return file;
    }
    absl::Status committed = staged->Commit();
    return committed.ok() ? file : committed;
  }

  TestServer server_;
  TempFolder folder_;
  absl::Duration idle_timeout_ = absl::Seconds(60);
};

TEST_F(ClientTest, SaysThatNoServerAnswers) {
  Client::Options options;
  options.target = "127.0.0.1:1";  // nothing listens there
  options.connect_timeout = absl::Milliseconds(50);
  absl::Status status = Client::Connect(options).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1:1"));
  options.target = "";
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Connect(options).status()));
}

TEST(UuidTest, IsOfVersion4AndDiffers) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    std::string uuid = NewUuid();
    EXPECT_THAT(uuid, testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
    EXPECT_TRUE(seen.insert(uuid).second);
  }
}

TEST_F(ClientTest, UnaryCallsSurviveAServerThatIsAwayTwice) {
  server_.state().unavailable["CreateWorkspace"] = 2;
  auto workspace = Connect()->CreateWorkspace("mine");
  ASSERT_TRUE(workspace.ok()) << workspace.status();
  EXPECT_EQ(workspace->name(), "workspaces/mine");
  EXPECT_EQ(server_.state().calls["CreateWorkspace"], 3);
}

TEST_F(ClientTest, OnlyUnavailableIsTriedAgain) {
  auto client = Connect();
  ASSERT_TRUE(client->CreateWorkspace("mine").ok());
  absl::Status status = client->CreateWorkspace("mine").status();
  EXPECT_TRUE(absl::IsAlreadyExists(status));
  EXPECT_EQ(DetailsOf(status).reason, "WORKSPACE_EXISTS");
  EXPECT_EQ(server_.state().calls["CreateWorkspace"], 2);
}

TEST_F(ClientTest, ListsAllPages) {
  auto client = Connect();
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    ASSERT_TRUE(client->CreateWorkspace(id).ok());
  }
  auto all = client->ListWorkspaces();
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 5);
  EXPECT_EQ(all->back().name(), "workspaces/e");
}

TEST_F(ClientTest, UploadsOfEverySizeArrive) {
  auto client = Connect();
  for (size_t size : {0, 1, 999, 1000, 1001, 5000}) {
    std::string bytes = RandomBytes(size, static_cast<unsigned>(size));
    std::string name = "workspaces/w/files/" + std::to_string(size);
    auto upload = client->Upload(WriteFile(folder_ / "f", bytes), name, {});
    ASSERT_TRUE(upload.ok()) << upload.status();
    EXPECT_EQ(server_.state().files[name], bytes);
  }
}

TEST_F(ClientTest, UploadSurvivesBreaksAtAnyByte) {
  std::mt19937 random(7);
  auto client = Connect();
  for (unsigned round = 0; round < 20; ++round) {
    std::string bytes = RandomBytes(1 + random() % 20000, round);
    for (int i = 0; i < 5; ++i) {
      server_.state().break_upload_after.push_back(1 + random() % bytes.size());
    }
    server_.state().bytes_received = 0;
    uint64_t last = 0;
    TransferOptions options{.progress = [&](uint64_t done, uint64_t total) {
      last = done;
      EXPECT_EQ(total, bytes.size());
    }};
    auto upload = client->Upload(WriteFile(folder_ / "f", bytes), kName, options);
    ASSERT_TRUE(upload.ok()) << upload.status();
    EXPECT_EQ(server_.state().files[kName], bytes);
    EXPECT_EQ(server_.state().bytes_received, bytes.size());  // nothing was sent and kept twice
    EXPECT_EQ(last, bytes.size());
    server_.state().break_upload_after.clear();
  }
}

TEST_F(ClientTest, UploadGivesUpWithoutProgress) {
  server_.state().unavailable["UploadBytes"] = 1000;
  absl::Status status = Connect()->Upload(WriteFile(folder_ / "f", "bytes"), kName, {}).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(server_.state().calls["UploadBytes"], 4);
}

TEST_F(ClientTest, AnotherProcessGoesOnWithAnUpload) {
  std::string bytes = RandomBytes(10000, 1);
  std::string path = WriteFile(folder_ / "f", bytes);
  {
    std::stop_source stop;
    server_.state().break_upload_after = {6789};
    TransferOptions options{.progress = [&](uint64_t done, uint64_t) { done > 5000 && stop.request_stop(); },
                            .stop = stop.get_token()};
    EXPECT_TRUE(absl::IsCancelled(Connect()->Upload(path, kName, options).status()));
  }
  server_.state().break_upload_after.clear();
  const uint64_t held = server_.state().bytes_received;
  ASSERT_LT(held, bytes.size());
  auto upload = Connect()->Upload(path, kName, {});
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_EQ(server_.state().files[kName], bytes);
  EXPECT_EQ(server_.state().bytes_received, bytes.size());
}

TEST_F(ClientTest, TwoProcessesUploadTheSameFile) {
  std::string bytes = RandomBytes(200000, 3);
  std::string path = WriteFile(folder_ / "f", bytes);
  auto first = Connect();
  auto second = Connect();
  absl::Status other;
  std::thread thread([&] { other = second->Upload(path, kName, {}).status(); });
  absl::Status status = first->Upload(path, kName, {}).status();
  thread.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(other.ok()) << other;
  EXPECT_EQ(server_.state().files[kName], bytes);
}

TEST_F(ClientTest, BytesThatTheServerHasAreNotSent) {
  server_.AddFile("workspaces/other/files/x", "the same");
  auto upload = Connect()->Upload(WriteFile(folder_ / "f", "the same"), kName, {});
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_EQ(server_.state().calls["UploadBytes"], 0);
  EXPECT_EQ(server_.state().files[kName], "the same");
}

TEST_F(ClientTest, AFileThatChangesWhileItIsSentIsNoticed) {
  std::string path = WriteFile(folder_ / "f", RandomBytes(5000, 1));
  TransferOptions options{.progress = [&](uint64_t done, uint64_t) {
    if (done == 1000) {
      WriteFile(path, RandomBytes(5000, 2));
    }
  }};
  EXPECT_EQ(DetailsOf(Connect()->Upload(path, kName, options).status()).reason, "DIGEST_MISMATCH");
  options.progress = [&](uint64_t done, uint64_t) {
    if (done == 1000) {
      std::filesystem::resize_file(path, 1500);
    }
  };
  EXPECT_EQ(DetailsOf(Connect()->Upload(path, kName, options).status()).reason, "FILE_CHANGED");
}

TEST_F(ClientTest, DownloadSurvivesBreaksAtAnyByte) {
  std::mt19937 random(9);
  auto client = Connect();
  for (unsigned round = 0; round < 20; ++round) {
    std::string bytes = RandomBytes(random() % 20000, round);
    server_.AddFile(kName, bytes);
    for (int i = 0; i < 5; ++i) {
      server_.state().break_download_after.push_back(1 + random() % (bytes.size() + 1));
    }
    auto file = Download(*client, folder_ / "out");
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(ReadFile(folder_ / "out"), bytes);
    server_.state().break_download_after.clear();
  }
}

TEST_F(ClientTest, DownloadNeverMixesTwoContents) {
  server_.AddFile(kName, RandomBytes(5000, 1));
  server_.state().break_download_after = {1234};
  server_.state().replace_on_break = true;
  EXPECT_EQ(DetailsOf(Download(*Connect(), folder_ / "out").status()).reason, "FILE_CHANGED");
  EXPECT_EQ(FilesIn(folder_.path()), 0);
}

TEST_F(ClientTest, DownloadNoticesWrongBytes) {
  server_.AddFile(kName, RandomBytes(5000, 1));
  server_.state().corrupt_download = true;
  absl::Status status = Download(*Connect(), folder_ / "out").status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_EQ(DetailsOf(status).reason, "DIGEST_MISMATCH");
  EXPECT_EQ(FilesIn(folder_.path()), 0);
}

TEST_F(ClientTest, AStreamThatStallsIsTakenUpAgain) {
  idle_timeout_ = absl::Milliseconds(50);
  server_.AddFile(kName, "bytes");
  server_.state().stall_download = true;
  auto file = Download(*Connect(), folder_ / "out");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(ReadFile(folder_ / "out"), "bytes");
  EXPECT_EQ(server_.state().calls["DownloadFile"], 2);
}

TEST_F(ClientTest, InterruptingEndsAStalledStream) {
  server_.AddFile(kName, "bytes");
  server_.state().stall_download = true;
  std::stop_source stop;
  absl::Status status;
  std::thread thread([&] { status = Download(*Connect(), folder_ / "out", {.stop = stop.get_token()}).status(); });
  stop.request_stop();
  thread.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

TEST_F(ClientTest, WaitsForAnOperationAndShowsItsSteps) {
  server_.AddFile("workspaces/w/files/m", "model");
  auto client = Connect();
  v1::SaveModelRequest request;
  request.set_workspace("workspaces/w");
  request.set_modified_onnx_file("m");
  request.set_save_path("results/");
  server_.state().unavailable["SaveModel"] = 2;
  auto operation = client->SaveModel(request);
  ASSERT_TRUE(operation.ok()) << operation.status();
  EXPECT_FALSE(server_.state().save_requests[0].options().request_id().empty());
  server_.state().unavailable["WaitOperation"] = 2;
  std::vector<int> states;
  WaitOptions options{.progress = [&](const Operation& seen) { states.push_back(MetadataOf(seen).state()); }};
  operation = client->WaitOperation(operation->name(), options);
  ASSERT_TRUE(operation.ok()) << operation.status();
  EXPECT_THAT(states, ElementsAre(v1::OperationMetadata::RUNNING, v1::OperationMetadata::SUCCEEDED));
  auto response = ResponseOf<v1::SaveModelResponse>(*operation);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->deploy_model().name(), "workspaces/w/files/results/deploy_model.onnx");
  EXPECT_TRUE(absl::IsInternal(ResponseOf<v1::SavePruneRetrainModelResponse>(*operation).status()));
  EXPECT_TRUE(client->GetOperation(operation->name()).ok());
  EXPECT_EQ(client->ListOperations("")->size(), 1);
  EXPECT_TRUE(client->DeleteOperation(operation->name()).ok());
  EXPECT_EQ(DetailsOf(client->GetOperation(operation->name()).status()).reason, "OPERATION_NOT_FOUND");
}

TEST_F(ClientTest, WaitingEndsAtItsTimeout) {
  server_.AddFile("workspaces/w/files/m", "model");
  server_.state().operation_hangs = true;
  auto client = Connect();
  v1::SavePruneRetrainModelRequest request;
  request.set_workspace("workspaces/w");
  request.set_model("m");
  auto operation = client->SavePruneRetrainModel(request);
  ASSERT_TRUE(operation.ok()) << operation.status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->WaitOperation(operation->name(), {.timeout = absl::Milliseconds(20)}).status()));
  std::stop_source stop;
  stop.request_stop();
  EXPECT_TRUE(absl::IsCancelled(client->WaitOperation(operation->name(), {.stop = stop.get_token()}).status()));
}

}  // namespace
}  // namespace modelpress::client
