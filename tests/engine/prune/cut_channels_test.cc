#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/prune/channels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"
#include "tests/engine/prune/prune_entries.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneRecord;
using testing::ElementsAre;
using testing::HasSubstr;
using Dims = std::vector<int64_t>;

// 0, 1, 2, ...
std::vector<float> Counting(const Dims& dims) {
  std::vector<float> values(std::accumulate(dims.begin(), dims.end(), size_t{1}, std::multiplies<>()));
  std::iota(values.begin(), values.end(), 0.0F);
  return values;
}

ModelBuilder& Weights(ModelBuilder& builder, const std::string& name, const Dims& dims) {
  return builder.Initializer(name, dims, Counting(dims));
}

Dims DimsOfTensor(const Graph& graph, const std::string& name) {
  const auto& dims = graph.item(graph.Find(name)).tensor.header.dims();
  return {dims.begin(), dims.end()};
}

std::vector<float> ValuesOf(const Graph& graph, const std::string& name) {
  const Tensor& tensor = graph.item(graph.Find(name)).tensor;
  std::vector<float> values(tensor.ElementCount());
  EXPECT_TRUE(ReadFloats(tensor, 0, absl::MakeSpan(values)).ok());
  return values;
}

absl::StatusOr<CutChannelsResult> Cut(Graph& graph, const std::vector<PruneRecord>& records,
                                      CutPolicy policy = CutPolicy::kRequireAll) {
  const absl::StatusOr<CutChannelsResult> result = CutChannels(graph, records, *FindLayers(graph, nullptr, {}), policy);
  EXPECT_TRUE(graph.Validate().ok());
  return result;
}

// x [2, 3, 5, 5] -> conv a (6) -> bn -> depthwise d -> conv b (4) -> y
Graph Chain() {
  ModelBuilder builder;
  builder.Input("x", {2, 3, 5, 5});
  Weights(builder, "a.weight", {6, 3, 1, 1});
  Weights(builder, "a.bias", {6});
  for (const char* name : {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}) {
    Weights(builder, name, {6});
  }
  Weights(builder, "d.weight", {6, 1, 3, 3});
  Weights(builder, "b.weight", {4, 6, 1, 1});
  builder.Node("Conv", "a", {"x", "a.weight", "a.bias"}, {"a.out"});
  builder.Node("BatchNormalization", "bn", {"a.out", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}, {"bn.out"});
  AddInt(builder.Node("Conv", "d", {"bn.out", "d.weight"}, {"d.out"}), "group", 6);
  builder.Node("Conv", "b", {"d.out", "b.weight"}, {"b.out"});
  builder.Node("Relu", "r", {"b.out"}, {"y"});
  return *Graph::Create(builder.Output("y", {2, 4, 3, 3}).Build(), {});
}

PruneRecord ChainRecord(const std::vector<int64_t>& indices) {
  return MakeRecord({Entry("a", "Conv", 0, 6, indices)}, {Entry("bn", "BatchNormalization", 0, 6, indices),
                                                          Entry("d", "Conv", 0, 6, indices), Entry("b", "Conv", 0, 6, indices)});
}

TEST(CutChannelsTest, CutsAndReportsEveryLayer) {
  Graph graph = Chain();
  const absl::StatusOr<CutChannelsResult> result = Cut(graph, {ChainRecord({1, 4})});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(ValuesOf(graph, "a.bias"), (std::vector<float>{0, 2, 3, 5}));
  EXPECT_EQ(DimsOfTensor(graph, "d.weight"), (Dims{4, 1, 3, 3}));
  EXPECT_EQ(DimsOfTensor(graph, "b.weight"), (Dims{4, 4, 1, 1}));
  EXPECT_EQ(IntAttribute(graph.item(graph.Find("d")).node.proto, "group", 1), 4);
  ASSERT_EQ(result->cuts.size(), 4);
  EXPECT_EQ(result->cuts[1].type(), "BatchNorm2d");
  EXPECT_EQ(result->cuts[1].tensors_size(), 4);
  EXPECT_EQ(result->cuts[1].attributes().at("num_features"), 4);
  EXPECT_EQ(result->cuts[2].attributes().at("groups"), 4);
  EXPECT_EQ(result->cuts[2].attributes().at("in_channels"), 4);
  EXPECT_EQ(result->cuts[2].attributes().at("out_channels"), 4);
  EXPECT_EQ(result->cuts[3].tensors(0).axis(), 1);
  EXPECT_THAT(result->cuts[3].tensors(0).kept(), ElementsAre(0, 2, 3, 5));
  EXPECT_EQ(result->cuts[3].tensors(0).size(), 6);
  ASSERT_EQ(result->layers.size(), 4);
  EXPECT_EQ(result->layers[0].channels_after, 4);
  EXPECT_EQ(result->layers[3].input_channels_before, 6);
  EXPECT_EQ(result->layers[3].input_channels_after, 4);
}

// The first and the last channel, one record for each.
TEST(CutChannelsTest, SeveralRecordsOfOneLayer) {
  Graph graph = Chain();
  ASSERT_TRUE(Cut(graph, {ChainRecord({0}), ChainRecord({5})}).ok());
  EXPECT_EQ(ValuesOf(graph, "a.bias"), (std::vector<float>{1, 2, 3, 4}));
}

TEST(CutChannelsTest, RecordsWithoutIndicesAndMasksChangeNothing) {
  Graph graph = Chain();
  PruneRecord mask;
  mask.mutable_selective_prune()->set_name("a");
  const absl::StatusOr<CutChannelsResult> result = Cut(graph, {ChainRecord({}), mask}, CutPolicy::kDropUnfitting);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->records.size(), 1);
  EXPECT_TRUE(result->cuts.empty());
  EXPECT_EQ(DimsOfTensor(graph, "a.weight"), (Dims{6, 3, 1, 1}));
}

TEST(CutChannelsTest, HostileRecords) {
  constexpr int64_t kFar = int64_t{1} << 40;
  const std::vector<std::tuple<PruneRecord, std::string, std::string>> cases = {
      {ChainRecord({6}), "a", "prune_index 6 is out of the range 0 to 5"},
      {ChainRecord({-1}), "a", "prune_index -1 is out of the range"},
      {ChainRecord({kFar}), "a", "out of the range"},
      {ChainRecord({2, 2}), "a", "prune_index 2 is repeated"},
      {ChainRecord({0, 1, 2, 3, 4, 5}), "", "would have no channels left"},
      {MakeRecord({Entry("a", "Conv", 0, kFar, {1})}, {}), "a", "the range 0 to 1099511627776 is none of its 6 channels"},
      {MakeRecord({Entry("a", "Conv", -kFar, 3, {1})}, {}), "a", "is none of its 6 channels"},
      {MakeRecord({Entry("a", "Conv", 4, 2, {3})}, {}), "a", "is none of its 6 channels"},
      {MakeRecord({Entry("a", "Conv", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max())},
                  {Entry("d", "Conv", 0, 6, {1})}),
       "", "Conv 'd' takes 5 channels, its input has 6"},
      {MakeRecord({Entry("none", "Conv", 0, 6, {1})}, {}), "none", "the model has no such node"},
      {MakeRecord({Entry("a.weight", "Conv", 0, 6, {1})}, {}), "a.weight", "the model has no such node"},
      {MakeRecord({Entry("a", "Conv", 0, 6, {1})}, {Entry("", "Add", 0, 6, {1})}), "", "the model has no such node"},
      {MakeRecord({Entry("a", "Gemm", 0, 6, {1})}, {}), "a", "the record says the node is a Gemm, it is a Conv"},
      {MakeRecord({Entry("r", "Conv", 0, 6, {1})}, {}), "r", "the record says the node is a Conv, it is a Relu"},
      {MakeRecord({Entry("r", "Relu", 0, 6, {1})}, {}), "r", "a Relu cannot be a producer"},
      {MakeRecord({Entry("bn", "BatchNormalization", 0, 6, {1})}, {}), "bn", "cannot be a producer"},
      {MakeRecord({Entry("d", "Conv", 0, 6, {1})}, {}), "d", "cannot be a producer"},
      {MakeRecord({Entry("a", "Conv", 0, 6, {1})}, {}), "", "BatchNormalization 'bn' takes 6 channels, its input has 5"},
  };
  for (const auto& [record, layer, text] : cases) {
    Graph graph = Chain();
    const absl::Status status = Cut(graph, {record}).status();
    EXPECT_EQ(ReasonOf(status), v1::PRUNE_FAILED) << text;
    EXPECT_EQ(PlaceOf(status).layer, layer) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_EQ(DimsOfTensor(graph, "a.weight"), (Dims{6, 3, 1, 1}));  // nothing has happened
  }
}

// Halves are tried until the record that does not fit is alone.
TEST(CutChannelsTest, DropsOnlyWhatDoesNotFit) {
  PruneRecord incomplete = ChainRecord({0});
  incomplete.mutable_consumer()->DeleteSubrange(1, 1);
  Graph graph = Chain();
  const absl::StatusOr<CutChannelsResult> result =
      Cut(graph, {ChainRecord({1}), ChainRecord({2}), incomplete, ChainRecord({3}), ChainRecord({4})}, CutPolicy::kDropUnfitting);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->records.size(), 4);
  ASSERT_EQ(result->dropped.size(), 1);
  EXPECT_THAT(result->dropped[0], HasSubstr("the channels of a stay: after the cut, Conv 'd' takes 4 channels, its input has 3"));
  EXPECT_EQ(ValuesOf(graph, "a.bias"), (std::vector<float>{0, 5}));
}

// Exporters merge equal tensors: the other layers keep what they have.
TEST(CutChannelsTest, CopiesSharedTensors) {
  ModelBuilder builder;
  builder.Input("x", {1, 3, 5, 5});
  Weights(builder, "a.weight", {6, 3, 1, 1});
  Weights(builder, "w", {6, 6, 1, 1});
  Weights(builder, "zero", {6});
  builder.Node("Conv", "a", {"x", "a.weight", "zero"}, {"a.out"});
  builder.Node("Conv", "b", {"a.out", "w", "zero"}, {"b.out"});
  builder.Node("Conv", "c", {"b.out", "w", "zero"}, {"y"});
  Graph graph = *Graph::Create(builder.Output("y").Build(), {});
  const absl::StatusOr<CutChannelsResult> result =
      Cut(graph, {MakeRecord({Entry("a", "Conv", 0, 6, {0, 1})}, {Entry("b", "Conv", 0, 6, {0, 1})})});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(DimsOfTensor(graph, "w"), (Dims{6, 6, 1, 1}));
  EXPECT_EQ(DimsOfTensor(graph, "b.w"), (Dims{6, 4, 1, 1}));
  EXPECT_EQ(DimsOfTensor(graph, "zero"), (Dims{6}));
  EXPECT_EQ(DimsOfTensor(graph, "a.zero"), (Dims{4}));
}

// Two output channels per input channel: an entry as wide as the output takes both (P-4); the reference's is as wide as the input
// and is applied to the letter.
TEST(CutChannelsTest, DepthwiseMultiplier) {
  const auto network = [] {
    ModelBuilder builder;
    builder.Input("x", {1, 3, 5, 5});
    Weights(builder, "a.weight", {4, 3, 1, 1});
    Weights(builder, "d.weight", {8, 1, 3, 3});
    Weights(builder, "b.weight", {2, 8, 1, 1});
    builder.Node("Conv", "a", {"x", "a.weight"}, {"a.out"});
    AddInt(builder.Node("Conv", "d", {"a.out", "d.weight"}, {"d.out"}), "group", 4);
    builder.Node("Conv", "b", {"d.out", "b.weight"}, {"y"});
    return *Graph::Create(builder.Output("y").Build(), {});
  };
  Graph graph = network();
  ASSERT_TRUE(Cut(graph, {MakeRecord({Entry("a", "Conv", 0, 4, {1, 3})},
                                     {Entry("d", "Conv", 0, 8, {2, 3, 6, 7}), Entry("b", "Conv", 0, 8, {2, 3, 6, 7})})})
                  .ok());
  EXPECT_EQ(DimsOfTensor(graph, "d.weight"), (Dims{4, 1, 3, 3}));
  EXPECT_EQ(IntAttribute(graph.item(graph.Find("d")).node.proto, "group", 1), 2);
  graph = network();
  ASSERT_TRUE(Cut(graph, {MakeRecord({Entry("a", "Conv", 0, 4, {1, 3})},
                                     {Entry("d", "Conv", 0, 4, {1, 3}), Entry("b", "Conv", 0, 4, {1, 3})})})
                  .ok());
  EXPECT_EQ(DimsOfTensor(graph, "d.weight"), (Dims{6, 1, 3, 3}));
  EXPECT_EQ(IntAttribute(graph.item(graph.Find("d")).node.proto, "group", 1), 2);
  graph = network();
  const absl::Status half =
      Cut(graph, {MakeRecord({Entry("a", "Conv", 0, 4, {1})}, {Entry("d", "Conv", 0, 8, {2, 5})})}).status();
  EXPECT_THAT(std::string(half.message()), HasSubstr("of which all must go or none"));
}

// Weights of half precision stay so, and the bias of a MatMul is found in front of the product.
TEST(CutChannelsTest, HalfPrecision) {
  ModelBuilder builder;
  builder.Input("x", {2, 3});
  Weights(builder, "w", {3, 4});
  Weights(builder, "a.bias", {4});
  Weights(builder, "v", {4, 2});
  builder.Node("MatMul", "a", {"x", "w"}, {"a.out"});
  builder.Node("Add", "add", {"a.bias", "a.out"}, {"add.out"});
  builder.Node("MatMul", "b", {"add.out", "v"}, {"y"});
  builder.Output("y", {2, 2});
  onnx::GraphProto& proto = *builder.proto().mutable_graph();
  for (onnx::TensorProto& tensor : *proto.mutable_initializer()) {
    for (const float value : tensor.float_data()) {
      const auto half = static_cast<_Float16>(value);
      tensor.mutable_raw_data()->append(reinterpret_cast<const char*>(&half), sizeof half);
    }
    tensor.clear_float_data();
    tensor.set_data_type(onnx::TensorProto::FLOAT16);
  }
  for (onnx::ValueInfoProto* info : {proto.mutable_input(0), proto.mutable_output(0)}) {
    info->mutable_type()->mutable_tensor_type()->set_elem_type(onnx::TensorProto::FLOAT16);
  }
  Graph graph = *Graph::Create(builder.Build(), {});
  const absl::StatusOr<CutChannelsResult> result =
      Cut(graph, {MakeRecord({Entry("a", "MatMul", 0, 4, {1, 3})}, {Entry("b", "Gemm", 0, 4, {1, 3})})});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(graph.item(graph.Find("w")).tensor.header.data_type(), onnx::TensorProto::FLOAT16);
  EXPECT_EQ(ValuesOf(graph, "w"), (std::vector<float>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(ValuesOf(graph, "a.bias"), (std::vector<float>{0, 2}));
  EXPECT_EQ(ValuesOf(graph, "v"), (std::vector<float>{0, 1, 4, 5}));
  EXPECT_EQ(result->cuts[0].type(), "Linear");
  EXPECT_EQ(result->cuts[0].attributes().at("out_features"), 2);
  EXPECT_EQ(result->cuts[1].attributes().at("in_features"), 2);
}

// Sizes of a Reshape, shapes of outputs, and what the model says of tensors in between follow.
TEST(CutChannelsTest, ShapesFollow) {
  for (const Dims& sizes : {Dims{2, 6}, Dims{-1, 6}, Dims{2, -1}, Dims{0, 6}}) {
    ModelBuilder builder;
    builder.Input("x", {2, 3, 5, 5});
    Weights(builder, "a.weight", {6, 3, 1, 1});
    Weights(builder, "f.weight", {4, 6});
    builder.Node("Conv", "a", {"x", "a.weight"}, {"a.out"});
    builder.Node("GlobalAveragePool", "pool", {"a.out"}, {"pool.out"});
    onnx::TensorProto target;
    target.set_data_type(onnx::TensorProto::INT64);
    target.add_dims(static_cast<int64_t>(sizes.size()));
    target.mutable_int64_data()->Assign(sizes.begin(), sizes.end());
    AddTensor(builder.Node("Constant", "sizes", {}, {"sizes.out"}), "value", target);
    builder.Node("Reshape", "reshape", {"pool.out", "sizes.out"}, {"flat"});
    AddInt(builder.Node("Gemm", "f", {"flat", "f.weight"}, {"y"}), "transB", 1);
    builder.Output("y", {2, 4}).Output("a.out", {2, 6, 5, 5});
    onnx::GraphProto& proto = *builder.proto().mutable_graph();
    *proto.add_value_info() = proto.output(1);
    proto.mutable_value_info(0)->set_name("pool.out");
    *proto.add_value_info() = proto.input(0);
    proto.mutable_value_info(1)->set_name("unknown");
    Graph graph = *Graph::Create(builder.Build(), {});
    const absl::StatusOr<CutChannelsResult> result =
        Cut(graph, {MakeRecord({Entry("a", "Conv", 0, 6, {1, 5})}, {Entry("f", "Gemm", 0, 6, {1, 5})})});
    ASSERT_TRUE(result.ok()) << result.status();
    const Model model = *graph.ToModel();
    EXPECT_EQ(model.shell.graph().value_info_size(), 0);
    EXPECT_EQ(model.shell.graph().output(0).type().tensor_type().shape().dim(1).dim_value(), 4);
    EXPECT_EQ(model.shell.graph().output(1).type().tensor_type().shape().dim(1).dim_value(), 4);
    if (sizes[1] == 6) {
      const onnx::TensorProto adjusted = *ToProto(graph.item(graph.InputOf(graph.Find("reshape"), 1).item).tensor);
      Dims values(2);
      std::copy_n(reinterpret_cast<const char*>(adjusted.raw_data().data()), 16, reinterpret_cast<char*>(values.data()));
      EXPECT_EQ(values, (Dims{sizes[0], 4}));
    }
  }
}

// A Reshape whose sizes cannot follow (a channel shuffle) keeps the channels.
TEST(CutChannelsTest, FixedReshapeKeepsTheChannels) {
  ModelBuilder builder;
  builder.Input("x", {2, 3, 5, 5});
  Weights(builder, "a.weight", {6, 3, 1, 1});
  builder.Node("Conv", "a", {"x", "a.weight"}, {"a.out"});
  onnx::TensorProto target;
  target.set_data_type(onnx::TensorProto::INT64);
  target.add_dims(5);
  for (const int64_t size : {2, 2, 3, 5, 5}) {
    target.add_int64_data(size);
  }
  AddTensor(builder.Node("Constant", "sizes", {}, {"sizes.out"}), "value", target);
  builder.Node("Reshape", "shuffle", {"a.out", "sizes.out"}, {"y"});
  Graph graph = *Graph::Create(builder.Output("y").Build(), {});
  const absl::StatusOr<CutChannelsResult> result =
      Cut(graph, {MakeRecord({Entry("a", "Conv", 0, 6, {1})}, {})}, CutPolicy::kDropUnfitting);
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->dropped.size(), 1);
  EXPECT_THAT(result->dropped[0], HasSubstr("shuffle"));
}

TEST(CutChannelsTest, PReluSlopeFollows) {
  ModelBuilder builder;
  builder.Input("x", {2, 3, 5, 5});
  Weights(builder, "a.weight", {6, 3, 1, 1});
  Weights(builder, "act.weight", {6, 1, 1});
  Weights(builder, "b.weight", {2, 6, 1, 1});
  builder.Node("Conv", "a", {"x", "a.weight"}, {"a.out"});
  builder.Node("PRelu", "act", {"a.out", "act.weight"}, {"act.out"});
  builder.Node("Conv", "b", {"act.out", "b.weight"}, {"y"});
  Graph graph = *Graph::Create(builder.Output("y").Build(), {});
  const absl::StatusOr<CutChannelsResult> result = Cut(
      graph,
      {MakeRecord({Entry("a", "Conv", 0, 6, {0, 2})}, {Entry("act", "PRelu", 0, 6, {0, 2}), Entry("b", "Conv", 0, 6, {0, 2})})});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(ValuesOf(graph, "act.weight"), (std::vector<float>{1, 3, 4, 5}));
  EXPECT_EQ(result->cuts[1].type(), "PReLU");
}

}  // namespace
}  // namespace modelpress::engine
