#include "engine/quantize/layers.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::UnorderedElementsAre;

Graph GraphOf(Model model) {
  absl::StatusOr<Graph> graph = Graph::Create(std::move(model), {});
  EXPECT_TRUE(graph.ok()) << graph.status();
  EXPECT_TRUE(ResolveConstantIdentities(*graph).ok());
  EXPECT_TRUE(graph->Validate().ok());
  return *std::move(graph);
}

Graph GoldenGraph(const std::string& name) {
  const std::string path =
      (std::filesystem::path(MODELPRESS_TEST_DATA) / "golden" / "config" / "_models" / (name + ".onnx")).string();
  absl::StatusOr<Model> model = ReadModel(FileSet({{"model.onnx", path}}), "model.onnx");
  EXPECT_TRUE(model.ok()) << model.status();
  return GraphOf(*std::move(model));
}

Layers Find(const Graph& graph, const ReferenceDefects& defects = {}) {
  absl::StatusOr<Layers> layers = FindLayers(graph, nullptr, defects);
  EXPECT_TRUE(layers.ok()) << layers.status();
  return *std::move(layers);
}

// "Conv2d conv1", or "Conv2d conv1: why it cannot be quantized".
std::vector<std::string> Lines(const Layers& layers) {
  std::vector<std::string> lines;
  lines.reserve(layers.layers.size());
  for (const Layer& layer : layers.layers) {
    lines.push_back(layer.config.type + " " + layer.config.name + (layer.config.why_not.empty() ? "" : ": ") +
                    layer.config.why_not);
  }
  return lines;
}

const ConfigLayer& Get(const Layers& layers, const std::string& name) {
  for (const Layer& layer : layers.layers) {
    if (layer.config.name == name) {
      return layer.config;
    }
  }
  static const ConfigLayer kNone;
  ADD_FAILURE() << "no layer " << name;
  return kNone;
}

// A chain of nodes: each takes the one before as its first input and a weight of its own where it has one.
class Chain {
 public:
  explicit Chain(int64_t opset = 13) : builder_(opset) { builder_.Input("input", {1, 2, 8, 8}); }

  // Weight [2, 2, 1, 1] of the given tensor name, made if it is new.
  onnx::NodeProto& Conv(const std::string& name, const std::string& weight) {
    Weight(weight, {2, 2, 1, 1});
    onnx::NodeProto& node = Node("Conv", name, {weight});
    onnx::AttributeProto& kernel = *node.add_attribute();
    kernel.set_name("kernel_shape");
    kernel.set_type(onnx::AttributeProto::INTS);
    kernel.add_ints(1);
    kernel.add_ints(1);
    return node;
  }
  onnx::NodeProto& MatMul(const std::string& name, const std::string& weight) {
    Weight(weight, {8, 8});
    return Node("MatMul", name, {weight});
  }
  onnx::NodeProto& Pool(const std::string& name) {
    onnx::NodeProto& node = Node("AveragePool", name, {});
    onnx::AttributeProto& kernel = *node.add_attribute();
    kernel.set_name("kernel_shape");
    kernel.set_type(onnx::AttributeProto::INTS);
    kernel.add_ints(1);
    kernel.add_ints(1);
    return node;
  }
  onnx::NodeProto& Node(const std::string& op_type, const std::string& name, const std::vector<std::string>& others) {
    std::vector<std::string> inputs = {last_};
    inputs.insert(inputs.end(), others.begin(), others.end());
    last_ = "t" + std::to_string(++count_);
    return builder_.Node(op_type, name, inputs, {last_});
  }
  void Weight(const std::string& name, const std::vector<int64_t>& dims) {
    if (weights_.insert(name).second) {
      int64_t count = 1;
      for (int64_t dim : dims) {
        count *= dim;
      }
      builder_.Initializer(name, dims, std::vector<float>(count, 0.5F));
    }
  }
  ModelBuilder& builder() { return builder_; }
  Graph Build() {
    builder_.Output(last_);
    return GraphOf(builder_.Build());
  }

 private:
  ModelBuilder builder_;
  std::string last_ = "input";
  std::set<std::string> weights_;
  int count_ = 0;
};

void AddScopes(onnx::NodeProto& node, const std::string& scopes, const std::string& classes) {
  for (const auto& [key, value] :
       {std::pair("pkg.torch.onnx.name_scopes", scopes), std::pair("pkg.torch.onnx.class_hierarchy", classes)}) {
    if (!value.empty()) {
      onnx::StringStringEntryProto& entry = *node.add_metadata_props();
      entry.set_key(key);
      entry.set_value(value);
    }
  }
}

TEST(LayersTest, FindsTheModulesOfTorchExports) {
  EXPECT_THAT(Lines(Find(GoldenGraph("net"))),
              ElementsAre("Conv2d conv1", "Conv2d layer1.0", "Conv2d grp", "Conv2d dw", "ConvTranspose2d deconv",
                          "AvgPool2d pool", "Linear fc", "Linear fc2"));
  EXPECT_THAT(Lines(Find(GoldenGraph("misc"))), ElementsAre("Conv3d c3", "Conv1d c1", "ConvTranspose1d t1", "Linear fc"));
  EXPECT_THAT(Lines(Find(GoldenGraph("rnn"))), ElementsAre("LSTM rnn", "GRU gru", "Linear fc"));
}

TEST(LayersTest, KnowsOtherModulesAndContainers) {
  const Layers layers = Find(GoldenGraph("net"));
  for (const char* name : {"bn1", "layer1", "layer1.1", "relu"}) {
    EXPECT_THAT(layers.other_modules, Contains(name));
  }
  EXPECT_THAT(layers.other_modules, Not(Contains("conv1")));
}

TEST(LayersTest, DescribesWhatDecidesTheConfiguration) {
  const Layers net = Find(GoldenGraph("net"));
  EXPECT_TRUE(Get(net, "fc").has_bias);
  EXPECT_FALSE(Get(net, "fc2").has_bias);
  EXPECT_EQ(2, Get(net, "grp").groups);
  EXPECT_THAT(Get(net, "conv1").packed_sizes, ElementsAre(3));
  EXPECT_THAT(Get(net, "deconv").packed_sizes, ElementsAre(8));
  EXPECT_THAT(Get(net, "fc").packed_sizes, ElementsAre(8));
  EXPECT_THAT(Get(net, "fc2").packed_sizes, ElementsAre(6));
  EXPECT_THAT(Get(net, "pool").packed_sizes, IsEmpty());
  const Layers rnn = Find(GoldenGraph("rnn"));
  EXPECT_THAT(Get(rnn, "rnn").packed_sizes, ElementsAre(6, 8));
  EXPECT_TRUE(Get(rnn, "fc").has_bias) << "the bias is the first input of the Add behind the MatMul";
}

struct PathCase {
  const char* node;
  const char* name;
};

class ScopesTest : public testing::TestWithParam<PathCase> {};

TEST_P(ScopesTest, TellTheModulePath) {
  Chain chain;
  chain.Conv(GetParam().node, "onnx::Conv_1");
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre(std::string("Conv2d ") + GetParam().name));
}

INSTANTIATE_TEST_SUITE_P(Ptq2, ScopesTest,
                         testing::Values(PathCase{"/conv1/Conv", "conv1"},
                                         PathCase{"/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"},
                                         PathCase{"/features/features.1/conv/conv.0/conv.0.0/Conv", "features.1.conv.0.0"},
                                         PathCase{"/blocks.0/attn/qkv/Conv", "blocks.0.attn.qkv"},
                                         PathCase{"/c1/sub_module/Conv", "c1"}));

TEST(LayersTest, AWeightNamesItsModule) {
  Chain chain;
  chain.Conv("/k/Conv", "d.k.weight");
  chain.Conv("/x/Conv", "x.sub_module.weight");
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre("Conv2d d.k", "Conv2d x"));
}

TEST(LayersTest, AnIdentityOfAWeightIsAWeightOfItsOwn) {
  Chain chain;
  chain.Weight("0.weight", {2, 2, 1, 1});
  chain.builder().Node("Identity", "Identity_0", {"0.weight"}, {"1.weight"});
  chain.Conv("/0/Conv", "0.weight");
  chain.Node("Conv", "/1/Conv", {"1.weight"});
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre("Conv2d 0", "Conv2d 1"));
}

TEST(LayersTest, FindsWeightsInConstantsAndBehindTransposes) {
  Chain chain;
  onnx::NodeProto& constant = chain.builder().Node("Constant", "c", {}, {"a.weight"});
  onnx::AttributeProto& value = *constant.add_attribute();
  value.set_name("value");
  value.set_type(onnx::AttributeProto::TENSOR);
  value.mutable_t()->set_data_type(onnx::TensorProto::FLOAT);
  for (int64_t dim : {6, 8}) {
    value.mutable_t()->add_dims(dim);
  }
  value.mutable_t()->mutable_float_data()->Resize(48, 1.0F);
  chain.builder().Node("Transpose", "/a/Transpose", {"a.weight"}, {"transposed"});
  chain.Node("MatMul", "/a/MatMul", {"transposed"});
  const Layers layers = Find(chain.Build());
  EXPECT_THAT(Lines(layers), ElementsAre("Linear a"));
  EXPECT_THAT(Get(layers, "a").packed_sizes, ElementsAre(8));
}

TEST(LayersTest, ReusedAndTiedWeightsCannotBeQuantized) {
  Chain chain;
  chain.Conv("/c/Conv", "c.weight");
  chain.Conv("/c_1/Conv", "c.weight");
  chain.Conv("/enc/Conv", "enc.weight");
  chain.Conv("/dec/Conv", "enc.weight");
  chain.Conv("/free/Conv", "free.weight");
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre("Conv2d c: its weight 'c.weight' is used by 2 nodes",
                                                      "Conv2d enc: its weight 'enc.weight' is used by 2 nodes",
                                                      "Conv2d dec: its weight 'enc.weight' is used by 2 nodes", "Conv2d free"));
}

TEST(LayersTest, SharedConv1dIsQuantizedOnlyAsADefect) {
  Chain chain;
  chain.Weight("a.weight", {2, 2, 1});
  chain.Node("Conv", "/a/Conv", {"a.weight"});
  chain.Node("Conv", "/b/Conv", {"a.weight"});
  const Graph graph = chain.Build();
  EXPECT_THAT(Lines(Find(graph)), ElementsAre(HasSubstr("Conv1d a: "), HasSubstr("Conv1d b: ")));
  EXPECT_THAT(Lines(Find(graph, {.quantizes_shared_conv1d = true})), ElementsAre("Conv1d a", "Conv1d b"));
}

TEST(LayersTest, NumberedNamesOfReusedModulesCollideOnlyAsADefect) {
  Chain chain;
  chain.Conv("/conv/Conv", "conv.weight");
  chain.Conv("/conv_1/Conv", "conv.weight");
  chain.Conv("/conv1/Conv", "conv1.weight");
  const Graph graph = chain.Build();
  const Layers layers = Find(graph);
  EXPECT_EQ("", Get(layers, "conv1").why_not);
  EXPECT_THAT(layers.deviations, ElementsAre(HasSubstr("conv1")));
  EXPECT_THAT(Get(Find(graph, {.reused_names_collide = true}), "conv1").why_not, HasSubstr("gets its name"));
}

TEST(LayersTest, PoolsThatTorchNumbersAreOneModule) {
  Chain chain;
  chain.Pool("/pool/AveragePool");
  chain.Pool("/pool_1/AveragePool");
  chain.Pool("/other_1/AveragePool");
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre("AvgPool2d pool: the module is used more than once", "AvgPool2d other_1"));
}

TEST(LayersTest, OperatorsOfNoModuleAreNoLayers) {
  Chain chain;
  chain.MatMul("/MatMul", "w");      // x @ self.w
  chain.Pool("/block/AveragePool");  // F.avg_pool2d in a module with children
  chain.Conv("/block/conv/Conv", "onnx::Conv_3");
  chain.MatMul("/attn/MatMul_2", "onnx::MatMul_9");  // out_proj of an attention block
  chain.Weight("attn.out_proj.bias", {8});
  chain.Conv("/scaled/Conv", "onnx::Conv_7");  // a module with a parameter that a Conv2d does not have
  chain.Weight("scaled.factor", {1});
  const Layers layers = Find(chain.Build());
  EXPECT_THAT(Lines(layers), ElementsAre("Conv2d block.conv"));
  EXPECT_THAT(layers.other_modules, UnorderedElementsAre("attn", "attn.out_proj", "block", "scaled"));
}

TEST(LayersTest, ALinearKeepsItsOwnBias) {
  Chain chain;
  chain.MatMul("/fc/MatMul", "onnx::MatMul_9");
  chain.Weight("fc.bias", {8});
  chain.Node("Add", "/fc/Add", {"fc.bias"});
  const Layers layers = Find(chain.Build());
  EXPECT_THAT(Lines(layers), ElementsAre("Linear fc"));
  EXPECT_TRUE(Get(layers, "fc").has_bias);
}

TEST(LayersTest, AmbiguousScopesFallBackToNodeNames) {
  Chain chain;
  chain.MatMul("/x/MatMul", "onnx::MatMul_1");
  chain.MatMul("/x/MatMul_1", "onnx::MatMul_2");
  chain.Conv("/k/Conv", "onnx::Conv_5");
  chain.Conv("/a/Conv", "k.weight");  // has the better claim to `k`
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre("Linear /x/MatMul", "Linear /x/MatMul_1", "Conv2d /k/Conv", "Conv2d k"));
}

TEST(LayersTest, ModelsOfOtherExporters) {
  Chain chain;
  chain.Conv("Conv_3", "W12");
  chain.Conv("", "W13");
  chain.Conv("model/conv:0", "W14");
  chain.Conv("twin", "W15");
  chain.Conv("other", "twin.weight");
  chain.Pool("AveragePool_1");
  chain.Pool("AveragePool");
  const Graph graph = chain.Build();
  EXPECT_THAT(Lines(Find(graph)), ElementsAre("Conv2d Conv_3", "Conv2d t2", "Conv2d model/conv_0", "Conv2d twin_1", "Conv2d twin",
                                              "AvgPool2d AveragePool_1", "AvgPool2d AveragePool"));
}

TEST(LayersTest, DynamoMetadataIsExact) {
  Chain chain(18);
  AddScopes(chain.Conv("node_Conv_1", "val_1"), "['', 'd', 'd.k', 'conv2d']",
            "['net.Net', 'torch.nn.modules.container.ModuleDict', 'torch.nn.modules.conv.Conv2d', 'aten.conv2d.default']");
  AddScopes(chain.Conv("node_Conv_2", "d.w.weight"), "['', \"d.w\", 'conv2d_1']",
            "['net.Net', 'net.MyConv', 'aten.conv2d.default']");
  AddScopes(chain.MatMul("node_MatMul_3", "w"), "['', 'matmul']", "['net.Net', 'aten.matmul.default']");
  AddScopes(chain.Conv("node_Conv_4", "val_4"), "['', 'twice', 'conv2d_2']",
            "['net.Net', 'torch.nn.modules.conv.Conv2d', 'aten.conv2d.default']");
  AddScopes(chain.Conv("node_Conv_5", "val_5"), "['', 'twice', 'conv2d_3']",
            "['net.Net', 'torch.nn.modules.conv.Conv2d', 'aten.conv2d.default']");
  AddScopes(chain.Conv("node_Conv_6", "z.weight"), "not a list", "");
  const Layers layers = Find(chain.Build());
  EXPECT_THAT(Lines(layers), ElementsAre("Conv2d d.k", "Conv2d twice: the module is used more than once", "Conv2d z"));
  EXPECT_THAT(layers.other_modules, Contains("d.w"));
}

TEST(LayersTest, MarksAreExact) {
  Chain chain;
  onnx::NodeProto& mark = chain.Node("QuantIdentity", "/k/QuantIdentity", {});
  mark.set_domain("custom_op_domain");
  AddString(mark, "op_name", "d.k");
  AddString(mark, "module_type", "Linear");
  chain.MatMul("/k/sub_module/MatMul", "onnx::MatMul_1");
  EXPECT_THAT(Lines(Find(chain.Build())), ElementsAre("Linear d.k"));
}

TEST(LayersTest, ConditionsOfSection31) {
  Chain chain;
  AddString(chain.Node("Pad", "/reflect/Pad", {}), "mode", "reflect");
  chain.Conv("/reflect/Conv", "reflect.weight");
  chain.Node("Concat", "/circular/Concat", {});
  chain.Conv("/circular/Conv", "circular.weight");
  AddString(chain.Node("Pad", "/same/Pad", {}), "mode", "constant");
  chain.Conv("/same/Conv", "same.weight");
  AddString(chain.Node("Pad", "/Pad", {}), "mode", "reflect");
  chain.Conv("/ok/Conv", "ok.weight");
  chain.Node("Unsqueeze", "/flat/Unsqueeze", {});
  chain.Conv("/flat/Conv", "flat.weight");
  chain.Weight("deep.weight", {2, 2, 1, 1, 1});
  onnx::AttributeProto& dilations = *chain.Node("Conv", "/deep/Conv", {"deep.weight"}).add_attribute();
  dilations.set_name("dilations");
  dilations.set_type(onnx::AttributeProto::INTS);
  for (int64_t dilation : {2, 1, 1}) {
    dilations.add_ints(dilation);
  }
  chain.Weight("three.weight", {2, 2, 1, 1, 1});
  chain.Node("ConvTranspose", "/three/ConvTranspose", {"three.weight"});
  const Layers layers = Find(chain.Build());
  EXPECT_THAT(Lines(layers),
              ElementsAre("Conv2d reflect: its padding_mode is not 'zeros'", "Conv2d circular: its padding_mode is not 'zeros'",
                          "Conv2d same", "Conv2d ok", "Conv2d flat: its input has no batch dimension",
                          "Conv3d deep: its dilation is not 1 in depth"));
  EXPECT_THAT(layers.other_modules, Contains("three"));
}

TEST(LayersTest, NodesGetTheNamesOfTheirLayers) {
  Chain chain;
  chain.Conv("/a/Conv", "a.weight");
  for (const char* name : {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}) {
    chain.Weight(name, {2});
  }
  chain.Node("BatchNormalization", "/bn/BatchNormalization", {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"});
  chain.Node("Relu", "a", {});
  Graph graph = chain.Build();
  const Layers layers = Find(graph);
  NameLayerNodes(graph, layers);
  ASSERT_TRUE(graph.Validate().ok());
  EXPECT_TRUE(graph.item(graph.Find("a")).Is("Conv"));
  EXPECT_TRUE(graph.item(graph.Find("bn")).Is("BatchNormalization"));
  EXPECT_TRUE(graph.item(graph.Find("a1")).Is("Relu"));
}

// ---- manifests --------------------------------------------------------------------------------------------------------------

v1::ModuleManifest Manifest(const std::string& json) {
  absl::StatusOr<v1::ModuleManifest> manifest = ReadModuleManifest(json, "m.json");
  EXPECT_TRUE(manifest.ok()) << manifest.status();
  return *std::move(manifest);
}

Graph ManifestGraph() {
  Chain chain;
  chain.Conv("/b/Conv", "b.weight");
  chain.Conv("/k/Conv", "onnx::Conv_3");
  chain.MatMul("/MatMul", "w");
  chain.MatMul("/x/MatMul", "onnx::MatMul_8");
  chain.MatMul("/my/MatMul", "onnx::MatMul_9");
  return chain.Build();
}

TEST(ManifestTest, OrdersNamesAndExcludes) {
  const v1::ModuleManifest manifest = Manifest(R"({"modules": [
    {"name": "", "type": "Net"}, {"name": "d", "type": "ModuleDict"},
    {"name": "d.k", "type": "Conv2d", "parameters": [{"name": "weight", "shape": ["2", "2", "1", "1"], "identity": "d.k.weight"}]},
    {"name": "unused", "type": "Linear"}, {"name": "x", "type": "Linear", "parameters": [{"name": "weight", "shape": [8, 8]}]},
    {"name": "my", "type": "MyLinear"},
    {"name": "b", "type": "Conv2d", "paddingMode": "reflect"}]})");
  absl::StatusOr<Layers> layers = FindLayers(ManifestGraph(), &manifest, {});
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_THAT(Lines(*layers), ElementsAre("Conv2d d.k", "Linear unused: it is not executed in the exported model", "Linear x",
                                          "Conv2d b: its padding_mode is 'reflect', not 'zeros'"));
  EXPECT_THAT(layers->other_modules, Contains("my"));
}

TEST(ManifestTest, SharedWeightsAndRnnConditions) {
  const v1::ModuleManifest manifest = Manifest(R"({"modules": [
    {"name": "b", "type": "Conv2d", "parameters": [{"name": "weight", "shape": [2, 2, 1, 1], "identity": "b.weight"}]},
    {"name": "k", "type": "Conv2d", "parameters": [{"name": "weight", "shape": [2, 2, 1, 1], "identity": "b.weight"}]},
    {"name": "rnn", "type": "LSTM", "numLayers": "2"}]})");
  absl::StatusOr<Layers> layers = FindLayers(ManifestGraph(), &manifest, {});
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_THAT(Lines(*layers), ElementsAre(HasSubstr("shares the weight 'b.weight'"), HasSubstr("shares the weight 'b.weight'"),
                                          "LSTM rnn: it has 2 layers; one is supported"));
}

// Batch norms b1 and b2 as torch writes them when they are new: with one tensor for all equal parameters.
Graph BatchNormGraph(const std::vector<std::string>& nodes) {
  ModelBuilder builder;
  builder.Input("t0", {1, 2, 4, 4}).Initializer("b1.weight", {2}, {1, 1}).Initializer("b1.bias", {2}, {0, 0});
  for (size_t i = 0; i < nodes.size(); ++i) {
    builder.Node("BatchNormalization", nodes[i], {absl::StrCat("t", i), "b1.weight", "b1.bias", "b1.bias", "b1.weight"},
                 {absl::StrCat("t", i + 1)});
  }
  builder.Output(absl::StrCat("t", nodes.size()));
  return GraphOf(builder.Build());
}

std::vector<std::string> BatchNormNames(const Graph& graph, const v1::ModuleManifest* manifest) {
  absl::StatusOr<Layers> layers = FindLayers(graph, manifest, {});
  EXPECT_TRUE(layers.ok()) << layers.status();
  std::vector<std::string> names;
  names.reserve(layers->batch_norms.size());
  for (const auto& [id, name] : layers->batch_norms) {
    names.push_back(name);
  }
  return names;
}

TEST(BatchNormTest, ASharedTensorNamesNone) {
  const Graph graph = BatchNormGraph({"/b1/BatchNormalization", "/d/b2/BatchNormalization"});
  EXPECT_THAT(BatchNormNames(graph, nullptr), UnorderedElementsAre("b1", "d.b2"));
  EXPECT_THAT(BatchNormNames(BatchNormGraph({"plain"}), nullptr), ElementsAre("b1"));
}

TEST(BatchNormTest, WithAManifestOnlyModulesThatAreUsedOnceHaveOne) {
  const v1::ModuleManifest manifest = Manifest(R"({"modules": [
    {"name": "b1", "type": "BatchNorm2d"}, {"name": "d.b2", "type": "BatchNorm2d"}, {"name": "b3", "type": "MyNorm"}]})");
  const auto names = [&manifest](const std::vector<std::string>& nodes) {
    return BatchNormNames(BatchNormGraph(nodes), &manifest);
  };
  EXPECT_THAT(names({"/b1/BatchNormalization", "/b2/BatchNormalization"}), UnorderedElementsAre("b1", "d.b2"));
  EXPECT_THAT(names({"/b1/BatchNormalization", "/b1_1/BatchNormalization"}), ElementsAre("b1"));
  EXPECT_THAT(names({"/b1/First", "/b1/Second", "/b3/BatchNormalization"}), IsEmpty());
}

TEST(ManifestTest, ContradictionsAreErrors) {
  for (const char* json :
       {R"({"modules": [{"name": "b", "type": "Linear"}]})",
        R"({"modules": [{"name": "b", "type": "Conv2d", "parameters": [{"name": "weight", "shape": [9]}]}]})"}) {
    const v1::ModuleManifest manifest = Manifest(json);
    const absl::Status status = FindLayers(ManifestGraph(), &manifest, {}).status();
    EXPECT_EQ(v1::MANIFEST_INVALID, ReasonOf(status)) << status;
    EXPECT_EQ("b", PlaceOf(status).layer);
  }
}

TEST(ManifestTest, MalformedManifestsAreErrors) {
  for (const std::string& json : {std::string("{"), std::string("[]"), std::string(R"({"modulus": []})"),
                                  std::string(R"({"modules": [{"name": "a"}, {"name": "a"}]})"), std::string(100000, '[')}) {
    const absl::Status status = ReadModuleManifest(json, "m.json").status();
    EXPECT_EQ(v1::MANIFEST_INVALID, ReasonOf(status)) << status;
    EXPECT_EQ("m.json", PlaceOf(status).file);
    EXPECT_LT(status.message().size(), 600);
  }
}

}  // namespace
}  // namespace modelpress::engine
