#include "engine/calibrate/layer_activation.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/file_set.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Kind = LayerActivation::Kind;

Graph Create(const ModelBuilder& builder) {
  auto graph = Graph::Create(builder.Build(), {});
  EXPECT_TRUE(graph.ok()) << graph.status();
  return *std::move(graph);
}

ActivatedLayer Find(const Graph& graph, const std::string& layer) {
  auto found = FindLayerActivation(graph, graph.Find(layer));
  EXPECT_TRUE(found.ok()) << found.status();
  return *std::move(found);
}

// What torch 2.6 exports; tests/golden/ptq/activations/make.py wrote the models.
class ExportedActivationTest : public testing::TestWithParam<int> {};

TEST_P(ExportedActivationTest, IsRecognised) {
  const std::string path = absl::StrCat(MODELPRESS_TEST_DATA, "/golden/ptq/activations/opset", GetParam(), ".onnx");
  auto model = ReadModel(FileSet({{"m", path}}), "m");
  ASSERT_TRUE(model.ok()) << model.status();
  auto graph = Graph::Create(*std::move(model), {});
  ASSERT_TRUE(graph.ok()) << graph.status();
  const std::map<std::string, Kind> expected = {
      {"relu", Kind::kRelu},          {"relu6", Kind::kRelu6},     {"sigmoid", Kind::kSigmoid}, {"tanh", Kind::kTanh},
      {"leaky", Kind::kLeakyRelu},    {"prelu", Kind::kPRelu},     {"prelus", Kind::kPRelu},    {"gelu", Kind::kGelu},
      {"gelu_tanh", Kind::kGeluTanh}, {"rrelu", Kind::kLeakyRelu}, {"none", Kind::kNone}};
  std::map<std::string, Kind> found;
  for (const auto& [name, kind] : expected) {
    const std::string node = absl::StrCat("/conv_", name, "/Conv");
    const ActivatedLayer layer = Find(*graph, node);
    found[name] = layer.activation.kind;
    EXPECT_EQ(layer.output, (Value{graph->Find(node), 0}));
    if (kind == Kind::kNone) {
      EXPECT_EQ(layer.activated, layer.output);
    } else {
      // The activation is all there is between the layer and the next one.
      const Use next = graph->UsesOf(layer.activated)[0];
      EXPECT_EQ(graph->UsesOf(layer.activated).size(), 1) << name;
      EXPECT_THAT(graph->item(next.item).node.proto.op_type(), testing::AnyOf("Conv", "MatMul")) << name;
    }
    auto op = LinearOperatorOf(*graph, graph->Find(node), {1, 2, 3, 2});
    ASSERT_TRUE(op.ok()) << op.status();
    EXPECT_THAT(op->bias, ElementsAre(0, 0));
  }
  EXPECT_EQ(found, expected);
  EXPECT_FLOAT_EQ(Find(*graph, "/conv_leaky/Conv").activation.slope, 0.2f);
  EXPECT_FLOAT_EQ(Find(*graph, "/conv_rrelu/Conv").activation.slope, (1.0f / 8 + 1.0f / 3) / 2);
  EXPECT_THAT(Find(*graph, "/conv_prelu/Conv").activation.slopes, ElementsAre(0.25f));
  EXPECT_THAT(Find(*graph, "/conv_prelus/Conv").activation.slopes, ElementsAre(0.25f, 0.25f));

  for (const char* name : {"gelu", "gelu_tanh", "prelu"}) {
    const ItemId matmul = graph->Find(absl::StrCat("/linear_", name, "/MatMul"));
    const ActivatedLayer layer = Find(*graph, graph->item(matmul).name);
    EXPECT_EQ(layer.activation.kind, expected.at(name));
    EXPECT_EQ(layer.output, (Value{graph->Find(absl::StrCat("/linear_", name, "/Add")), 0}));
    auto op = LinearOperatorOf(*graph, matmul, {1, 2, 3, 2});
    ASSERT_TRUE(op.ok()) << op.status();
    EXPECT_EQ(op->bias.size(), 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Opsets, ExportedActivationTest, testing::Values(11, 20));

// A 1x1 convolution of 2 channels "conv" and what `rest` makes of its output "t".
Graph ConvAnd(void (*rest)(ModelBuilder&), int64_t opset = 13) {
  ModelBuilder builder(opset);
  builder.Input("x", {1, 2, 3, 3}).Output("y").Initializer("w", {2, 2, 1, 1}, {1, 2, 3, 4});
  builder.Node("Conv", "conv", {"x", "w"}, {"t"});
  rest(builder);
  return Create(builder);
}

TEST(LayerActivationTest, ClipHasItsBoundsInAttributesUpToOpset6) {
  const Graph graph = ConvAnd(
      [](ModelBuilder& builder) {
        onnx::NodeProto& clip = builder.Node("Clip", "clip", {"t"}, {"y"});
        AddFloat(clip, "min", 0);
        AddFloat(clip, "max", 6);
      },
      6);
  EXPECT_EQ(Find(graph, "conv").activation.kind, Kind::kRelu6);
  EXPECT_EQ(Find(graph, "conv").activated, (Value{graph.Find("clip"), 0}));
}

TEST(LayerActivationTest, AnotherClipIsNoRelu6) {
  const Graph graph = ConvAnd([](ModelBuilder& builder) {
    builder.Initializer("low", {}, {0}).Initializer("high", {}, {1}).Node("Clip", "clip", {"t", "low", "high"}, {"y"});
  });
  EXPECT_EQ(Find(graph, "conv").activation.kind, Kind::kNone);
}

TEST(LayerActivationTest, OnlyAnOnlyConsumerCounts) {
  const Graph twice = ConvAnd([](ModelBuilder& builder) {
    builder.Node("Relu", "relu", {"t"}, {"a"});
    builder.Node("Add", "add", {"a", "t"}, {"y"});
  });
  EXPECT_EQ(Find(twice, "conv").activation.kind, Kind::kNone);
  EXPECT_EQ(Find(twice, "conv").activated, (Value{twice.Find("conv"), 0}));
  const Graph output = ConvAnd([](ModelBuilder& builder) { builder.Output("t").Node("Relu", "relu", {"t"}, {"y"}); });
  EXPECT_EQ(Find(output, "conv").activation.kind, Kind::kNone);
}

TEST(LayerActivationTest, SlopesMustGoWithChannels) {
  const auto kind_with = [](const std::vector<int64_t>& dims, bool constant) {
    ModelBuilder builder;
    builder.Input("x", {1, 2, 3, 3}).Output("y").Initializer("w", {2, 2, 1, 1}, {1, 2, 3, 4});
    builder.Node("Conv", "conv", {"x", "w"}, {"t"});
    if (constant) {
      builder.Initializer("slope", dims, std::vector<float>(dims[0] * (dims.size() == 1 ? 1 : dims[1]), 0.5f));
    } else {
      builder.Input("slope", dims);
    }
    builder.Node("PRelu", "prelu", {"t", "slope"}, {"y"});
    return Find(Create(builder), "conv").activation.kind;
  };
  EXPECT_EQ(kind_with({2, 1, 1}, true), Kind::kPRelu);
  EXPECT_EQ(kind_with({1, 2, 1, 1}, true), Kind::kPRelu);
  EXPECT_EQ(kind_with({1}, true), Kind::kPRelu);
  EXPECT_EQ(kind_with({2}, true), Kind::kNone) << "that is one per column of the image";
  EXPECT_EQ(kind_with({1}, false), Kind::kNone);
}

TEST(LayerActivationTest, RecognisesGeluHoweverItIsWritten) {
  // Half first, a product instead of the quotient.
  const auto gelu = [](ModelBuilder& builder) {
    builder.Initializer("half", {}, {0.5f}).Initializer("root", {}, {0.70710678f}).Initializer("one", {}, {1});
    builder.Node("Mul", "m1", {"half", "t"}, {"a"});
    builder.Node("Mul", "m2", {"t", "root"}, {"b"});
    builder.Node("Erf", "erf", {"b"}, {"c"});
    builder.Node("Add", "add", {"one", "c"}, {"d"});
    builder.Node("Mul", "m3", {"a", "d"}, {"y"});
  };
  EXPECT_EQ(Find(ConvAnd(gelu), "conv").activation.kind, Kind::kGelu);
  EXPECT_EQ(Find(ConvAnd([](ModelBuilder& builder) {
                   builder.Initializer("half", {}, {0.5f}).Initializer("root", {}, {0.8f}).Initializer("one", {}, {1});
                   builder.Node("Mul", "m1", {"half", "t"}, {"a"});
                   builder.Node("Mul", "m2", {"t", "root"}, {"b"});
                   builder.Node("Erf", "erf", {"b"}, {"c"});
                   builder.Node("Add", "add", {"one", "c"}, {"d"});
                   builder.Node("Mul", "m3", {"a", "d"}, {"y"});
                 }),
                 "conv")
                .activation.kind,
            Kind::kNone)
      << "other constants compute something else";
}

TEST(LayerActivationTest, AGeluOfWhichAPartIsUsedElsewhereIsNone) {
  const Graph graph = ConvAnd([](ModelBuilder& builder) {
    builder.Initializer("half", {}, {0.5f}).Initializer("root", {}, {1.41421356f}).Initializer("one", {}, {1});
    builder.Output("c").Node("Div", "div", {"t", "root"}, {"b"});
    builder.Node("Erf", "erf", {"b"}, {"c"});
    builder.Node("Add", "add", {"c", "one"}, {"d"});
    builder.Node("Mul", "m2", {"t", "d"}, {"e"});
    builder.Node("Mul", "m3", {"e", "half"}, {"y"});
  });
  EXPECT_EQ(Find(graph, "conv").activation.kind, Kind::kNone);
}

// One node "layer" over input "x" and weight "w".
absl::StatusOr<LinearOperator> OperatorOf(const std::string& type, const std::vector<int64_t>& weight_dims,
                                          const std::vector<int64_t>& input_dims,
                                          const std::map<std::string, std::vector<int64_t>>& ints = {},
                                          const std::string& auto_pad = "") {
  ModelBuilder builder;
  int64_t count = 1;
  for (int64_t dim : weight_dims) {
    count *= dim;
  }
  builder.Input("x", input_dims).Output("y").Initializer("w", weight_dims, std::vector<float>(count, 1));
  onnx::NodeProto& node = builder.Node(type, "layer", {"x", "w"}, {"y"});
  for (const auto& [name, values] : ints) {
    onnx::AttributeProto& attribute = *node.add_attribute();
    attribute.set_name(name);
    if (name == "group" || name == "transB" || name == "transA") {
      attribute.set_type(onnx::AttributeProto::INT);
      attribute.set_i(values[0]);
    } else {
      attribute.set_type(onnx::AttributeProto::INTS);
      attribute.mutable_ints()->Assign(values.begin(), values.end());
    }
  }
  if (!auto_pad.empty()) {
    AddString(node, "auto_pad", auto_pad);
  }
  const Graph graph = Create(builder);
  return LinearOperatorOf(graph, graph.Find("layer"), input_dims);
}

TEST(LinearOperatorTest, TakesOverTheAttributes) {
  auto op = OperatorOf(
      "ConvTranspose", {4, 2, 3, 5}, {1, 4, 6, 6},
      {{"group", {2}}, {"strides", {2, 3}}, {"pads", {0, 1, 2, 3}}, {"dilations", {1, 2}}, {"output_padding", {1, 0}}});
  ASSERT_TRUE(op.ok()) << op.status();
  EXPECT_EQ(op->kind, LinearOperator::Kind::kConvTranspose2d);
  EXPECT_THAT(op->weight_dims, ElementsAre(4, 2, 3, 5));
  EXPECT_EQ(op->groups, 2);
  EXPECT_THAT(op->strides, ElementsAre(2, 3));
  EXPECT_THAT(op->pads, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(op->dilations, ElementsAre(1, 2));
  EXPECT_THAT(op->output_padding, ElementsAre(1, 0));
  EXPECT_THAT(op->bias, IsEmpty());

  auto gemm = OperatorOf("Gemm", {3, 4}, {2, 4}, {{"transB", {1}}});
  ASSERT_TRUE(gemm.ok()) << gemm.status();
  EXPECT_EQ(gemm->kind, LinearOperator::Kind::kLinear);
  EXPECT_TRUE(gemm->trans_b);
  EXPECT_FALSE(OperatorOf("MatMul", {4, 3}, {2, 4})->trans_b);
}

TEST(LinearOperatorTest, ATransposedWeightIsTransB) {
  ModelBuilder builder;
  builder.Input("x", {2, 3}).Output("y").Initializer("w", {4, 3}, std::vector<float>(12));
  builder.Node("Transpose", "transpose", {"w"}, {"t"});
  builder.Node("MatMul", "layer", {"x", "t"}, {"y"});
  const Graph graph = Create(builder);
  auto op = LinearOperatorOf(graph, graph.Find("layer"), {2, 3});
  ASSERT_TRUE(op.ok()) << op.status();
  EXPECT_TRUE(op->trans_b);
  EXPECT_THAT(op->weight_dims, ElementsAre(4, 3));
}

// Expected pads as onnxruntime 1.21 applies them: outputs of models with auto_pad and with these pads were equal.
TEST(LinearOperatorTest, ResolvesAutoPad) {
  using Ints = std::vector<int64_t>;
  const auto pads = [](const std::string& type, const Ints& weight, const std::string& auto_pad) {
    auto op = OperatorOf(type, weight, {1, 1, 5, 6}, {{"strides", {2, 2}}, {"pads", {0, 0, 0, 0}}}, auto_pad);
    EXPECT_TRUE(op.ok()) << op.status();
    return op->pads;
  };
  EXPECT_EQ(pads("Conv", {1, 1, 3, 3}, "NOTSET"), (Ints{0, 0, 0, 0}));
  EXPECT_EQ(pads("Conv", {1, 1, 3, 3}, "VALID"), (Ints{0, 0, 0, 0}));
  EXPECT_EQ(pads("Conv", {1, 1, 3, 3}, "SAME_UPPER"), (Ints{1, 0, 1, 1}));
  EXPECT_EQ(pads("Conv", {1, 1, 3, 3}, "SAME_LOWER"), (Ints{1, 1, 1, 0}));
  EXPECT_EQ(pads("Conv", {1, 1, 1, 1}, "SAME_UPPER"), (Ints{0, 0, 0, 0}));
  EXPECT_EQ(pads("ConvTranspose", {1, 1, 3, 4}, "SAME_UPPER"), (Ints{0, 1, 1, 1}));
  EXPECT_EQ(pads("ConvTranspose", {1, 1, 3, 4}, "SAME_LOWER"), (Ints{1, 1, 0, 1}));
}

TEST(LinearOperatorTest, RefusesWhatItCannotCompute) {
  const auto refusal = [](const absl::StatusOr<LinearOperator>& op) {
    EXPECT_EQ(ReasonOf(op.status()), v1::NODE_UNSUPPORTED);
    EXPECT_EQ(PlaceOf(op.status()).layer, "layer");
    return std::string(op.status().message());
  };
  EXPECT_THAT(refusal(OperatorOf("Conv", {1, 1, 3}, {1, 1, 9})), HasSubstr("its weight has rank 3, not 4"));
  EXPECT_THAT(refusal(OperatorOf("AveragePool", {1}, {1, 1, 9, 9})), HasSubstr("its operator is AveragePool"));
  EXPECT_THAT(refusal(OperatorOf("Conv", {1, 1, 3, 3}, {1, 1, 9, 9}, {{"pads", {0, 0, -1, 0}}})), HasSubstr("out of range"));
  EXPECT_THAT(refusal(OperatorOf("Conv", {1, 1, 3, 3}, {1, 1, 9, 9}, {{"strides", {1}}})), HasSubstr("wrong length"));
  EXPECT_THAT(refusal(OperatorOf("Conv", {1, 1, 3, 3}, {1, 1, 9, 9}, {{"kernel_shape", {2, 2}}})), HasSubstr("kernel_shape"));
  EXPECT_THAT(refusal(OperatorOf("Conv", {1, 1, 3, 3}, {1, 1, 9, 9}, {}, "SAME")), HasSubstr("its auto_pad is 'SAME'"));
  EXPECT_THAT(refusal(OperatorOf("ConvTranspose", {1, 1, 3, 3}, {1, 1, 9, 9}, {{"output_shape", {20, 20}}})),
              HasSubstr("output_shape"));
  EXPECT_THAT(refusal(OperatorOf("ConvTranspose", {1, 1, 1, 1}, {1, 1, 9, 9}, {{"strides", {2, 2}}}, "SAME_UPPER")),
              HasSubstr("cut its output"));
  EXPECT_THAT(refusal(OperatorOf("Gemm", {3, 4}, {3, 2}, {{"transA", {1}}})), HasSubstr("transA"));

  ModelBuilder builder;
  builder.Input("x", {1, 1, 3, 3}).Input("b", {1}).Output("y").Initializer("w", {1, 1, 1, 1}, {1});
  builder.Node("Conv", "layer", {"x", "w", "b"}, {"y"});
  const Graph graph = Create(builder);
  EXPECT_THAT(refusal(LinearOperatorOf(graph, graph.Find("layer"), {1, 1, 3, 3})), HasSubstr("its bias is not a constant"));
}

}  // namespace
}  // namespace modelpress::engine
