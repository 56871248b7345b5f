#include "client/cpp/local_calls.h"

#include <sys/stat.h>

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "onnx/onnx_pb.h"
#include "tests/client/cpp/test_server.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A model whose weights lie in the files `locations`.
std::string ModelBytes(const std::vector<std::string>& locations) {
  onnx::ModelProto model;
  model.set_ir_version(8);
  for (const std::string& location : locations) {
    onnx::TensorProto* tensor = model.mutable_graph()->add_initializer();
    tensor->set_data_location(onnx::TensorProto::EXTERNAL);
    auto* entry = tensor->add_external_data();
    entry->set_key("location");
    entry->set_value(location);
  }
  return model.SerializeAsString();
}

class LocalCallsTest : public testing::Test {
 protected:
  LocalCallsTest() {
    Client::Options options;
    options.target = server_.target();
    options.poll_interval = absl::Milliseconds(2);
    options.retry = {.max_attempts = 4, .initial_backoff = absl::Milliseconds(1), .max_backoff = absl::Milliseconds(2)};
    auto client = Client::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = std::move(*client);
    model_ = WriteFile(folder_ / "in/m.onnx", ModelBytes({"w.bin", "sub/x.bin"}));
    WriteFile(folder_ / "in/w.bin", "weights");
    WriteFile(folder_ / "in/sub/x.bin", "more weights");
    record_ = WriteFile(folder_ / "r.txt", "record {}");
    save_path_ = folder_ / "new/out/x";
  }

  absl::StatusOr<LocalCallResult> Save(const LocalCallOptions& options = {}) {
    return SaveModelOnLocalPaths(*client_, model_, record_, save_path_, options);
  }

  void ExpectNothingLeft() {
    EXPECT_THAT(server_.state().workspaces, IsEmpty());
    EXPECT_EQ(FilesIn(folder_ / "new/out"), 0);
  }

  TestServer server_;
  TempFolder folder_;
  std::unique_ptr<Client> client_;
  std::string model_;
  std::string record_;
  std::string save_path_;
};

TEST_F(LocalCallsTest, SaveModelWritesItsFilesAndCleansUp) {
  std::vector<std::string> steps;
  LocalCallOptions options;
  options.call.set_reference_defects(true);
  options.progress = [&](const CallProgress& progress) {
    std::string step = std::to_string(static_cast<int>(progress.phase)) + " " + progress.item;
    if (steps.empty() || steps.back() != step) {
      steps.push_back(step);
    }
  };
  auto result = Save(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files,
              ElementsAre(save_path_ + "_deploy_model.onnx", save_path_ + "_fake_quant_model.onnx", save_path_ + "_report.json"));
  EXPECT_EQ(ReadFile(result->files[0]), "deploy " + ReadFile(model_));
  EXPECT_EQ(ReadFile(result->files[1]), "fake_quant " + ReadFile(model_));
  struct stat info{};
  ASSERT_EQ(stat(result->files[0].c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640);
  EXPECT_THAT(result->warnings, ElementsAre("layer 'fc' stays float"));
  EXPECT_THAT(steps, ElementsAre("0 m.onnx", "0 w.bin", "0 x.bin", "0 r.txt", "2 quantize", "3 x_deploy_model.onnx",
                                 "3 x_fake_quant_model.onnx", "3 x_report.json"));
  const v1::SaveModelRequest& request = server_.state().save_requests.at(0);
  EXPECT_EQ(request.modified_onnx_file(), "model/m.onnx");
  EXPECT_EQ(request.record_file(), "record/r.txt");
  EXPECT_EQ(request.save_path(), "results/x");
  EXPECT_TRUE(request.options().reference_defects());
  EXPECT_THAT(server_.state().workspaces, IsEmpty());
}

TEST_F(LocalCallsTest, KeepsANamedWorkspace) {
  LocalCallOptions options{.workspace = "kept"};
  save_path_ = folder_ / "out/";
  for (int i = 0; i < 2; ++i) {
    auto result = Save(options);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->workspace, "workspaces/kept");
    EXPECT_EQ(result->files[0], folder_ / "out/deploy_model.onnx");
  }
  EXPECT_EQ(server_.state().files["workspaces/kept/files/model/sub/x.bin"], "more weights");
  EXPECT_EQ(server_.state().files["workspaces/kept/files/model/w.bin"], "weights");
  EXPECT_EQ(server_.state().calls["DeleteWorkspace"], 0);
}

TEST_F(LocalCallsTest, ReturnsAtOnceWhenNotWaiting) {
  auto result = Save({.workspace = "kept", .wait = false});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->operation.done());
  EXPECT_THAT(result->files, IsEmpty());
  EXPECT_TRUE(absl::IsInvalidArgument(Save({.wait = false}).status()));  // its results would vanish
}

TEST_F(LocalCallsTest, SavePruneRetrainModelTakesNoRecord) {
  auto result = SavePruneRetrainModelOnLocalPaths(*client_, model_, save_path_, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->files.size(), 3);
  EXPECT_THAT(server_.state().workspaces, IsEmpty());
}

TEST_F(LocalCallsTest, ValidateOnlyWritesNothing) {
  LocalCallOptions options;
  options.call.set_validate_only(true);
  auto result = Save(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(folder_ / "new"));
  ExpectNothingLeft();
}

TEST_F(LocalCallsTest, AFailedOperationNamesTheLocalFile) {
  server_.state().operation_error =
      TestServer::Error(v1::RECORD_VALUE, 3, "record/r.txt:3:5: layer 'fc': scale_d must be positive",
                        {{"file", "record/r.txt"}, {"line", "3"}, {"column", "5"}, {"layer", "fc"}});
  absl::Status status = Save().status();
  EXPECT_EQ(status.message(), record_ + ":3:5: layer 'fc': scale_d must be positive");
  EXPECT_EQ(DetailsOf(status).file, record_);
  EXPECT_EQ(DetailsOf(status).line, 3);
  ExpectNothingLeft();
}

TEST_F(LocalCallsTest, ABrokenDownloadLeavesNoFile) {
  server_.state().corrupt_download = true;
  EXPECT_EQ(DetailsOf(Save().status()).reason, "DIGEST_MISMATCH");
  ExpectNothingLeft();
}

TEST_F(LocalCallsTest, InterruptingCancelsTheOperation) {
  server_.state().operation_hangs = true;
  std::stop_source stop;
  LocalCallOptions options{.stop = stop.get_token()};
  options.progress = [&](const CallProgress& progress) {
    if (progress.phase == CallProgress::Phase::kRun) {
      stop.request_stop();
    }
  };
  absl::Status status = Save(options).status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(server_.state().calls["CancelOperation"], 1);
  ExpectNothingLeft();
}

TEST_F(LocalCallsTest, AWorkspaceThatStaysBehindIsNamed) {
  server_.state().unavailable["DeleteWorkspace"] = 1000;
  auto result = Save();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->warnings, testing::Contains(HasSubstr("workspaces/w1 is left on the server")));
}

TEST_F(LocalCallsTest, AServerCannotChooseOtherPaths) {
  for (const char* name :
       {"workspaces/w1/files/results/../../evil", "workspaces/w1/files/other", "/etc/evil", "workspaces/w1/files/results/.."}) {
    server_.state().extra_output = name;
    server_.state().workspaces.clear();
    absl::Status status = Save({.workspace = "w1"}).status();
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    EXPECT_EQ(FilesIn(folder_ / "new/out"), 0);
  }
}

TEST_F(LocalCallsTest, WrongInputIsFoundBeforeAnythingIsSent) {
  auto reason = [&](const std::string& model, const std::string& record, const std::string& save_path) {
    return DetailsOf(SaveModelOnLocalPaths(*client_, model, record, save_path, {}).status()).reason;
  };
  EXPECT_EQ(reason(folder_ / "missing.onnx", record_, save_path_), "FILE_NOT_FOUND");
  EXPECT_EQ(reason(model_, folder_ / "missing.txt", save_path_), "FILE_NOT_FOUND");
  EXPECT_EQ(reason("", record_, save_path_), "NAME_INVALID");
  EXPECT_EQ(reason(model_, (folder_ / "in") + "/", save_path_), "NAME_INVALID");
  EXPECT_EQ(reason(model_, folder_ / "in", save_path_), "NAME_INVALID");
  EXPECT_EQ(reason(model_, record_, folder_ / std::string(234, 'x')), "NAME_INVALID");
  EXPECT_EQ(reason(model_, record_, record_ + "/x"), kLocalIoReason);  // a file in the way
  EXPECT_EQ(reason(WriteFile(folder_ / "bad.onnx", "no model"), record_, save_path_), "MODEL_UNREADABLE");
  EXPECT_EQ(reason(WriteFile(folder_ / "evil.onnx", ModelBytes({"../r.txt"})), record_, save_path_), "MODEL_EXTERNAL_DATA");
  std::filesystem::remove(folder_ / "in/w.bin");
  absl::Status status = Save().status();
  EXPECT_EQ(DetailsOf(status).reason, "FILE_NOT_FOUND");
  EXPECT_THAT(std::string(status.message()), HasSubstr("external data of " + model_));
  EXPECT_EQ(server_.state().calls["CreateWorkspace"], 0);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "new"));
}

}  // namespace
}  // namespace modelpress::client
