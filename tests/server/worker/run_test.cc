// `modelpressd run`, spoken to over its protocol: a child that is killed in a long stage, and the next attempt.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "modelpress/v1/compression.pb.h"
#include "server/worker/run_protocol.h"
#include "server/worker/run_protocol.pb.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/npz_writer.h"

namespace modelpress::server {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ReadFile(const fs::path& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// Values between -1 and 1 without a pattern.
std::vector<float> Noise(size_t count, unsigned seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525U + 1013904223U;
    value = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31F;
  }
  return values;
}

class RunTest : public testing::Test {
 protected:
  RunTest() {
    std::string name = (fs::temp_directory_path() / "modelpress-run-XXXXXX").string();
    folder_ = mkdtemp(name.data());
    fs::create_directory(folder_ / "checkpoints");
    WriteInputs();
  }
  ~RunTest() override { fs::remove_all(folder_); }

  // A calibration of seconds, in three passes.
  void WriteInputs() {
    engine::ModelBuilder builder;
    builder.Input("x", {1, 16, 48, 48}).Output("y", {1, 16, 48, 48});
    builder.Initializer("w1", {32, 16, 3, 3}, Noise(4608, 1)).Initializer("w2", {16, 32, 3, 3}, Noise(4608, 2));
    AddConv(builder, "c1", {"x", "w1"}, "t1");
    builder.Node("Relu", "relu", {"t1"}, {"t2"});
    AddConv(builder, "c2", {"t2", "w2"}, "y");
    Write("m.onnx", builder.proto().SerializeAsString());
    constexpr int64_t kBatches = 300;
    Write("d.npy", engine::FloatNpy({kBatches, 16, 48, 48}, Noise(size_t{kBatches} * 16 * 48 * 48, 3)));
    std::string layers;
    for (const char* layer : {"c1", "c2"}) {
      absl::StrAppend(&layers, ", \"", layer, R"(": {"quant_enable": true, "activation_quant_params": {
        "num_bits": 8, "max_percentile": 0.9, "min_percentile": 0.9, "search_range": [0.7, 1.3], "search_step": 0.001,
        "act_algo": "ifmr", "asymmetric": true},
        "weight_quant_params": {"num_bits": 8, "channel_wise": true, "wts_algo": "arq_quantize"}})");
    }
    Write("c.json", absl::StrCat(R"({"version": 1, "batch_num": )", kBatches,
                                 R"(, "activation_offset": true, "do_fusion": true, "skip_fusion_layers": [])", layers, "}"));
  }

  static void AddConv(engine::ModelBuilder& builder, const std::string& name, const std::vector<std::string>& inputs,
                      const std::string& output) {
    onnx::AttributeProto& pads = *builder.Node("Conv", name, inputs, {output}).add_attribute();
    pads.set_name("pads");
    pads.set_type(onnx::AttributeProto::INTS);
    for (int i = 0; i < 4; ++i) {
      pads.add_ints(1);
    }
  }

  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }

  // What one attempt shows of itself.
  struct Attempt {
    std::vector<RunEvent> events;
    std::string log;
    std::map<std::string, std::string> files;
  };

  // Runs a child; kills it as soon as `fatal_file` is there, if one is named.
  Attempt Run(const std::string& name, const std::string& checkpoint_dir, const fs::path& fatal_file = {}) {
    Attempt attempt;
    const fs::path output = folder_ / name;
    fs::create_directory(output);
    std::array<int, 2> input_pipe{};
    std::array<int, 2> output_pipe{};
    EXPECT_EQ(pipe2(input_pipe.data(), O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(output_pipe.data(), O_CLOEXEC), 0);
    const std::string log = (folder_ / (name + ".log")).string();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input_pipe[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output_pipe[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const std::string binary = absl::StrCat(std::getenv("MODELPRESS_BIN_DIR"), "/modelpressd");
    std::string program = binary;
    std::string role = "run";
    std::array<char*, 3> arguments = {program.data(), role.data(), nullptr};
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, binary.c_str(), &actions, nullptr, arguments.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(input_pipe[0]);
    close(output_pipe[1]);

    const std::string spec = Frame(Spec(output.string(), checkpoint_dir));
    EXPECT_EQ(write(input_pipe[1], spec.data(), spec.size()), spec.size());
    std::thread killer;
    if (!fatal_file.empty()) {
      killer = std::thread([&] {
        while (!fs::exists(fatal_file)) {
          std::this_thread::yield();
        }
        kill(pid, SIGKILL);
      });
    }
    FrameReader frames;
    std::array<char, 4096> bytes{};
    for (ssize_t size = 0; (size = read(output_pipe[0], bytes.data(), bytes.size())) > 0;) {
      frames.Append({bytes.data(), static_cast<size_t>(size)});
      RunEvent event;
      for (absl::StatusOr<bool> next = frames.Next(event); next.ok() && *next; next = frames.Next(event)) {
        attempt.events.push_back(event);
      }
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    if (killer.joinable()) {
      killer.join();
    }
    close(input_pipe[1]);
    close(output_pipe[0]);
    attempt.log = ReadFile(log);
    for (const auto& entry : fs::directory_iterator(output)) {
      if (entry.is_regular_file()) {
        attempt.files[entry.path().filename().string()] = ReadFile(entry.path());
      }
    }
    return attempt;
  }

  static google::protobuf::Any Quantize() {
    v1::QuantizeModelRequest request;
    request.set_workspace("workspaces/w");
    request.set_config_file("c.json");
    request.set_modified_onnx_file("x_modified_model.onnx");
    request.set_record_file("x_record.txt");
    request.set_model("m.onnx");
    request.mutable_calibration_data()->set_path("d.npy");
    request.set_save_path("x");
    google::protobuf::Any any;
    any.PackFrom(request);
    return any;
  }

  RunSpec Spec(const std::string& output, const std::string& checkpoint_dir) const {
    RunSpec spec;
    spec.set_operation("operation");
    *spec.mutable_request() = request_;
    for (const std::string& name : inputs_) {
      RunSpec::Input& input = *spec.add_inputs();
      input.set_name(name);
      input.set_path((folder_ / name).string());
      input.set_size_bytes(fs::file_size(folder_ / name));
    }
    spec.set_output_dir(output);
    spec.set_threads(1);
    spec.set_checkpoint_dir(checkpoint_dir);
    return spec;
  }

  static uint64_t FirstDone(const Attempt& attempt, const std::string& stage) {
    for (const RunEvent& event : attempt.events) {
      if (event.progress().stage() == stage && event.progress().total() > 0) {
        return event.progress().done();
      }
    }
    return 0;
  }

  fs::path folder_;
  google::protobuf::Any request_ = Quantize();
  std::vector<std::string> inputs_ = {"c.json", "d.npy", "m.onnx"};
};

// A record file may give more reasons to warn than the worker takes in one message.
TEST_F(RunTest, WarningsAreCutBeforeTheyAreSent) {
  constexpr int kEntries = 30'000;
  std::string record;
  for (int i = 0; i < kEntries; ++i) {
    record += "record { key: \"c1\" value {} kv_cache_value { scale: 1 offset: 0 } }\n";
  }
  Write("r.txt", record);
  v1::SaveModelRequest request;
  request.set_workspace("workspaces/w");
  request.set_modified_onnx_file("m.onnx");
  request.set_record_file("r.txt");
  request.set_save_path("x");
  request_.PackFrom(request);
  inputs_ = {"m.onnx", "r.txt"};
  const Attempt attempt = Run("many", "");
  ASSERT_FALSE(attempt.events.empty());
  const RunResult& result = attempt.events.back().result();
  EXPECT_FALSE(result.has_error()) << result.error().ShortDebugString();
  ASSERT_EQ(result.warnings_size(), 1000) << attempt.log;
  // Two more: that nothing is quantized, and that the layer is named more than once.
  EXPECT_EQ(result.warnings(999), absl::StrCat(kEntries + 2 - 999, " more warnings are not kept"));
}

TEST_F(RunTest, AnAttemptGoesOnWhereTheOneBeforeWasKilled) {
  const Attempt undisturbed = Run("undisturbed", "");
  ASSERT_FALSE(undisturbed.events.empty()) << undisturbed.log;
  ASSERT_TRUE(undisturbed.events.back().result().has_response())
      << undisturbed.events.back().ShortDebugString() << undisturbed.log;

  const fs::path checkpoints = folder_ / "checkpoints";
  const Attempt killed = Run("killed", checkpoints.string(), checkpoints / "calibration");
  ASSERT_FALSE(killed.events.empty());
  EXPECT_FALSE(killed.events.back().has_result()) << "it was to be killed before";
  EXPECT_THAT(killed.log, Not(HasSubstr("resumed")));

  const Attempt resumed = Run("resumed", checkpoints.string());
  ASSERT_TRUE(resumed.events.back().result().has_response()) << resumed.events.back().ShortDebugString() << resumed.log;
  EXPECT_THAT(resumed.log, AllOf(HasSubstr("resumed calibration at batch "), HasSubstr("from an earlier attempt's checkpoint")));
  EXPECT_GT(FirstDone(resumed, "calibrate"), 1);
  EXPECT_EQ(resumed.files, undisturbed.files);
}

}  // namespace
}  // namespace modelpress::server
