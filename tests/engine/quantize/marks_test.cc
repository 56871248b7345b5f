#include "engine/quantize/marks.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

void AddMark(ModelBuilder& builder, const std::string& module, const std::string& type, const std::string& input,
             const std::string& output) {
  onnx::NodeProto& node = builder.Node("QuantIdentity", "/" + output + "/QuantIdentity", {input}, {output});
  node.set_domain(kMarkDomain);
  AddString(node, "op_name", module);
  AddString(node, "module_type", type);
}

Graph GraphOf(const ModelBuilder& builder) {
  absl::StatusOr<Graph> graph = Graph::Create(builder.Build(), {});
  EXPECT_TRUE(graph.ok()) << graph.status();
  return *std::move(graph);
}

// "Type name" of every node.
std::vector<std::string> NodesOf(const Graph& graph) {
  std::vector<std::string> nodes;
  for (ItemId id : graph.Order()) {
    if (graph.item(id).is_node()) {
      nodes.push_back(graph.item(id).node.proto.op_type() + " " + graph.item(id).name);
    }
  }
  return nodes;
}

TEST(StripMarksTest, NamesWhatTheyStandFor) {
  ModelBuilder builder;
  builder.Input("x", {1, 2, 4, 4}).Output("y").Initializer("w", {2, 2, 1, 1}, {1, 2, 3, 4}).Initializer("pads", {8}, {});
  AddMark(builder, "conv", "Conv2d", "x", "m1");
  builder.Node("Pad", "/conv/Pad", {"m1", "pads"}, {"a"});
  builder.Node("Conv", "/conv/Conv", {"a", "w"}, {"b"});
  AddMark(builder, "soft", "Softmax", "b", "m2");
  builder.Node("Transpose", "/soft/Transpose", {"m2"}, {"c"});
  builder.Node("Softmax", "/soft/Softmax", {"c"}, {"d"});
  AddMark(builder, "act", "ReLU", "d", "m3");
  builder.Node("Relu", "/act/Relu", {"m3"}, {"e"});
  AddMark(builder, "act", "ReLU", "e", "m4");
  builder.Node("Relu", "/act_1/Relu", {"m4"}, {"f"});
  AddMark(builder, "act1", "ReLU", "f", "m5");
  builder.Node("Relu", "/act1/Relu", {"m5"}, {"y"});
  Graph graph = GraphOf(builder);
  absl::StatusOr<std::map<ItemId, std::string>> written = StripMarks(graph);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_TRUE(graph.Validate().ok());
  // A module of that name keeps it; the second use of another one is called something else.
  EXPECT_THAT(NodesOf(graph), ElementsAre("Pad conv_pad", "Conv conv", "Transpose soft_transpose", "Softmax soft", "Relu act",
                                          "Relu act2", "Relu act1"));
  EXPECT_EQ((*written)[graph.Find("conv")], "m1");
  EXPECT_EQ(graph.NameOf(graph.InputOf(graph.Find("conv_pad"), 0)), "x");
}

// batch_first and circular padding put operators between the mark and the node.
TEST(StripMarksTest, LooksBehindOtherOperators) {
  ModelBuilder builder;
  builder.Input("x", {1, 2, 4, 4}).Output("y").Initializer("w", {2, 2, 1, 1}, {1, 2, 3, 4});
  builder.Initializer("W", {1, 12, 3}, std::vector<float>(36)).Initializer("R", {1, 12, 3}, std::vector<float>(36));
  AddMark(builder, "conv", "Conv2d", "x", "m1");
  onnx::NodeProto& concat = builder.Node("Concat", "/conv/Concat", {"m1", "m1"}, {"a"});
  AddInt(concat, "axis", 3);
  builder.Node("Conv", "/conv/Conv", {"a", "w"}, {"b"});
  AddMark(builder, "rnn", "GRU", "b", "m2");
  builder.Node("Transpose", "/rnn/Transpose", {"m2"}, {"c"});
  builder.Node("GRU", "/rnn/GRU", {"c", "W", "R"}, {"y"});
  Graph graph = GraphOf(builder);
  ASSERT_TRUE(StripMarks(graph).ok());
  EXPECT_THAT(NodesOf(graph), ElementsAre("Concat /conv/Concat", "Conv conv", "Transpose /rnn/Transpose", "GRU rnn"));
}

TEST(StripMarksTest, AMarkWithoutAnInputIsRefused) {
  ModelBuilder builder;
  builder.Input("x", {1}).Output("y");
  AddMark(builder, "relu", "ReLU", "", "m");
  builder.Node("Relu", "/Relu", {"m"}, {"y"});
  Graph graph = GraphOf(builder);
  EXPECT_EQ(ReasonOf(StripMarks(graph).status()), v1::GRAPH_INVALID);
}

TEST(StripMarksTest, AMarkThatWritesAnOutputBecomesIdentity) {
  ModelBuilder builder;
  builder.Input("x", {1}).Output("y");
  AddMark(builder, "drop", "Dropout", "x", "y");
  Graph graph = GraphOf(builder);
  absl::StatusOr<std::map<ItemId, std::string>> written = StripMarks(graph);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_TRUE(written->empty());
  ASSERT_EQ(NodesOf(graph).size(), 1U);
  const onnx::NodeProto& node = graph.item(graph.Order()[0]).node.proto;
  EXPECT_EQ(node.op_type(), "Identity");
  EXPECT_EQ(node.domain(), "");
  EXPECT_EQ(node.attribute_size(), 0);
}

TEST(DropMarkOpsetTest, DropsOnlyThatDomain) {
  onnx::ModelProto shell;
  shell.add_opset_import()->set_version(11);
  shell.add_opset_import()->set_domain(kMarkDomain);
  shell.add_opset_import()->set_domain("com.microsoft");
  DropMarkOpset(shell);
  std::vector<std::string> domains;
  for (const onnx::OperatorSetIdProto& import : shell.opset_import()) {
    domains.push_back(import.domain());
  }
  EXPECT_THAT(domains, UnorderedElementsAre("", "com.microsoft"));
}

TEST(CheckUnmarkedTest, NamesTheMark) {
  ModelBuilder builder;
  builder.Input("x", {1}).Output("y");
  AddMark(builder, "drop", "Dropout", "x", "y");
  const absl::Status status = CheckUnmarked(builder.Build());
  EXPECT_EQ(ReasonOf(status), v1::MODEL_MARKED);
  EXPECT_EQ(PlaceOf(status).layer, "/y/QuantIdentity");
}

}  // namespace
}  // namespace modelpress::engine
