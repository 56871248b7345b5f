// The activations that the reference calibrated on, out of ONNX Runtime: archives that numpy wrote, a model that the reference
// wrote.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/runtime/activations.h"
#include "engine/runtime/npz.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "onnx/onnx_pb.h"
#include "tests/engine/model/model_testing.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "ptq";

FileSet FilesOf(const std::string& name) { return FilesIn(kGolden / name); }

// Compares what it is shown with `<layer>__<batch>` of the reference's archive.
class Checker final : public ActivationConsumer {
 public:
  Checker(const NpzFile& expected, std::string layer) : expected_(expected), layer_(std::move(layer)) {}

  bool wants_pass() const override { return passes_ < 2; }
  absl::Status Add(absl::Span<const absl::Span<const float>> values) override {
    MP_ASSIGN_OR_RETURN(const std::unique_ptr<ArrayReader> array, expected_.OpenArray(layer_ + "__" + std::to_string(batch_++)));
    std::vector<float> expected(values[0].size());
    MP_RETURN_IF_ERROR(array->Read({reinterpret_cast<uint8_t*>(expected.data()), expected.size() * sizeof(float)}));
    float greatest = 0;
    for (const float value : expected) {
      greatest = std::max(greatest, std::abs(value));
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(values[0][i], expected[i], greatest * 1e-6) << layer_ << ", batch " << batch_ - 1 << ", value " << i;
    }
    values_ += expected.size();
    return absl::OkStatus();
  }
  absl::Status EndPass() override {
    ++passes_;
    batch_ = 0;
    return absl::OkStatus();
  }
  std::string Save() const override { return ""; }
  bool Load(absl::string_view) override { return false; }
  size_t values() const { return values_; }

 private:
  const NpzFile& expected_;
  const std::string layer_;
  int passes_ = 0;
  int batch_ = 0;
  size_t values_ = 0;
};

class ActivationsGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(ActivationsGoldenTest, AreTheReferences) {
  const FileSet files = FilesOf(GetParam());
  const nlohmann::json about = nlohmann::json::parse(std::ifstream(kGolden / GetParam() / "case.json"));
  absl::StatusOr<Model> model = ReadModel(files, "modified.onnx");
  ASSERT_TRUE(model.ok()) << model.status();
  // ONNX Runtime refuses the reference's extra attribute (docs/spec/ptq.md section 6).
  std::vector<std::string> tensors;
  std::vector<Tap> taps;
  for (Node& node : model->nodes) {
    auto& attributes = *node.proto.mutable_attribute();
    for (int i = attributes.size() - 1; i >= 0; --i) {
      if (attributes[i].name() == "op_data_type") {
        attributes.DeleteSubrange(i, 1);
        taps.push_back({.parts = {{.tensor = static_cast<int>(tensors.size())}}, .layer = node.proto.name()});
        tensors.push_back(node.proto.input(0));
      }
    }
  }
  ASSERT_EQ(taps.size(), about["layers"].size());

  const TestFolder scratch;
  const auto runner = ModelRunner::Create(*model, {.tensors = tensors, .scratch_folder = scratch.string()});
  ASSERT_TRUE(runner.ok()) << runner.status();
  const auto data =
      CalibrationData::Open(files, "calib.npz", (*runner)->inputs(), {.batches = about["batch_num"].get<int64_t>()});
  ASSERT_TRUE(data.ok()) << data.status();
  const auto expected = NpzFile::Open(*files.Open("acts.npz"));
  ASSERT_TRUE(expected.ok()) << expected.status();
  std::vector<Checker> checkers;
  checkers.reserve(taps.size());
  std::vector<ActivationConsumer*> consumers;
  consumers.reserve(taps.size());
  for (const Tap& tap : taps) {
    consumers.push_back(&checkers.emplace_back(**expected, tap.layer));
  }
  const auto summary = CollectActivations(**runner, **data, taps, consumers, {.scratch_folder = scratch.string(), .threads = 2});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->passes, 2);
  for (const Checker& checker : checkers) {
    EXPECT_GT(checker.values(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ActivationsGoldenTest, testing::Values("conv_bn_relu", "uneven_batches"));

}  // namespace
}  // namespace modelpress::engine
