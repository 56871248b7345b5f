// What the create functions of quantization-aware training and of compressed training make of the reference's cases: the rewrite
// plan (golden/qat, docs/spec/qat.md section 16.2), the record file, and the pruned graph.
#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/functions/retrain_model.h"
#include "engine/retrain/plan_json.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "modelpress/v1/module_manifest.pb.h"
#include "nlohmann/json.hpp"
#include "onnx/onnx_pb.h"
#include "tests/golden/checkpoint.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "qat";

std::vector<std::string> Cases() { return CasesWith(kGolden, "plan.json"); }

bool IsCompressed(const std::string& name) { return absl::StartsWith(name, "c"); }

v1::RewritePlan GoldenPlan(const std::string& name) {
  Json json = Json::parse(ReadFile(kGolden / name / "plan.json"));
  json.erase("filter_prune");
  for (Json& layer : json["layers"]) {
    for (const char* key : {"bn", "share_main", "selective"}) {
      if (layer.contains(key) && layer[key].is_null()) {
        layer.erase(key);
      }
    }
  }
  v1::RewritePlan plan;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(json.dump(), &plan).ok());
  return plan;
}

onnx::ModelProto ParseModel(const fs::path& path) {
  onnx::ModelProto model;
  EXPECT_TRUE(model.ParseFromString(ReadFile(path))) << path;
  return model;
}

// What a client would say of the module: layers in the order of the configuration, which is that of named_modules(), and whatever
// else the marks tell.
std::string Manifest(const std::string& name) {
  const onnx::ModelProto model = ParseModel(kGolden / name / "create.onnx");
  std::map<std::string, std::string> types;
  std::vector<std::string> order;
  if (!IsCompressed(name)) {
    const Json config = Json::parse(ReadFile(kGolden / name / "config.json"));
    for (const auto& [key, value] : config.items()) {
      if (value.is_object()) {
        order.push_back(key);
      }
    }
  }
  for (const onnx::NodeProto& node : model.graph().node()) {
    if (node.op_type() == "QuantIdentity") {
      std::string module;
      std::string type;
      for (const onnx::AttributeProto& attribute : node.attribute()) {
        (attribute.name() == "op_name" ? module : type) = attribute.s();
      }
      types[module] = type;
      if (std::find(order.begin(), order.end(), module) == order.end()) {
        order.push_back(module);
      }
    }
  }
  v1::ModuleManifest manifest;
  manifest.mutable_modules()->Reserve(static_cast<int>(order.size()));
  for (const std::string& name_of_module : order) {
    v1::Module& module = *manifest.add_modules();
    module.set_name(name_of_module);
    module.set_type(types[name_of_module]);
    for (const onnx::TensorProto& tensor : model.graph().initializer()) {
      absl::string_view parameter = tensor.name();
      if (absl::ConsumePrefix(&parameter, absl::StrCat(name_of_module, ".sub_module."))) {
        v1::Parameter& entry = *module.add_parameters();
        entry.set_name(std::string(parameter));
        entry.mutable_shape()->Assign(tensor.dims().begin(), tensor.dims().end());
        entry.set_identity(absl::StrCat(name_of_module, ".", parameter));
      }
    }
  }
  std::string json;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(manifest, &json).ok());
  return json;
}

class RetrainPlanGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  absl::StatusOr<RetrainModel> Create(const std::string& model, bool with_manifest, const ReferenceDefects& defects) {
    std::map<std::string, std::string> paths;
    for (const auto& entry : fs::directory_iterator(kGolden / GetParam())) {
      paths[entry.path().filename().string()] = entry.path().string();
    }
    if (with_manifest) {
      paths["manifest.json"] = (output_.path() / "manifest.json").string();
      std::ofstream(paths["manifest.json"]) << Manifest(GetParam());
    }
    const FileSet files(paths);
    CallContext context;
    context.files = &files;
    context.output_root = output_.path().string();
    context.defects = defects;
    RetrainModelCall call = {.model = model, .record_file = "out/record.txt", .save_path = "out/model"};
    call.module_manifest = with_manifest ? "manifest.json" : "";
    if (IsCompressed(GetParam())) {
      call.config_definition = "quant.cfg";
      return CreateCompressedRetrainModel(context, call);
    }
    call.config_file = "config.json";
    return CreateQuantRetrainModel(context, call);
  }

  // The written plan, without what the golden plan does not have.
  v1::RewritePlan WrittenPlan() const {
    absl::StatusOr<v1::RewritePlan> plan = ParseRewritePlan(ReadFile(output_.path() / "out" / "model_rewrite_plan.json"), "plan");
    EXPECT_TRUE(plan.ok()) << plan.status();
    EXPECT_FALSE(plan->engine_version().empty());
    EXPECT_FALSE(plan->config().empty());
    plan->clear_engine_version();
    plan->clear_config();
    plan->clear_cuts();
    plan->clear_force_fp16_quant();
    for (v1::WrappedLayer& layer : *plan->mutable_layers()) {
      if (layer.has_selective()) {
        EXPECT_FALSE(layer.selective().mask().empty());
        layer.mutable_selective()->clear_mask();
        layer.mutable_selective()->clear_mask_shape();
      }
    }
    return *std::move(plan);
  }

  void ExpectGoldenPlan(const std::string& model, bool with_manifest, const ReferenceDefects& defects = {}) {
    absl::StatusOr<RetrainModel> created = Create(model, with_manifest, defects);
    ASSERT_TRUE(created.ok()) << created.status();
    v1::RewritePlan expected = GoldenPlan(GetParam());
    v1::RewritePlan actual = WrittenPlan();
    if (!with_manifest) {  // then layers come in the order of the graph
      for (v1::RewritePlan* plan : {&expected, &actual}) {
        std::sort(plan->mutable_layers()->begin(), plan->mutable_layers()->end(),
                  [](const v1::WrappedLayer& a, const v1::WrappedLayer& b) { return a.module() < b.module(); });
      }
    }
    std::string difference;
    google::protobuf::util::MessageDifferencer differencer;
    differencer.ReportDifferencesToString(&difference);
    EXPECT_TRUE(differencer.Compare(expected, actual)) << difference;
  }

  TemporaryFolder output_;
};

TEST_P(RetrainPlanGoldenTest, FromTheMarkedExportWithManifest) { ExpectGoldenPlan("create.onnx", true); }
TEST_P(RetrainPlanGoldenTest, FromTheMarkedExportAlone) { ExpectGoldenPlan("create.onnx", false); }
TEST_P(RetrainPlanGoldenTest, FromThePlainExportWithManifest) {
  if (GetParam() == "q13_gru" || GetParam() == "q16_lstm") {  // exported without constant folding: operators compute the weights
    const absl::Status status = Create("model.onnx", true, {}).status();
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("its weight is not a constant of the model"));
    return;
  }
  ExpectGoldenPlan("model.onnx", true);
}
TEST_P(RetrainPlanGoldenTest, WithReferenceDefects) { ExpectGoldenPlan("create.onnx", true, ReferenceDefects::All()); }

TEST_P(RetrainPlanGoldenTest, TheRecordFileIsTheReferences) {
  absl::StatusOr<RetrainModel> created = Create("create.onnx", true, {});
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->record_file.name, "out/record.txt");
  const fs::path expected = kGolden / GetParam() / "record_create.txt";
  EXPECT_EQ(ReadFile(output_.path() / "out" / "record.txt"), fs::exists(expected) ? ReadFile(expected) : "");
}

TEST_P(RetrainPlanGoldenTest, TheSameCallWritesTheSameBytes) {
  ASSERT_TRUE(Create("create.onnx", true, {}).ok());
  const std::string plan = ReadFile(output_.path() / "out" / "model_rewrite_plan.json");
  const std::string report = ReadFile(output_.path() / "out" / "model_report.json");
  ASSERT_TRUE(Create("create.onnx", true, {}).ok());
  EXPECT_EQ(ReadFile(output_.path() / "out" / "model_rewrite_plan.json"), plan);
  EXPECT_EQ(ReadFile(output_.path() / "out" / "model_report.json"), report);
}

// What the reference exported again after it had pruned.
TEST_P(RetrainPlanGoldenTest, ThePrunedModelHasTheReferencesShapes) {
  absl::StatusOr<RetrainModel> created = Create("create.onnx", true, {});
  ASSERT_TRUE(created.ok()) << created.status();
  if (!absl::StrContains(GetParam(), "filter")) {  // no channels are cut
    EXPECT_EQ(created->pruned_model.name, absl::StrContains(GetParam(), "_24_") ? "out/model_pruned_model.onnx" : "");
    return;
  }
  std::map<std::string, const onnx::TensorProto*> expected;
  const onnx::ModelProto reference = ParseModel(kGolden / GetParam() / "create_pruned.onnx");
  for (const onnx::TensorProto& tensor : reference.graph().initializer()) {
    expected[tensor.name()] = &tensor;
  }
  const onnx::ModelProto pruned = ParseModel(output_.path() / "out" / "model_pruned_model.onnx");
  EXPECT_EQ(pruned.graph().initializer_size(), reference.graph().initializer_size());
  for (const onnx::TensorProto& tensor : pruned.graph().initializer()) {
    ASSERT_TRUE(expected.contains(tensor.name())) << tensor.name();
    const onnx::TensorProto& other = *expected[tensor.name()];
    EXPECT_TRUE(std::equal(tensor.dims().begin(), tensor.dims().end(), other.dims().begin(), other.dims().end()))
        << tensor.name();
    EXPECT_EQ(tensor.raw_data(), other.raw_data()) << tensor.name();
  }
  EXPECT_EQ(pruned.opset_import_size(), 1);
}

// The reference's state_dict after training, by restore: it fits the plan, and every entry that is gone or too much is named.
TEST_P(RetrainPlanGoldenTest, RestoreTakesTheReferencesCheckpoint) {
  std::vector<SafetensorsEntry> entries = EntriesOfNpz(kGolden / GetParam() / "state.npz");
  auto restore = [&] {
    std::ofstream(output_.path() / "state.safetensors", std::ios::binary) << WriteSafetensors(entries);
    std::map<std::string, std::string> paths = {{"state.safetensors", (output_.path() / "state.safetensors").string()}};
    for (const char* name : {"create.onnx", "config.json", "quant.cfg", "record_create.txt"}) {
      paths[name] = (kGolden / GetParam() / name).string();
    }
    const FileSet files(paths);
    CallContext context;
    context.files = &files;
    context.output_root = output_.path().string();
    RetrainModelCall call = {.model = "create.onnx", .save_path = "out/model", .weights = "state.safetensors"};
    if (IsCompressed(GetParam())) {
      call.config_definition = "quant.cfg";
      call.record_file = "record_create.txt";
      return RestoreCompressedRetrainModel(context, call);
    }
    call.config_file = "config.json";
    call.record_file = "out/record.txt";
    return RestoreQuantRetrainModel(context, call);
  };
  absl::StatusOr<RetrainModel> restored = restore();
  ASSERT_TRUE(restored.ok()) << restored.status();
  if (!IsCompressed(GetParam())) {
    EXPECT_EQ(ReadFile(output_.path() / "out" / "record.txt"), "");
    EXPECT_EQ(restored->record_file.name, "out/record.txt");
  }

  const auto clip = std::find_if(entries.begin(), entries.end(),
                                 [](const SafetensorsEntry& entry) { return absl::EndsWith(entry.name, ".acts_clip_max"); });
  ASSERT_NE(clip, entries.end());
  const std::string missing = clip->name;
  clip->name = "stranger.weight";
  const absl::Status status = restore().status();
  EXPECT_EQ(ReasonOf(status), v1::WEIGHTS_INVALID) << status;
  EXPECT_EQ(MetadataOf(status)["missing"], missing);
  EXPECT_EQ(MetadataOf(status)["unexpected"], "stranger.weight");
}

INSTANTIATE_TEST_SUITE_P(Golden, RetrainPlanGoldenTest, testing::ValuesIn(Cases()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace modelpress::engine
