#include "server/rpc/call_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace modelpress::server {
namespace {

using testing::HasSubstr;
using testing::UnorderedElementsAre;

std::string FieldOf(const absl::Status& status) { return PlaceOf(status).field; }

v1::QuantizeModelRequest OneShot() {
  v1::QuantizeModelRequest request;
  request.set_workspace("workspaces/w");
  request.set_model("model/m.onnx");
  request.mutable_calibration_data()->set_path("data");
  request.set_save_path("out/m");
  return request;
}

std::set<std::string> OutputPaths(const CallFiles& files) {
  std::set<std::string> paths;
  for (const Output& output : files.outputs) {
    paths.insert(output.path);
  }
  return paths;
}

TEST(CallFilesTest, OneCallFromModelToResultsNamesItsFiles) {
  v1::QuantizeModelRequest request = OneShot();
  const absl::StatusOr<CallFiles> files = FilesOf(request);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(request.modified_onnx_file(), "out/m_modified_model.onnx");
  EXPECT_EQ(request.record_file(), "out/m_record.txt");
  EXPECT_THAT(OutputPaths(*files), UnorderedElementsAre("out/m_config.json", "out/m_modified_model.onnx", "out/m_record.txt",
                                                        "out/m_deploy_model.onnx", "out/m_fake_quant_model.onnx",
                                                        "out/m_report.json", "out/m_report.html"));
  EXPECT_TRUE(CheckFiles(*files).ok());

  request = OneShot();
  request.set_save_path("out/");
  request.set_config_file("c.json");
  request.set_modified_onnx_file("mine.onnx");
  request.set_record_file("mine.txt");
  EXPECT_THAT(OutputPaths(*FilesOf(request)),
              UnorderedElementsAre("mine.onnx", "mine.txt", "out/deploy_model.onnx", "out/fake_quant_model.onnx",
                                   "out/report.json", "out/report.html"));
}

TEST(CallFilesTest, FieldsThatDoNotGoTogether) {
  auto field_at_fault = [](const std::function<void(v1::QuantizeModelRequest&)>& change) {
    v1::QuantizeModelRequest request = OneShot();
    change(request);
    const absl::Status status = FilesOf(request).status();
    EXPECT_EQ(ReasonOf(status), v1::REQUEST_INVALID);
    return FieldOf(status);
  };
  EXPECT_EQ(field_at_fault([](auto& request) { request.clear_calibration_data(); }), "calibration_data");
  EXPECT_EQ(field_at_fault([](auto& request) { request.clear_save_path(); }), "config_file");
  for (const auto& change : std::vector<std::function<void(v1::QuantizeModelRequest&)>>{
           [](auto& request) { request.add_skip_layers("conv1"); }, [](auto& request) { request.set_batch_num(2); },
           [](auto& request) { request.set_activation_offset(true); },
           [](auto& request) { request.set_config_definition("c.cfg"); }}) {
    EXPECT_EQ(field_at_fault([&change](auto& request) {
                request.set_config_file("c.json");
                change(request);
              }),
              "config_file");
  }
  v1::CreateQuantConfigRequest config;
  config.add_kv_cache_layers("attention.k");
  EXPECT_EQ(FieldOf(FilesOf(config).status()), "kv_cache_layers");
  v1::CalibrateRequest calibrate;
  EXPECT_EQ(FieldOf(FilesOf(calibrate).status()), "modified_onnx_file");
  calibrate.set_model("m.onnx");
  EXPECT_TRUE(FilesOf(calibrate).ok());
}

std::set<std::string> InputPaths(const CallFiles& files) {
  std::set<std::string> paths;
  for (const Input& input : files.inputs) {
    paths.insert(input.path);
  }
  return paths;
}

// Every field of a call of retraining that is a path; its value is its name.
template <typename Request>
Request WithAllPaths() {
  Request request;
  for (int i = 0; i < Request::descriptor()->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = Request::descriptor()->field(i);
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING && !field->is_repeated()) {
      request.GetReflection()->SetString(&request, field, field->name());
    }
  }
  request.set_workspace("workspaces/w");
  return request;
}

template <typename Request>
CallFiles FilesOfAll() {
  auto request = WithAllPaths<Request>();
  const absl::StatusOr<CallFiles> files = FilesOf(request);
  EXPECT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(CheckFiles(*files).ok()) << CheckFiles(*files);
  return *files;
}

template <typename Request>
void ExpectCreatesPruned() {
  const CallFiles files = FilesOfAll<Request>();
  EXPECT_THAT(InputPaths(files), UnorderedElementsAre("model", "config_definition", "module_manifest"));
  EXPECT_THAT(OutputPaths(files), UnorderedElementsAre("record_file", "save_path_rewrite_plan.json", "save_path_report.json",
                                                       "save_path_pruned_model.onnx"));
  auto request = WithAllPaths<Request>();
  request.set_plan_only(true);
  request.clear_module_manifest();
  request.clear_save_path();
  EXPECT_THAT(InputPaths(*FilesOf(request)), UnorderedElementsAre("model", "config_definition"));
  EXPECT_THAT(OutputPaths(*FilesOf(request)), UnorderedElementsAre("record_file", "rewrite_plan.json", "report.json"));
  request.clear_config_definition();
  EXPECT_EQ(FieldOf(CheckFiles(*FilesOf(request))), "config_definition");
}

template <typename Request>
void ExpectRestoresPruned() {
  const CallFiles files = FilesOfAll<Request>();
  EXPECT_THAT(InputPaths(files), UnorderedElementsAre("model", "config_definition", "module_manifest", "record_file", "weights"));
  EXPECT_THAT(OutputPaths(files),
              UnorderedElementsAre("save_path_rewrite_plan.json", "save_path_report.json", "save_path_pruned_model.onnx"));
  auto request = WithAllPaths<Request>();
  request.clear_weights();
  EXPECT_EQ(ReasonOf(FilesOf(request).status()), v1::REQUEST_INVALID);
  EXPECT_EQ(FieldOf(FilesOf(request).status()), "state_dict_name");
  request.clear_state_dict_name();
  EXPECT_FALSE(InputPaths(*FilesOf(request)).contains("weights"));
}

TEST(CallFilesTest, CallsThatPrune) {
  ExpectCreatesPruned<v1::CreatePruneRetrainModelRequest>();
  ExpectCreatesPruned<v1::CreateCompressedRetrainModelRequest>();
  ExpectRestoresPruned<v1::RestorePruneRetrainModelRequest>();
  ExpectRestoresPruned<v1::RestoreCompressedRetrainModelRequest>();
  const CallFiles search = FilesOfAll<v1::AutoChannelPruneSearchRequest>();
  EXPECT_THAT(InputPaths(search),
              UnorderedElementsAre("model", "config", "sensitivities", "module_manifest", "override_prune_cfg"));
  EXPECT_THAT(OutputPaths(search), UnorderedElementsAre("output_cfg"));
  EXPECT_THAT(InputPaths(FilesOfAll<v1::SavePruneRetrainModelRequest>()), UnorderedElementsAre("model", "record_file"));
}

TEST(CallFilesTest, CallsOfQuantizationAwareTraining) {
  const CallFiles config = FilesOfAll<v1::CreateQuantRetrainConfigRequest>();
  EXPECT_THAT(InputPaths(config), UnorderedElementsAre("model", "config_definition", "module_manifest"));
  EXPECT_THAT(OutputPaths(config), UnorderedElementsAre("config_file"));

  const CallFiles create = FilesOfAll<v1::CreateQuantRetrainModelRequest>();
  EXPECT_THAT(InputPaths(create), UnorderedElementsAre("model", "config_file", "module_manifest"));
  EXPECT_THAT(OutputPaths(create), UnorderedElementsAre("record_file", "save_path_rewrite_plan.json", "save_path_report.json"));
  const CallFiles restore = FilesOfAll<v1::RestoreQuantRetrainModelRequest>();
  EXPECT_THAT(InputPaths(restore), UnorderedElementsAre("model", "config_file", "module_manifest", "weights"));
  EXPECT_EQ(OutputPaths(restore), OutputPaths(create));

  const CallFiles save = FilesOfAll<v1::SaveQuantRetrainModelRequest>();
  EXPECT_THAT(InputPaths(save), UnorderedElementsAre("model", "config_file", "module_manifest", "record_file", "rewrite_plan"));
  EXPECT_THAT(OutputPaths(save),
              UnorderedElementsAre("save_path_deploy_model.onnx", "save_path_fake_quant_model.onnx", "save_path_report.json"));
  const CallFiles compressed = FilesOfAll<v1::SaveCompressedRetrainModelRequest>();
  EXPECT_THAT(InputPaths(compressed), UnorderedElementsAre("model", "module_manifest", "record_file"));
  EXPECT_EQ(OutputPaths(compressed), OutputPaths(save));
}

TEST(CallFilesTest, OutputsDoNotCollide) {
  const CallFiles twice{.inputs = {}, .outputs = {{"a/m.onnx", "modified_onnx_file"}, {"a/m.onnx", "record_file"}}};
  EXPECT_EQ(ReasonOf(CheckFiles(twice)), v1::REQUEST_INVALID);
  EXPECT_EQ(FieldOf(CheckFiles(twice)), "record_file");
  EXPECT_THAT(CheckFiles(twice).message(), HasSubstr("modified_onnx_file"));
  for (const CallFiles& nested :
       {CallFiles{.inputs = {}, .outputs = {{"a", "modified_onnx_file"}, {"a-b", "x"}, {"a/b/r.txt", "record_file"}}},
        CallFiles{.inputs = {}, .outputs = {{"a/b/r.txt", "record_file"}, {"a/b", "modified_onnx_file"}}}}) {
    EXPECT_EQ(ReasonOf(CheckFiles(nested)), v1::REQUEST_INVALID);
    EXPECT_EQ(FieldOf(CheckFiles(nested)), "record_file");
  }
  const CallFiles replaces{.inputs = {{"r.txt", "record_file"}},
                           .outputs = {{"r.txt", "record_file"}, {"r.txt.onnx", "save_path"}}};
  EXPECT_TRUE(CheckFiles(replaces).ok());
  EXPECT_EQ(ReasonOf(CheckFiles({.inputs = {}, .outputs = {{"../r.txt", "record_file"}}})), v1::NAME_INVALID);
  EXPECT_EQ(FieldOf(CheckFiles({.inputs = {}, .outputs = {{"", "record_file"}}})), "record_file");
}

}  // namespace
}  // namespace modelpress::server
