#include "engine/runtime/compare.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/npz_writer.h"
#include "tests/engine/runtime/runtime_testing.h"

namespace modelpress::engine {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::SizeIs;

// x [2] -> Add(b) -> y, Cast(y) -> half
Model AddModel(const std::vector<float>& b) {
  ModelBuilder builder;
  builder.Input("x", {2}).Output("y").Initializer("b", {static_cast<int64_t>(b.size())}, b);
  builder.Node("Add", "add", {"x", "b"}, {"y"});
  onnx::AttributeProto& to = *builder.Node("Cast", "cast", {"y"}, {"half"}).add_attribute();
  to.set_name("to");
  to.set_type(onnx::AttributeProto::INT);
  to.set_i(onnx::TensorProto::FLOAT16);
  return builder.Build();
}

class CompareTest : public testing::Test {
 protected:
  absl::StatusOr<Comparison> Run(const std::vector<float>& x, const Model& candidate, const std::vector<std::string>& tensors,
                                 int pairs, const std::vector<SaturationBounds>& bounds, int64_t max_batches) {
    const auto reference = MakeRunner(AddModel({0, 0}), tensors, folder_);
    const auto other = MakeRunner(candidate, tensors, folder_);
    folder_.Write("d.npy", FloatNpy({static_cast<int64_t>(x.size())}, x));
    const auto data = CalibrationData::Open(folder_.Files(), "d.npy", reference->inputs(), {});
    EXPECT_TRUE(data.ok()) << data.status();
    return Compare(*reference, *other, pairs, bounds, **data, {.max_batches = max_batches});
  }
  const TestFolder folder_;
};

TEST_F(CompareTest, MeasuresErrorsAndSaturation) {
  // Batches (3, 4), (0, 5), (100, 100), of which two are used; the candidate adds (1, 0).
  const auto result = Run({3, 4, 0, 5, 100, 100}, AddModel({1, 0}), {"y", "half", "x"}, 2, {{-1, 4}}, 2);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->batches, 2);
  ASSERT_THAT(result->tensors, SizeIs(2));
  for (const TensorError& error : result->tensors) {
    EXPECT_EQ(error.count, 4);
    EXPECT_DOUBLE_EQ(error.sqnr_db, 10 * std::log10(50.0 / 2));
    EXPECT_DOUBLE_EQ(error.cosine, (12.0 + 16 + 0 + 25) / std::sqrt(50.0 * (16 + 16 + 1 + 25)));
    EXPECT_EQ(error.max_error, 1);
    EXPECT_EQ(error.mean_error, 0.5);
    EXPECT_EQ(error.signal_power, 12.5);
  }
  EXPECT_THAT(result->saturated, ElementsAre(0.25));
}

TEST_F(CompareTest, EqualAndZeroTensors) {
  const auto equal = Run({1, 2}, AddModel({0, 0}), {"y"}, 1, {}, 10);
  ASSERT_TRUE(equal.ok()) << equal.status();
  EXPECT_EQ(equal->batches, 1);
  EXPECT_EQ(equal->tensors[0].sqnr_db, std::numeric_limits<double>::infinity());
  EXPECT_THAT(equal->tensors[0].cosine, DoubleNear(1, 1e-15));
  const auto zero = Run({0, 0}, AddModel({0, 0}), {"y"}, 1, {}, 10);
  EXPECT_EQ(zero->tensors[0].cosine, 1);
  const auto from_zero = Run({0, 0}, AddModel({1, 0}), {"y"}, 1, {}, 10);
  EXPECT_EQ(from_zero->tensors[0].cosine, 0);
  EXPECT_EQ(from_zero->tensors[0].sqnr_db, -std::numeric_limits<double>::infinity());
}

TEST_F(CompareTest, NotANumberIsNotHidden) {
  const auto result = Run({1, 2, 3, 4}, AddModel({NAN, 0}), {"y"}, 1, {}, 10);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(std::isnan(result->tensors[0].max_error));
  EXPECT_TRUE(std::isnan(result->tensors[0].sqnr_db));
  EXPECT_TRUE(std::isnan(result->tensors[0].cosine));
}

TEST_F(CompareTest, RefusesWhatCannotBeCompared) {
  EXPECT_EQ(ReasonOf(Run({1, 2}, AddModel({1, 0}), {"y"}, 2, {}, 1).status()), v1::INTERNAL_ERROR);
  EXPECT_EQ(ReasonOf(Run({1, 2}, AddModel({1, 0}), {"y", "x"}, 1, {}, 1).status()), v1::INTERNAL_ERROR);
  ModelBuilder wider;
  wider.Input("x", {2}).Output("y");
  wider.Node("Concat", "concat", {"x", "x"}, {"y"}).add_attribute()->set_name("axis");
  wider.proto().mutable_graph()->mutable_node(0)->mutable_attribute(0)->set_type(onnx::AttributeProto::INT);
  EXPECT_EQ(ReasonOf(Run({1, 2}, wider.Build(), {"y"}, 1, {}, 1).status()), v1::INTERNAL_ERROR);
}

}  // namespace
}  // namespace modelpress::engine
