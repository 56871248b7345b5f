// What the functions of retraining check and report, beyond the golden cases.
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/functions/create_quant_retrain_config.h"
#include "engine/functions/retrain_model.h"
#include "engine/functions/save_prune_retrain_model.h"
#include "engine/functions/save_retrain_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model_builder.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden";

class RetrainFunctionsTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& bytes) {
    paths_[name] = (inputs_.path() / name).string();
    std::ofstream(paths_[name], std::ios::binary) << bytes;
  }

  template <typename Function, typename Call>
  auto Run(Function function, const Call& call, bool validate_only = false) {
    const FileSet files(paths_);
    CallContext context;
    context.files = &files;
    context.output_root = output_.path().string();
    context.validate_only = validate_only;
    return function(context, call);
  }

  bool Exists(const std::string& name) const { return fs::exists(output_.path() / name); }
  json Report() const { return json::parse(ReadFile(output_.path() / "m_report.json")); }

  std::map<std::string, std::string> paths_;
  TemporaryFolder inputs_;
  TemporaryFolder output_;
};

// Two convolutions: conv1 (16 channels, half of them pruned) and conv2, on 8 x 8 pixels.
class TwoConvsTest : public RetrainFunctionsTest {
 protected:
  TwoConvsTest() {
    ModelBuilder builder(11);
    builder.Input("x", {1, 3, 8, 8}).Output("y", {1, 4, 8, 8});
    std::vector<float> weight(size_t{16} * 3);
    for (size_t i = 0; i < weight.size(); ++i) {
      weight[i] = static_cast<float>(i);
    }
    builder.Initializer("conv1.weight", {16, 3, 1, 1}, weight).Initializer("conv1.bias", {16}, std::vector<float>(16, 1.0F));
    builder.Initializer("conv2.weight", {4, 16, 1, 1}, std::vector<float>(64, 1.0F));
    builder.Node("Conv", "/conv1/Conv", {"x", "conv1.weight", "conv1.bias"}, {"a"});
    builder.Node("Relu", "/relu/Relu", {"a"}, {"b"});
    builder.Node("Conv", "/conv2/Conv", {"b", "conv2.weight"}, {"y"});
    Write("model.onnx", builder.proto().SerializeAsString());
    Write("prune.cfg",
          "prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.5 ascend_optimized: false } } }");
  }

  RetrainModelCall call_ = {
      .model = "model.onnx", .config_definition = "prune.cfg", .record_file = "r/record.txt", .save_path = "m"};
};

// Bytes that are no UTF-8 would end the process in the JSON printer.
TEST_F(RetrainFunctionsTest, NamesMayBeAnyBytes) {
  ModelBuilder builder(11);
  builder.Input("x", {1, 3, 8, 8}).Output("y", {1, 4, 8, 8});
  builder.Initializer("\xff.weight", {4, 3, 1, 1}, std::vector<float>(12, 1.0F));
  builder.Node("Conv", "\xff", {"x", "\xff.weight"}, {"y"});
  Write("model.onnx", builder.proto().SerializeAsString());
  const auto saved =
      Run([](const CallContext& context, const std::string& model) { return SavePruneRetrainModel(context, model, "m"); },
          std::string("model.onnx"));
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(Report()["function"], "save_prune_retrain_model");

  Write("prune.cfg", "prune_config { n_out_of_m_pruner { l1_selective_prune {} } }");
  const auto created =
      Run(CreatePruneRetrainModel, RetrainModelCall{.model = "model.onnx", .config_definition = "prune.cfg", .record_file = "r"});
  EXPECT_TRUE(created.ok() || ReasonOf(created.status()) != v1::REASON_UNSPECIFIED) << created.status();
}

TEST_F(TwoConvsTest, TheReportTellsWhatPruningGains) {
  const auto created = Run(CreatePruneRetrainModel, call_);
  ASSERT_TRUE(created.ok()) << created.status();
  const json report = Report();
  EXPECT_EQ(report["function"], "create_prune_retrain_model");
  EXPECT_EQ(report["sizes"]["parameters"], json::parse(R"({"before": 128, "after": 64})"));
  EXPECT_EQ(report["sizes"]["macs"], json::parse(R"({"before": 7168, "after": 3584})"));
  EXPECT_EQ(report["sizes"]["tensor_bytes"], json::parse(R"({"before": 512, "after": 256})"));
  ASSERT_EQ(report["layers"].size(), 2U);
  EXPECT_EQ(report["layers"][0]["channels"], json::parse(R"({"before": 16, "after": 8})"));
  EXPECT_EQ(report["layers"][0]["macs"], json::parse(R"({"before": 3072, "after": 1536})"));
  EXPECT_FALSE(report["layers"][0].contains("keeps_channels"));
  EXPECT_EQ(report["layers"][1]["input_channels"], json::parse(R"({"before": 16, "after": 8})"));
  EXPECT_THAT(report["layers"][1]["keeps_channels"].get<std::string>(), HasSubstr("output"));
  EXPECT_EQ(report["outputs"].size(), 3U);
}

TEST_F(TwoConvsTest, ThePlanAloneIsWrittenOnRequest) {
  call_.plan_only = true;
  const auto created = Run(CreatePruneRetrainModel, call_);
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->pruned_model.name, "");
  EXPECT_FALSE(Exists("m_pruned_model.onnx"));
  EXPECT_TRUE(Exists("m_rewrite_plan.json"));
}

TEST_F(TwoConvsTest, ValidateOnlyWritesNothing) {
  const auto created = Run(CreatePruneRetrainModel, call_, true);
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_TRUE(fs::is_empty(output_.path()));
  EXPECT_EQ(json::parse(created->report_json)["validate_only"], true);
  call_.config_definition = "no.cfg";
  const absl::Status status = Run(CreatePruneRetrainModel, call_, true).status();
  EXPECT_EQ(ReasonOf(status), v1::FILE_NOT_FOUND);
  EXPECT_EQ(PlaceOf(status).field, "config_definition");
}

TEST_F(TwoConvsTest, RestoringFromAnEmptyRecordFileWarns) {
  Write("empty.txt", "");
  call_.record_file = "empty.txt";
  const auto restored = Run(RestorePruneRetrainModel, call_);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_THAT(restored->warnings, testing::Contains(HasSubstr("nothing is cut")));
  EXPECT_EQ(restored->pruned_model.name, "");
}

// Nothing is cut where one record of the file cannot be.
TEST_F(TwoConvsTest, RestoringRefusesARecordFileOfAnotherModel) {
  ASSERT_TRUE(Run(CreatePruneRetrainModel, call_).ok());
  std::string record = ReadFile(output_.path() / "r" / "record.txt");
  Write("other.txt", record.replace(record.find("\"conv2\""), 7, "\"conv9\""));
  call_.record_file = "other.txt";
  const absl::Status status = Run(RestorePruneRetrainModel, call_).status();
  EXPECT_EQ(ReasonOf(status), v1::PRUNE_FAILED) << status;
  EXPECT_EQ(PlaceOf(status).field, "record_file");
  EXPECT_EQ(PlaceOf(status).layer, "conv9");
}

class TrainedModelTest : public RetrainFunctionsTest {
 protected:
  TrainedModelTest() {
    for (const auto& entry : fs::directory_iterator(kGolden / "qat" / "q01_share_bn")) {
      paths_[entry.path().filename().string()] = entry.path().string();
    }
  }
  const SaveRetrainModelCall save_ = {
      .config_file = "config.json", .model = "strip.onnx", .record_file = "record.txt", .save_path = "m"};
};

// qat.md D-15: the reference writes wrong files without a word.
TEST_F(TrainedModelTest, BatchNormsInTrainingModeAreRefused) {
  onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(ReadFile(paths_["strip.onnx"])));
  for (onnx::NodeProto& node : *model.mutable_graph()->mutable_node()) {
    if (node.op_type() == "BatchNormalization" && node.name().find("bn2") != std::string::npos) {
      node.add_output("mean");
      node.add_output("variance");
    }
  }
  Write("strip.onnx", model.SerializeAsString());
  const absl::Status status = Run(SaveQuantRetrainModel, save_).status();
  EXPECT_EQ(ReasonOf(status), v1::NODE_UNSUPPORTED) << status;
  EXPECT_EQ(PlaceOf(status).layer, "bn2");
  EXPECT_THAT(std::string(status.message()), HasSubstr("eval()"));
}

TEST_F(TrainedModelTest, AnEmptyRecordFileIsRefused) {
  Write("record.txt", "");
  EXPECT_EQ(ReasonOf(Run(SaveQuantRetrainModel, save_).status()), v1::RECORD_EMPTY);
  EXPECT_EQ(ReasonOf(Run(SaveCompressedRetrainModel, save_).status()), v1::RECORD_EMPTY);
  EXPECT_TRUE(fs::is_empty(output_.path()));
}

TEST_F(TrainedModelTest, SomethingElseThanARewritePlanIsRefused) {
  SaveRetrainModelCall call = save_;
  call.rewrite_plan = "config.json";
  const absl::Status status = Run(SaveQuantRetrainModel, call).status();
  EXPECT_EQ(ReasonOf(status), v1::REQUEST_INVALID);
  EXPECT_EQ(PlaceOf(status).field, "rewrite_plan");
}

// Only the functions that quantize take marks off.
TEST_F(TrainedModelTest, MarkedModelsAreNotSavedAsTheyAre) {
  auto save = [](const CallContext& context, const std::string& model) { return SavePruneRetrainModel(context, model, "m"); };
  EXPECT_EQ(ReasonOf(Run(save, std::string("strip.onnx")).status()), v1::MODEL_MARKED);
  EXPECT_TRUE(Run(save, std::string("model.onnx")).ok());
}

TEST_F(TrainedModelTest, EveryFunctionReadsMarkedExports) {
  const auto created = Run(CreateQuantConfig, CreateQuantConfigCall{.config_file = "ptq.json", .model = "create.onnx"});
  ASSERT_TRUE(created.ok()) << created.status();
  const json config = json::parse(ReadFile(output_.path() / "ptq.json"));
  for (const char* layer : {"c1", "c2", "c3", "fc"}) {
    EXPECT_TRUE(config.contains(layer)) << layer;
  }
}

TEST_F(TrainedModelTest, TheConfigurationIsTheReferences) {
  const auto created =
      Run(CreateQuantRetrainConfig, CreateQuantRetrainConfigCall{.config_file = "c/config.json", .model = "create.onnx"});
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->config_file.name, "c/config.json");
  EXPECT_EQ(ReadFile(output_.path() / "c" / "config.json"), ReadFile(paths_["config.json"]));
}

}  // namespace
}  // namespace modelpress::engine
