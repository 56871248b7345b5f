// save_quant_retrain_model and save_compressed_retrain_model on the reference's cases (golden/qat): from its export without
// wrappers and its record file to its two output files, byte by byte but for RNN nodes, whose attribute order is random in the
// reference.
#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "engine/functions/create_quant_retrain_config.h"
#include "engine/functions/retrain_model.h"
#include "engine/functions/save_retrain_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "onnx/onnx_pb.h"
#include "tests/golden/files.h"
#include "tests/golden/models.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "qat";

// Where the reference is wrong and modelpress, unless asked otherwise, writes something else.
constexpr char kFp16Case[] = "q15_fp16mode";

// Of the functions of quantization "q" or of the compressed ones "c".
std::vector<std::string> Cases(const std::string& prefix = "") {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGolden)) {
    if (fs::exists(entry.path() / "strip.onnx") && absl::StartsWith(entry.path().filename().string(), prefix)) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool IsCompressed(const std::string& name) { return absl::StartsWith(name, "c"); }

void WriteFile(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

class SaveRetrainGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  SaveRetrainGoldenTest() {
    for (const auto& entry : fs::directory_iterator(kGolden / GetParam())) {
      paths_[entry.path().filename().string()] = entry.path().string();
    }
    if (GetParam() == "q09_conv1d_linear3d") {
      // torch numbers the tensors that it computes; with the batch norm gone its next export gives them other numbers.
      Add("strip.onnx", absl::StrReplaceAll(ReadFile(paths_["strip.onnx"]),
                                            {{"onnx::MatMul_30", "onnx::MatMul_23"}, {"onnx::MatMul_31", "onnx::MatMul_24"}}));
    }
  }

  void Add(const std::string& name, const std::string& bytes) {
    paths_[name] = (inputs_.path() / name).string();
    WriteFile(paths_[name], bytes);
  }

  CallContext Context(const FileSet& files, const ReferenceDefects& defects) const {
    CallContext context;
    context.files = &files;
    context.output_root = output_.path().string();
    context.defects = defects;
    context.threads = 2;
    return context;
  }

  absl::StatusOr<SavedModels> Save(const ReferenceDefects& defects, const std::string& rewrite_plan = "") const {
    const auto save = nlohmann::json::parse(ReadFile(kGolden / GetParam() / "case.json"))["flow"]["save"];
    SaveRetrainModelCall call = {.model = "strip.onnx", .record_file = "record.txt", .save_path = "results/model"};
    call.rewrite_plan = rewrite_plan;
    call.input_names = save["input_names"].get<std::vector<std::string>>();
    call.output_names = save["output_names"].get<std::vector<std::string>>();
    for (const auto& [name, axes] : save["dynamic_axes"].items()) {
      for (const auto& [axis, label] : axes.items()) {
        call.dynamic_axes[name][std::stoi(axis)] = label.get<std::string>();
      }
    }
    const FileSet files(paths_);
    const CallContext context = Context(files, defects);
    if (IsCompressed(GetParam())) {
      return SaveCompressedRetrainModel(context, call);
    }
    call.config_file = "config.json";
    return SaveQuantRetrainModel(context, call);
  }

  void ExpectReferenceFiles() const {
    const fs::path results = output_.path() / "results";
    ExpectEqualModels(ReadFile(kGolden / GetParam() / "deploy.onnx"), ReadFile(results / "model_deploy_model.onnx"));
    ExpectEqualModels(ReadFile(kGolden / GetParam() / "fake_quant.onnx"), ReadFile(results / "model_fake_quant_model.onnx"));
  }

  std::map<std::string, std::string> paths_;
  TemporaryFolder inputs_;
  TemporaryFolder output_;
};

using SaveQuantRetrainGoldenTest = SaveRetrainGoldenTest;  // save_compressed_retrain_model has no configuration

TEST_P(SaveRetrainGoldenTest, WithReferenceDefectsTheFilesAreTheReferences) {
  absl::StatusOr<SavedModels> saved = Save(ReferenceDefects::All());
  ASSERT_TRUE(saved.ok()) << saved.status();
  ExpectReferenceFiles();
}

TEST_P(SaveRetrainGoldenTest, ByDefaultTheFilesDifferOnlyWhereTheReferenceIsWrong) {
  absl::StatusOr<SavedModels> saved = Save({});
  ASSERT_TRUE(saved.ok()) << saved.status();
  const auto report = nlohmann::json::parse(saved->report_json);
  EXPECT_EQ(report["deviations"].size(), GetParam() == kFp16Case ? 1 : 0) << report["deviations"];
  if (GetParam() != kFp16Case) {
    ExpectReferenceFiles();
    return;
  }
  EXPECT_THAT(report["deviations"][0], HasSubstr("FORCE_FP16_QUANT"));
  EXPECT_NE(ReadFile(output_.path() / "results" / "model_deploy_model.onnx"), ReadFile(kGolden / kFp16Case / "deploy.onnx"));
}

// The configuration of saving must be that of creating (docs/spec/qat.md section 12).
TEST_P(SaveQuantRetrainGoldenTest, TheConfigurationIsComparedWithTheRewritePlans) {
  {
    const FileSet files(paths_);
    absl::StatusOr<RetrainModel> created = CreateQuantRetrainModel(
        Context(files, {}),
        {.model = "create.onnx", .config_file = "config.json", .record_file = "r.txt", .save_path = "create"});
    ASSERT_TRUE(created.ok()) << created.status();
  }
  paths_["plan.json"] = (output_.path() / "create_rewrite_plan.json").string();
  absl::StatusOr<SavedModels> saved = Save({}, "plan.json");
  EXPECT_TRUE(saved.ok()) << saved.status();

  auto config = nlohmann::ordered_json::parse(ReadFile(paths_["config.json"]));
  config["batch_num"] = config["batch_num"].get<int>() + 1;
  Add("config.json", config.dump());
  const absl::Status changed = Save({}, "plan.json").status();
  EXPECT_EQ(ReasonOf(changed), v1::CONFIG_CHANGED) << changed;
  EXPECT_EQ(PlaceOf(changed).field, "config_file");
}

INSTANTIATE_TEST_SUITE_P(Golden, SaveRetrainGoldenTest, testing::ValuesIn(Cases()), [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Golden, SaveQuantRetrainGoldenTest, testing::ValuesIn(Cases("q")),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace modelpress::engine
