#include "engine/runtime/activations.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/checkpoint.pb.h"
#include "engine/base/status.h"
#include "engine/runtime/spill.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/npz_writer.h"
#include "tests/engine/runtime/runtime_testing.h"

namespace modelpress::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Keeps what it is shown: batches[pass][batch][part].
class Recorder final : public ActivationConsumer {
 public:
  using Values = std::vector<std::vector<float>>;
  explicit Recorder(int passes) : passes_(passes) {}

  bool wants_pass() const override { return static_cast<int>(ended.size()) < passes_; }
  absl::Status Add(absl::Span<const absl::Span<const float>> values) override {
    Values& batch = present_.emplace_back();
    for (const absl::Span<const float> part : values) {
      batch.emplace_back(part.begin(), part.end());
    }
    return on_add ? on_add() : absl::OkStatus();
  }
  absl::Status EndPass() override {
    ended.push_back(std::move(present_));
    present_.clear();
    return absl::OkStatus();
  }

  std::string Save() const override {
    std::string bytes = Bytes(ended.size() + 1);
    auto save = [&bytes](const std::vector<Values>& pass) {
      bytes += Bytes(pass.size());
      for (const Values& batch : pass) {
        bytes += Bytes(batch.size());
        for (const std::vector<float>& part : batch) {
          bytes += Bytes(part.size()) + BytesOf(part);
        }
      }
    };
    std::for_each(ended.begin(), ended.end(), save);
    save(present_);
    return bytes;
  }
  bool Load(absl::string_view state) override {
    if (state.empty()) {
      return false;
    }
    auto number = [&state] {
      size_t value = 0;
      std::memcpy(&value, state.data(), sizeof value);
      state.remove_prefix(sizeof value);
      return value;
    };
    ended.resize(number());
    for (std::vector<Values>& pass : ended) {
      pass.resize(number());
      for (Values& batch : pass) {
        batch.resize(number());
        for (std::vector<float>& part : batch) {
          part.resize(number());
          std::memcpy(part.data(), state.data(), part.size() * sizeof(float));
          state.remove_prefix(part.size() * sizeof(float));
        }
      }
    }
    present_ = std::move(ended.back());
    ended.pop_back();
    return true;
  }

  std::vector<std::vector<Values>> ended;  // passes
  std::function<absl::Status()> on_add;

 private:
  static std::string Bytes(size_t value) { return BytesOf(std::vector<size_t>{value}); }

  int passes_;
  std::vector<Values> present_;
};

// Intervals between calls shrink, or grow, from call to call: whatever comes first takes longest, or is over first.
Clock GeometricClock(double ratio) {
  return [ratio, time = 0.0, step = 1.0]() mutable {
    time += step;
    step *= ratio;
    return time;
  };
}

// x [n, 2] -> Relu -> r -> MatMul -> y, Cast -> half, Shape -> shape
Model TestModel() {
  ModelBuilder builder;
  builder.Input("x", {1, 2}).Output("y").Initializer("w", {2, 2}, {1, 2, 3, 4});
  builder.proto()
      .mutable_graph()
      ->mutable_input(0)
      ->mutable_type()
      ->mutable_tensor_type()
      ->mutable_shape()
      ->mutable_dim(0)
      ->Clear();
  builder.Node("Relu", "relu", {"x"}, {"r"});
  builder.Node("MatMul", "matmul", {"r", "w"}, {"y"});
  onnx::AttributeProto& to = *builder.Node("Cast", "cast", {"r"}, {"half"}).add_attribute();
  to.set_name("to");
  to.set_type(onnx::AttributeProto::INT);
  to.set_i(onnx::TensorProto::FLOAT16);
  builder.Node("Shape", "shape", {"r"}, {"shape"});
  return builder.Build();
}

class ActivationsTest : public testing::Test {
 protected:
  // `samples` noise samples in batches of 2.
  std::unique_ptr<CalibrationData> Data(const ModelRunner& runner, int64_t samples) {
    folder_.Write("d.npy", FloatNpy({samples, 2}, Noise(size_t{2} * samples)));
    auto data = CalibrationData::Open(folder_.Files(), "d.npy", runner.inputs(), {.batch_size = 2});
    EXPECT_TRUE(data.ok()) << data.status();
    return *std::move(data);
  }

  absl::StatusOr<CollectSummary> Collect(const ModelRunner& runner, int64_t samples, const std::vector<Tap>& taps,
                                         const std::vector<Recorder*>& recorders, CollectOptions options = {}) {
    options.scratch_folder = scratch_.string();
    const std::unique_ptr<CalibrationData> data = Data(runner, samples);
    const std::vector<ActivationConsumer*> consumers(recorders.begin(), recorders.end());
    return CollectActivations(runner, *data, taps, consumers, options);
  }

  const TestFolder folder_;
  const TestFolder scratch_;
  const std::unique_ptr<ModelRunner> runner_ = MakeRunner(TestModel(), {"x", "r", "y", "half", "shape"}, scratch_);
};

std::vector<float> Relu(std::vector<float> values) {
  for (float& value : values) {
    value = std::max(value, 0.0F);
  }
  return values;
}

TEST_F(ActivationsTest, TheSameValuesFromDiskOrRunAgainWithAnyNumberOfThreads) {
  const std::vector<Tap> taps = {
      {.parts = {{0}, {2}}, .layer = "a"}, {.parts = {{1}}, .layer = "b"}, {.parts = {{3}}, .layer = "c"}};
  std::vector<std::vector<std::vector<std::vector<Recorder::Values>>>> seen;
  for (const bool spills : {true, false}) {
    for (const int threads : {1, 2, 5}) {
      Recorder a(3);
      Recorder b(1);
      Recorder c(2);
      CollectOptions options;
      options.threads = threads;
      options.max_spill_bytes = spills ? 1 << 20 : 0;
      if (threads == 1) {  // else the clock is asked by several threads
        options.clock = GeometricClock(0.5);
      }
      std::vector<std::pair<uint64_t, uint64_t>> progress;
      options.progress = [&](uint64_t done, uint64_t total) { progress.emplace_back(done, total); };
      const auto summary = Collect(*runner_, 7, taps, {&a, &b, &c}, options);
      ASSERT_TRUE(summary.ok()) << summary.status();
      EXPECT_EQ(summary->passes, 3);
      if (threads == 1) {
        EXPECT_EQ(summary->spilled, spills) << summary->choice;
        EXPECT_THAT(summary->choice, HasSubstr(spills ? "from disk" : "runs again"));
        EXPECT_EQ(summary->spilled_bytes, spills ? 7 * 2 * (3 * 4 + 2) : 0);
      }
      EXPECT_THAT(progress, SizeIs(12));
      EXPECT_EQ(progress.back(), std::make_pair(uint64_t{12}, uint64_t{12}));
      ASSERT_THAT(a.ended, SizeIs(3));
      ASSERT_THAT(b.ended, SizeIs(1));
      ASSERT_THAT(c.ended, SizeIs(2));
      ASSERT_THAT(a.ended[0], SizeIs(4));
      EXPECT_EQ(a.ended[1], a.ended[0]);
      EXPECT_EQ(a.ended[2], a.ended[0]);
      EXPECT_EQ(c.ended[1], c.ended[0]);
      seen.push_back({a.ended, b.ended, c.ended});
      EXPECT_EQ(seen.back(), seen.front());
    }
  }
  const std::vector<float> noise = Noise(14);
  for (size_t batch = 0; batch < 4; ++batch) {
    const std::vector<float> x(noise.begin() + 4 * batch, noise.begin() + std::min<size_t>(14, 4 * batch + 4));
    EXPECT_EQ(seen[0][0][0][batch][0], x);
    EXPECT_EQ(seen[0][1][0][batch][0], Relu(x));
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(seen[0][2][0][batch][0][i], Relu(x)[i], std::abs(x[i]) * 0x1p-11F) << "a half";
    }
  }
  EXPECT_THAT(scratch_.List(), IsEmpty());
}

// Keeps everything that was ever saved.
class AllCheckpoints final : public Checkpoints {
 public:
  std::optional<std::string> Load(const std::string&) override { return loaded; }
  void Save(const std::string& key, const std::string& bytes) override {
    EXPECT_EQ(key, "calibration");
    saved.push_back(bytes);
  }

  std::vector<std::string> saved;
  std::optional<std::string> loaded;
};

class CheckpointedActivationsTest : public ActivationsTest {
 protected:
  struct Seen {
    std::vector<std::vector<Recorder::Values>> a, b;
    CollectSummary summary;
    std::vector<std::pair<uint64_t, uint64_t>> progress;
  };

  // 4 batches, 3 passes.
  Seen Show(Clock clock, double seconds_between_checkpoints) {
    Recorder a(3);
    Recorder b(1);
    Seen seen;
    CollectOptions options;
    options.clock = std::move(clock);
    options.progress = [&](uint64_t done, uint64_t total) { seen.progress.emplace_back(done, total); };
    options.checkpoint = {
        .checkpoints = &checkpoints_, .key = "calibration", .log = [this](const std::string& line) { log_.push_back(line); }};
    options.seconds_between_checkpoints = seconds_between_checkpoints;
    const auto summary =
        Collect(*runner_, 7, {{.parts = {{0}, {2}}, .layer = "a"}, {.parts = {{1}}, .layer = "b"}}, {&a, &b}, options);
    EXPECT_TRUE(summary.ok()) << summary.status();
    seen.summary = *summary;
    seen.a = std::move(a.ended);
    seen.b = std::move(b.ended);
    return seen;
  }

  AllCheckpoints checkpoints_;
  std::vector<std::string> log_;
};

TEST_F(CheckpointedActivationsTest, GoOnAtEveryBatch) {
  const Clock still = [] { return 0.0; };  // nothing takes any time
  const Seen whole = Show(still, 0);
  const std::vector<std::string> saved = checkpoints_.saved;
  ASSERT_THAT(saved, SizeIs(12)) << "one behind every batch";
  EXPECT_THAT(log_, IsEmpty());
  for (size_t done = 1; done <= saved.size(); ++done) {
    checkpoints_.loaded = saved[done - 1];
    log_.clear();
    const Seen resumed = Show(still, 0);
    EXPECT_EQ(resumed.a, whole.a) << done;
    EXPECT_EQ(resumed.b, whole.b) << done;
    EXPECT_EQ(resumed.summary.passes, 3) << done;
    EXPECT_FALSE(resumed.summary.spilled) << done;
    ASSERT_THAT(resumed.progress, SizeIs(13 - done)) << "what is left, and where it goes on";
    EXPECT_EQ(resumed.progress[0], std::make_pair(uint64_t{done}, (done / 4 + 1) * uint64_t{4}));
    const std::string where = done == 12
                                  ? "after its last pass, pass 3,"
                                  : "at batch " + std::to_string(done % 4 + 1) + " of 4 of pass " + std::to_string(done / 4 + 1);
    EXPECT_THAT(log_, ElementsAre(HasSubstr("resumed calibration " + where))) << done;
  }
}

TEST_F(CheckpointedActivationsTest, CostNextToNothing) {
  // Every look at the clock is a second later: so is every batch, and saving takes one, so that 50 have to go by.
  Show([time = 0.0]() mutable { return time += 1; }, 3);
  EXPECT_THAT(checkpoints_.saved, SizeIs(4)) << "once within the first pass, and at the end of all three";
}

TEST_F(CheckpointedActivationsTest, StatesOfOtherConsumersAreIgnored) {
  const Clock still = [] { return 0.0; };
  const Seen whole = Show(still, 0);
  state::Collection state;
  ASSERT_TRUE(state.ParseFromString(checkpoints_.saved[5]));  // the second batch of the second pass
  const std::map<std::string, std::function<void(state::Collection&)>> changes = {
      {"one consumer", [](state::Collection& s) { s.mutable_consumers()->RemoveLast(); }},
      {"three consumers", [](state::Collection& s) { s.add_consumers(s.consumers(0)); }},
      {"the second one cannot be loaded", [](state::Collection& s) { s.mutable_consumers(1)->clear(); }},
      {"too many batches", [](state::Collection& s) { s.set_batches(4); }},
      {"a negative batch", [](state::Collection& s) { s.set_batches(-1); }},
      {"a negative pass", [](state::Collection& s) { s.set_passes(-1); }},
  };
  for (const auto& [what, change] : changes) {
    state::Collection changed = state;
    change(changed);
    checkpoints_.loaded = changed.SerializeAsString();
    log_.clear();
    const Seen seen = Show(still, 0);
    EXPECT_THAT(log_, ElementsAre("checkpoint calibration does not fit this call and is ignored")) << what;
    EXPECT_THAT(seen.progress, SizeIs(12)) << what;
    EXPECT_EQ(seen.a, whole.a) << what;
    EXPECT_EQ(seen.b, whole.b) << what;
  }
}

TEST_F(ActivationsTest, GivesTheSpillUpWhereTheDiskTurnsOutSlow) {
  Recorder recorder(2);
  CollectOptions options;
  options.clock = GeometricClock(2);
  const auto summary = Collect(*runner_, 6, {{.parts = {{1}}, .layer = "a"}}, {&recorder}, options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_FALSE(summary->spilled);
  EXPECT_EQ(summary->spilled_bytes, 0);
  EXPECT_THAT(summary->choice, HasSubstr("runs again in every pass: that takes an estimated"));
  EXPECT_EQ(recorder.ended[1], recorder.ended[0]);
}

TEST_F(ActivationsTest, AFullDiskIsNoError) {
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  Recorder recorder(2);
  recorder.on_add = [&] {  // from the second batch on nothing can be written
    const struct rlimit limit{.rlim_cur = 20, .rlim_max = old_limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    return absl::OkStatus();
  };
  CollectOptions options;
  options.clock = GeometricClock(0.5);
  const auto summary = Collect(*runner_, 6, {{.parts = {{1}}, .layer = "a"}}, {&recorder}, options);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_FALSE(summary->spilled);
  EXPECT_THAT(summary->choice, HasSubstr("cannot write the file of activations"));
  ASSERT_THAT(recorder.ended, SizeIs(2));
  EXPECT_EQ(recorder.ended[1], recorder.ended[0]);
}

TEST_F(ActivationsTest, ASingleBatchIsRunOnce) {
  Recorder recorder(3);
  CollectOptions options;
  options.clock = GeometricClock(1);
  const auto summary = Collect(*runner_, 2, {{.parts = {{1}}, .layer = "a"}}, {&recorder}, options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->passes, 3);
  EXPECT_EQ(summary->inference_seconds, 1) << "the clock was asked around one run";
  EXPECT_FALSE(summary->spilled);
  EXPECT_EQ(recorder.ended[0], recorder.ended[2]);
  EXPECT_EQ(recorder.ended[0][0][0], Relu(Noise(4)));
}

TEST_F(ActivationsTest, DropsTheLastStep) {
  Recorder recorder(1);
  const auto summary =
      Collect(*runner_, 3, {{.parts = {{.tensor = 0, .drops_last_step = true}, {0}}, .layer = "a"}}, {&recorder});
  ASSERT_TRUE(summary.ok()) << summary.status();
  const std::vector<float> x = Noise(6);
  ASSERT_THAT(recorder.ended[0], SizeIs(2));
  EXPECT_THAT(recorder.ended[0][0][0], ElementsAre(x[0], x[1]));
  EXPECT_THAT(recorder.ended[0][0][1], ElementsAre(x[0], x[1], x[2], x[3]));
  EXPECT_THAT(recorder.ended[0][1][0], IsEmpty());
}

TEST_F(ActivationsTest, ErrorsNameTheLayer) {
  Recorder recorder(1);
  const absl::Status integers = Collect(*runner_, 4, {{.parts = {{4}}, .layer = "fc"}}, {&recorder}).status();
  EXPECT_EQ(ReasonOf(integers), v1::TENSOR_INVALID) << integers;
  EXPECT_EQ(PlaceOf(integers).layer, "fc");
  recorder.on_add = [] { return MakeError(v1::CALIBRATION_FAILED, "no"); };
  const absl::Status failed = Collect(*runner_, 4, {{.parts = {{0}}, .layer = "conv"}}, {&recorder}).status();
  EXPECT_EQ(failed.message(), "layer 'conv': no");
  EXPECT_EQ(ReasonOf(Collect(*runner_, 4, {{.parts = {{5}}, .layer = "a"}}, {&recorder}).status()), v1::INTERNAL_ERROR);
  EXPECT_EQ(ReasonOf(Collect(*runner_, 4, {}, {&recorder}).status()), v1::INTERNAL_ERROR);
}

TEST_F(ActivationsTest, WhoWantsNothingCostsNothing) {
  Recorder recorder(0);
  const auto summary = Collect(*runner_, 4, {{.parts = {{0}}, .layer = "a"}}, {&recorder});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->passes, 0);
}

TEST_F(ActivationsTest, PassesAnErrorOfARunOn) {
  ModelBuilder builder;
  builder.Input("x", {1, 2}).Input("z", {1, 3}).Output("y");
  builder.proto().mutable_graph()->mutable_input(0)->mutable_type()->mutable_tensor_type()->clear_shape();
  builder.proto().mutable_graph()->mutable_input(1)->mutable_type()->mutable_tensor_type()->clear_shape();
  builder.Node("Add", "add", {"x", "z"}, {"y"});
  const auto runner = MakeRunner(builder.Build(), {"y"}, scratch_);
  ASSERT_NE(runner, nullptr);
  WriteNpz(folder_.Path("bad.npz"), {{"x", FloatNpy({2, 2}, Noise(4))}, {"z", FloatNpy({2, 3}, Noise(6))}});
  const auto data = CalibrationData::Open(folder_.Files(), "bad.npz", runner->inputs(), {.batches = 2});
  ASSERT_TRUE(data.ok()) << data.status();
  Recorder recorder(1);
  ActivationConsumer* const consumer = &recorder;
  const Tap tap = {.parts = {{0}}, .layer = "a"};
  const absl::Status status =
      CollectActivations(*runner, **data, {&tap, 1}, {&consumer, 1}, {.scratch_folder = scratch_.string()}).status();
  EXPECT_EQ(ReasonOf(status), v1::MODEL_UNRUNNABLE) << status;
}

TEST(ChooseSpillTest, ComparesTimesAndSpace) {
  SpillMeasure measure = {.batches = 2,
                          .all_batches = 10,
                          .bytes = 200,
                          .allowed_bytes = 1000,
                          .run_seconds = 4,
                          .write_seconds = 2,
                          .read_seconds = 0.9,
                          .read_bytes = 100};
  EXPECT_TRUE(ChooseSpill(measure).pays) << "19 s against 20 s";
  measure.read_seconds = 1;
  EXPECT_FALSE(ChooseSpill(measure).pays);
  EXPECT_THAT(ChooseSpill(measure).words,
              HasSubstr("takes an estimated 20.00 s, writing and reading 0 MB of activations 20.00 s"));
  measure.read_seconds = 0;
  EXPECT_TRUE(ChooseSpill(measure).pays);
  measure.allowed_bytes = 999;
  EXPECT_FALSE(ChooseSpill(measure).pays);
}

TEST(SpillFileTest, NeedsAFolder) { EXPECT_EQ(ReasonOf(SpillFile::Create("/nowhere").status()), v1::STORAGE_ERROR); }

}  // namespace
}  // namespace modelpress::engine
