// Random networks are pruned and compared with themselves. Taking channels away must change as much as never having had them:
//   1. as giving the layers that read them weights of zero there, which holds for every operator in between;
//   2. as making the channels zero where they come from: rows and biases of the producers, scale and bias of the batch norms and
//      bias of the depthwise convolutions behind them. That holds only as long as every operator in between maps zero to zero,
//      so not where a Sigmoid is in the network.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/formats/record.h"
#include "engine/model/element_type.h"
#include "engine/prune/channels.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/record_attributes.h"
#include "engine/quantize/operands.h"
#include "engine/runtime/model_runner.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;
using Dims = std::vector<int64_t>;

constexpr int64_t kBatch = 2;
constexpr int64_t kSize = 5;  // of every feature map
constexpr int64_t kImageChannels = 3;

struct Network {
  onnx::ModelProto proto;
  std::set<std::string> linears;  // names of MatMul and Gemm nodes
  bool keeps_zero = true;         // every operator maps zero to zero
  bool has_transposed = false;    // a ConvTranspose
};

class Generator {
 public:
  Generator(unsigned seed, bool extended) : random_(seed), extended_(extended) {}

  Network Make() {
    builder_.Input("x", {kBatch, kImageChannels, kSize, kSize});
    maps_ = {{"x", kImageChannels}};
    Add(Conv(maps_[0]));
    for (int i = Int(4, 12); i > 0; --i) {
      Step();
    }
    Head(Unused());
    if (Int(0, 4) == 0) {
      Map map = maps_[Int(0, static_cast<int>(maps_.size()) - 1)];
      builder_.Output(Node("Relu", "last", {map.name}));
    }
    network_.proto = builder_.proto();
    return network_;
  }

 private:
  struct Map {
    std::string name;
    int64_t channels = 0;
  };

  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  std::string Name(const std::string& kind) { return absl::StrCat(kind, ++count_); }
  const Map& Any() { return maps_[std::max(0, static_cast<int>(maps_.size()) - 1 - Int(0, 3))]; }
  void Add(const Map& map) { maps_.push_back(map); }

  std::string Node(const std::string& op_type, const std::string& name, const std::vector<std::string>& inputs) {
    builder_.Node(op_type, name, inputs, {name + ".out"});
    return name + ".out";
  }

  std::string Random(const std::string& name, const Dims& dims, float low = -1, float high = 1) {
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> values(std::accumulate(dims.begin(), dims.end(), size_t{1}, std::multiplies<>()));
    std::generate(values.begin(), values.end(), [&] { return uniform(random_); });
    builder_.Initializer(name, dims, values);
    return name;
  }

  void Attribute(const std::string& name, const Dims& values) {
    onnx::NodeProto& node = *builder_.proto().mutable_graph()->mutable_node(builder_.proto().graph().node_size() - 1);
    onnx::AttributeProto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(values.size() == 1 ? onnx::AttributeProto::INT : onnx::AttributeProto::INTS);
    if (values.size() == 1) {
      attribute.set_i(values[0]);
    } else {
      attribute.mutable_ints()->Assign(values.begin(), values.end());
    }
  }

  // What nothing reads yet, in one: a dead branch would keep the channels that it reads.
  Map Unused() {
    std::set<std::string> read;
    for (const onnx::NodeProto& node : builder_.proto().graph().node()) {
      read.insert(node.input().begin(), node.input().end());
    }
    std::vector<std::string> names;
    int64_t channels = 0;
    for (const Map& map : maps_) {
      if (!read.contains(map.name) && map.name != "x") {
        names.push_back(map.name);
        channels += map.channels;
      }
    }
    if (names.size() == 1) {
      return {names[0], channels};
    }
    const std::string output = Node("Concat", "/all", names);
    Attribute("axis", {1});
    return {output, channels};
  }

  Map Conv(const Map& input, bool transposed = false) {
    const std::string name = Name(transposed ? "up" : "conv");
    const int64_t outputs = std::vector<int64_t>{4, 6, 8, 12}[Int(0, 3)];
    int64_t groups = transposed ? 1 : std::vector<int64_t>{1, 1, 2, 3, 4}[Int(0, 4)];
    groups = input.channels % groups == 0 && outputs % groups == 0 && input.channels > groups ? groups : 1;
    const int64_t kernel = Int(0, 1) == 0 ? 1 : 3;
    const Dims dims =
        transposed ? Dims{input.channels, outputs, kernel, kernel} : Dims{outputs, input.channels / groups, kernel, kernel};
    std::vector<std::string> inputs = {input.name, Random(name + ".weight", dims, -0.5F, 0.5F)};
    if (Int(0, 1) == 0) {
      inputs.push_back(Random(name + ".bias", {outputs}));
    }
    const std::string output = Node(transposed ? "ConvTranspose" : "Conv", name, inputs);
    Attribute("group", {groups});
    Attribute("pads", Dims(4, kernel / 2));
    network_.has_transposed = network_.has_transposed || transposed;
    return {output, outputs};
  }

  Map Depthwise(const Map& input) {
    const std::string name = Name("depthwise");
    std::vector<std::string> inputs = {input.name, Random(name + ".weight", {input.channels, 1, 3, 3})};
    if (Int(0, 1) == 0) {
      inputs.push_back(Random(name + ".bias", {input.channels}));
    }
    const std::string output = Node("Conv", name, inputs);
    Attribute("group", {input.channels});
    Attribute("pads", {1, 1, 1, 1});
    return {output, input.channels};
  }

  std::string BatchNorm(const std::string& input, int64_t channels) {
    const std::string name = Name("bn");
    return Node("BatchNormalization", name,
                {input, Random(name + ".weight", {channels}), Random(name + ".bias", {channels}),
                 Random(name + ".running_mean", {channels}), Random(name + ".running_var", {channels}, 0.5F, 1.5F)});
  }

  void Step() {
    const Map input = Any();
    switch (Int(0, extended_ ? 10 : 8)) {
      case 0:
      case 1:
        Add(Conv(input));
        break;
      case 2:
        Add({BatchNorm(input.name, input.channels), input.channels});
        break;
      case 3:
        Add({Node("Relu", Name("/relu"), {input.name}), input.channels});
        break;
      case 4: {
        const bool max = Int(0, 1) == 0;
        const std::string output = Node(max ? "MaxPool" : "AveragePool", Name("/pool"), {input.name});
        Attribute("kernel_shape", {3, 3});
        Attribute("pads", {1, 1, 1, 1});
        Attribute("strides", {1, 1});
        Add({output, input.channels});
        break;
      }
      case 5: {
        for (const Map& other : std::vector<Map>(maps_.rbegin(), maps_.rend())) {
          if (other.channels == input.channels && other.name != input.name) {
            Add({Node("Add", Name("/add"), {input.name, other.name}), input.channels});
            return;
          }
        }
        break;
      }
      case 6: {
        const Map other = Any();
        const std::string output = Node("Concat", Name("/concat"), {input.name, other.name});
        Attribute("axis", {1});
        Add({output, input.channels + other.channels});
        break;
      }
      case 7:
        if (input.channels > 1) {
          Add(Depthwise(input));
        }
        break;
      case 8:
        Add(Conv(input, /*transposed=*/true));
        break;
      case 9:
        network_.keeps_zero = false;
        Add({Node("Sigmoid", Name("/sigmoid"), {input.name}), input.channels});
        break;
      default:
        for (const Map& other : std::vector<Map>(maps_.rbegin(), maps_.rend())) {
          if (other.channels == input.channels && other.name != input.name) {
            Add({Node("Mul", Name("/mul"), {input.name, other.name}), input.channels});
            return;
          }
        }
        break;
    }
  }

  std::string Linear(const std::string& input, int64_t inputs, int64_t outputs) {
    const std::string name = Name("fc");
    network_.linears.insert(name);
    switch (Int(0, 2)) {
      case 0: {  // MatMul, the bias on either side of the Add
        std::string product = Node("MatMul", name, {input, Random("onnx::MatMul_" + name, {inputs, outputs})});
        if (Int(0, 2) == 0) {
          return product;
        }
        const std::string bias = Random(name + ".bias", {outputs});
        return Node("Add", absl::StrCat("/", name, "/Add"),
                    Int(0, 1) == 0 ? std::vector<std::string>{product, bias} : std::vector<std::string>{bias, product});
      }
      case 1: {
        const std::string output =
            Node("Gemm", name, {input, Random(name + ".weight", {outputs, inputs}), Random(name + ".bias", {outputs})});
        Attribute("transB", {1});
        return output;
      }
      default:
        return Node("Gemm", name, {input, Random(name + ".weight", {inputs, outputs})});
    }
  }

  void Head(const Map& input) {
    int64_t features = input.channels;
    std::string flat;
    if (extended_ && Int(0, 2) == 0) {
      flat = Node("Flatten", "/flatten", {input.name});
      features *= kSize * kSize;
    } else {
      const std::string pooled = Node("GlobalAveragePool", "/gap", {input.name});
      if (extended_ && Int(0, 1) == 0) {
        onnx::TensorProto& sizes = *builder_.proto().mutable_graph()->add_initializer();
        sizes.set_name("sizes");
        sizes.set_data_type(onnx::TensorProto::INT64);
        sizes.add_dims(2);
        sizes.add_int64_data(kBatch);
        sizes.add_int64_data(features);
        flat = Node("Reshape", "/reshape", {pooled, "sizes"});
      } else {
        flat = Node("Flatten", "/flatten", {pooled});
      }
    }
    flat = Linear(flat, features, 10);
    if (Int(0, 1) == 0) {
      flat = BatchNorm(flat, 10);
    }
    flat = Node("Relu", "/head", {flat});
    builder_.Output(Linear(flat, 10, 4), {kBatch, 4});
  }

  std::mt19937 random_;
  bool extended_;
  ModelBuilder builder_;
  Network network_;
  std::vector<Map> maps_;
  int count_ = 0;
};

Model ToModel(const onnx::ModelProto& proto) {
  ModelBuilder builder;
  builder.proto() = proto;
  return builder.Build();
}

Graph MakeGraph(const onnx::ModelProto& proto) {
  Graph graph = *Graph::Create(ToModel(proto), {});
  EXPECT_TRUE(ResolveConstantIdentities(graph).ok());
  NameLayerNodes(graph, *FindLayers(graph, nullptr, {}));
  return graph;
}

std::vector<float> RunModel(const Model& model) {
  const TemporaryFolder scratch;
  std::vector<std::string> outputs;
  for (const auto& output : model.shell.graph().output()) {
    outputs.push_back(output.name());
  }
  const absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Create(model, {.tensors = outputs, .scratch_folder = scratch.path().string()});
  EXPECT_TRUE(runner.ok()) << runner.status();
  if (!runner.ok()) {
    return {};
  }
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> input(size_t{kBatch} * kImageChannels * kSize * kSize);
  std::generate(input.begin(), input.end(), [&] { return normal(random); });
  HostTensor tensor = {.data_type = onnx::TensorProto::FLOAT, .dims = {kBatch, kImageChannels, kSize, kSize}};
  tensor.bytes.assign(reinterpret_cast<const uint8_t*>(input.data()),
                      reinterpret_cast<const uint8_t*>(input.data() + input.size()));
  const Batch batch = {tensor};
  const absl::StatusOr<RunResult> result = (*runner)->Run(batch);
  EXPECT_TRUE(result.ok()) << result.status();
  std::vector<float> values;
  for (const TensorView& view : result->tensors) {
    const auto* floats = reinterpret_cast<const float*>(view.bytes.data());
    values.insert(values.end(), floats, floats + view.bytes.size() / sizeof(float));
  }
  return values;
}

// A network whose weights can be changed by hand, element by element.
class Zeroed {
 public:
  explicit Zeroed(const onnx::ModelProto& proto) : proto_(proto) {
    for (onnx::TensorProto& tensor : *proto_.mutable_graph()->mutable_initializer()) {
      tensors_[tensor.name()] = &tensor;
    }
    for (const onnx::NodeProto& node : proto_.graph().node()) {
      nodes_[node.name()] = &node;
    }
  }

  // Check 1 of the file comment.
  void ZeroReaders(const PruneNode& consumer, const Dims& removed) {
    const onnx::NodeProto& node = *nodes_.at(consumer.name());
    const std::string& op = node.op_type();
    if (op == "BatchNormalization" || (op != "Conv" && op != "ConvTranspose" && op != "Gemm" && op != "MatMul") ||
        IsDepthwiseNode(node)) {
      return;
    }
    onnx::TensorProto& weight = *tensors_.at(node.input(1));
    const bool first_axis = op == "ConvTranspose" || op == "MatMul" || (op == "Gemm" && IntAttribute(node, "transB", 0) == 0);
    const int64_t rows = weight.dims(0);
    const int64_t columns = weight.dims(1);
    const int64_t inner = weight.float_data_size() / rows / columns;
    const int64_t groups = IntAttribute(node, "group", 1);
    for (const int64_t channel : removed) {
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
          const bool hit =
              first_axis ? row == channel : column == channel % columns && row / (rows / groups) == channel / columns;
          for (int64_t i = 0; hit && i < inner; ++i) {
            weight.set_float_data(static_cast<int>((row * columns + column) * inner + i), 0);
          }
        }
      }
    }
  }

  // Check 2.
  void ZeroSources(const PruneNode& entry, bool producer, const Dims& removed) {
    const onnx::NodeProto& node = *nodes_.at(entry.name());
    if (node.op_type() == "BatchNormalization") {
      ZeroRows(node.input(1), removed);
      ZeroRows(node.input(2), removed);
    } else if (producer || IsDepthwiseNode(node)) {
      const bool last_axis = node.op_type() == "MatMul" || (node.op_type() == "Gemm" && IntAttribute(node, "transB", 0) == 0);
      last_axis ? ZeroColumns(node.input(1), removed) : ZeroRows(node.input(1), removed);
      if (node.input_size() > 2) {
        ZeroRows(node.input(2), removed);
      } else if (tensors_.contains(entry.name() + ".bias")) {  // of a MatMul
        ZeroRows(entry.name() + ".bias", removed);
      }
    }
  }

  Model model() const { return ToModel(proto_); }

 private:
  bool IsDepthwiseNode(const onnx::NodeProto& node) const {
    return node.op_type() == "Conv" && IntAttribute(node, "group", 1) > 1 && tensors_.at(node.input(1))->dims(1) == 1;
  }

  void ZeroRows(const std::string& name, const Dims& removed) {
    onnx::TensorProto& tensor = *tensors_.at(name);
    const int64_t inner = tensor.float_data_size() / tensor.dims(0);
    for (const int64_t row : removed) {
      for (int64_t i = 0; i < inner; ++i) {
        tensor.set_float_data(static_cast<int>(row * inner + i), 0);
      }
    }
  }

  void ZeroColumns(const std::string& name, const Dims& removed) {
    onnx::TensorProto& tensor = *tensors_.at(name);
    for (const int64_t column : removed) {
      for (int64_t row = 0; row < tensor.dims(0); ++row) {
        tensor.set_float_data(static_cast<int>(row * tensor.dims(1) + column), 0);
      }
    }
  }

  onnx::ModelProto proto_;
  std::map<std::string, onnx::TensorProto*> tensors_;
  std::map<std::string, const onnx::NodeProto*> nodes_;
};

void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  float greatest = 1;
  for (const float value : expected) {
    greatest = std::max(greatest, std::abs(value));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], 1e-4F * greatest) << what << " [" << i << "]";
  }
}

std::map<std::string, std::pair<Dims, std::string>> TensorsOf(const Graph& graph) {
  std::map<std::string, std::pair<Dims, std::string>> tensors;
  const Model model = *graph.ToModel();
  for (const Tensor& tensor : model.initializers) {
    const PayloadPtr elements = RawElements(tensor);
    std::string bytes(elements->size(), '\0');
    EXPECT_TRUE(elements->Read(0, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}).ok());
    tensors[tensor.name()] = {Dims(tensor.header.dims().begin(), tensor.header.dims().end()), std::move(bytes)};
  }
  return tensors;
}

// A weight in torch's layout.
struct TorchWeight {
  Dims dims;
  std::vector<float> values;
};

TorchWeight TorchWeightOf(const Graph& graph, const std::string& layer) {
  const LayerWeight weight = *FindLayerWeight(graph, graph.Find(layer));
  const Tensor tensor = TensorOf(graph.item(weight.operand.holder));
  TorchWeight result = {.dims = weight.dims, .values = std::vector<float>(tensor.ElementCount())};
  EXPECT_TRUE(ReadFloats(tensor, 0, absl::MakeSpan(result.values)).ok());
  if (weight.transposed) {
    const std::vector<float> stored = result.values;
    for (int64_t o = 0; o < weight.dims[0]; ++o) {
      for (int64_t i = 0; i < weight.dims[1]; ++i) {
        result.values[o * weight.dims[1] + i] = stored[i * weight.dims[0] + o];
      }
    }
  }
  return result;
}

// What a torch process does with a TensorCut of a weight.
TorchWeight Apply(const TorchWeight& weight, const v1::TensorCut& cut) {
  const int64_t groups = std::max<int64_t>(1, cut.groups());
  const int64_t rows = weight.dims[0] / groups;
  const int64_t columns = weight.dims[1];
  int64_t inner = 1;
  for (size_t i = 2; i < weight.dims.size(); ++i) {
    inner *= weight.dims[i];
  }
  TorchWeight result = {.dims = weight.dims};
  const auto kept = static_cast<int64_t>(cut.kept_size());
  EXPECT_EQ(cut.size(), cut.axis() == 0 ? weight.dims[0] : columns * groups);
  result.dims[cut.axis()] = cut.axis() == 0 ? kept : kept / groups;
  const auto copy = [&](int64_t row, int64_t column) {
    const auto start = weight.values.begin() + (row * columns + column) * inner;
    result.values.insert(result.values.end(), start, start + inner);
  };
  for (int64_t row = 0; row < result.dims[0]; ++row) {
    for (int64_t column = 0; column < result.dims[1]; ++column) {
      if (cut.axis() == 0) {
        copy(cut.kept(static_cast<int>(row)), column);
      } else {
        const int64_t channel = cut.kept(static_cast<int>(row / rows * result.dims[1] + column));
        copy(channel / columns * rows + row % rows, channel % columns);
      }
    }
  }
  return result;
}

class RandomNetworksTest : public testing::TestWithParam<bool> {};

TEST_P(RandomNetworksTest, PrunedIsAsIfTheChannelsHadNeverBeen) {
  const bool extended = GetParam();
  std::mt19937 random(11);
  int cut_records = 0;
  int zero_checks = 0;
  std::map<std::string, int> consumers;  // that lost channels, by operator
  for (unsigned seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const Network network = Generator(seed, extended).Make();
    Graph graph = MakeGraph(network.proto);
    const Layers layers = *FindLayers(graph, nullptr, {});
    std::map<std::string, FilterPruneConfig> enabled;
    for (const Layer& layer : layers.layers) {
      if (layer.config.type == "Conv2d" || layer.config.type == "Linear") {
        if (random() % 10 != 0) {
          enabled[layer.config.name] = {.ratio = std::uniform_real_distribution<double>(0.1, 0.9)(random),
                                        .ascend_optimized = random() % 10 == 0};
        }
      }
    }
    const ChannelPruneOptions options = {.extended = extended, .rank_by_all_producers = random() % 2 == 0};
    absl::StatusOr<PruneGroups> groups = FindPruneGroups(graph, layers, enabled, options, {});
    ASSERT_TRUE(groups.ok()) << groups.status();
    std::vector<PruneRecord>& records = groups->records;
    const absl::Status chosen = ChooseChannels(graph, enabled, options, {}, 2, records);
    ASSERT_TRUE(chosen.ok()) << chosen;
    const absl::StatusOr<CutChannelsResult> result = CutChannels(graph, records, layers, CutPolicy::kDropUnfitting);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(graph.Validate().ok());
    if (!network.has_transposed || extended) {
      ASSERT_EQ(result->dropped, std::vector<std::string>());
    }

    const std::vector<float> pruned = RunModel(*graph.ToModel());
    Zeroed readers(network.proto);
    Zeroed sources(network.proto);
    for (const PruneRecord& record : result->records) {
      for (const bool producer : {true, false}) {
        for (const PruneNode& entry : producer ? record.producer() : record.consumer()) {
          const AMCTProto::AttrProto* indices = FindRecordAttribute(entry, kPruneIndexAttribute);
          if (indices == nullptr) {
            continue;
          }
          const Dims removed(indices->ints().begin(), indices->ints().end());
          sources.ZeroSources(entry, producer, removed);
          if (!producer) {
            readers.ZeroReaders(entry, removed);
            ++consumers[FindRecordAttribute(entry, kPruneTypeAttribute)->s()];
          }
        }
      }
      cut_records += FindRecordAttribute(record.producer(0), kPruneIndexAttribute) != nullptr ? 1 : 0;
    }
    ExpectNear(pruned, RunModel(readers.model()), "readers");
    if (network.keeps_zero) {
      ++zero_checks;
      ExpectNear(pruned, RunModel(sources.model()), "sources");
    }

    // From the printed record: the same model again.
    AMCTPytorchProto::ScaleOffsetRecord file;
    file.mutable_prune_record()->Assign(result->records.begin(), result->records.end());
    const ParsedRecord parsed = *ParseRecord(PrintRecord(file), "record.txt");
    Graph restored = MakeGraph(network.proto);
    const absl::StatusOr<CutChannelsResult> again = CutChannels(
        restored, {parsed.record.prune_record().begin(), parsed.record.prune_record().end()}, layers, CutPolicy::kRequireAll);
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_EQ(TensorsOf(restored), TensorsOf(graph));

    // What a torch process is told gives the same weights.
    const Graph original = MakeGraph(network.proto);
    for (const v1::ModuleCut& cut : result->cuts) {
      const Item& item = graph.item(graph.Find(cut.module()));
      if (item.Is("BatchNormalization")) {
        continue;
      }
      TorchWeight weight = TorchWeightOf(original, cut.module());
      for (const v1::TensorCut& tensor : cut.tensors()) {
        if (tensor.name() == "weight") {
          weight = Apply(weight, tensor);
        }
      }
      const TorchWeight expected = TorchWeightOf(graph, cut.module());
      ASSERT_EQ(weight.dims, expected.dims) << cut.module();
      ASSERT_EQ(weight.values, expected.values) << cut.module();
    }
    if (HasFatalFailure() || HasNonfatalFailure()) {
      break;
    }
  }
  EXPECT_GT(cut_records, 200);
  EXPECT_GT(zero_checks, 50);
  for (const char* type : {"Conv", "BatchNormalization", "Add", "Concat", "Gemm", "MatMul"}) {
    EXPECT_GT(consumers[type], 0) << type;
  }
  if (extended) {
    for (const char* type : {"ConvTranspose", "Reshape", "Mul"}) {
      EXPECT_GT(consumers[type], 0) << type;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Extended, RandomNetworksTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "extended" : "as_the_reference"; });

}  // namespace
}  // namespace modelpress::engine
