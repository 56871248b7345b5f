#include "engine/prune/groups.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;
using testing::UnorderedElementsAre;

// A network whose tensors have the names of the nodes that make them. The graph's input is x, of 3 channels and 8 x 8 pixels.
class Net {
 public:
  explicit Net(int64_t opset = 11, const std::vector<int64_t>& input = {2, 3, 8, 8}) : builder_(opset) {
    builder_.Input("x", input);
  }

  onnx::NodeProto& Op(const std::string& type, const std::string& name, const std::vector<std::string>& inputs) {
    return builder_.Node(type, name, inputs, {name});
  }
  Net& Conv(const std::string& name, const std::string& input, int64_t in, int64_t out, int64_t groups = 1, int64_t kernel = 1) {
    Weight(name + ".weight", {out, in / groups, kernel, kernel});
    onnx::NodeProto& node = Op("Conv", name, {input, name + ".weight"});
    AddInt(node, "group", groups);
    Ints(node, "kernel_shape", {kernel, kernel});
    Ints(node, "pads", {kernel / 2, kernel / 2, kernel / 2, kernel / 2});
    return *this;
  }
  Net& ConvTranspose(const std::string& name, const std::string& input, int64_t in, int64_t out, int64_t groups = 1) {
    Weight(name + ".weight", {in, out / groups, 2, 2});
    onnx::NodeProto& node = Op("ConvTranspose", name, {input, name + ".weight"});
    AddInt(node, "group", groups);
    Ints(node, "kernel_shape", {2, 2});
    Ints(node, "strides", {2, 2});
    return *this;
  }
  Net& Gemm(const std::string& name, const std::string& input, int64_t in, int64_t out) {
    Weight(name + ".weight", {out, in});
    AddInt(Op("Gemm", name, {input, name + ".weight"}), "transB", 1);
    return *this;
  }
  Net& MatMul(const std::string& name, const std::string& input, int64_t in, int64_t out) {
    Weight(name + ".weight", {in, out});
    Op("MatMul", name, {input, name + ".weight"});
    return *this;
  }
  Net& BatchNorm(const std::string& name, const std::string& input, int64_t channels) {
    std::vector<std::string> inputs = {input};
    for (const char* parameter : {".weight", ".bias", ".running_mean", ".running_var"}) {
      Weight(name + parameter, {channels});
      inputs.push_back(name + parameter);
    }
    Op("BatchNormalization", name, inputs);
    return *this;
  }
  Net& Concat(const std::string& name, const std::vector<std::string>& inputs, int64_t axis = 1) {
    AddInt(Op("Concat", name, inputs), "axis", axis);
    return *this;
  }
  Net& PoolAndFlatten(const std::string& name, const std::string& input) {
    Op("GlobalAveragePool", name + ".pool", {input});
    Op("Flatten", name, {name + ".pool"});
    return *this;
  }
  Net& Output(const std::string& name) {
    builder_.Output(name);
    return *this;
  }
  Net& Weight(const std::string& name, const std::vector<int64_t>& dims, float value = 0.5F) {
    int64_t count = 1;
    for (int64_t dim : dims) {
      count *= dim;
    }
    builder_.Initializer(name, dims, std::vector<float>(count, value));
    return *this;
  }
  Net& Integers(const std::string& name, const std::vector<int64_t>& values) {
    onnx::TensorProto& tensor = *builder_.proto().mutable_graph()->add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(onnx::TensorProto::INT64);
    tensor.add_dims(static_cast<int64_t>(values.size()));
    tensor.mutable_int64_data()->Assign(values.begin(), values.end());
    return *this;
  }
  static void Ints(onnx::NodeProto& node, const std::string& name, const std::vector<int64_t>& values) {
    onnx::AttributeProto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::INTS);
    attribute.mutable_ints()->Assign(values.begin(), values.end());
  }

  // Prunes every Conv2d and Linear layer but those skipped.
  absl::StatusOr<PruneGroups> Find(const ReferenceDefects& defects, bool extended, const std::set<std::string>& skipped) const {
    absl::StatusOr<Graph> graph = Graph::Create(builder_.Build(), {});
    EXPECT_TRUE(graph.ok()) << graph.status();
    absl::StatusOr<Layers> layers = FindLayers(*graph, nullptr, {});
    EXPECT_TRUE(layers.ok()) << layers.status();
    NameLayerNodes(*graph, *layers);
    std::map<std::string, FilterPruneConfig> enabled;
    for (const Layer& layer : layers->layers) {
      if ((layer.config.type == "Conv2d" || layer.config.type == "Linear") && !skipped.contains(layer.config.name)) {
        enabled[layer.config.name] = {.ratio = 0.5};
      }
    }
    return FindPruneGroups(*graph, *layers, enabled, {.extended = extended}, defects);
  }

 private:
  ModelBuilder builder_;
};

int64_t IntOf(const AMCTPytorchProto::PruneNode& node, const std::string& name) {
  for (const auto& attr : node.attr()) {
    if (attr.name() == name) {
      return attr.i();
    }
  }
  return -1;
}

// "a 0:8 -> /Add 0:8, b 0:8", with " g2" for group and " p2" for prune_group.
std::string Line(const AMCTPytorchProto::PruneRecord& record) {
  auto list = [](const auto& nodes) {
    return absl::StrJoin(nodes, ", ", [](std::string* out, const AMCTPytorchProto::PruneNode& node) {
      absl::StrAppend(out, node.name(), " ", IntOf(node, "begin"), ":", IntOf(node, "end"));
      for (const char* name : {"group", "prune_group"}) {
        if (IntOf(node, name) >= 0) {
          absl::StrAppend(out, " ", absl::string_view(name, 1), IntOf(node, name));
        }
      }
    });
  };
  return absl::StrCat(list(record.producer()), " -> ", list(record.consumer()));
}

PruneGroups Groups(const Net& net, const ReferenceDefects& defects = {}, bool extended = false,
                   const std::set<std::string>& skipped = {}) {
  absl::StatusOr<PruneGroups> groups = net.Find(defects, extended, skipped);
  EXPECT_TRUE(groups.ok()) << groups.status();
  return groups.ok() ? *std::move(groups) : PruneGroups();
}

std::vector<std::string> Lines(const Net& net, const ReferenceDefects& defects = {}, bool extended = false,
                               const std::set<std::string>& skipped = {}) {
  std::vector<std::string> lines;
  for (const auto& record : Groups(net, defects, extended, skipped).records) {
    lines.push_back(Line(record));
  }
  return lines;
}

std::vector<std::string> Extended(const Net& net, const std::set<std::string>& skipped = {}) {
  return Lines(net, {}, true, skipped);
}

TEST(PruneGroupsTest, ALayerThatIsPrunedProducesAndTheNextOneConsumes) {
  Net net;
  net.Conv("a", "x", 3, 8).Op("Relu", "relu", {"a"});
  net.BatchNorm("n", "relu", 8).Conv("b", "n", 8, 4).Output("b");
  const PruneGroups groups = Groups(net);
  ASSERT_THAT(groups.records, SizeIs(1));
  EXPECT_EQ(Line(groups.records[0]), "a 0:8 -> n 0:8, b 0:8");
  const auto& attrs = groups.records[0].consumer(0).attr();
  EXPECT_EQ(attrs[0].name(), "type");
  EXPECT_EQ(attrs[0].s(), "BatchNormalization");
  EXPECT_THAT(groups.left_alone, UnorderedElementsAre(Pair("b", "its output reaches the graph's output 'b'")));
  EXPECT_THAT(groups.deviations, IsEmpty());
}

TEST(PruneGroupsTest, ALayerThatIsNotPrunedEndsARecordAndADepthwiseOneHandsItOn) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("dw", "a", 8, 8, 8, 3).Conv("b", "dw", 8, 8).Conv("c", "b", 8, 4).Output("c");
  EXPECT_THAT(Lines(net, {}, false, {"b", "dw"}), ElementsAre("a 0:8 -> dw 0:8, b 0:8"));
}

TEST(PruneGroupsTest, LinearsAreGemmOrMatMulWithItsBiasBehind) {
  Net net(11, {2, 5, 3});
  net.MatMul("a", "x", 3, 8).Weight("a.bias", {8}).Op("Add", "plus", {"a.bias", "a"});
  net.Op("Relu", "relu", {"plus"});
  net.MatMul("b", "relu", 8, 4).Output("b");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:8 -> b 0:8"));

  Net flat(11, {2, 3});
  flat.Gemm("a", "x", 3, 8).BatchNorm("n", "a", 8).Gemm("b", "n", 8, 4).Output("b");
  EXPECT_THAT(Lines(flat), ElementsAre("a 0:8 -> n 0:8, b 0:8"));
}

TEST(PruneGroupsTest, AMatrixBehindATransposeIsSeenTransposed) {
  Net net(11, {2, 5, 3});
  net.Weight("a.weight", {8, 3}).Op("Transpose", "turned", {"a.weight"});
  net.Op("MatMul", "a", {"x", "turned"});
  net.MatMul("b", "a", 8, 4).Output("b");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:8 -> b 0:8"));
}

TEST(PruneGroupsTest, ABatchNormBehindMatMul) {
  Net vectors(11, {2, 3});  // BatchNorm1d ends the record
  vectors.MatMul("a", "x", 3, 8).BatchNorm("n", "a", 8).MatMul("b", "n", 8, 4).Output("b");
  EXPECT_THAT(Lines(vectors), IsEmpty());
  EXPECT_THAT(Groups(vectors).left_alone,
              UnorderedElementsAre(Pair("a", "its output reaches BatchNormalization 'n'"), Pair("b", HasSubstr("output 'b'"))));

  Net maps(11, {2, 6, 5, 3});  // BatchNorm2d is over another axis
  maps.MatMul("a", "x", 3, 8).BatchNorm("n", "a", 6).MatMul("b", "n", 8, 4).Output("b");
  EXPECT_THAT(Lines(maps), ElementsAre("a 0:8 -> b 0:8"));
}

TEST(PruneGroupsTest, AGlobalPoolAndFlattenLeadToALinear) {
  Net net;
  net.Conv("a", "x", 3, 8).PoolAndFlatten("flat", "a").Gemm("f", "flat", 8, 4).Output("f");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:8 -> f 0:8"));

  Net dropout;
  dropout.Conv("a", "x", 3, 8).Op("GlobalAveragePool", "pool", {"a"});
  dropout.Op("Dropout", "drop", {"pool"});
  dropout.Op("Flatten", "flat", {"drop"});
  dropout.Gemm("f", "flat", 8, 4).Output("f");
  EXPECT_THAT(Groups(dropout).left_alone, testing::Contains(Pair("a", "its output reaches Flatten 'flat'")));
}

TEST(PruneGroupsTest, AGlobalPoolOfALinearTakesTheMeanOfItsChannels) {
  Net net(11, {2, 8, 5, 3});
  net.MatMul("a", "x", 3, 8).PoolAndFlatten("flat", "a").Gemm("f", "flat", 8, 4).Output("f");
  EXPECT_THAT(Groups(net).left_alone, testing::Contains(Pair("a", "its output reaches D4toD2 'flat.pool.flat'")));
}

TEST(PruneGroupsTest, ABiasThatIsComputedMakesALayerABarrier) {
  Net net(11, {2, 3});
  net.Gemm("a", "x", 3, 8).Gemm("b", "x", 3, 8).Weight("w", {8, 8}).Op("Gemm", "c", {"a", "w", "b"});
  net.Gemm("d", "c", 8, 4).Output("d");
  EXPECT_THAT(Lines(net), IsEmpty());
  for (const char* name : {"a", "b"}) {
    EXPECT_THAT(Groups(net).left_alone.at(name), HasSubstr("its output reaches Gemm 'c'"));
  }
}

TEST(PruneGroupsTest, GroupsThatFitNoWeightMakeALayerABarrier) {
  for (int64_t group : {-1, 0, 3}) {
    Net net;
    net.Conv("a", "x", 3, 8).Weight("b.weight", {8, 4, 1, 1});
    AddInt(net.Op("Conv", "b", {"a", "b.weight"}), "group", group);
    net.Output("b");
    EXPECT_THAT(Lines(net), IsEmpty()) << group;
    EXPECT_THAT(Groups(net).left_alone.at("a"), HasSubstr("its weight is none of a torch module's")) << group;
  }
}

TEST(PruneGroupsTest, AnAddMakesRecordsOne) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 8).BatchNorm("n", "b", 8).Op("Add", "add", {"n", "a"});
  net.Conv("c", "add", 8, 4).Output("c");
  EXPECT_THAT(Lines(net), ElementsAre("b 0:8, a 0:8 -> n 0:8, add 0:8, c 0:8"));
}

TEST(PruneGroupsTest, AnAddOfAConvolutionAndItsOwnInputIsOneRecord) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "a", 8, 8).Op("Add", "add", {"a", "b"});
  net.Op("Add", "again", {"add", "a"});
  net.Conv("c", "again", 8, 4).Output("c");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:8, b 0:8 -> b 0:8, add 0:8, again 0:8, c 0:8"));
}

TEST(PruneGroupsTest, AnAddEndsRecordsThatDoNotFit) {
  Net one;  // the graph's input has no record
  one.Conv("a", "x", 3, 3).Op("Add", "add", {"a", "x"});
  one.Conv("c", "add", 3, 4).Output("c");
  EXPECT_THAT(Groups(one).left_alone, testing::Contains(Pair("a", "Add 'add' adds its output to channels that are not pruned")));

  Net concat;
  concat.Conv("a", "x", 3, 4).Conv("b", "x", 3, 4).Conv("d", "x", 3, 8).Concat("cat", {"a", "b"}).Op("Add", "add", {"cat", "d"});
  concat.Conv("c", "add", 8, 4).Output("c");
  EXPECT_THAT(Lines(concat), IsEmpty());

  Net axes;  // channels of a convolution and of a Linear
  axes.Conv("a", "x", 3, 8).PoolAndFlatten("flat", "a").Gemm("f", "flat", 8, 8).Op("Add", "add", {"flat", "f"});
  axes.Gemm("g", "add", 8, 4).Output("g");
  EXPECT_THAT(Lines(axes), IsEmpty());
}

TEST(PruneGroupsTest, AConcatPutsRecordsBehindEachOther) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Concat("cat", {"a", "b", "a"}).BatchNorm("n", "cat", 20);
  net.Conv("c", "n", 20, 4).Output("c");
  EXPECT_THAT(Lines(net),
              ElementsAre("a 0:8 -> cat 0:8, cat 12:20, n 0:8, n 12:20, c 0:8, c 12:20", "b 0:4 -> cat 8:12, n 8:12, c 8:12"));
}

TEST(PruneGroupsTest, AConcatEndsRecordsThatItCannotPlace) {
  Net unknown;
  unknown.Conv("a", "x", 3, 8).Concat("cat", {"a", "x"}).Conv("c", "cat", 11, 4).Output("c");
  EXPECT_THAT(Lines(unknown), IsEmpty());
  for (int64_t axis : {0, 2, -3}) {
    Net other;
    other.Conv("a", "x", 3, 8).Conv("b", "x", 3, 8).Concat("cat", {"a", "b"}, axis).Conv("c", "cat", 8, 4).Output("c");
    EXPECT_THAT(Groups(other).left_alone, testing::Contains(Pair("a", "its output reaches Concat 'cat'"))) << axis;
  }
}

TEST(PruneGroupsTest, GroupsOfConvolutionsDecideInWhatBlocksChannelsGo) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "a", 8, 8, 4).Conv("c", "b", 8, 8, 2).Conv("d", "c", 8, 4).Output("d");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:8 p4 -> b 0:8 g4", "b 0:8 g4 p4 -> c 0:8 g2", "c 0:8 g2 p2 -> d 0:8"));

  Net conflict;
  conflict.Conv("a", "x", 3, 12).Conv("b", "a", 12, 12, 2).Conv("c", "a", 12, 12, 3).Op("Add", "add", {"b", "c"});
  conflict.Conv("d", "add", 12, 4).Output("d");
  const PruneGroups groups = Groups(conflict);
  ASSERT_THAT(groups.records, SizeIs(1));
  EXPECT_EQ(Line(groups.records[0]), "b 0:12 g2 p3, c 0:12 g3 p3 -> add 0:12, d 0:12");
  EXPECT_THAT(groups.left_alone, testing::Contains(Pair("a", "the 3 groups of Conv 'c' do not fit other groups")));

  Net several;
  several.Conv("a", "x", 3, 4).Conv("b", "x", 3, 4).Concat("cat", {"a", "b"}).Conv("c", "cat", 8, 8, 2).Output("c");
  EXPECT_THAT(Lines(several), IsEmpty());
}

TEST(PruneGroupsTest, EveryReaderOfATensorCounts) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "a", 8, 4).Op("Sigmoid", "act", {"a"});
  net.Output("b").Output("act");
  EXPECT_THAT(Groups(net).left_alone, testing::Contains(Pair("a", "its output reaches Sigmoid 'act'")));

  Net output;
  output.Conv("a", "x", 3, 8).Op("Relu", "relu", {"a"});
  output.Conv("b", "relu", 8, 4).Output("b").Output("relu");
  EXPECT_THAT(Groups(output).left_alone, testing::Contains(Pair("a", "its output reaches the graph's output 'relu'")));
}

TEST(PruneGroupsTest, AnotherOutputThanTheFirstEndsARecord) {
  Net net;
  net.Conv("a", "x", 3, 8);
  onnx::NodeProto& pool = net.Op("MaxPool", "pool", {"a"});
  pool.add_output("indices");
  Net::Ints(pool, "kernel_shape", {2, 2});
  net.Conv("b", "pool", 8, 4).Output("b").Output("indices");
  EXPECT_THAT(Lines(net), IsEmpty());
}

TEST(PruneGroupsTest, ASubgraphThatReadsATensorEndsItsRecord) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "a", 8, 4);
  net.Weight("yes", {1});
  onnx::NodeProto& node = net.Op("If", "if", {"yes"});
  for (const char* name : {"then_branch", "else_branch"}) {
    onnx::AttributeProto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::GRAPH);
    onnx::NodeProto& inner = *attribute.mutable_g()->add_node();
    inner.set_op_type("Relu");
    inner.add_input("a");
    inner.add_output(absl::StrCat(name, "_out"));
    attribute.mutable_g()->add_output()->set_name(absl::StrCat(name, "_out"));
  }
  net.Output("b").Output("if");
  EXPECT_THAT(Groups(net).left_alone, testing::Contains(Pair("a", "its output reaches If 'if'")));
}

TEST(PruneGroupsTest, WhatReadsATensorInVainMustSuitItAllTheSame) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "a", 8, 4).Conv("vain", "a", 8, 4).Op("Relu", "relu", {"vain"});
  net.Output("b");
  const PruneGroups groups = Groups(net);
  ASSERT_THAT(groups.records, SizeIs(1));
  EXPECT_EQ(Line(groups.records[0]), "a 0:8 -> b 0:8, vain 0:8");
  EXPECT_THAT(groups.left_alone, testing::Contains(Pair("vain", "its output is not used")));
}

TEST(PruneGroupsTest, AResizeThatKeepsTheChannelsIsPassed) {
  for (float scale : {1.0F, 2.0F}) {
    Net net;
    net.Conv("a", "x", 3, 8).Weight("scales", {4}, scale).Op("Resize", "up", {"a", "", "scales"});
    net.Conv("b", "up", 8, 4).Output("b");
    EXPECT_THAT(Lines(net), SizeIs(scale == 1 ? 1 : 0));
  }
}

TEST(PruneGroupsTest, ASoftmaxOverTheLastAxisIsPassed) {
  for (const auto& [opset, axis] : std::vector<std::pair<int64_t, int64_t>>{{11, 3}, {13, -1}, {13, 3}}) {
    Net net(opset);
    net.Conv("a", "x", 3, 8);
    AddInt(net.Op("Softmax", "soft", {"a"}), "axis", axis);
    net.Conv("b", "soft", 8, 4).Output("b");
    EXPECT_THAT(Lines(net), SizeIs(1)) << opset << " " << axis;
  }
  Net channels(13);
  channels.Conv("a", "x", 3, 8);
  AddInt(channels.Op("Softmax", "soft", {"a"}), "axis", 1);
  channels.Conv("b", "soft", 8, 4).Output("b");
  EXPECT_THAT(Lines(channels), IsEmpty());
}

TEST(PruneGroupsTest, OperatorsOfOtherDomainsEndRecords) {
  Net net;
  net.Conv("a", "x", 3, 8).Op("Relu", "relu", {"a"}).set_domain("elsewhere");
  net.Conv("b", "relu", 8, 4).Output("b");
  EXPECT_THAT(Groups(net).left_alone, testing::Contains(Pair("a", "its output reaches elsewhere.Relu 'relu'")));
}

// ---- what the reference does wrong ------------------------------------------------------------------------------------------

TEST(PruneDefectsTest, AConcatBranchThatStaysKeepsItsWidth) {  // P-1
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Concat("cat", {"a", "b"}).Conv("c", "cat", 12, 4).Output("c");
  EXPECT_THAT(Lines(net, {}, false, {"a"}), ElementsAre("b 0:4 -> cat 8:12, c 8:12"));
  EXPECT_THAT(Groups(net, {}, false, {"a"}).deviations, ElementsAre(HasSubstr("P-1")));
  EXPECT_THAT(Lines(net, {.forgets_concat_widths = true}, false, {"a"}), ElementsAre("b 0:4 -> cat 8:12, c 0:4"));
  EXPECT_THAT(Groups(net, {.forgets_concat_widths = true}, false, {"a"}).deviations, IsEmpty());
}

TEST(PruneDefectsTest, SoDoesOneThatLosesItsRecordLater) {  // P-1
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Concat("cat", {"a", "b"}).Op("Sigmoid", "act", {"a"});
  net.Conv("c", "cat", 12, 4).Output("c").Output("act");
  EXPECT_THAT(Lines(net), ElementsAre("b 0:4 -> cat 8:12, c 8:12"));
  EXPECT_THAT(Lines(net, {.forgets_concat_widths = true}), ElementsAre("b 0:4 -> cat 8:12, c 0:4"));
}

TEST(PruneDefectsTest, BranchesThatAreAddedStayWhereTheyAre) {  // P-2
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Conv("c", "x", 3, 8).Concat("cat", {"a", "b"}).Op("Add", "add", {"c", "a"});
  net.Conv("d", "cat", 12, 4).Conv("e", "add", 8, 4).Output("d").Output("e");
  EXPECT_THAT(Lines(net), ElementsAre("b 0:4 -> cat 8:12, d 8:12", "c 0:8, a 0:8 -> cat 0:8, add 0:8, d 0:8, e 0:8"));
  EXPECT_THAT(Groups(net).deviations, ElementsAre(HasSubstr("P-2")));
  EXPECT_THAT(Lines(net, {.reorders_concat_branches = true}),
              ElementsAre("b 0:4 -> cat 8:12, d 0:4", "c 0:8, a 0:8 -> cat 0:8, add 0:8, d 4:12, e 0:8"));
}

TEST(PruneDefectsTest, WidthsThatDifferAreNotAdded) {  // P-3
  Net net;
  net.Conv("a", "x", 3, 1).Conv("b", "x", 3, 8).Op("Add", "add", {"a", "b"});
  net.Conv("c", "add", 8, 4).Output("c");
  EXPECT_THAT(Lines(net), IsEmpty());
  EXPECT_THAT(Groups(net).deviations, ElementsAre(HasSubstr("P-3")));
  EXPECT_THAT(Lines(net, {.takes_width_of_first_producer = true}), ElementsAre("a 0:1, b 0:8 -> add 0:1, c 0:1"));
}

TEST(PruneDefectsTest, AConvTransposeHasTheWidthThatItHas) {  // P-3
  Net net;
  net.Conv("a", "x", 3, 8).ConvTranspose("up", "a", 8, 6).ConvTranspose("b0", "x", 3, 5).Conv("b", "b0", 5, 4);
  net.Concat("cat", {"up", "b"}).Conv("c", "cat", 10, 4).Output("c");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:8 -> up 0:8, cat 0:8, c 0:8", "b 0:4 -> cat 6:10, c 6:10"));
  EXPECT_THAT(Lines(net, {.takes_width_of_first_producer = true}),
              ElementsAre("a 0:8 -> up 0:8, cat 0:8, c 0:8", "b 0:4 -> cat 8:12, c 8:12"));
}

TEST(PruneDefectsTest, ALayerThatReadsAnotherNumberOfChannelsEndsTheRecord) {  // P-3
  Net net;
  net.Conv("a", "x", 3, 8).Integers("pads", {0, 4, 0, 0, 0, 4, 0, 0}).Op("Pad", "pad", {"a", "pads"});
  net.Conv("b", "pad", 16, 4).Output("b");
  EXPECT_THAT(Groups(net).left_alone, testing::Contains(Pair("a", "Conv 'b' reads 16 channels where 8 are followed")));
  EXPECT_THAT(Lines(net, {.takes_width_of_first_producer = true}), ElementsAre("a 0:8 -> b 0:8"));
}

TEST(PruneDefectsTest, ADepthwiseLayerWithAMultiplierEndsTheRecord) {  // P-4
  Net net;
  net.Conv("a", "x", 3, 8).Conv("dw", "a", 8, 16, 8).Conv("b", "dw", 16, 4).Output("b");
  const PruneGroups groups = Groups(net, {}, false, {"dw"});
  EXPECT_THAT(groups.records, IsEmpty());
  EXPECT_THAT(groups.left_alone, testing::Contains(Pair("a", "its output reaches Conv 'dw', which makes 2 channels of each")));
  EXPECT_THAT(groups.deviations, ElementsAre(HasSubstr("P-4")));
  EXPECT_THAT(Lines(net, {.ignores_depthwise_multiplier = true}, false, {"dw"}), ElementsAre("a 0:8 -> dw 0:8, b 0:8"));
}

TEST(PruneDefectsTest, EveryUseOfATensorInAConcatIsLeftAlone) {  // P-10
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Concat("cat", {"a", "a", "b"}).Op("Sigmoid", "act", {"a"});
  net.Conv("c", "cat", 20, 4).Output("c").Output("act");
  EXPECT_THAT(Lines(net), ElementsAre("b 0:4 -> cat 16:20, c 16:20"));
  EXPECT_THAT(Groups(net).deviations, testing::Contains(HasSubstr("P-10")));
  ReferenceDefects stale = {.forgets_concat_widths = true};
  EXPECT_THAT(Lines(net, stale), ElementsAre("b 0:4 -> cat 16:20, c 0:4"));
  stale.leaves_stale_prune_records = true;
  EXPECT_THAT(Lines(net, stale), ElementsAre("b 0:4 -> cat 16:20, c 8:12"));
}

TEST(PruneDefectsTest, AStaleRecordThatEndsAgainIsAnError) {  // P-10
  Net net;
  net.Conv("a", "x", 3, 8).Concat("cat", {"a", "a"}).Op("Sigmoid", "act", {"a"});
  net.Output("cat").Output("act");
  EXPECT_THAT(Lines(net), IsEmpty());
  const absl::StatusOr<PruneGroups> groups = net.Find({.leaves_stale_prune_records = true}, false, {});
  EXPECT_EQ(ReasonOf(groups.status()), v1::NODE_UNSUPPORTED);
  EXPECT_EQ(PlaceOf(groups.status()).layer, "a");
}

TEST(PruneDefectsTest, WhatIsNoLayerOfItsOwnEndsRecords) {  // P-7, P-8
  Net shared;
  shared.Conv("a", "x", 3, 8).Conv("b", "a", 8, 8);
  shared.Op("Conv", "b2", {"b", "b.weight"});
  shared.Output("b2");
  const PruneGroups groups = Groups(shared);
  EXPECT_THAT(groups.records, IsEmpty());
  EXPECT_THAT(groups.left_alone.at("a"), HasSubstr("its output reaches Conv 'b' (its weight 'b.weight' is used by 2 nodes)"));
  EXPECT_THAT(groups.left_alone.at("b"), HasSubstr("is used by 2 nodes"));

  Net product(11, {2, 5, 3});
  product.MatMul("a", "x", 3, 8).MatMul("b", "x", 3, 8);
  Net::Ints(product.Op("Transpose", "turned", {"b"}), "perm", {0, 2, 1});
  product.Op("MatMul", "attention", {"a", "turned"});
  product.Output("attention");
  EXPECT_THAT(Groups(product).left_alone,
              UnorderedElementsAre(Pair("a", "its output reaches MatMul 'attention' (it is no layer of its own)"),
                                   Pair("b", "its output reaches Transpose 'turned'")));
}

// ---- extended ---------------------------------------------------------------------------------------------------------------

TEST(PruneExtendedTest, ALinearBehindAFlattenReadsBlocksOfInputs) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Concat("cat", {"a", "b"}).Op("Flatten", "flat", {"cat"});
  net.Gemm("f", "flat", 768, 4).Output("f");
  EXPECT_THAT(Lines(net), IsEmpty());
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8 -> cat 0:8, f 0:512", "b 0:4 -> cat 8:12, f 512:768"));
}

TEST(PruneExtendedTest, EveryFormOfAGlobalPoolLeadsToALinear) {
  Net mean;
  mean.Conv("a", "x", 3, 8);
  onnx::NodeProto& reduce = mean.Op("ReduceMean", "mean", {"a"});
  Net::Ints(reduce, "axes", {-1, 2});
  AddInt(reduce, "keepdims", 0);
  mean.Gemm("f", "mean", 8, 4).Output("f");
  EXPECT_THAT(Lines(mean), IsEmpty());
  EXPECT_THAT(Extended(mean), ElementsAre("a 0:8 -> f 0:8"));

  Net axes_input(18);
  axes_input.Conv("a", "x", 3, 8).Integers("axes", {2, 3}).Op("ReduceMean", "mean", {"a", "axes"});
  axes_input.Integers("shape", {2, 8}).Op("Reshape", "view", {"mean", "shape"});
  axes_input.Gemm("f", "view", 8, 4).Output("f");
  EXPECT_THAT(Lines(axes_input), IsEmpty());
  EXPECT_THAT(Extended(axes_input), ElementsAre("a 0:8 -> view 0:8, f 0:8"));

  Net whole_map;
  whole_map.Conv("a", "x", 3, 8);
  Net::Ints(whole_map.Op("AveragePool", "pool", {"a"}), "kernel_shape", {8, 8});
  Net::Ints(whole_map.Op("Squeeze", "squeeze", {"pool"}), "axes", {2, 3});
  whole_map.Gemm("f", "squeeze", 8, 4).Output("f");
  EXPECT_THAT(Lines(whole_map), IsEmpty());
  EXPECT_THAT(Extended(whole_map), ElementsAre("a 0:8 -> f 0:8"));

  Net constant;
  constant.Conv("a", "x", 3, 8).Op("GlobalAveragePool", "pool", {"a"});
  constant.Integers("shape", {-1, 8}).Op("Reshape", "view", {"pool", "shape"});
  constant.Gemm("f", "view", 8, 4).Output("f");
  EXPECT_THAT(Lines(constant), IsEmpty());
  EXPECT_THAT(Extended(constant), ElementsAre("a 0:8 -> view 0:8, f 0:8"));
}

TEST(PruneExtendedTest, AReshapeThatMixesChannelsEndsRecords) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{128, 8}, {2, 4, 2, 64}, {2, 64, 8}, {16, 64}}) {
    Net net;
    net.Conv("a", "x", 3, 8).Integers("shape", shape).Op("Reshape", "view", {"a", "shape"});
    net.Op("Relu", "relu", {"view"});
    net.Gemm("f", "relu", shape.back(), 4).Output("f");
    if (shape == std::vector<int64_t>{2, 64, 8}) {  // pieces of channels: followed, but a Linear reads another axis
      EXPECT_THAT(Groups(net, {}, true).left_alone.at("a"), HasSubstr("reads another axis"));
    }
    EXPECT_THAT(Extended(net), IsEmpty());
  }
}

TEST(PruneExtendedTest, AReductionOverTheChannelsEndsRecords) {
  Net net;
  net.Conv("a", "x", 3, 8);
  Net::Ints(net.Op("ReduceMax", "max", {"a"}), "axes", {1});
  net.Conv("b", "max", 1, 4).Output("b");
  EXPECT_THAT(Groups(net, {}, true).left_alone, testing::Contains(Pair("a", "its output reaches ReduceMax 'max'")));
}

TEST(PruneExtendedTest, AConvTransposeEndsARecordAsAConsumer) {  // P-5
  Net net;
  net.Conv("a", "x", 3, 8).ConvTranspose("up", "a", 8, 6).Conv("b", "x", 3, 4, 1, 1);
  net.ConvTranspose("b2", "b", 4, 4).Concat("cat", {"up", "b2"}).Conv("c", "cat", 10, 4).Conv("d", "c", 4, 4).Output("d");
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8 -> up 0:8", "b 0:4 -> b2 0:4", "c 0:4 -> d 0:4"));

  Net groups;
  groups.Conv("a", "x", 3, 8).ConvTranspose("up", "a", 8, 8, 8).Conv("c", "up", 8, 4).Output("c");
  EXPECT_THAT(Extended(groups), IsEmpty());
}

TEST(PruneExtendedTest, AConvolutionOfOneChannelIsNotDepthwise) {  // P-6
  Net net(11, {2, 1, 8, 8});
  net.Conv("a", "x", 1, 8).Conv("b", "a", 8, 4).Output("b");
  EXPECT_THAT(Lines(net), IsEmpty());
  EXPECT_THAT(Groups(net).left_alone, testing::Contains(Pair("a", "its groups have one input channel each")));
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8 -> b 0:8"));
}

TEST(PruneExtendedTest, ALinearIsJudgedByItsOwnPath) {  // P-12
  Net net(11, {2, 3, 8, 16});
  net.Conv("a", "x", 3, 16).PoolAndFlatten("flat", "a").Gemm("f", "flat", 16, 4).MatMul("g", "a", 16, 4).Output("f").Output("g");
  EXPECT_THAT(Lines(net), ElementsAre("a 0:16 -> f 0:16, g 0:16"));  // the cut is then found not to fit
  EXPECT_THAT(Extended(net), IsEmpty());
  EXPECT_THAT(Groups(net, {}, true).left_alone,
              testing::Contains(Pair("a", "MatMul 'g' reads another axis than that of the channels")));
}

TEST(PruneExtendedTest, ConcatsThatAreAddedAreJoinedSegmentBySegment) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Conv("c", "x", 3, 8).Conv("d", "x", 3, 4);
  net.Concat("left", {"a", "b"}).Concat("right", {"c", "d"}).Op("Add", "add", {"left", "right"});
  net.Conv("e", "add", 12, 4).Output("e");
  EXPECT_THAT(Lines(net), IsEmpty());
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8, c 0:8 -> left 0:8, right 0:8, add 0:8, e 0:8",
                                         "b 0:4, d 0:4 -> left 8:12, right 8:12, add 8:12, e 8:12"));
  // A segment that stays keeps the one that it is added to.
  EXPECT_THAT(Extended(net, {"c"}), ElementsAre("b 0:4, d 0:4 -> left 8:12, right 8:12, add 8:12, e 8:12"));
  EXPECT_THAT(Groups(net, {}, true, {"c"}).left_alone,
              testing::Contains(Pair("a", "Add 'add' combines its output with channels that stay")));

  Net crossed;  // segments of other widths
  crossed.Conv("a", "x", 3, 8).Conv("b", "x", 3, 4).Conv("c", "x", 3, 4).Conv("d", "x", 3, 8);
  crossed.Concat("left", {"a", "b"}).Concat("right", {"c", "d"}).Op("Add", "add", {"left", "right"});
  crossed.Conv("e", "add", 12, 4).Output("e");
  EXPECT_THAT(Extended(crossed), IsEmpty());
}

TEST(PruneExtendedTest, AGateAndWhatItMultipliesAreOneRecord) {
  Net net;
  net.Conv("a", "x", 3, 8).Op("GlobalAveragePool", "pool", {"a"});
  net.Integers("flat", {2, 8}).Op("Reshape", "view", {"pool", "flat"});
  net.Gemm("down", "view", 8, 4).Op("Relu", "relu", {"down"});
  net.Gemm("up", "relu", 4, 8).Op("Sigmoid", "sigmoid", {"up"});
  net.Integers("map", {2, 8, 1, 1}).Op("Reshape", "gate", {"sigmoid", "map"});
  net.Op("Mul", "mul", {"a", "gate"});
  net.Conv("b", "mul", 8, 4).Output("b");
  EXPECT_THAT(Lines(net), ElementsAre("down 0:4 -> up 0:4"));
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8, up 0:8 -> view 0:8, down 0:8, gate 0:8, mul 0:8, b 0:8", "down 0:4 -> up 0:4"));
}

TEST(PruneExtendedTest, NumbersAndSingleChannelsAreSpreadOverAllOthers) {
  Net net;
  net.Conv("a", "x", 3, 8).Conv("mask", "x", 3, 1).Op("Sigmoid", "sigmoid", {"mask"});
  net.Op("Mul", "mul", {"sigmoid", "a"});
  net.Weight("half", {1}).Op("Div", "div", {"mul", "half"});
  net.Conv("b", "div", 8, 4).Output("b");
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8 -> b 0:8"));

  Net scaled;  // one number per channel, which nothing cuts
  scaled.Conv("a", "x", 3, 8).Weight("scale", {1, 8, 1, 1}).Op("Mul", "mul", {"a", "scale"});
  scaled.Conv("b", "mul", 8, 4).Output("b");
  EXPECT_THAT(Groups(scaled, {}, true).left_alone, testing::Contains(Pair("a", "its output reaches Mul 'mul'")));

  Net last_axis(11, {2, 3, 2, 8});  // [2, 8] has its channels on the last axis of [2, 8, 2, 8]
  last_axis.Conv("a", "x", 3, 8).PoolAndFlatten("flat", "a").Conv("b", "x", 3, 8).Op("Mul", "mul", {"b", "flat"});
  last_axis.Conv("c", "mul", 8, 4).Output("c");
  EXPECT_THAT(Extended(last_axis), ElementsAre("b 0:8 -> c 0:8"));
  EXPECT_THAT(Groups(last_axis, {}, true).left_alone,
              testing::Contains(Pair("a", "Mul 'mul' spreads its output over other channels")));
}

TEST(PruneExtendedTest, AConcatTakesAnyTensorOfKnownWidth) {
  Net net;
  net.Conv("a", "x", 3, 8).Concat("cat", {"x", "a"}, -3).Conv("b", "cat", 11, 4).Output("b");
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8 -> cat 3:11, b 3:11"));

  Net vectors(11, {2, 3});
  vectors.Gemm("a", "x", 3, 8).Gemm("b", "x", 3, 4).Concat("cat", {"a", "b"}).Gemm("c", "cat", 12, 4).Output("c");
  EXPECT_THAT(Lines(vectors), IsEmpty());
  EXPECT_THAT(Extended(vectors), ElementsAre("a 0:8 -> cat 0:8, c 0:8", "b 0:4 -> cat 8:12, c 8:12"));

  Net linear(11, {2, 5, 3});
  linear.MatMul("a", "x", 3, 8).MatMul("b", "x", 3, 4).Concat("cat", {"a", "b"}, 2).MatMul("c", "cat", 12, 4).Output("c");
  EXPECT_THAT(Lines(linear), IsEmpty());
  EXPECT_THAT(Extended(linear), ElementsAre("a 0:8 -> cat 0:8, c 0:8", "b 0:4 -> cat 8:12, c 8:12"));
}

TEST(PruneExtendedTest, AShapeDoesNotEndARecord) {
  Net net(11, {-1, 3, 8, 8});
  net.Conv("a", "x", 3, 8).Op("GlobalAveragePool", "pool", {"a"});
  net.Op("Shape", "shape", {"pool"});
  net.Integers("zero", {0}).Op("Gather", "batch", {"shape", "zero"});
  net.Integers("rest", {-1}).Concat("target", {"batch", "rest"}, 0).Op("Reshape", "view", {"pool", "target"});
  net.Gemm("f", "view", 8, 4).Output("f");
  EXPECT_THAT(Lines(net), IsEmpty());
  EXPECT_THAT(Extended(net), ElementsAre("a 0:8 -> view 0:8, f 0:8"));

  Net rows;  // [N * 64, 8]: the Linear reads other channels than were assumed
  rows.Conv("a", "x", 3, 8).Op("Shape", "shape", {"a"});
  rows.Integers("one", {1}).Op("Gather", "channels", {"shape", "one"});
  rows.Integers("rest", {-1}).Concat("target", {"rest", "channels"}, 0).Op("Reshape", "view", {"a", "target"});
  rows.Gemm("f", "view", 8, 4).Output("f");
  EXPECT_THAT(Groups(rows, {}, true).left_alone,
              testing::Contains(Pair("a", "Gemm 'f' reads 8 channels where 512 are followed")));
}

}  // namespace
}  // namespace modelpress::engine
