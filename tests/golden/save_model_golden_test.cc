// Every case that the reference produced, from the engine alone: the two models field by field and, but for RNN nodes, whose
// attribute order is random in the reference, byte by byte; and every pair of golden/save/errors.
#include <filesystem>
#include <set>

#include "engine/base/status.h"
#include "engine/functions/save_model.h"
#include "engine/functions/save_prune_retrain_model.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "onnx/onnx_pb.h"
#include "tests/golden/files.h"
#include "tests/golden/models.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "save";

// Where the reference is wrong and modelpress, unless asked otherwise, writes something else.
const std::set<std::string> kDefectCases = {"shared_initializer_handmade", "opset_three_domains_handmade",
                                            "model_metadata_handmade"};

std::vector<std::string> Cases() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGolden)) {
    if (entry.is_directory() && fs::exists(entry.path() / "modified.onnx")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string TestName(const testing::TestParamInfo<std::string>& info) { return info.param; }

class SaveModelGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  // Runs the case; the output lies in output_.path().
  absl::StatusOr<SavedModels> Save(const ReferenceDefects& defects, int threads) {
    const FileSet files = FilesIn(kGolden / GetParam());
    CallContext context;
    context.files = &files;
    context.output_root = output_.path().string();
    context.defects = defects;
    context.threads = threads;
    return SaveModel(context, "modified.onnx", "record.txt", "results/model");
  }

  void ExpectReferenceFiles() {
    const fs::path results = output_.path() / "results";
    ExpectEqualModels(ReadFile(kGolden / GetParam() / "deploy.onnx"), ReadFile(results / "model_deploy_model.onnx"));
    ExpectEqualModels(ReadFile(kGolden / GetParam() / "fake_quant.onnx"), ReadFile(results / "model_fake_quant_model.onnx"));
    for (const auto& entry : fs::directory_iterator(kGolden / GetParam())) {
      if (entry.path().extension() == ".external") {
        EXPECT_EQ(ReadFile(entry.path()), ReadFile(results / entry.path().filename())) << entry.path();
      }
    }
  }

  TemporaryFolder output_;
};

TEST_P(SaveModelGoldenTest, WithReferenceDefectsTheFilesAreTheReferences) {
  absl::StatusOr<SavedModels> saved = Save(ReferenceDefects::All(), 2);
  ASSERT_TRUE(saved.ok()) << saved.status();
  ExpectReferenceFiles();
}

TEST_P(SaveModelGoldenTest, ByDefaultTheFilesDifferOnlyWhereTheReferenceIsWrong) {
  absl::StatusOr<SavedModels> saved = Save({}, 1);
  ASSERT_TRUE(saved.ok()) << saved.status();
  if (!kDefectCases.contains(GetParam())) {
    ExpectReferenceFiles();
  }
}

TEST_P(SaveModelGoldenTest, TheReportNamesEveryDeviation) {
  absl::StatusOr<SavedModels> saved = Save({}, 1);
  ASSERT_TRUE(saved.ok()) << saved.status();
  const auto report = nlohmann::json::parse(saved->report_json);
  EXPECT_EQ(!report["deviations"].empty(), kDefectCases.contains(GetParam())) << report["deviations"];
  EXPECT_EQ(ReadFile(output_.path() / "results" / "model_report.json"), saved->report_json);
}

INSTANTIATE_TEST_SUITE_P(Golden, SaveModelGoldenTest, testing::ValuesIn(Cases()), TestName);

TEST(SavePruneGoldenTest, BothFilesAreTheModel) {
  TemporaryFolder output;
  const FileSet files = FilesIn(kGolden / "prune_plain");
  CallContext context;
  context.files = &files;
  context.output_root = output.path().string();
  absl::StatusOr<SavedModels> saved = SavePruneRetrainModel(context, "model.onnx", "pruned");
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(ReadFile(output.path() / "pruned_deploy_model.onnx"), ReadFile(kGolden / "prune_plain" / "deploy.onnx"));
  EXPECT_EQ(ReadFile(output.path() / "pruned_fake_quant_model.onnx"), ReadFile(kGolden / "prune_plain" / "fake_quant.onnx"));
}

nlohmann::json ErrorCases() {
  auto cases = nlohmann::json::parse(ReadFile(kGolden / "errors" / "index.json"))["cases"];
  return cases;
}

std::vector<std::string> ErrorNames() {
  std::vector<std::string> names;
  for (const auto& entry : ErrorCases()) {
    names.push_back(entry["name"]);
  }
  return names;
}

class SaveModelErrorTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const auto& entry : ErrorCases()) {
      if (entry["name"] == GetParam()) {
        case_ = entry;
      }
    }
  }

  absl::StatusOr<SavedModels> Save(const ReferenceDefects& defects) {
    const FileSet files = FilesIn(kGolden / "errors");
    CallContext context;
    context.files = &files;
    context.output_root = (output_.path() / "out").string();
    context.defects = defects;
    return SaveModel(context, case_["model"], case_["record"], "model");
  }

  nlohmann::json case_;
  TemporaryFolder output_;
};

TEST_P(SaveModelErrorTest, EndsAsRecommended) {
  const std::string recommended = case_["recommended"];
  const bool accept = recommended.rfind("accept", 0) == 0;
  absl::StatusOr<SavedModels> saved = Save({});
  if (accept) {
    ASSERT_TRUE(saved.ok()) << saved.status();
    EXPECT_TRUE(fs::exists(output_.path() / "out" / "model_deploy_model.onnx"));
    return;
  }
  ASSERT_FALSE(saved.ok()) << recommended;
  EXPECT_EQ(saved.status().code(), absl::StatusCode::kInvalidArgument) << saved.status();
  EXPECT_NE(ReasonOf(saved.status()), v1::REASON_UNSPECIFIED) << saved.status();
  const ErrorPlace place = PlaceOf(saved.status());
  EXPECT_FALSE(place.file.empty()) << saved.status();
  if (place.field == "record_file" && ReasonOf(saved.status()) != v1::RECORD_EMPTY) {
    EXPECT_GT(place.line, 0) << saved.status();
  }
  // Nothing is visible; at most the folder, as the reference makes it.
  if (fs::exists(output_.path() / "out")) {
    EXPECT_TRUE(fs::is_empty(output_.path() / "out"));
  }
}

TEST_P(SaveModelErrorTest, WithReferenceDefectsWhatTheReferenceAcceptsIsAccepted) {
  if (case_["reference"] == "accept") {
    absl::StatusOr<SavedModels> saved = Save(ReferenceDefects::All());
    EXPECT_TRUE(saved.ok()) << saved.status();
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, SaveModelErrorTest, testing::ValuesIn(ErrorNames()), TestName);

}  // namespace
}  // namespace modelpress::engine
