#include "engine/graph/graph.h"

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Names(const Graph& graph) {
  std::vector<std::string> names;
  for (ItemId id : graph.Order()) {
    names.push_back(graph.item(id).name);
  }
  return names;
}

// x -> a -> b -> y, and c reads a too.
ModelBuilder Chain() {
  ModelBuilder builder;
  builder.Input("x", {1}).Output("y").Output("z");
  builder.Node("Relu", "a", {"x"}, {"t"});
  builder.Node("Relu", "b", {"t"}, {"y"});
  builder.Node("Relu", "c", {"t"}, {"z"});
  return builder;
}

TEST(GraphTest, SortPutsSourcesFirstAndThenTheFirstThatIsReady) {
  ModelBuilder builder;
  builder.Input("x", {1}).Output("y").Initializer("w", {1}, {1});
  builder.Node("Add", "late", {"t", "w"}, {"y"});
  builder.Node("Relu", "early", {"x"}, {"t"});
  builder.Node("Constant", "constant", {}, {"k"});
  auto graph = Graph::Create(builder.Build(), {});
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_THAT(Names(*graph), ElementsAre("w", "constant", "early", "late"));
}

TEST(GraphTest, NewItemsGoToTheFrontAndGetFreeNames) {
  auto graph = Graph::Create(Chain().Build(), {});
  ASSERT_TRUE(graph.ok());
  ItemId first = graph->AddNode("b", {}, 0, {"fresh"});
  ItemId second = graph->AddNode("b", {}, 0, {"t"});
  EXPECT_THAT(Names(*graph), ElementsAre("b2", "b1", "a", "b", "c"));
  EXPECT_EQ(graph->item(first).outputs[0], "fresh");
  EXPECT_EQ(graph->item(second).outputs[0], "t1") << "tensor names are made unique too";
  EXPECT_EQ(graph->deviations().size(), 1);
}

TEST(GraphTest, TheReferenceRepeatsTensorNames) {
  auto graph = Graph::Create(Chain().Build(), {.repeats_tensor_names = true});
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(graph->item(graph->AddNode("n", {}, 0, {"t"})).outputs[0], "t");
}

TEST(GraphTest, MoveUsesHandsOverGraphOutputs) {
  auto graph = Graph::Create(Chain().Build(), {});
  ASSERT_TRUE(graph.ok());
  const ItemId b = graph->Find("b");
  const ItemId added = graph->AddNode("n", {}, 1, {"n.output0"});
  graph->MoveUses(Value{b, 0}, Value{added, 0}, "b_output0");
  graph->SetInput(added, 0, Value{b, 0});
  ASSERT_TRUE(graph->Sort().ok());
  ASSERT_TRUE(graph->Validate().ok());
  EXPECT_EQ(graph->item(added).outputs[0], "y");
  EXPECT_EQ(graph->item(b).outputs[0], "b_output0");
  auto model = graph->ToModel();
  ASSERT_TRUE(model.ok());
  EXPECT_THAT(Names(*graph), ElementsAre("a", "b", "n", "c"));
  EXPECT_EQ(model->nodes[2].proto.input(0), "b_output0");
}

TEST(GraphTest, InsertBeforeKeepsOtherUses) {
  auto graph = Graph::Create(Chain().Build(), {});
  ASSERT_TRUE(graph.ok());
  const ItemId added = graph->AddNode("n", {}, 1, {"n.output0"});
  graph->InsertBefore(graph->Find("b"), 0, added);
  ASSERT_TRUE(graph->Sort().ok());
  ASSERT_TRUE(graph->Validate().ok());
  EXPECT_THAT(Names(*graph), ElementsAre("a", "n", "b", "c"));
  EXPECT_EQ(graph->UsesOf(Value{graph->Find("a"), 0}).size(), 2);
}

TEST(GraphTest, RemovedItemsLeaveNoUses) {
  auto graph = Graph::Create(Chain().Build(), {});
  ASSERT_TRUE(graph.ok());
  const ItemId c = graph->Find("c");
  graph->MoveUses(Value{c, 0}, Value{graph->Find("a"), 0}, "old");
  graph->Remove(c);
  ASSERT_TRUE(graph->Sort().ok());
  EXPECT_TRUE(graph->Validate().ok());
  EXPECT_EQ(graph->Find("c"), -1);
  EXPECT_EQ(graph->item(graph->Find("a")).outputs[0], "z");
}

TEST(GraphTest, WhatANodeDoesNotHaveHasNeitherNameNorUses) {
  auto graph = Graph::Create(Chain().Build(), {});
  ASSERT_TRUE(graph.ok());
  const Value none = graph->InputOf(graph->Find("a"), 7);
  EXPECT_TRUE(none.is_none());
  EXPECT_EQ(graph->NameOf(none), "");
  EXPECT_TRUE(graph->UsesOf(none).empty());
}

TEST(GraphTest, UnnamedNodesAreCalledByTheirIndex) {
  ModelBuilder builder = Chain();
  builder.proto().mutable_graph()->mutable_node(1)->clear_name();
  auto graph = Graph::Create(builder.Build(), {});
  ASSERT_TRUE(graph.ok());
  EXPECT_THAT(Names(*graph), ElementsAre("a", "node_1", "c"));
}

TEST(GraphTest, InitializersAreNoGraphInputs) {
  ModelBuilder builder = Chain();
  builder.Input("w", {1}).Initializer("w", {1}, {1});
  auto graph = Graph::Create(builder.Build(), {});
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(graph->shell().graph().input_size(), 1);
}

TEST(GraphTest, BrokenGraphsAreRefused) {
  {
    ModelBuilder builder = Chain();
    builder.Node("Relu", "d", {"nowhere"}, {"u"});
    auto graph = Graph::Create(builder.Build(), {});
    EXPECT_EQ(ReasonOf(graph.status()), v1::GRAPH_INVALID);
    EXPECT_THAT(std::string(graph.status().message()), HasSubstr("nowhere"));
    EXPECT_EQ(PlaceOf(graph.status()).layer, "d");
  }
  {
    ModelBuilder builder = Chain();
    builder.Node("Relu", "d", {"t"}, {});
    auto graph = Graph::Create(builder.Build(), {});
    EXPECT_EQ(ReasonOf(graph.status()), v1::GRAPH_INVALID);
    EXPECT_EQ(PlaceOf(graph.status()).layer, "d");
  }
  {
    ModelBuilder builder = Chain();
    builder.Output("missing");
    EXPECT_THAT(std::string(Graph::Create(builder.Build(), {}).status().message()), HasSubstr("missing"));
  }
  {
    ModelBuilder builder = Chain();
    builder.Node("Add", "d", {"t", "v"}, {"u"});
    builder.Node("Relu", "e", {"u"}, {"v"});
    EXPECT_THAT(std::string(Graph::Create(builder.Build(), {}).status().message()), HasSubstr("cycle"));
  }
  {
    ModelBuilder builder = Chain();
    builder.Node("Relu", "a", {"x"}, {"u"});
    EXPECT_THAT(std::string(Graph::Create(builder.Build(), {}).status().message()), HasSubstr("two nodes"));
  }
}

// An If whose branches read "t", one of them in a nested If, one of them hidden by a definition of its own.
ModelBuilder WithSubgraphs() {
  ModelBuilder builder = Chain();
  builder.Input("cond", {});
  auto& node = builder.Node("If", "if", {"cond"}, {"w"});
  auto branch = [&node](const char* name) -> onnx::GraphProto& {
    auto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::GRAPH);
    return *attribute.mutable_g();
  };
  auto add = [](onnx::GraphProto& graph, const std::string& op, const std::string& input,
                const std::string& output) -> onnx::NodeProto& {
    auto& inner = *graph.add_node();
    inner.set_op_type(op);
    if (!input.empty()) {
      inner.add_input(input);
    }
    inner.add_output(output);
    return inner;
  };
  onnx::GraphProto& then_branch = branch("then_branch");
  add(then_branch, "Relu", "t", "u");
  then_branch.add_output()->set_name("u");
  onnx::GraphProto& else_branch = branch("else_branch");
  auto& inner = add(else_branch, "If", "cond", "v");
  auto& attribute = *inner.add_attribute();
  attribute.set_name("then_branch");
  attribute.set_type(onnx::AttributeProto::GRAPH);
  add(*attribute.mutable_g(), "Relu", "t", "s");
  attribute.mutable_g()->add_output()->set_name("s");
  else_branch.add_output()->set_name("v");
  return builder;
}

TEST(GraphTest, SubgraphsFollowTheTensorsTheyCapture) {
  auto graph = Graph::Create(WithSubgraphs().Build(), {});
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_THAT(graph->item(graph->Find("if")).captures, ElementsAre("t", "cond"));
  const ItemId a = graph->Find("a");
  const ItemId added = graph->AddNode("n", {}, 1, {"n.output0"});
  graph->MoveUses(Value{a, 0}, Value{added, 0}, "a_output0");
  graph->SetInput(added, 0, Value{a, 0});
  ASSERT_TRUE(graph->Sort().ok());
  ASSERT_TRUE(graph->Validate().ok());
  auto model = graph->ToModel();
  ASSERT_TRUE(model.ok());
  const onnx::NodeProto& node = model->nodes.back().proto;
  ASSERT_EQ(node.name(), "if");
  EXPECT_EQ(node.attribute(0).g().node(0).input(0), "n.output0");
  EXPECT_EQ(node.attribute(1).g().node(0).attribute(0).g().node(0).input(0), "n.output0");
  EXPECT_EQ(node.attribute(1).g().node(0).input(0), "cond");
}

TEST(GraphTest, TheReferenceIgnoresCaptures) {
  auto graph = Graph::Create(WithSubgraphs().Build(), {.ignores_subgraph_captures = true});
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_TRUE(graph->item(graph->Find("if")).captures.empty());
}

}  // namespace
}  // namespace modelpress::engine
