// Calls that are thrown away after any of their checkpoints, and made again.
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/functions/calibrate.h"
#include "engine/functions/file_checkpoints.h"
#include "engine/functions/quantize_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/npz_writer.h"
#include "tests/engine/runtime/runtime_testing.h"

namespace modelpress::engine {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class FileCheckpointsTest : public testing::Test {
 protected:
  FileCheckpoints Make(uint64_t max_bytes = FileCheckpoints::kMaxBytes) {
    return {folder_.string(), [this](const std::string& line) { log_.push_back(line); }, max_bytes};
  }

  const TestFolder folder_;
  std::vector<std::string> log_;
};

TEST_F(FileCheckpointsTest, GivesBackWhatWasSavedLast) {
  const std::string bytes = Pattern(100000);
  FileCheckpoints first = Make();
  EXPECT_EQ(first.Load("a.1"), std::nullopt);
  first.Save("a.1", "old");
  first.Save("a.1", bytes);
  first.Save("b", "");
  FileCheckpoints second = Make();
  EXPECT_EQ(second.Load("a.1"), bytes);
  EXPECT_EQ(second.Load("b"), "");
  EXPECT_THAT(folder_.List(), ElementsAre("a.1", "b"));
  EXPECT_THAT(log_, IsEmpty());
}

TEST_F(FileCheckpointsTest, TrustsNothingElse) {
  Make().Save("a", "content\nof two lines");
  const std::string file = folder_.Read("a");
  std::vector<std::string> bad = {"", "\n", file.substr(0, file.size() - 1), file + "x", file.substr(1), "modelpress"};
  for (size_t i = 0; i < file.size(); ++i) {
    bad.push_back(file);
    bad.back()[i] = static_cast<char>(bad.back()[i] ^ 1);
  }
  std::string other_version = file;
  other_version.replace(other_version.find(MODELPRESS_VERSION), std::string(MODELPRESS_VERSION).size(), "0.0.9");
  bad.push_back(other_version);
  std::string other_machine = file;
  other_machine.insert(other_machine.find(", key"), "0");
  bad.push_back(other_machine);
  for (const std::string& bytes : bad) {
    folder_.Write("a", bytes);
    log_.clear();
    EXPECT_EQ(Make().Load("a"), std::nullopt) << bytes;
    EXPECT_THAT(log_, ElementsAre(HasSubstr("checkpoint a is damaged, or of another engine or machine, and is ignored")));
  }
  folder_.Write("b", file);
  EXPECT_EQ(Make().Load("b"), std::nullopt) << "what was saved under another key";
  folder_.Write("a", file);
  EXPECT_EQ(Make().Load("a"), "content\nof two lines");
}

TEST_F(FileCheckpointsTest, AProcessThatDiedWhileWritingLeavesTheOldOne) {
  FileCheckpoints checkpoints = Make();
  checkpoints.Save("a", "old");
  folder_.Write("a.new", folder_.Read("a").substr(0, 10));
  EXPECT_EQ(Make().Load("a"), "old");
  checkpoints.Save("a", "new");
  EXPECT_EQ(Make().Load("a"), "new");
  EXPECT_THAT(folder_.List(), ElementsAre("a"));
}

TEST_F(FileCheckpointsTest, WhatDoesNotFitIsNotSaved) {
  FileCheckpoints checkpoints = Make(1000);
  checkpoints.Save("a", std::string(300, 'a'));
  checkpoints.Save("a", std::string(301, 'a'));
  EXPECT_THAT(log_, IsEmpty()) << "it takes the place of the first one";
  checkpoints.Save("b", std::string(500, 'b'));
  EXPECT_THAT(log_, ElementsAre(HasSubstr("checkpoint b is not saved: there is no room")));
  EXPECT_EQ(checkpoints.Load("b"), std::nullopt);
  EXPECT_EQ(checkpoints.Load("a"), std::string(301, 'a'));
}

TEST_F(FileCheckpointsTest, AFolderThatIsGoneIsNoError) {
  FileCheckpoints checkpoints(folder_.Path("gone"), [this](const std::string& line) { log_.push_back(line); });
  checkpoints.Save("a", "content");
  EXPECT_EQ(checkpoints.Load("a"), std::nullopt);
  EXPECT_THAT(log_, ElementsAre(HasSubstr("checkpoint a is not saved")));
}

struct Killed {};

// Stands for a process that is killed when it has saved for the `kill_after`th time.
class MortalCheckpoints final : public Checkpoints {
 public:
  MortalCheckpoints(Checkpoints& inner, int kill_after) : inner_(inner), kill_after_(kill_after) {}

  std::optional<std::string> Load(const std::string& key) override { return inner_.Load(key); }
  void Save(const std::string& key, const std::string& bytes) override {
    inner_.Save(key, bytes);
    saved_.push_back(key);
    if (static_cast<int>(saved_.size()) == kill_after_) {
      throw Killed();
    }
  }
  const std::vector<std::string>& saved() const { return saved_; }

 private:
  Checkpoints& inner_;
  const int kill_after_;
  std::vector<std::string> saved_;
};

// What a run has shown of itself.
struct Observed {
  std::map<std::string, std::string> files;         // that it wrote
  std::map<std::string, int> work;                  // stage -> units that it did itself
  std::map<std::string, std::pair<int, int>> from;  // stage -> the first thing it told: done, total
  std::vector<std::string> log;
};

class ResumeTest : public testing::Test {
 protected:
  // x [4, 3, 16, 16] -> Conv c1 -> Relu -> Conv c2 -> Relu -> Flatten -> Gemm fc -> y
  ResumeTest() {
    ModelBuilder builder;
    builder.Input("x", {4, 3, 16, 16}).Output("y", {4, 10});
    builder.Initializer("w1", {8, 3, 3, 3}, Noise(216, 2)).Initializer("b1", {8}, Noise(8, 3));
    builder.Initializer("w2", {8, 8, 3, 3}, Noise(576, 4)).Initializer("b2", {8}, Noise(8, 5));
    builder.Initializer("w3", {size_t{8} * 256, 10}, Noise(20480, 6)).Initializer("b3", {10}, Noise(10, 7));
    AddConv(builder, "c1", {"x", "w1", "b1"}, "t1");
    builder.Node("Relu", "relu1", {"t1"}, {"t2"});
    AddConv(builder, "c2", {"t2", "w2", "b2"}, "t3");
    builder.Node("Relu", "relu2", {"t3"}, {"t4"});
    builder.Node("Flatten", "flatten", {"t4"}, {"t5"});
    builder.Node("Gemm", "fc", {"t5", "w3", "b3"}, {"y"});
    input_.Write("m.onnx", builder.proto().SerializeAsString());
    input_.Write("d.npy", FloatNpy({24, 3, 16, 16}, Noise(size_t{24} * 768, 8)));
    // c2's percentile is not among the values that the first pass keeps: it takes another one.
    input_.Write("config.json", R"({"version": 1, "batch_num": 6, "activation_offset": true, "do_fusion": true,
      "skip_fusion_layers": [],
      "c1": {"quant_enable": true,
             "activation_quant_params": {"num_bits": 8, "max_percentile": 0.999999, "min_percentile": 0.999999,
                                         "search_range": [0.7, 1.3], "search_step": 0.01, "act_algo": "ifmr", "asymmetric": true},
             "weight_quant_params": {"num_bits": 8, "reg_param": 0.01, "warm_start": 0.2, "num_iteration": 12,
                                     "beta_range": [20.0, 2.0], "channel_wise": true, "wts_algo": "ada_quantize"}},
      "c2": {"quant_enable": true, "dmq_balancer_param": 0.5,
             "activation_quant_params": {"num_bits": 8, "max_percentile": 0.9, "min_percentile": 0.9,
                                         "search_range": [0.7, 1.3], "search_step": 0.001, "act_algo": "ifmr", "asymmetric": true},
             "weight_quant_params": {"num_bits": 8, "channel_wise": true, "wts_algo": "arq_quantize"}},
      "fc": {"quant_enable": true,
             "activation_quant_params": {"num_bits": 8, "act_algo": "hfmg", "asymmetric": true, "num_of_bins": 1024},
             "weight_quant_params": {"num_bits": 8, "reg_param": 0.01, "warm_start": 0.2, "num_iteration": 9,
                                     "beta_range": [20.0, 2.0], "channel_wise": false, "wts_algo": "ada_quantize"}}})");
    input_.Write("cache.json", R"({"batch_num": 6, "activation_offset": true,
      "fc": {"kv_data_quant_config": {"act_algo": "ifmr", "max_percentile": 0.9, "min_percentile": 0.9,
                                      "search_range": [0.7, 1.3], "search_step": 0.001, "quant_granularity": 1}}})");
  }

  static void AddConv(ModelBuilder& builder, const std::string& name, const std::vector<std::string>& inputs,
                      const std::string& output) {
    onnx::AttributeProto& pads = *builder.Node("Conv", name, inputs, {output}).add_attribute();
    pads.set_name("pads");
    pads.set_type(onnx::AttributeProto::INTS);
    for (int i = 0; i < 4; ++i) {
      pads.add_ints(1);
    }
  }

  CallContext Context(const FileSet& files, const TestFolder& output, Checkpoints* checkpoints, int threads, Observed& observed) {
    CallContext context;
    context.files = &files;
    context.output_root = output.string();
    context.threads = threads;
    context.checkpoints = checkpoints;
    context.defects.leaves_soft_weights = soft_weights_;
    context.log = [&observed](const std::string& line) { observed.log.push_back(line); };
    context.progress = [&observed](const std::string& stage, uint64_t done, uint64_t total) {
      if (total > 0) {
        const bool is_first = observed.from.try_emplace(stage, done, total).second;
        observed.work[stage] += is_first ? 0 : 1;
      }
    };
    return context;
  }

  // Throws Killed.
  virtual absl::Status Call(const CallContext& context) {
    return QuantizeModel(context, {.config_file = "config.json",
                                   .modified_onnx_file = "modified.onnx",
                                   .record_file = "record.txt",
                                   .model = "m.onnx",
                                   .data = {.path = "d.npy"},
                                   .saves = true,
                                   .save_path = "x"})
        .status();
  }

  Observed Run(Checkpoints* checkpoints, int threads = 1) {
    Observed observed;
    const TestFolder output;
    const FileSet files = input_.Files();
    const absl::Status status = Call(Context(files, output, checkpoints, threads, observed));
    EXPECT_TRUE(status.ok()) << status;
    for (const std::string& name : output.List()) {
      observed.files[name] = output.Read(name);
    }
    return observed;
  }

  // Kills a run after every one of its checkpoints, and resumes it. `stages`: those with checkpoints.
  void ExpectResumesEverywhere(const std::vector<std::string>& stages) {
    const Observed undisturbed = Run(nullptr);
    const TestFolder all_folder;
    FileCheckpoints all(all_folder.string(), [](const std::string&) {});
    MortalCheckpoints counting(all, -1);
    const Observed saving = Run(&counting);
    EXPECT_EQ(saving.files, undisturbed.files);
    EXPECT_THAT(saving.log, Each(Not(HasSubstr("resumed"))));
    const std::vector<std::string> saved = counting.saved();
    ASSERT_THAT(saved, Not(IsEmpty()));
    for (int kill = 1; kill <= static_cast<int>(saved.size()); ++kill) {
      SCOPED_TRACE(testing::Message() << "killed after checkpoint " << kill << " of " << saved.size() << ", " << saved[kill - 1]);
      const TestFolder folder;
      std::vector<std::string> log;
      FileCheckpoints checkpoints(folder.string(), [&log](const std::string& line) { log.push_back(line); });
      MortalCheckpoints mortal(checkpoints, kill);
      EXPECT_THROW(Run(&mortal, kill % 3 + 1), Killed);
      const Observed resumed = Run(&checkpoints, (kill + 1) % 3 + 1);
      EXPECT_EQ(resumed.files, undisturbed.files);
      const std::string stage = saved[kill - 1].substr(0, saved[kill - 1].find('.'));
      EXPECT_THAT(resumed.log, Contains(HasSubstr("resumed " + stage)));
      EXPECT_THAT(log, IsEmpty());
      int work = 0;
      int all_work = 0;
      for (const std::string& name : stages) {
        auto find = [&name](const Observed& run) { return run.work.contains(name) ? run.work.at(name) : 0; };
        EXPECT_LE(find(resumed), find(saving)) << name;
        work += find(resumed);
        all_work += find(saving);
      }
      EXPECT_LT(work, all_work);
    }
  }

  const TestFolder input_;
  bool soft_weights_ = false;
};

TEST_F(ResumeTest, QuantizeModelGoesOnFromEveryCheckpoint) {
  ExpectResumesEverywhere({"learn rounding", "calibrate", "compare"});
}

TEST_F(ResumeTest, SoftWeightsToo) {
  soft_weights_ = true;
  ExpectResumesEverywhere({"learn rounding", "calibrate", "compare"});
}

TEST_F(ResumeTest, EveryLongStageLeavesCheckpoints) {
  const TestFolder folder;
  FileCheckpoints checkpoints(folder.string(), [](const std::string&) {});
  MortalCheckpoints counting(checkpoints, -1);
  const Observed run = Run(&counting);
  EXPECT_THAT(counting.saved(), ElementsAre("rounding.0", "rounding.1", "calibration", "calibration", "comparison", "comparison",
                                            "comparison", "comparison"));
  EXPECT_THAT(run.files.at("x_report.json"), HasSubstr("\"passes\": 2"));
}

TEST_F(ResumeTest, ProgressBeginsWhereItGoesOn) {
  const TestFolder folder;
  FileCheckpoints checkpoints(folder.string(), [](const std::string&) {});
  MortalCheckpoints mortal(checkpoints, 3);  // two layers, one pass
  EXPECT_THROW(Run(&mortal), Killed);
  const Observed resumed = Run(&checkpoints);
  EXPECT_EQ(resumed.from.at("learn rounding"), std::make_pair(12, 21));
  EXPECT_EQ(resumed.work.at("learn rounding"), 1);
  EXPECT_EQ(resumed.from.at("calibrate"), std::make_pair(6, 12));
  EXPECT_EQ(resumed.work.at("calibrate"), 6);
  EXPECT_THAT(resumed.log, Contains("resumed rounding after layer 2 of 2 from an earlier attempt's checkpoints"));
  EXPECT_THAT(resumed.log, Contains("resumed calibration at batch 1 of 6 of pass 2 from an earlier attempt's checkpoint"));
}

TEST_F(ResumeTest, CheckpointsOfAnotherCallAreIgnored) {
  const TestFolder folder;
  FileCheckpoints checkpoints(folder.string(), [](const std::string&) {});
  const Observed undisturbed = Run(&checkpoints);
  // Each holds what another stage would have saved.
  const std::string calibration = *checkpoints.Load("calibration");
  checkpoints.Save("calibration", *checkpoints.Load("comparison"));
  checkpoints.Save("comparison", *checkpoints.Load("rounding.0"));
  checkpoints.Save("rounding.0", *checkpoints.Load("rounding.1"));
  checkpoints.Save("rounding.1", calibration);
  const Observed again = Run(&checkpoints);
  EXPECT_EQ(again.files, undisturbed.files);
  EXPECT_EQ(again.work, undisturbed.work);
  for (const char* key : {"calibration", "comparison", "rounding.0", "rounding.1"}) {
    EXPECT_THAT(again.log, Contains(HasSubstr("checkpoint " + std::string(key) + " does not fit this call and is ignored")));
  }
}

class ResumeCalibrateTest : public ResumeTest {
 protected:
  // The steps before.
  void Prepare() {
    const TestFolder output;
    Observed observed;
    const FileSet files = input_.Files();
    const absl::Status status =
        QuantizeModel(Context(files, output, nullptr, 1, observed), {.config_file = "config.json",
                                                                     .modified_onnx_file = "modified.onnx",
                                                                     .record_file = "record.txt",
                                                                     .model = "m.onnx",
                                                                     .sample = {.path = "d.npy"}})
            .status();
    ASSERT_TRUE(status.ok()) << status;
    input_.Write("modified.onnx", output.Read("modified.onnx"));
    input_.Write("record.txt", output.Read("record.txt"));
  }

  absl::Status Call(const CallContext& context) override {
    return Calibrate(context, {.modified_onnx_file = caches_ ? "" : "modified.onnx",
                               .record_file = "record.txt",
                               .config_file = caches_ ? "cache.json" : "config.json",
                               .model = "m.onnx",
                               .data = {.path = "d.npy"}})
        .status();
  }

  bool caches_ = false;
};

TEST_F(ResumeCalibrateTest, Layers) {
  // Factors of c2 come from the record, as the first step of the documented sequence writes them.
  Observed observed;
  const TestFolder output;
  const FileSet files = input_.Files();
  const absl::StatusOr<SavedRecord> balanced = QuantizePreprocess(
      Context(files, output, nullptr, 1, observed),
      {.config_file = "config.json", .record_file = "record.txt", .model = "m.onnx", .data = {.path = "d.npy"}});
  ASSERT_TRUE(balanced.ok()) << balanced.status();
  input_.Write("record.txt", output.Read("record.txt"));
  Prepare();
  ExpectResumesEverywhere({"calibrate"});
}

TEST_F(ResumeCalibrateTest, KeyValueCaches) {
  caches_ = true;
  ExpectResumesEverywhere({"calibrate"});
}

}  // namespace
}  // namespace modelpress::engine
