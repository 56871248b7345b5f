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

  static v1::SaveModelRequest SaveRequest(const std::string& model, const std::string& record, const std::string& save_path) {
    v1::SaveModelRequest request;
    request.set_modified_onnx_file(model);
    request.set_record_file(record);
    request.set_save_path(save_path);
    return request;
  }

  absl::StatusOr<LocalCallResult> Save(const LocalCallOptions& options = {}) {
    return SaveModelOnLocalPaths(*client_, SaveRequest(model_, record_, save_path_), options);
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

TEST_F(LocalCallsTest, SavePruneRetrainModelNeedsNoRecord) {
  v1::SavePruneRetrainModelRequest request;
  request.set_model(model_);
  request.set_save_path(save_path_);
  auto result = SavePruneRetrainModelOnLocalPaths(*client_, request, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->files.size(), 3);
  request.set_record_file(record_);
  ASSERT_TRUE(SavePruneRetrainModelOnLocalPaths(*client_, request, {}).ok());
  ASSERT_TRUE(server_.state().retrain_request.UnpackTo(&request));
  EXPECT_EQ(request.record_file(), "record/r.txt");
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
    return DetailsOf(SaveModelOnLocalPaths(*client_, SaveRequest(model, record, save_path), {}).status()).reason;
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

// The steps of post-training quantization, each with files in a folder of its own.
class PostTrainingTest : public LocalCallsTest {
 protected:
  PostTrainingTest() {
    config_ = WriteFile(folder_ / "config/c.json", "{}");
    data_ = WriteFile(folder_ / "data/x.npz", "x");
  }

  v1::QuantizeModelRequest QuantizeRequest() const {
    v1::QuantizeModelRequest request;
    request.set_model(model_);
    request.set_config_file(config_);
    request.set_modified_onnx_file(folder_ / "a/modified.onnx");
    request.set_record_file(folder_ / "b/record.txt");
    return request;
  }
  v1::CalibrateRequest CalibrateRequest(const std::string& data) const {
    v1::CalibrateRequest request;
    request.set_modified_onnx_file(model_);
    request.set_record_file(record_);
    request.set_config_file(config_);
    request.mutable_calibration_data()->set_path(data);
    return request;
  }
  std::string ReasonOf(const absl::StatusOr<LocalCallResult>& result) const { return DetailsOf(result.status()).reason; }
  // Paths in the workspace that begin with `prefix`.
  std::vector<std::string> Sent(const std::string& prefix) {
    std::vector<std::string> paths;
    for (const auto& [name, content] : server_.state().files) {
      const std::string path = name.substr(name.find("/files/") + 7);
      if (path.starts_with(prefix)) {
        paths.push_back(path);
      }
    }
    return paths;
  }

  std::string config_;
  std::string data_;
};

TEST_F(PostTrainingTest, CreateQuantConfig) {
  v1::CreateQuantConfigRequest request;
  request.set_model(model_);
  request.set_config_file(folder_ / "new/c.json");
  request.set_config_definition(WriteFile(folder_ / "simple.cfg", "batch_num: 1"));
  request.set_module_manifest(WriteFile(folder_ / "modules.json", "{}"));
  auto result = CreateQuantConfigOnLocalPaths(*client_, request, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, ElementsAre(folder_ / "new/c.json"));
  EXPECT_EQ(ReadFile(folder_ / "new/c.json"), "config of " + ReadFile(model_));
  EXPECT_EQ(server_.state().config_request.config_definition(), "config_definition/simple.cfg");
  EXPECT_EQ(server_.state().config_request.module_manifest(), "manifest/modules.json");
  EXPECT_EQ(server_.state().config_request.config_file(), "config/c.json");
}

TEST_F(PostTrainingTest, QuantizePreprocess) {
  v1::QuantizePreprocessRequest request;
  request.set_model(model_);
  request.set_config_file(config_);
  request.set_record_file(folder_ / "new/r.txt");
  request.mutable_calibration_data()->set_path(data_);
  request.mutable_calibration_data()->set_batch_size(3);
  auto result = QuantizePreprocessOnLocalPaths(*client_, request, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(ReadFile(folder_ / "new/r.txt"), "balance of " + ReadFile(model_));
  EXPECT_EQ(server_.state().preprocess_request.calibration_data().path(), "calibration_data/x.npz");
  EXPECT_EQ(server_.state().preprocess_request.calibration_data().batch_size(), 3);
}

TEST_F(PostTrainingTest, ResultsOfQuantizeModelGoToTheirOwnPlaces) {
  auto result = QuantizeModelOnLocalPaths(*client_, QuantizeRequest(), {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, ElementsAre(folder_ / "a/modified.onnx", folder_ / "b/record.txt", folder_ / "a/w.external"));
  EXPECT_EQ(ReadFile(folder_ / "b/record.txt"), "weights + nothing");
  EXPECT_FALSE(server_.state().quantize_request.has_calibration_data());
  // The next time the record file is there, and is sent along.
  ASSERT_TRUE(QuantizeModelOnLocalPaths(*client_, QuantizeRequest(), {}).ok());
  EXPECT_EQ(ReadFile(folder_ / "b/record.txt"), "weights + weights + nothing");
  EXPECT_THAT(server_.state().workspaces, IsEmpty());
}

TEST_F(PostTrainingTest, OneCallWritesAll) {
  v1::QuantizeModelRequest request;
  request.set_model(model_);
  request.mutable_calibration_data()->set_path(data_);
  request.mutable_sample_data()->set_path(data_);
  request.set_save_path(save_path_);
  auto result = QuantizeModelOnLocalPaths(*client_, request, {});
  ASSERT_TRUE(result.ok()) << result.status();
  std::vector<std::string> names = {"config.json", "modified_model.onnx", "record.txt", "deploy_model.onnx",
                                    "fake_quant_model.onnx"};
  std::vector<std::string> expected;
  expected.reserve(names.size() + 3);
  for (const std::string& name : names) {
    expected.push_back(save_path_ + "_" + name);
  }
  expected.push_back(folder_ / "new/out/w.external");
  expected.push_back(save_path_ + "_report.json");
  expected.push_back(save_path_ + "_report.html");
  EXPECT_EQ(result->files, expected);
  EXPECT_EQ(server_.state().quantize_request.sample_data().path(), "sample_data/x.npz");
}

TEST_F(PostTrainingTest, ResultsOfOneNameAreRefused) {
  v1::QuantizeModelRequest request = QuantizeRequest();
  request.set_record_file(request.modified_onnx_file());
  EXPECT_EQ(ReasonOf(QuantizeModelOnLocalPaths(*client_, request, {})), "REQUEST_INVALID");
  EXPECT_EQ(FilesIn(folder_ / "a"), 0);
}

TEST_F(PostTrainingTest, CalibrateReplacesTheRecord) {
  auto result = CalibrateOnLocalPaths(*client_, CalibrateRequest(data_), {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, ElementsAre(record_));
  EXPECT_EQ(ReadFile(record_), "activations + record {}");
  EXPECT_EQ(server_.state().calibrate_request.modified_onnx_file(), "modified/m.onnx");
  // A record behind a link is replaced where it is; the link stays.
  std::filesystem::create_symlink(record_, folder_ / "link.txt");
  v1::CalibrateRequest request = CalibrateRequest(data_);
  request.set_record_file(folder_ / "link.txt");
  ASSERT_TRUE(CalibrateOnLocalPaths(*client_, request, {}).ok());
  EXPECT_EQ(ReadFile(record_), "activations + activations + record {}");
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link.txt"));
  // Key-value caches have no modified model and may have no record yet.
  request.clear_modified_onnx_file();
  request.set_model(model_);
  request.set_record_file(folder_ / "kv.txt");
  ASSERT_TRUE(CalibrateOnLocalPaths(*client_, request, {}).ok());
  EXPECT_EQ(ReadFile(folder_ / "kv.txt"), "activations + nothing");
}

TEST_F(PostTrainingTest, AFolderOfDataIsSentAsItIsNow) {
  WriteFile(folder_ / "many/2.npy", "2");
  WriteFile(folder_ / "many/sub/1.npy", "1");
  WriteFile(folder_ / "many/.hidden", "no data");
  WriteFile(folder_ / "many/.git/x", "no data");
  const LocalCallOptions options{.workspace = "kept"};
  ASSERT_TRUE(CalibrateOnLocalPaths(*client_, CalibrateRequest(folder_ / "many"), options).ok());
  const std::string first = server_.state().calibrate_request.calibration_data().path();
  EXPECT_THAT(Sent("calibration_data"), ElementsAre(first + "/2.npy", first + "/sub/1.npy"));
  // What an earlier call left in the workspace is not taken for data of this one.
  std::filesystem::remove(folder_ / "many/2.npy");
  ASSERT_TRUE(CalibrateOnLocalPaths(*client_, CalibrateRequest((folder_ / "many") + "/"), options).ok());
  const std::string second = server_.state().calibrate_request.calibration_data().path();
  EXPECT_NE(first, second);
  EXPECT_THAT(Sent(second + "/"), ElementsAre(second + "/sub/1.npy"));
}

TEST_F(PostTrainingTest, ARecordThatIsGoneIsNotReadFromAKeptWorkspace) {
  const LocalCallOptions options{.workspace = "kept"};
  ASSERT_TRUE(QuantizeModelOnLocalPaths(*client_, QuantizeRequest(), options).ok());
  std::filesystem::remove(folder_ / "b/record.txt");
  ASSERT_TRUE(QuantizeModelOnLocalPaths(*client_, QuantizeRequest(), options).ok());
  EXPECT_EQ(ReadFile(folder_ / "b/record.txt"), "weights + nothing");
}

TEST_F(PostTrainingTest, WrongPathsAreFoundBeforeAnythingIsSent) {
  std::filesystem::create_directory(folder_ / "empty");
  EXPECT_EQ(ReasonOf(CalibrateOnLocalPaths(*client_, CalibrateRequest(folder_ / "empty"), {})), "DATA_TOO_SHORT");
  EXPECT_EQ(ReasonOf(CalibrateOnLocalPaths(*client_, CalibrateRequest(folder_ / "none.npz"), {})), "FILE_NOT_FOUND");
  EXPECT_EQ(ReasonOf(CalibrateOnLocalPaths(*client_, CalibrateRequest(""), {})), "NAME_INVALID");
  v1::CalibrateRequest calibrate = CalibrateRequest(data_);
  calibrate.set_record_file(folder_ / "none.txt");
  EXPECT_EQ(ReasonOf(CalibrateOnLocalPaths(*client_, calibrate, {})), "FILE_NOT_FOUND");
  v1::QuantizeModelRequest request = QuantizeRequest();
  request.clear_record_file();
  EXPECT_EQ(ReasonOf(QuantizeModelOnLocalPaths(*client_, request, {})), "NAME_INVALID");
  request = QuantizeRequest();
  request.set_modified_onnx_file(folder_ / "in");  // a folder
  EXPECT_EQ(ReasonOf(QuantizeModelOnLocalPaths(*client_, request, {})), "NAME_INVALID");
  request.set_modified_onnx_file(model_ + "/m.onnx");  // a file in the way
  EXPECT_EQ(ReasonOf(QuantizeModelOnLocalPaths(*client_, request, {})), kLocalIoReason);
  EXPECT_EQ(server_.state().calls["CreateWorkspace"], 0);
}

class RetrainTest : public PostTrainingTest {
 protected:
  RetrainTest() {
    cfg_ = WriteFile(folder_ / "prune.cfg", "prune_config {}");
    manifest_ = WriteFile(folder_ / "modules.json", "{}");
    weights_ = WriteFile(folder_ / "w.safetensors", "tensors");
    new_record_ = folder_ / "b/record.txt";
  }

  // What all of these calls take.
  template <typename Request>
  Request MakeRequest(const std::string& record) const {
    Request request;
    request.set_model(model_);
    request.set_module_manifest(manifest_);
    request.set_record_file(record);
    request.set_save_path(save_path_);
    return request;
  }

  template <typename Request>
  Request LastRequest() {
    Request request;
    EXPECT_TRUE(server_.state().retrain_request.UnpackTo(&request)) << server_.state().retrain_request.type_url();
    EXPECT_EQ(request.model(), "model/m.onnx");
    EXPECT_EQ(request.module_manifest(), "manifest/modules.json");
    return request;
  }

  template <typename Request>
  void ExpectCreatesPruned(absl::StatusOr<LocalCallResult> (*call)(Client&, Request, const LocalCallOptions&)) {
    auto request = MakeRequest<Request>(new_record_);
    request.set_config_definition(cfg_);
    request.mutable_prune_options()->set_extended(true);
    auto result = call(*client_, request, {});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->files, ElementsAre(new_record_, save_path_ + "_rewrite_plan.json", save_path_ + "_pruned_model.onnx",
                                           save_path_ + "_report.json"));
    EXPECT_EQ(ReadFile(new_record_), "record of " + ReadFile(model_));
    const auto sent = LastRequest<Request>();
    EXPECT_EQ(sent.config_definition(), "config_definition/prune.cfg");
    EXPECT_EQ(sent.record_file(), "record/record.txt");
    EXPECT_EQ(sent.save_path(), "results/x");
    EXPECT_TRUE(sent.prune_options().extended());
  }

  template <typename Request>
  void ExpectRestoresPruned(absl::StatusOr<LocalCallResult> (*call)(Client&, Request, const LocalCallOptions&)) {
    auto request = MakeRequest<Request>(record_);
    request.set_config_definition(cfg_);
    request.set_weights(weights_);
    request.set_state_dict_name("net");
    request.set_plan_only(true);
    auto result = call(*client_, request, {});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->files, ElementsAre(save_path_ + "_rewrite_plan.json", save_path_ + "_report.json"));
    EXPECT_EQ(ReadFile(record_), "record {}");
    const auto sent = LastRequest<Request>();
    EXPECT_EQ(sent.record_file(), "record/r.txt");
    EXPECT_EQ(sent.weights(), "weights/w.safetensors");
    EXPECT_EQ(sent.state_dict_name(), "net");
    request.set_record_file(folder_ / "none.txt");
    EXPECT_EQ(ReasonOf(call(*client_, request, {})), "FILE_NOT_FOUND");
  }

  std::string cfg_;
  std::string manifest_;
  std::string weights_;
  std::string new_record_;
};

TEST_F(RetrainTest, CreateAndRestorePruned) {
  ExpectCreatesPruned(CreatePruneRetrainModelOnLocalPaths);
  ExpectCreatesPruned(CreateCompressedRetrainModelOnLocalPaths);
  ExpectRestoresPruned(RestorePruneRetrainModelOnLocalPaths);
  ExpectRestoresPruned(RestoreCompressedRetrainModelOnLocalPaths);
}

TEST_F(RetrainTest, CreateAndRestoreQuantRetrainModelWriteTheRecord) {
  auto create = MakeRequest<v1::CreateQuantRetrainModelRequest>(new_record_);
  create.set_config_file(config_);
  auto result = CreateQuantRetrainModelOnLocalPaths(*client_, create, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, ElementsAre(new_record_, save_path_ + "_rewrite_plan.json", save_path_ + "_report.json"));
  EXPECT_EQ(LastRequest<v1::CreateQuantRetrainModelRequest>().config_file(), "config/c.json");

  auto restore = MakeRequest<v1::RestoreQuantRetrainModelRequest>(record_);
  restore.set_config_file(config_);
  restore.set_weights(weights_);
  result = RestoreQuantRetrainModelOnLocalPaths(*client_, restore, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(ReadFile(record_), "record of " + ReadFile(model_));
  EXPECT_EQ(LastRequest<v1::RestoreQuantRetrainModelRequest>().weights(), "weights/w.safetensors");
}

TEST_F(RetrainTest, ConfigurationAndSearch) {
  v1::CreateQuantRetrainConfigRequest config;
  config.set_model(model_);
  config.set_module_manifest(manifest_);
  config.set_config_definition(cfg_);
  config.set_config_file(folder_ / "new/c.json");
  auto result = CreateQuantRetrainConfigOnLocalPaths(*client_, config, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, ElementsAre(folder_ / "new/c.json"));
  EXPECT_EQ(LastRequest<v1::CreateQuantRetrainConfigRequest>().config_definition(), "config_definition/prune.cfg");

  v1::AutoChannelPruneSearchRequest search;
  search.set_model(model_);
  search.set_module_manifest(manifest_);
  search.set_config(cfg_);
  search.set_sensitivities(weights_);
  search.set_output_cfg(folder_ / "new/found.cfg");
  result = AutoChannelPruneSearchOnLocalPaths(*client_, search, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(ReadFile(folder_ / "new/found.cfg"), "ratios of " + ReadFile(model_));
  EXPECT_EQ(LastRequest<v1::AutoChannelPruneSearchRequest>().config(), "config/prune.cfg");
  EXPECT_EQ(LastRequest<v1::AutoChannelPruneSearchRequest>().sensitivities(), "sensitivities/w.safetensors");
  EXPECT_EQ(LastRequest<v1::AutoChannelPruneSearchRequest>().override_prune_cfg(), "");
  // A file that the configuration names goes along.
  search.set_config(WriteFile(folder_ / "search.cfg", "compress_ratio: 2 override_prune_cfg: '" + cfg_ + "'"));
  ASSERT_TRUE(AutoChannelPruneSearchOnLocalPaths(*client_, search, {}).ok());
  EXPECT_EQ(LastRequest<v1::AutoChannelPruneSearchRequest>().override_prune_cfg(), "override_prune_cfg/prune.cfg");
  std::filesystem::remove(cfg_);
  EXPECT_EQ(ReasonOf(AutoChannelPruneSearchOnLocalPaths(*client_, search, {})), "FILE_NOT_FOUND");
}

TEST_F(RetrainTest, SaveReadsTheRecord) {
  auto quant = MakeRequest<v1::SaveQuantRetrainModelRequest>(record_);
  quant.set_config_file(config_);
  quant.set_rewrite_plan(WriteFile(folder_ / "plan.json", "{}"));
  auto result = SaveQuantRetrainModelOnLocalPaths(*client_, quant, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files,
              ElementsAre(save_path_ + "_deploy_model.onnx", save_path_ + "_fake_quant_model.onnx", save_path_ + "_report.json"));
  EXPECT_EQ(LastRequest<v1::SaveQuantRetrainModelRequest>().rewrite_plan(), "rewrite_plan/plan.json");
  EXPECT_EQ(LastRequest<v1::SaveQuantRetrainModelRequest>().record_file(), "record/r.txt");

  result = SaveCompressedRetrainModelOnLocalPaths(*client_, MakeRequest<v1::SaveCompressedRetrainModelRequest>(record_), {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(LastRequest<v1::SaveCompressedRetrainModelRequest>().record_file(), "record/r.txt");
}

}  // namespace
}  // namespace modelpress::client
