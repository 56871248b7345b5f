#include "engine/runtime/model_runner.h"

#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/runtime/runtime_testing.h"

namespace modelpress::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

void AddInts(onnx::NodeProto& node, const std::string& name, const std::vector<int64_t>& values) {
  onnx::AttributeProto& attribute = *node.add_attribute();
  attribute.set_name(name);
  attribute.set_type(onnx::AttributeProto::INTS);
  attribute.mutable_ints()->Assign(values.begin(), values.end());
}

// x -> Relu -> r -> Add(b) -> y
ModelBuilder ReluModel() {
  ModelBuilder builder;
  builder.Input("x", {-1, 2}).Output("y").Initializer("b", {2}, {10, 20});
  builder.proto()
      .mutable_graph()
      ->mutable_input(0)
      ->mutable_type()
      ->mutable_tensor_type()
      ->mutable_shape()
      ->mutable_dim(0)
      ->Clear();
  builder.Node("Relu", "relu", {"x"}, {"r"});
  builder.Node("Add", "add", {"r", "b"}, {"y"});
  return builder;
}

TEST(InputSpecsOfTest, DescribesTheInputs) {
  ModelBuilder builder = ReluModel();
  builder.Input("b", {2});
  builder.proto().mutable_graph()->add_input()->set_name("unknown");
  const std::vector<InputSpec> specs = InputSpecsOf(builder.Build());
  ASSERT_THAT(specs, SizeIs(3));
  EXPECT_EQ(specs[0].name, "x");
  EXPECT_EQ(specs[0].data_type, onnx::TensorProto::FLOAT);
  EXPECT_THAT(specs[0].dims, ElementsAre(-1, 2));
  EXPECT_FALSE(specs[0].optional);
  EXPECT_FALSE(specs[0].any_shape);
  EXPECT_EQ(specs[1].name, "b");
  EXPECT_TRUE(specs[1].optional);
  EXPECT_TRUE(specs[2].any_shape);
  builder.proto().set_ir_version(3);
  EXPECT_THAT(InputSpecsOf(builder.Build()), SizeIs(2)) << "before IR version 4 an initializer is no input that can be given";
}

TEST(ModelRunnerTest, ShowsInputsOutputsAndWhatIsBetween) {
  const TestFolder scratch;
  const auto runner = MakeRunner(ReluModel().Build(), {"y", "x", "r", "y"}, scratch);
  ASSERT_NE(runner, nullptr);
  EXPECT_THAT(scratch.List(), IsEmpty());
  ASSERT_THAT(runner->inputs(), SizeIs(1));
  for (const int64_t batch_size : {1, 3}) {
    const Batch batch = {Floats({batch_size, 2}, Noise(size_t{2} * batch_size))};
    const absl::StatusOr<RunResult> result = runner->Run(batch);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_THAT(result->tensors, SizeIs(4));
    EXPECT_EQ(ValuesOf(result->tensors[1]), Noise(size_t{2} * batch_size));
    for (const size_t i : {0, 2, 3}) {
      EXPECT_EQ(result->tensors[i].data_type, onnx::TensorProto::FLOAT);
      EXPECT_THAT(result->tensors[i].dims, ElementsAre(batch_size, 2));
    }
    for (int64_t i = 0; i < 2 * batch_size; ++i) {
      const float relu = std::max(0.0F, Noise(size_t{2} * batch_size)[i]);
      EXPECT_EQ(ValuesOf(result->tensors[2])[i], relu);
      EXPECT_EQ(ValuesOf(result->tensors[0])[i], relu + (i % 2 == 0 ? 10 : 20));
      EXPECT_EQ(ValuesOf(result->tensors[3])[i], ValuesOf(result->tensors[0])[i]);
    }
  }
}

TEST(ModelRunnerTest, InputsAloneNeedNoRun) {
  const TestFolder scratch;
  const auto runner = MakeRunner(ReluModel().Build(), {"x"}, scratch);
  ASSERT_NE(runner, nullptr);
  const Batch batch = {Floats({1, 2}, {3, 4})};
  const absl::StatusOr<RunResult> result = runner->Run(batch);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(ValuesOf(result->tensors[0]), ElementsAre(3, 4));
}

TEST(ModelRunnerTest, ADefaultCanBeLeftOutOrGiven) {
  const TestFolder scratch;
  ModelBuilder builder = ReluModel();
  builder.Input("b", {2});
  const auto runner = MakeRunner(builder.Build(), {"y"}, scratch);
  ASSERT_NE(runner, nullptr);
  const Batch without = {Floats({1, 2}, {1, 2}), {}};
  EXPECT_THAT(ValuesOf(runner->Run(without)->tensors[0]), ElementsAre(11, 22));
  const Batch with = {Floats({1, 2}, {1, 2}), Floats({2}, {100, 200})};
  EXPECT_THAT(ValuesOf(runner->Run(with)->tensors[0]), ElementsAre(101, 202));
}

TEST(ModelRunnerTest, OnlyTensorsOfTheGraphCanBeShown) {
  const TestFolder scratch;
  for (const char* name : {"b", "nothing", ""}) {
    const auto runner = ModelRunner::Create(ReluModel().Build(), {.tensors = {name}, .scratch_folder = scratch.string()});
    EXPECT_EQ(ReasonOf(runner.status()), v1::INTERNAL_ERROR) << runner.status();
    EXPECT_EQ(PlaceOf(runner.status()).layer, name);
  }
}

TEST(ModelRunnerTest, RefusalsAreOneLineInTheRuntimesWords) {
  const TestFolder scratch;
  ModelBuilder unknown = ReluModel();
  unknown.proto().mutable_graph()->mutable_node(0)->set_op_type("AscendQuant");
  const absl::Status load = ModelRunner::Create(unknown.Build(), {.tensors = {"y"}, .scratch_folder = scratch.string()}).status();
  EXPECT_EQ(ReasonOf(load), v1::MODEL_UNRUNNABLE) << load;
  EXPECT_THAT(load.message(), HasSubstr("AscendQuant"));
  EXPECT_THAT(load.message(), Not(HasSubstr("\n")));
  EXPECT_THAT(scratch.List(), IsEmpty());

  const auto runner = MakeRunner(ReluModel().Build(), {"y"}, scratch);
  ASSERT_NE(runner, nullptr);
  const absl::Status run = runner->Run({Floats({2}, {1, 2})}).status();
  EXPECT_EQ(ReasonOf(run), v1::MODEL_UNRUNNABLE) << run;
  EXPECT_THAT(run.message(), HasSubstr("Invalid rank for input: x"));
  EXPECT_EQ(ReasonOf(runner->Run({}).status()), v1::INTERNAL_ERROR);
}

TEST(ModelRunnerTest, ATensorWithoutNumbersIsRefused) {
  const TestFolder scratch;
  ModelBuilder builder = ReluModel();
  builder.Node("SequenceConstruct", "sequence", {"r"}, {"s"});
  const auto runner = MakeRunner(builder.Build(), {"s"}, scratch);
  ASSERT_NE(runner, nullptr);
  const absl::Status status = runner->Run({Floats({1, 2}, {1, 2})}).status();
  EXPECT_EQ(ReasonOf(status), v1::MODEL_UNRUNNABLE) << status;
  EXPECT_EQ(PlaceOf(status).layer, "s");
}

// Convolutions, products of matrices and reductions. ONNX Runtime on several threads sums "c2" and "ab" in another order than on
// one, since a thread's share of the columns decides how the inner dimension is blocked. 1.3 MB of weights, so that some go
// through files.
Model BigModel() {
  ModelBuilder builder;
  builder.Input("x", {2, 16, 40, 40}).Input("x2", {1, 64, 8, 8}).Input("a", {32, 512}).Input("b", {512, 128});
  builder.Input("wide", {3, 100'000}).Output("sum");
  builder.Initializer("w", {32, 16, 3, 3}, Noise(size_t{32} * 16 * 9, 2)).Initializer("bias", {32}, Noise(32, 3));
  builder.Initializer("w2", {64, 64, 3, 3}, Noise(size_t{64} * 64 * 9, 8));
  builder.Initializer("v", {40, 30}, Noise(size_t{40} * 30, 4)).Initializer("tall", {100'000, 3}, Noise(300'000, 5));
  AddInts(builder.Node("Conv", "conv", {"x", "w", "bias"}, {"c"}), "pads", {1, 1, 1, 1});
  AddInts(builder.Node("Conv", "conv2", {"x2", "w2"}, {"c2"}), "pads", {1, 1, 1, 1});
  builder.Node("MatMul", "matmul", {"c", "v"}, {"p"});
  builder.Node("Softmax", "softmax", {"p"}, {"s"});
  AddInts(builder.Node("ReduceMean", "reduce_mean", {"s"}, {"mean"}), "axes", {0, 2});
  builder.Node("ReduceSum", "reduce_sum", {"p"}, {"sum"});
  builder.Node("MatMul", "tall_matmul", {"wide", "tall"}, {"m"});
  builder.Node("MatMul", "inputs_matmul", {"a", "b"}, {"ab"});
  return builder.Build();
}

TEST(ModelRunnerTest, TheSameBytesHoweverManyThreadsRun) {
  const TestFolder scratch;
  const std::vector<std::string> tensors = {"c", "c2", "p", "s", "mean", "sum", "m", "ab"};
  const Batch batch = {Floats({2, 16, 40, 40}, Noise(size_t{2} * 16 * 1600, 6)), Floats({1, 64, 8, 8}, Noise(size_t{64} * 64, 7)),
                       Floats({32, 512}, Noise(size_t{32} * 512, 9)), Floats({512, 128}, Noise(size_t{512} * 128, 10)),
                       Floats({3, 100'000}, Noise(300'000, 11))};
  std::vector<std::vector<float>> first;
  for (const int threads : {1, 2, 4}) {
    const auto runner = MakeRunner(BigModel(), tensors, scratch, threads);
    ASSERT_NE(runner, nullptr);
    std::vector<absl::StatusOr<RunResult>> results(threads);
    {
      std::vector<std::jthread> running;
      running.reserve(threads);
      for (int i = 0; i < threads; ++i) {
        running.emplace_back([&, i] { results[i] = runner->Run(batch); });
      }
    }
    for (const absl::StatusOr<RunResult>& result : results) {
      ASSERT_TRUE(result.ok()) << result.status();
      for (size_t i = 0; i < tensors.size(); ++i) {
        const std::vector<float> values = ValuesOf(result->tensors[i]);
        if (first.size() == i) {
          first.push_back(values);
        }
        EXPECT_EQ(values, first[i]) << tensors[i];
      }
    }
  }
}

}  // namespace
}  // namespace modelpress::engine
