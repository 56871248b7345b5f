#include "engine/retrain/checkpoint.h"

#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/quantize/operands.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Tensor FloatTensorOf(const std::string& name, const std::vector<int64_t>& dims, const std::vector<float>& values) {
  onnx::TensorProto proto;
  proto.set_name(name);
  proto.set_data_type(onnx::TensorProto::FLOAT);
  proto.mutable_dims()->Assign(dims.begin(), dims.end());
  proto.set_raw_data(values.data(), values.size() * sizeof(float));
  return FromProto(std::move(proto));
}

std::vector<float> Counting(int64_t count, float first = 0) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() { builder_.Input("x", {2, 2}).Output("y"); }

  absl::Status Load(std::vector<Tensor> weights, const std::string& state_dict_name = "",
                    const v1::ModuleManifest* manifest = nullptr) {
    absl::StatusOr<Graph> graph = Graph::Create(builder_.Build(), {});
    EXPECT_TRUE(graph.ok()) << graph.status();
    absl::StatusOr<Layers> layers = FindLayers(*graph, nullptr, {});
    EXPECT_TRUE(layers.ok()) << layers.status();
    NameLayerNodes(*graph, *layers);
    const absl::Status status = LoadCheckpoint(*graph, *layers, manifest, plan_, std::move(weights), state_dict_name);
    graph_.emplace(*std::move(graph));
    return status;
  }

  std::vector<float> ValuesOf(const std::string& initializer) const {
    const Tensor tensor = TensorOf(graph_->item(graph_->Find(initializer)));
    std::vector<float> values(tensor.ElementCount());
    EXPECT_TRUE(ReadFloats(tensor, 0, absl::MakeSpan(values)).ok());
    return values;
  }

  ModelBuilder builder_;
  v1::RewritePlan plan_;
  std::optional<Graph> graph_;
};

// A Linear without bias whose export has folded the transposition of its weight.
class LinearTest : public CheckpointTest {
 protected:
  LinearTest() {
    builder_.Initializer("onnx::MatMul_7", {2, 3}, Counting(6));
    builder_.Node("MatMul", "/fc/MatMul", {"x", "onnx::MatMul_7"}, {"y"});
  }
  const Tensor weight_ = FloatTensorOf("fc.weight", {3, 2}, {1, 2, 3, 4, 5, 6});
};

TEST_F(LinearTest, TransposesWhatTheExporterTransposed) {
  ASSERT_TRUE(Load({weight_}).ok());
  EXPECT_THAT(ValuesOf("onnx::MatMul_7"), ElementsAre(1, 3, 5, 2, 4, 6));
}

TEST_F(LinearTest, TakesTheNamedEntryOfTheCheckpointAndDropsDataParallelsPrefix) {
  Tensor weight = weight_;
  weight.header.set_name("model.module.fc.weight");
  Tensor optimizer = weight_;
  optimizer.header.set_name("optimizer.fc.weight");
  EXPECT_TRUE(Load({weight, optimizer}, "model").ok());
  EXPECT_EQ(ReasonOf(Load({weight, optimizer})), v1::WEIGHTS_INVALID);
  const absl::Status status = Load({weight, optimizer}, "state_dict");
  EXPECT_EQ(ReasonOf(status), v1::WEIGHTS_INVALID);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'state_dict.'"));
}

TEST_F(LinearTest, NamesWhatIsMissingAndWhatIsTooMuch) {
  const absl::Status status = Load({FloatTensorOf("other.weight", {1}, {1}), FloatTensorOf("bn.num_batches_tracked", {}, {1})});
  EXPECT_EQ(ReasonOf(status), v1::WEIGHTS_INVALID);
  EXPECT_EQ(MetadataOf(status)["missing"], "fc.weight");
  EXPECT_EQ(MetadataOf(status)["unexpected"], "other.weight");
}

// A module that the graph does not use is part of the checkpoint too; only the manifest tells.
TEST_F(LinearTest, ParametersOfTheManifestMayHaveNoPlace) {
  v1::ModuleManifest manifest;
  v1::Module& module = *manifest.add_modules();
  module.set_name("other");
  module.set_type("Linear");
  module.add_parameters()->set_name("weight");
  const Tensor other = FloatTensorOf("other.weight", {1}, {1});
  EXPECT_TRUE(Load({weight_, other}, "", &manifest).ok());
}

TEST_F(LinearTest, RefusesOtherShapesAndTypes) {
  const absl::Status shape = Load({FloatTensorOf("fc.weight", {2, 3}, Counting(6))});
  EXPECT_EQ(ReasonOf(shape), v1::WEIGHTS_INVALID);
  EXPECT_THAT(std::string(shape.message()), HasSubstr("it has the shape [2, 3], but the model needs [3, 2]"));
  EXPECT_EQ(PlaceOf(shape).layer, "fc.weight");
  Tensor integers = weight_;
  integers.header.set_data_type(onnx::TensorProto::INT32);
  EXPECT_THAT(std::string(Load({integers}).message()), HasSubstr("INT32"));
}

TEST_F(LinearTest, LooksBelowTheWrapper) {
  v1::WrappedLayer& layer = *plan_.add_layers();
  layer.set_module("fc");
  layer.set_num_scales(1);
  layer.mutable_act();
  auto entries = [&](int64_t scales) {
    Tensor weight = weight_;
    weight.header.set_name("fc.quant_module.replaced_module.weight");
    return std::vector<Tensor>{weight,
                               FloatTensorOf("fc.quant_module.acts_clip_max", {}, {1}),
                               FloatTensorOf("fc.quant_module.acts_clip_min", {}, {-1}),
                               FloatTensorOf("fc.quant_module.wts_scales", {scales}, std::vector<float>(scales, 0.5F)),
                               FloatTensorOf("fc.scale_w", {1}, {1}),
                               FloatTensorOf("fc.record_module.quant_layer_num", {}, {1})};
  };
  const absl::Status status = Load(entries(1));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(ValuesOf("onnx::MatMul_7"), ElementsAre(1, 3, 5, 2, 4, 6));
  EXPECT_THAT(std::string(Load(entries(3)).message()), HasSubstr("it has 3 elements, but the rewrite plan needs 1"));
  const absl::Status unwrapped = Load({weight_});  // a checkpoint of the float module
  EXPECT_THAT(MetadataOf(unwrapped)["missing"], HasSubstr("fc.quant_module.acts_clip_max"));
  EXPECT_EQ(MetadataOf(unwrapped)["unexpected"], "fc.weight");
}

TEST_F(CheckpointTest, WidensHalfPrecision) {
  builder_.Initializer("fc.weight", {1, 2}, {0, 0}).Initializer("fc.bias", {1}, {0});
  AddInt(builder_.Node("Gemm", "/fc/Gemm", {"x", "fc.weight", "fc.bias"}, {"y"}), "transB", 1);
  onnx::TensorProto half;
  half.set_name("fc.weight");
  half.set_data_type(onnx::TensorProto::FLOAT16);
  half.add_dims(1);
  half.add_dims(2);
  half.set_raw_data(std::string("\x00\x3c\x00\xc0", 4));  // 1, -2
  ASSERT_TRUE(Load({FromProto(half), FloatTensorOf("fc.bias", {1}, {3})}).ok());
  EXPECT_THAT(ValuesOf("fc.weight"), ElementsAre(1, -2));
  EXPECT_THAT(ValuesOf("fc.bias"), ElementsAre(3));
}

// The folded weight is not the parameter.
TEST_F(CheckpointTest, RefusesAModelWithFoldedBatchNorms) {
  builder_.Initializer("onnx::Conv_9", {1, 1, 1, 1}, {0});
  builder_.Node("Conv", "/conv/Conv", {"x", "onnx::Conv_9"}, {"y"});
  const absl::Status status = Load({FloatTensorOf("conv.weight", {1, 1, 1, 1}, {1})});
  EXPECT_EQ(ReasonOf(status), v1::WEIGHTS_INVALID);
  EXPECT_THAT(std::string(status.message()), HasSubstr("folded"));
}

// ONNX wants the gates of a GRU as z, r, h, torch has r, z, n; both biases are one tensor.
TEST_F(CheckpointTest, OrdersTheGatesOfRecurrentLayers) {
  builder_.Input("h", {1, 2, 1})
      .Initializer("onnx::GRU_1", {1, 3, 2}, Counting(6))
      .Initializer("onnx::GRU_2", {1, 3, 1}, Counting(3));
  builder_.Initializer("onnx::GRU_3", {1, 6}, Counting(6));
  AddInt(builder_.Node("GRU", "/rnn/GRU", {"x", "onnx::GRU_1", "onnx::GRU_2", "onnx::GRU_3", "", "h"}, {"y"}), "hidden_size", 1);
  const absl::Status status = Load(
      {FloatTensorOf("rnn.weight_ih_l0", {3, 2}, Counting(6, 10)), FloatTensorOf("rnn.weight_hh_l0", {3, 1}, Counting(3, 20)),
       FloatTensorOf("rnn.bias_ih_l0", {3}, Counting(3, 30)), FloatTensorOf("rnn.bias_hh_l0", {3}, Counting(3, 40))});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(ValuesOf("onnx::GRU_1"), ElementsAre(12, 13, 10, 11, 14, 15));
  EXPECT_THAT(ValuesOf("onnx::GRU_2"), ElementsAre(21, 20, 22));
  EXPECT_THAT(ValuesOf("onnx::GRU_3"), ElementsAre(31, 30, 32, 41, 40, 42));
  EXPECT_EQ(MetadataOf(Load({FloatTensorOf("rnn.weight_ih_l0", {3, 2}, Counting(6))}))["missing"],
            "rnn.weight_hh_l0,rnn.bias_ih_l0,rnn.bias_hh_l0");
}

}  // namespace
}  // namespace modelpress::engine
