// Every case of golden/ptq from the engine alone: balance factors, weights, record files before and after calibration
// (docs/spec/ptq.md sections 11 and 12).
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "engine/base/status.h"
#include "engine/formats/record.h"
#include "engine/functions/calibrate.h"
#include "engine/functions/create_quant_config.h"
#include "engine/functions/quantize_model.h"
#include "engine/functions/quantize_preprocess.h"
#include "engine/graph/graph.h"
#include "engine/quantize/operands.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using AMCTPytorchProto::ScaleOffsetRecord;
using nlohmann::json;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "ptq";

std::vector<std::string> Cases() { return CasesWith(kGolden, "modified.onnx"); }

ScaleOffsetRecord Parse(const std::string& text) {
  absl::StatusOr<ParsedRecord> record = ParseRecord(text, "record");
  EXPECT_TRUE(record.ok()) << record.status();
  return record.ok() ? record->record : ScaleOffsetRecord();
}

void ExpectNear(float expected, float actual, double tolerance, const std::string& what) {
  EXPECT_LE(std::abs(static_cast<double>(expected) - actual), tolerance * std::abs(expected))
      << what << ": " << expected << " " << actual;
}

// Keys in order; activation factors within the tolerances of ptq.md section 11 for another inference engine, the rest exact.
// `factors`: relative tolerance of balance factors, which depend on activations, and of the weight scales that depend on them.
void ExpectEqualRecords(const ScaleOffsetRecord& expected, const ScaleOffsetRecord& actual, double factors) {
  ASSERT_EQ(expected.record_size(), actual.record_size());
  for (int i = 0; i < expected.record_size(); ++i) {
    const std::string& key = expected.record(i).key();
    EXPECT_EQ(key, actual.record(i).key());
    AMCTPytorchProto::SingleLayerRecord e = expected.record(i).value();
    AMCTPytorchProto::SingleLayerRecord a = actual.record(i).value();
    EXPECT_EQ(e.has_scale_d(), a.has_scale_d()) << key;
    ExpectNear(e.scale_d(), a.scale_d(), 1e-6, key + " scale_d");
    EXPECT_NEAR(e.offset_d(), a.offset_d(), 1) << key;
    ExpectNear(e.scale_h(), a.scale_h(), 1e-6, key + " scale_h");
    EXPECT_NEAR(e.offset_h(), a.offset_h(), 1) << key;
    ASSERT_EQ(e.tensor_balance_factor_size(), a.tensor_balance_factor_size()) << key;
    for (int c = 0; c < e.tensor_balance_factor_size(); ++c) {
      ExpectNear(e.tensor_balance_factor(c), a.tensor_balance_factor(c), factors, key + " factor");
    }
    if (factors > 0) {  // weights follow the factors
      ASSERT_EQ(e.scale_w_size(), a.scale_w_size()) << key;
      for (int c = 0; c < e.scale_w_size(); ++c) {
        ExpectNear(e.scale_w(c), a.scale_w(c), factors, key + " scale_w");
      }
      a.mutable_scale_w()->CopyFrom(e.scale_w());
    }
    for (auto* record : {&e, &a}) {
      record->clear_scale_d();
      record->clear_offset_d();
      record->clear_scale_h();
      record->clear_offset_h();
      record->clear_tensor_balance_factor();
    }
    EXPECT_EQ(e.DebugString(), a.DebugString()) << key;
  }
}

Graph ReadGraph(const FileSet& files, const std::string& name) {
  absl::StatusOr<Model> model = ReadModel(files, name);
  EXPECT_TRUE(model.ok()) << model.status();
  absl::StatusOr<Graph> graph = Graph::Create(*std::move(model), {});
  EXPECT_TRUE(graph.ok()) << graph.status();
  return *std::move(graph);
}

std::vector<float> Floats(const Graph& graph, Value value) {
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, value);
  if (!operand.has_value()) {
    return {};
  }
  const Tensor tensor = TensorOf(graph.item(operand->holder));
  std::vector<float> values(tensor.ElementCount());
  EXPECT_TRUE(ReadFloats(tensor, 0, absl::MakeSpan(values)).ok());
  return values;
}

// By their bits: negative zero counts.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class PtqGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    case_ = json::parse(ReadFile(kGolden / GetParam() / "case.json"));
    for (const auto& entry : fs::directory_iterator(kGolden / GetParam())) {
      paths_[entry.path().filename().string()] = entry.path().string();
    }
    config_ = json::parse(ReadFile(kGolden / GetParam() / "config.json"));
    for (const auto& [name, layer] : config_.items()) {
      balanced_ = balanced_ || (layer.is_object() && layer.contains("dmq_balancer_param"));
      adaround_ = adaround_ || (layer.is_object() && layer.contains("weight_quant_params") &&
                                layer["weight_quant_params"].value("wts_algo", "") == "ada_quantize");
    }
  }

  CallContext Context(const FileSet& files, int threads) const {
    CallContext context;
    context.files = &files;
    context.output_root = output_.path().string();
    context.defects = ReferenceDefects::All();
    context.threads = threads;
    return context;
  }

  std::string Output(const std::string& name) const { return ReadFile(output_.path() / name); }
  std::string Golden(const std::string& name) const { return ReadFile(kGolden / GetParam() / name); }

  // Runs the flow of the documented functions; the results lie in the output folder.
  void Run(int threads) {
    if (balanced_) {
      const FileSet files(paths_);
      absl::StatusOr<SavedRecord> balanced = QuantizePreprocess(
          Context(files, threads),
          {.config_file = "config.json", .record_file = "record", .model = "model.onnx", .data = {.path = "calib.npz"}});
      ASSERT_TRUE(balanced.ok()) << balanced.status();
      balance_record_ = Output("record");
      // From here on with the reference's factors, so that weights can be compared bit by bit.
      paths_["record"] = (kGolden / GetParam() / "record_balance.txt").string();
    }
    {
      const FileSet files(paths_);
      absl::StatusOr<QuantizedModel> quantized = QuantizeModel(Context(files, threads), {.config_file = "config.json",
                                                                                         .modified_onnx_file = "modified",
                                                                                         .record_file = "record",
                                                                                         .model = "model.onnx",
                                                                                         .sample = {.path = "calib.npz"}});
      ASSERT_TRUE(quantized.ok()) << quantized.status();
      weight_record_ = Output("record");
      paths_["record"] = (output_.path() / "record").string();
      paths_["modified"] = (output_.path() / "modified").string();
    }
    const FileSet files(paths_);
    absl::StatusOr<SavedRecord> calibrated = Calibrate(Context(files, threads), {.modified_onnx_file = "modified",
                                                                                 .record_file = "record",
                                                                                 .config_file = "config.json",
                                                                                 .model = "model.onnx",
                                                                                 .data = {.path = "calib.npz"}});
    ASSERT_TRUE(calibrated.ok()) << calibrated.status();
  }

  json case_;
  json config_;
  std::map<std::string, std::string> paths_;
  TemporaryFolder output_;
  bool balanced_ = false;
  bool adaround_ = false;
  std::string balance_record_;
  std::string weight_record_;
};

TEST_P(PtqGoldenTest, RecordsAndWeights) {
  ASSERT_NO_FATAL_FAILURE(Run(1));
  if (balanced_) {
    ExpectEqualRecords(Parse(Golden("record_balance.txt")), Parse(balance_record_), 1e-6);
  }
  EXPECT_EQ(weight_record_, Golden("record_weights.txt"));
  const ScaleOffsetRecord expected = Parse(Golden("record.txt"));
  ExpectEqualRecords(expected, Parse(Output("record")), 0);

  const FileSet files(paths_);
  const Graph reference = ReadGraph(files, "modified.onnx");
  const Graph ours = ReadGraph(files, "modified");
  for (const auto& entry : expected.record()) {
    const ItemId theirs = reference.Find(entry.key());
    const ItemId mine = ours.Find(entry.key());
    ASSERT_GE(theirs, 0) << entry.key();
    ASSERT_GE(mine, 0) << entry.key();
    const OpRule* rule = FindOpRule(reference.item(theirs).node.proto.op_type());
    ASSERT_NE(rule, nullptr);
    ASSERT_EQ(rule, FindOpRule(ours.item(mine).node.proto.op_type()));
    const auto* data_type = FindAttribute(ours.item(mine).node.proto, "op_data_type");
    ASSERT_NE(data_type, nullptr) << entry.key();
    EXPECT_EQ(data_type->s(), FindAttribute(reference.item(theirs).node.proto, "op_data_type")->s());
    for (int input : {rule->weight, rule->recurrence}) {
      if (input < 0) {
        continue;
      }
      const std::vector<float> want = Floats(reference, reference.InputOf(theirs, input));
      const std::vector<float> have = Floats(ours, ours.InputOf(mine, input));
      const bool learnt = adaround_ && rule->kind != OpKind::kAveragePool;
      if (learnt) {
        // AdaRound: the same start, within a step of the integers; its random draws are its own.
        ASSERT_EQ(want.size(), have.size());
        const float scale = *std::max_element(entry.value().scale_w().begin(), entry.value().scale_w().end());
        const double bound = GetParam() == "ada_iter30" ? scale * 1.001 : scale * 1e-6;
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_NEAR(want[i], have[i], bound) << entry.key() << " " << i;
        }
      } else {
        EXPECT_TRUE(SameBits(want, have)) << entry.key() << " input " << input;
      }
    }
    const std::optional<BiasPlace> their_bias = FindBias(reference, theirs, *rule);
    const std::optional<BiasPlace> my_bias = FindBias(ours, mine, *rule);
    ASSERT_EQ(their_bias.has_value(), my_bias.has_value()) << entry.key();
    if (my_bias.has_value()) {
      EXPECT_TRUE(SameBits(Floats(reference, reference.InputOf(their_bias->item, their_bias->input)),
                           Floats(ours, ours.InputOf(my_bias->item, my_bias->input))))
          << entry.key() << " bias";
    }
  }
  auto batch_norms = [](const Graph& graph) {
    const std::vector<ItemId> order = graph.Order();
    return std::count_if(order.begin(), order.end(), [&](ItemId id) { return graph.item(id).Is("BatchNormalization"); });
  };
  EXPECT_EQ(batch_norms(reference), batch_norms(ours));
}

TEST_P(PtqGoldenTest, TwoThreadsGiveTheSameFiles) {
  ASSERT_NO_FATAL_FAILURE(Run(1));
  const std::string record = Output("record");
  const std::string modified = Output("modified");
  paths_.erase("record");
  ASSERT_NO_FATAL_FAILURE(Run(2));
  EXPECT_EQ(record, Output("record"));
  EXPECT_TRUE(modified == Output("modified"));
}

// From the float model and the data to both models and the report, in one call.
TEST_P(PtqGoldenTest, OneCallMakesTheSameRecord) {
  ASSERT_NO_FATAL_FAILURE(Run(1));
  const std::string record = Output("record");
  paths_.erase("record");
  const FileSet files(paths_);
  const QuantizeModelCall call{.config_file = "config.json",
                               .modified_onnx_file = "one/modified",
                               .record_file = "one/record",
                               .model = "model.onnx",
                               .data = {.path = "calib.npz"},
                               .saves = true,
                               .save_path = "one/model"};
  absl::StatusOr<QuantizedModel> quantized = QuantizeModel(Context(files, 2), call);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  if (balanced_) {  // with balance factors measured on the way
    ExpectEqualRecords(Parse(record), Parse(Output("one/record")), 1e-6);
  } else {
    EXPECT_EQ(record, Output("one/record"));
  }
  EXPECT_FALSE(quantized->fake_quant_model.sha256.empty());
  const json report = json::parse(Output("one/model_report.json"));
  EXPECT_EQ(report["worst_first"].size(), Parse(record).record_size());
  ASSERT_TRUE(report["outputs_error"].is_array()) << report;
  for (const json& output : report["outputs_error"]) {
    // Activations that are all zero tell nothing: the scale becomes 1 and the bias is lost.
    EXPECT_TRUE(output["sqnr_db"].is_null() || output["sqnr_db"] > 5 || GetParam().starts_with("zeros")) << output;
  }
}

TEST_P(PtqGoldenTest, ConfigurationIsByteIdentical) {
  const json& arguments = case_["create_quant_config_args"];
  if (GetParam() == "json_edited") {
    GTEST_SKIP() << "config.json was edited by hand";
  }
  const FileSet files(paths_);
  CreateQuantConfigCall call{.config_file = "made.json", .model = "model.onnx"};
  if (arguments.is_string()) {
    call.config_definition = arguments;
  } else {
    call.arguments.batch_num = arguments.value("batch_num", 1);
    call.arguments.activation_offset = arguments.value("activation_offset", true);
    call.arguments.skip_layers = arguments.value("skip_layers", std::vector<std::string>());
  }
  absl::StatusOr<SavedConfig> made = CreateQuantConfig(Context(files, 1), call);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(Output("made.json"), Golden("config.json"));
}

INSTANTIATE_TEST_SUITE_P(All, PtqGoldenTest, testing::ValuesIn(Cases()),
                         [](const testing::TestParamInfo<std::string>& info) { return info.param; });

}  // namespace
}  // namespace modelpress::engine
