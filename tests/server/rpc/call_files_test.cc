#include "server/rpc/call_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "engine/base/status.h"

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
