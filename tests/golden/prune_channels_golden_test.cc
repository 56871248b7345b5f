// Choosing and cutting channels, 2:4 masks and the search for ratios against the reference: golden/prune and the masks of
// golden/qat/unit. Every case is met with and without the reference's defects, but for the numbers of the search.
#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "amct/auto_channel_prune_config.pb.h"
#include "amct/retrain_config.pb.h"
#include "engine/base/status.h"
#include "engine/formats/record.h"
#include "engine/model/element_type.h"
#include "engine/prune/channels.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/rank.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/search.h"
#include "engine/prune/selective.h"
#include "engine/quantize/operands.h"
#include "engine/runtime/model_runner.h"
#include "engine/runtime/npz.h"
#include "google/protobuf/io/gzip_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "onnx/onnx_pb.h"
#include "tests/engine/prune/prune_entries.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using AMCTPytorchProto::AMCTRetrainConfig;
using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;
using nlohmann::json;
using Dims = std::vector<int64_t>;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "prune";
const fs::path kUnits = fs::path(MODELPRESS_TEST_DATA) / "golden" / "qat" / "unit";

// An .npz file.
class Arrays {
 public:
  explicit Arrays(const fs::path& path) : npz_(*NpzFile::Open(*InputFile::Open(path.filename().string(), path.string()))) {}

  std::vector<std::string> Names(const std::string& prefix) const {
    std::vector<std::string> names;
    for (const std::string& name : npz_->names()) {
      if (absl::StartsWith(name, prefix)) {
        names.push_back(name.substr(prefix.size()));
      }
    }
    return names;
  }
  HostTensor Get(const std::string& name) const {
    const std::unique_ptr<ArrayReader> reader = *npz_->OpenArray(name);
    HostTensor tensor = {.data_type = reader->data_type(), .dims = reader->dims()};
    uint64_t count = 1;
    for (const int64_t dim : tensor.dims) {
      count *= dim;
    }
    tensor.bytes.resize(FindElementType(tensor.data_type)->RawBytes(count));
    EXPECT_TRUE(reader->Read(absl::MakeSpan(tensor.bytes)).ok());
    return tensor;
  }

 private:
  std::unique_ptr<NpzFile> npz_;
};

template <typename T>
std::vector<T> ValuesOf(absl::Span<const uint8_t> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Tensor TensorFrom(const HostTensor& array, const std::string& name) {
  onnx::TensorProto proto;
  proto.set_name(name);
  proto.set_data_type(array.data_type);
  proto.mutable_dims()->Assign(array.dims.begin(), array.dims.end());
  proto.set_raw_data(array.bytes.data(), array.bytes.size());
  return FromProto(std::move(proto));
}

Graph ReadGraph(const fs::path& folder, const std::string& file, const ReferenceDefects& defects) {
  Graph graph = *Graph::Create(*ReadModel(FilesIn(folder), file), defects);
  EXPECT_TRUE(ResolveConstantIdentities(graph).ok());
  return graph;
}

std::vector<PruneRecord> ReadRecords(const fs::path& path) {
  absl::StatusOr<ParsedRecord> parsed = ParseRecord(ReadFile(path), path.string());
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return {parsed->record.prune_record().begin(), parsed->record.prune_record().end()};
}

std::string Print(const std::vector<PruneRecord>& records) {
  AMCTPytorchProto::ScaleOffsetRecord file;
  file.mutable_prune_record()->Assign(records.begin(), records.end());
  return PrintRecord(file);
}

// The records as they are before channels are chosen.
std::vector<PruneRecord> WithoutIndices(std::vector<PruneRecord> records) {
  for (PruneRecord& record : records) {
    for (auto* entries : {record.mutable_producer(), record.mutable_consumer()}) {
      for (PruneNode& entry : *entries) {
        auto* attributes = entry.mutable_attr();
        attributes->erase(std::remove_if(attributes->begin(), attributes->end(),
                                         [](const auto& attribute) { return attribute.name() == kPruneIndexAttribute; }),
                          attributes->end());
      }
    }
  }
  return records;
}

template <typename Message>
Message ReadText(const fs::path& path) {
  Message message;
  google::protobuf::TextFormat::Parser parser;
  parser.AllowPartialMessage(true);
  EXPECT_TRUE(parser.ParseFromString(ReadFile(path), &message)) << path;
  return message;
}

// The ratios of the layers that records name, by prune.md section 2 (3): layer over type over global.
std::map<std::string, FilterPruneConfig> RatiosOf(const fs::path& cfg, const std::vector<PruneRecord>& records) {
  const auto config = ReadText<AMCTRetrainConfig>(cfg);
  std::map<std::string, FilterPruneConfig> ratios;
  for (const PruneRecord& record : records) {
    for (const PruneNode& producer : record.producer()) {
      const std::string type = FindRecordAttribute(producer, kPruneTypeAttribute)->s() == "Conv" ? "Conv2d" : "Linear";
      const AMCTPytorchProto::PruneConfig* prune = &config.prune_config();
      for (const auto& by_type : config.override_layer_types()) {
        prune = by_type.layer_type() == type && by_type.has_prune_config() ? &by_type.prune_config() : prune;
      }
      for (const auto& by_name : config.override_layer_configs()) {
        prune = by_name.layer_name() == producer.name() && by_name.has_prune_config() ? &by_name.prune_config() : prune;
      }
      const auto& pruner = prune->filter_pruner().balanced_l2_norm_filter_prune();
      ratios[producer.name()] = {.ratio = std::stod(absl::StrCat(pruner.prune_ratio())),
                                 .ascend_optimized = pruner.ascend_optimized()};
    }
  }
  return ratios;
}

// Names, shapes and bytes of a model's tensors.
std::map<std::string, std::pair<Dims, std::string>> TensorsOf(const Model& model) {
  std::map<std::string, std::pair<Dims, std::string>> tensors;
  for (const Tensor& tensor : model.initializers) {
    const PayloadPtr elements = RawElements(tensor);
    std::string bytes(elements->size(), '\0');
    EXPECT_TRUE(elements->Read(0, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}).ok());
    tensors[tensor.name()] = {Dims(tensor.header.dims().begin(), tensor.header.dims().end()), std::move(bytes)};
  }
  return tensors;
}

// Nodes with their attributes as text, by name: what they do, not in which order they stand.
std::map<std::string, std::string> NodesOf(const Model& model) {
  std::map<std::string, std::string> nodes;
  for (const Node& node : model.nodes) {
    nodes[node.proto.output(0)] = node.proto.DebugString();
  }
  return nodes;
}

void ExpectSameModel(const Model& actual, const Model& expected) {
  EXPECT_EQ(TensorsOf(actual), TensorsOf(expected));
  EXPECT_EQ(NodesOf(actual), NodesOf(expected));
}

std::vector<std::vector<float>> RunModel(const Model& model, const Arrays& io, const std::vector<std::string>& outputs) {
  const TemporaryFolder scratch;
  absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Create(model, {.tensors = outputs, .scratch_folder = scratch.path().string()});
  EXPECT_TRUE(runner.ok()) << runner.status();
  Batch batch;
  for (const InputSpec& input : (*runner)->inputs()) {
    batch.push_back(io.Get(absl::StrCat("in/", input.name)));
  }
  absl::StatusOr<RunResult> result = (*runner)->Run(batch);
  EXPECT_TRUE(result.ok()) << result.status();
  std::vector<std::vector<float>> values;
  for (const TensorView& view : result->tensors) {
    values.push_back(ValuesOf<float>(view.bytes));
  }
  return values;
}

void ExpectOutputs(const Model& model, const Arrays& io, const std::string& prefix) {
  const std::vector<std::string> outputs = io.Names(prefix);
  ASSERT_FALSE(outputs.empty());
  const std::vector<std::vector<float>> values = RunModel(model, io, outputs);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::vector<float> expected = ValuesOf<float>(io.Get(prefix + outputs[i]).bytes);
    ASSERT_EQ(values[i].size(), expected.size());
    for (size_t k = 0; k < expected.size(); ++k) {
      ASSERT_NEAR(values[i][k], expected[k], 1e-5 + 1e-4 * std::abs(expected[k])) << outputs[i] << " [" << k << "]";
    }
  }
}

// Checks what a torch process is told against the channels that the reference kept.
void ExpectKeptChannels(const std::vector<v1::ModuleCut>& cuts, const json& kept) {
  std::map<std::string, std::map<std::pair<std::string, int>, Dims>> tensors;
  std::map<std::string, const v1::ModuleCut*> modules;
  for (const v1::ModuleCut& cut : cuts) {
    ASSERT_TRUE(kept.contains(cut.module())) << cut.module();
    EXPECT_EQ(cut.type(), kept[cut.module()]["type"].get<std::string>()) << cut.module();
    modules[cut.module()] = &cut;
    for (const v1::TensorCut& tensor : cut.tensors()) {
      tensors[cut.module()][{tensor.name(), tensor.axis()}] = Dims(tensor.kept().begin(), tensor.kept().end());
    }
  }
  for (const auto& [module, expected] : kept.items()) {
    const auto check = [&, &module = module](const std::string& tensor, int axis, const Dims& all, const std::string& attribute) {
      const auto it = tensors[module].find({tensor, axis});
      if (it == tensors[module].end()) {
        Dims whole(all.empty() ? 0 : all.back() + 1);
        for (size_t i = 0; i < whole.size(); ++i) {
          whole[i] = static_cast<int64_t>(i);
        }
        EXPECT_EQ(all, whole) << module << " " << tensor << " " << axis;
      } else {
        EXPECT_EQ(it->second, all) << module << " " << tensor << " " << axis;
        const auto& attributes = modules[module]->attributes();
        ASSERT_TRUE(attributes.contains(attribute)) << module << " " << attribute;
        EXPECT_EQ(attributes.at(attribute), all.size());
      }
    };
    const std::string type = expected["type"];
    if (absl::StartsWith(type, "BatchNorm")) {
      for (const char* tensor : {"weight", "bias", "running_mean", "running_var"}) {
        check(tensor, 0, expected["kept"], "num_features");
      }
      continue;
    }
    const bool linear = type == "Linear";
    const bool depthwise = expected["groups"] == expected["in_channels"] && expected["groups"] > 1;
    if (type == "ConvTranspose2d") {
      check("weight", 0, expected["kept_in"], "in_channels");
    } else {
      check("weight", 0, expected["kept_out"], linear ? "out_features" : "out_channels");
      if (!depthwise) {
        check("weight", 1, expected["kept_in"], linear ? "in_features" : "in_channels");
      }
    }
    if (depthwise && modules.contains(module)) {
      EXPECT_EQ(modules[module]->attributes().at("groups"), expected["groups_after"]);
      EXPECT_EQ(modules[module]->attributes().at("in_channels"), expected["groups_after"]);
    }
  }
}

class ChannelCase : public testing::TestWithParam<std::string> {
 protected:
  const fs::path folder_ = kGolden / GetParam();
};

TEST_P(ChannelCase, ChoosesTheChannelsOfTheRecord) {
  const Graph graph = ReadGraph(folder_, "model.onnx", {});
  const std::vector<PruneRecord> expected = ReadRecords(folder_ / "record.txt");
  for (const ReferenceDefects& defects : {ReferenceDefects{}, ReferenceDefects::All()}) {
    for (const int threads : {1, 3}) {
      std::vector<PruneRecord> records = WithoutIndices(expected);
      const absl::Status status = ChooseChannels(graph, RatiosOf(folder_ / "prune.cfg", records), {}, defects, threads, records);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(Print(records), ReadFile(folder_ / "record.txt"));
    }
  }
}

TEST_P(ChannelCase, CutsThem) {
  for (const CutPolicy policy : {CutPolicy::kDropUnfitting, CutPolicy::kRequireAll}) {
    Graph graph = ReadGraph(folder_, "model.onnx", {});
    const Layers layers = *FindLayers(graph, nullptr, {});
    const std::vector<PruneRecord> records = ReadRecords(folder_ / "record.txt");
    const absl::StatusOr<CutChannelsResult> result = CutChannels(graph, records, layers, policy);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->dropped, std::vector<std::string>());
    EXPECT_EQ(Print(result->records), ReadFile(folder_ / "record.txt"));
    ASSERT_TRUE(graph.Validate().ok());
    const Model pruned = *graph.ToModel();
    ExpectSameModel(pruned, *ReadGraph(folder_, "pruned.onnx", {}).ToModel());
    ExpectKeptChannels(result->cuts, json::parse(ReadFile(folder_ / "kept_channels.json")));
    ExpectOutputs(pruned, Arrays(folder_ / "io.npz"), "pruned/");
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, ChannelCase, testing::ValuesIn(CasesWith(kGolden, "pruned.onnx")),
                         [](const auto& info) { return info.param; });

// The record was made from other weights.
TEST(PruneGoldenTest, RestoreCutsByTheRecord) {
  const fs::path folder = kGolden / "restore_random";
  Graph graph = ReadGraph(folder, "model.onnx", {});
  const Layers layers = *FindLayers(graph, nullptr, {});
  const absl::StatusOr<CutChannelsResult> result =
      CutChannels(graph, ReadRecords(folder / "record.txt"), layers, CutPolicy::kRequireAll);
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectKeptChannels(result->cuts, json::parse(ReadFile(folder / "kept_channels.json")));
  const auto tensors = TensorsOf(*graph.ToModel());
  for (const auto& [name, tensor] : TensorsOf(*ReadModel(FilesIn(folder), "restored.onnx"))) {
    ASSERT_TRUE(tensors.contains(name)) << name;
    EXPECT_EQ(tensors.at(name).first, tensor.first) << name;
  }
}

// The reference finds a record that crosses the ConvTranspose as if it kept the channels, and drops it after its forward.
TEST(PruneGoldenTest, DropsTheRecordThatDoesNotFit) {
  const fs::path folder = kGolden / "convtranspose";
  std::vector<PruneRecord> records = ReadRecords(folder / "record.txt");
  PruneRecord crossing;
  *crossing.add_producer() = Entry("c1", "Conv", 0, 8);
  *crossing.add_consumer() = Entry("t", "ConvTranspose", 0, 8);
  *crossing.add_consumer() = Entry("b", "BatchNormalization", 0, 8);
  *crossing.add_consumer() = Entry("c2", "Conv", 0, 8);
  records.insert(records.begin() + 1, crossing);
  records = WithoutIndices(std::move(records));
  Graph graph = ReadGraph(folder, "model.onnx", {});
  ASSERT_TRUE(ChooseChannels(graph, RatiosOf(folder / "prune.cfg", records), {}, {}, 1, records).ok());
  Graph required = ReadGraph(folder, "model.onnx", {});
  const absl::StatusOr<CutChannelsResult> refused =
      CutChannels(required, records, *FindLayers(required, nullptr, {}), CutPolicy::kRequireAll);
  EXPECT_EQ(ReasonOf(refused.status()), v1::PRUNE_FAILED);
  const absl::StatusOr<CutChannelsResult> result =
      CutChannels(graph, records, *FindLayers(graph, nullptr, {}), CutPolicy::kDropUnfitting);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->dropped, (std::vector<std::string>{"the channels of c1 stay: after the cut, BatchNormalization 'b' takes 8 "
                                                       "channels, its input has 12"}));
  EXPECT_EQ(Print(result->records), ReadFile(folder / "record.txt"));
  ExpectSameModel(*graph.ToModel(), *ReadGraph(folder, "pruned.onnx", {}).ToModel());
}

// ---- torchvision: graphs and shapes without data ------------------------------------------------------------------------------

class ZeroPayload final : public Payload {
 public:
  explicit ZeroPayload(uint64_t size) : size_(size) {}
  uint64_t size() const override { return size_; }
  absl::Status Read(uint64_t /*offset*/, absl::Span<uint8_t> out) const override {
    std::fill(out.begin(), out.end(), 0);
    return absl::OkStatus();
  }

 private:
  uint64_t size_;
};

Graph ReadSkeleton(const fs::path& path) {
  Model model;
  EXPECT_TRUE(model.shell.ParseFromString(ReadFile(path)));
  onnx::GraphProto& graph = *model.shell.mutable_graph();
  for (onnx::NodeProto& node : *graph.mutable_node()) {
    model.nodes.push_back({std::move(node), {}});
  }
  for (onnx::TensorProto& proto : *graph.mutable_initializer()) {
    Tensor tensor = FromProto(std::move(proto));
    const uint64_t bytes = FindElementType(tensor.header.data_type())->RawBytes(tensor.ElementCount());
    if (tensor.payload == nullptr || tensor.payload->size() != bytes) {
      tensor.field = DataField::kRaw;
      tensor.payload = std::make_shared<ZeroPayload>(bytes);
    }
    model.initializers.push_back(std::move(tensor));
  }
  graph.clear_node();
  graph.clear_initializer();
  Graph result = *Graph::Create(std::move(model), {});
  EXPECT_TRUE(ResolveConstantIdentities(result).ok());
  return result;
}

std::string ReadCompressed(const fs::path& path) {
  const std::string packed = ReadFile(path);
  google::protobuf::io::ArrayInputStream bytes(packed.data(), static_cast<int>(packed.size()));
  google::protobuf::io::GzipInputStream stream(&bytes);
  std::string content;
  const void* piece = nullptr;
  for (int size = 0; stream.Next(&piece, &size);) {
    content.append(static_cast<const char*>(piece), size);
  }
  return content;
}

class TorchvisionCase : public testing::TestWithParam<std::string> {};

TEST_P(TorchvisionCase, CutsToTheReferencesShapes) {
  const fs::path folder = kGolden / "torchvision" / GetParam();
  const json summary = json::parse(ReadFile(folder / "summary.json"));
  Graph graph = ReadSkeleton(folder / "skeleton.onnx");
  const fs::path structure = folder / "structure.txt";
  const absl::StatusOr<ParsedRecord> parsed =
      ParseRecord(fs::exists(structure) ? ReadFile(structure) : ReadCompressed(folder / "structure.txt.gz"), "structure.txt");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  std::vector<PruneRecord> records(parsed->record.prune_record().begin(), parsed->record.prune_record().end());
  ASSERT_TRUE(ChooseChannels(graph, RatiosOf(folder / "prune.cfg", records), {}, {}, 2, records).ok());
  ASSERT_EQ(records.size(), summary["records"].size());
  for (size_t i = 0; i < records.size(); ++i) {
    const AMCTProto::AttrProto* indices = FindRecordAttribute(records[i].producer(0), kPruneIndexAttribute);
    EXPECT_EQ(indices == nullptr ? 0 : indices->ints_size(), summary["records"][i]["cut"]) << i;
  }
  const Layers layers = *FindLayers(graph, nullptr, {});
  const absl::StatusOr<CutChannelsResult> result = CutChannels(graph, records, layers, CutPolicy::kDropUnfitting);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->dropped, std::vector<std::string>());
  for (const auto& [layer, shapes] : summary["weights_before_after"].items()) {
    const ItemId id = graph.Find(layer);
    if (id < 0) {  // GoogLeNet's heads that only training runs
      EXPECT_EQ(shapes[0], shapes[1]) << layer;
      continue;
    }
    const absl::StatusOr<LayerWeight> weight = FindLayerWeight(graph, id);
    ASSERT_TRUE(weight.ok()) << weight.status();
    EXPECT_EQ(weight->dims, shapes[1].get<Dims>()) << layer;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, TorchvisionCase, testing::ValuesIn(CasesWith(kGolden / "torchvision", "skeleton.onnx")),
                         [](const auto& info) { return info.param; });

// ---- 2:4
// ------------------------------------------------------------------------------------------------------------------------

// The words of a mask given element by element.
std::vector<int64_t> Pack(const std::vector<bool>& mask) {
  std::string bytes((mask.size() + 63) / 64 * 8, '\0');
  for (size_t i = 0; i < mask.size(); ++i) {
    bytes[i / 8] = static_cast<char>(bytes[i / 8] | (mask[i] ? 1 << (7 - i % 8) : 0));
  }
  return ValuesOf<int64_t>({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

TEST(SelectiveGoldenTest, UnitMasks) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(kUnits)) {
    if (!absl::StartsWith(entry.path().filename().string(), "mask24_")) {
      continue;
    }
    ++count;
    const Arrays arrays(entry.path());
    const HostTensor weight = arrays.Get("weight");
    const auto axis = static_cast<int>(ValuesOf<int64_t>(arrays.Get("axis").bytes)[0]);
    const absl::StatusOr<SelectiveMask> mask = MakeSelectiveMask(TensorFrom(weight, "w"), weight.dims, axis, 2);
    ASSERT_TRUE(mask.ok()) << mask.status();
    EXPECT_EQ(mask->packed, ValuesOf<int64_t>(arrays.Get("packed_int64").bytes)) << entry.path();
    EXPECT_EQ(mask->shape, weight.dims);
  }
  EXPECT_EQ(count, 5);
}

class SelectiveCase : public testing::TestWithParam<std::string> {
 protected:
  const fs::path folder_ = kGolden / GetParam();

  // Every layer of a type that can be made sparse, in graph order.
  static std::vector<std::string> LayersOf(const Layers& layers, const Arrays& io) {
    std::vector<std::string> names;
    const std::vector<std::string> masked = io.Names("mask/");
    for (const Layer& layer : layers.layers) {
      if (std::find(masked.begin(), masked.end(), layer.config.name) != masked.end()) {
        names.push_back(layer.config.name);
      }
    }
    EXPECT_EQ(names.size(), masked.size());
    return names;
  }
};

TEST_P(SelectiveCase, MasksRecordsAndWeights) {
  const Arrays io(folder_ / "io.npz");
  const bool trained = !io.Names("step0/").empty();  // weights change before every forward
  Graph graph = ReadGraph(folder_, "model.onnx", {});
  const Layers layers = *FindLayers(graph, nullptr, {});
  const std::vector<std::string> names = LayersOf(layers, io);
  std::map<std::string, SelectivePruneConfig> enabled;
  for (const std::string& name : names) {
    enabled[name] = {};
  }
  const absl::StatusOr<std::map<std::string, SelectiveMask>> masks = MakeSelectiveMasks(graph, layers, enabled, 2);
  ASSERT_TRUE(masks.ok()) << masks.status();
  std::vector<PruneRecord> created;
  std::vector<PruneRecord> forward;
  for (const std::string& name : names) {
    const SelectiveMask& mask = masks->at(name);
    created.push_back(SelectiveRecord(name, mask, false));
    forward.push_back(SelectiveRecord(name, mask, true));
    const HostTensor expected = io.Get(trained ? "step0/mask/" + name : "mask/" + name);
    EXPECT_EQ(mask.shape, expected.dims) << name;
    EXPECT_EQ(mask.packed, Pack({expected.bytes.begin(), expected.bytes.end()})) << name;
  }
  EXPECT_EQ(Print(created), ReadFile(folder_ / "record_created.txt"));
  EXPECT_EQ(Print(forward), ReadFile(folder_ / (trained ? "record_step0.txt" : "record_forward.txt")));
  AMCTPytorchProto::ScaleOffsetRecord record;
  record.mutable_prune_record()->Assign(forward.begin(), forward.end());
  const absl::Status dense = CheckSelectiveSparsity(graph, record, 2);
  EXPECT_EQ(ReasonOf(dense), v1::NOT_SPARSE) << dense;
  for (const std::string& name : names) {
    ASSERT_TRUE(ApplySelectiveMask(graph, name, masks->at(name)).ok());
  }
  const absl::Status sparse = CheckSelectiveSparsity(graph, record, 2);
  EXPECT_TRUE(sparse.ok()) << sparse;
  if (!trained) {
    const Model masked = *graph.ToModel();
    ExpectSameModel(masked, *ReadGraph(folder_, "masked.onnx", {}).ToModel());
    ExpectOutputs(masked, io, "masked/");
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, SelectiveCase, testing::ValuesIn(CasesWith(kGolden, "masked.onnx")),
                         [](const auto& info) { return info.param; });

// update_freq 2: the mask of the weights before forwards 0 and 2, and the same again before 1 and 3.
TEST(SelectiveGoldenTest, MasksFollowTheWeights) {
  const Arrays io(kGolden / "sel24_update_freq" / "io.npz");
  for (int step = 0; step < 4; ++step) {
    for (const std::string& name : io.Names("step0/weight/")) {
      const HostTensor weight = io.Get(absl::StrCat("step", step / 2 * 2, "/weight/", name));
      const HostTensor expected = io.Get(absl::StrCat("step", step, "/mask/", name));
      const absl::StatusOr<SelectiveMask> mask = MakeSelectiveMask(TensorFrom(weight, name), weight.dims, 1, 1);
      ASSERT_TRUE(mask.ok());
      EXPECT_EQ(mask->packed, Pack({expected.bytes.begin(), expected.bytes.end()})) << step << " " << name;
    }
  }
}

// ---- the search
// -------------------------------------------------------------------------------------------------------------------

struct SearchState {
  std::vector<PruneRecord> records;
  std::map<std::string, std::vector<float>> sensitivities;
};

// The state holds sums over the producers; the first one gets them, the others nothing.
SearchState StateOf(const json& state) {
  SearchState result;
  for (const json& record : state["records"]) {
    PruneRecord& group = result.records.emplace_back();
    for (const std::string name : record["producers"]) {
      group.add_producer()->set_name(name);
      result.sensitivities[name] = group.producer_size() == 1 ? record["sensitivity"].get<std::vector<float>>()
                                                              : std::vector<float>(record["cout"].get<size_t>());
    }
    for (const std::string name : record["consumers"]) {
      group.add_consumer()->set_name(name);
    }
  }
  return result;
}

class SearchCase : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto config = ReadText<AMCTProto::AutoChannelPruneConfig>(folder_ / "amc.cfg");
    settings_.compress_ratio = config.compress_ratio();
    settings_.ascend_optimized = config.ascend_optimized();
    settings_.max_prune_ratio = config.max_prune_ratio();
  }

  const fs::path folder_ = kGolden / GetParam();
  const json state_ = json::parse(ReadFile(folder_ / "search_state.json"));
  AutoChannelPruneSettings settings_;
};

TEST_P(SearchCase, CostTableOfTheReference) {
  const Graph graph = ReadGraph(folder_, "model.onnx", {});
  const absl::StatusOr<std::vector<LayerCost>> costs = CostTable(graph, *FindLayers(graph, nullptr, {}), ReferenceDefects::All());
  ASSERT_TRUE(costs.ok()) << costs.status();
  ASSERT_EQ(costs->size(), state_["layers"].size());
  for (const LayerCost& cost : *costs) {
    const json& expected = state_["layers"][cost.layer];
    EXPECT_EQ(cost.in_channels, expected["cin"]) << cost.layer;
    EXPECT_EQ(cost.out_channels, expected["cout"]) << cost.layer;
    EXPECT_EQ(cost.bitops, expected["bitops"].get<double>()) << cost.layer;
  }
}

TEST_P(SearchCase, RatiosOfTheReference) {
  const Graph graph = ReadGraph(folder_, "model.onnx", {});
  const std::vector<LayerCost> costs = *CostTable(graph, *FindLayers(graph, nullptr, {}), ReferenceDefects::All());
  const SearchState state = StateOf(state_);
  const absl::StatusOr<SearchResult> result =
      GreedySearch(settings_, costs, state.records, state.sensitivities, ReferenceDefects::All());
  ASSERT_TRUE(result.ok()) << result.status();
  const auto output = ReadText<AMCTRetrainConfig>(folder_ / "output.cfg");
  std::map<std::string, float> ratios;
  for (const auto& layer : output.override_layer_configs()) {
    ratios[layer.layer_name()] = layer.prune_config().filter_pruner().balanced_l2_norm_filter_prune().prune_ratio();
  }
  for (const PruneRecord& record : state.records) {
    for (const PruneNode& producer : record.producer()) {
      const auto total = static_cast<double>(state.sensitivities.at(producer.name()).size());
      const auto kept = static_cast<double>(result->kept.at(producer.name()));
      const auto expected = ratios.find(producer.name());
      EXPECT_EQ(static_cast<float>(1 - kept / total), expected == ratios.end() ? 0.0F : expected->second) << producer.name();
    }
  }
}

// Without the defects the search stops where the target is reached, not up to 100 channels later.
TEST_P(SearchCase, StopsAtTheTarget) {
  const Graph graph = ReadGraph(folder_, "model.onnx", {});
  const absl::StatusOr<std::vector<LayerCost>> costs = CostTable(graph, *FindLayers(graph, nullptr, {}), {});
  ASSERT_TRUE(costs.ok()) << costs.status();
  const SearchState state = StateOf(state_);
  const absl::StatusOr<SearchResult> result = GreedySearch(settings_, *costs, state.records, state.sensitivities, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->compress_ratio < settings_.compress_ratio, !result->warnings.empty());
  const absl::StatusOr<SearchResult> reference =
      GreedySearch(settings_, *costs, state.records, state.sensitivities, ReferenceDefects::All());
  ASSERT_TRUE(reference.ok());
  int64_t kept = 0;
  int64_t kept_by_reference = 0;
  for (const auto& [layer, count] : result->kept) {
    kept += count;
    kept_by_reference += reference->kept.at(layer);
  }
  EXPECT_GE(kept, kept_by_reference);
}

INSTANTIATE_TEST_SUITE_P(Golden, SearchCase, testing::ValuesIn(CasesWith(kGolden, "search_state.json")),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace modelpress::engine
