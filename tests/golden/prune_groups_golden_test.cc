// The records of golden/prune without prune_index, from the graph alone (docs/spec/prune.md sections 3 to 5 and 15).
#include <algorithm>
#include <filesystem>
#include <set>
#include <variant>

#include "engine/formats/record.h"
#include "engine/formats/retrain_config.h"
#include "engine/graph/graph.h"
#include "engine/prune/groups.h"
#include "engine/quantize/layers.h"
#include "engine/retrain/retrain_layers.h"
#include "google/protobuf/io/gzip_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using AMCTPytorchProto::PruneRecord;
using AMCTPytorchProto::ScaleOffsetRecord;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "prune";

// Weights may lack their data, which ReadModel would refuse.
Graph ReadGraph(const fs::path& path) {
  Model model;
  EXPECT_TRUE(model.shell.ParseFromString(ReadFile(path))) << path;
  onnx::GraphProto& proto = *model.shell.mutable_graph();
  model.nodes.reserve(proto.node_size());
  for (onnx::NodeProto& node : *proto.mutable_node()) {
    model.nodes.push_back({std::move(node), {}});
  }
  model.initializers.reserve(proto.initializer_size());
  for (onnx::TensorProto& tensor : *proto.mutable_initializer()) {
    model.initializers.push_back(FromProto(std::move(tensor)));
  }
  proto.clear_node();
  proto.clear_initializer();
  absl::StatusOr<Graph> graph = Graph::Create(std::move(model), {});
  EXPECT_TRUE(graph.ok()) << graph.status();
  EXPECT_TRUE(ResolveConstantIdentities(*graph).ok());
  return *std::move(graph);
}

// The layers of which the configuration prunes channels.
std::map<std::string, FilterPruneConfig> Enabled(const fs::path& cfg, const RetrainCatalog& catalog,
                                                 const ReferenceDefects& defects) {
  std::map<std::string, FilterPruneConfig> enabled;
  const std::string name = cfg.filename().string();
  const RetrainAbilities abilities = name == "prune.cfg" ? RetrainAbilities::kPrune : RetrainAbilities::kQuantAndPrune;
  const absl::StatusOr<RetrainConfig> config = ReadRetrainDefinition(catalog, ReadFile(cfg), name, abilities, defects);
  EXPECT_TRUE(config.ok()) << config.status();
  if (config.ok()) {
    for (const LayerRetrainConfig& layer : config->layers) {
      if (const auto* filter = std::get_if<FilterPruneConfig>(&layer.prune); filter != nullptr) {
        enabled[layer.name] = *filter;
      }
    }
  }
  return enabled;
}

PruneGroups Find(const fs::path& model, const fs::path& cfg, const ChannelPruneOptions& options,
                 const ReferenceDefects& defects) {
  Graph graph = ReadGraph(model);
  absl::StatusOr<Layers> layers = FindLayers(graph, nullptr, defects);
  EXPECT_TRUE(layers.ok()) << layers.status();
  NameLayerNodes(graph, *layers);
  const std::map<std::string, FilterPruneConfig> enabled =
      Enabled(cfg, FindRetrainLayers(*layers, defects, options.extended).catalog, defects);
  absl::StatusOr<PruneGroups> groups = FindPruneGroups(graph, *layers, enabled, options, defects);
  EXPECT_TRUE(groups.ok()) << groups.status();
  if (!groups.ok()) {
    return {};
  }
  // Every enabled layer is in a record or has a reason.
  std::set<std::string> explained;
  for (const PruneRecord& record : groups->records) {
    for (const auto& producer : record.producer()) {
      EXPECT_TRUE(explained.insert(producer.name()).second) << producer.name();
    }
  }
  for (const auto& [name, reason] : groups->left_alone) {
    EXPECT_TRUE(explained.insert(name).second) << name;
    EXPECT_FALSE(reason.empty()) << name;
  }
  for (const auto& [name, unused] : enabled) {
    EXPECT_TRUE(explained.contains(name)) << name;
  }
  return *std::move(groups);
}

std::vector<PruneRecord> Parse(const std::string& text) {
  absl::StatusOr<ParsedRecord> parsed = ParseRecord(text, "record.txt");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  std::vector<PruneRecord> records;
  for (PruneRecord& record : *parsed->record.mutable_prune_record()) {
    if (record.producer_size() == 0) {
      continue;  // selective
    }
    for (auto* nodes : {record.mutable_producer(), record.mutable_consumer()}) {
      for (auto& node : *nodes) {
        auto& attrs = *node.mutable_attr();
        attrs.erase(std::remove_if(attrs.begin(), attrs.end(), [](const auto& attr) { return attr.name() == "prune_index"; }),
                    attrs.end());
      }
    }
    records.push_back(std::move(record));
  }
  return records;
}

std::string Text(const std::vector<PruneRecord>& records) {
  ScaleOffsetRecord file;
  for (const PruneRecord& record : records) {
    *file.add_prune_record() = record;
  }
  return PrintRecord(file);
}

// The records that the forward check of section 8 leaves: none goes through a ConvTranspose.
std::string Checked(std::vector<PruneRecord> records) {
  std::erase_if(records, [](const PruneRecord& record) {
    return std::any_of(record.consumer().begin(), record.consumer().end(),
                       [](const auto& consumer) { return consumer.attr(0).s() == "ConvTranspose"; });
  });
  return Text(records);
}

std::vector<std::string> Cases() {
  std::vector<std::string> names = CasesWith(kGolden, "record.txt");
  for (const std::string& name : CasesWith(kGolden, "record_created.txt")) {
    names.push_back(name);
  }
  std::erase_if(names, [](const std::string& name) { return !fs::exists(kGolden / name / "model.onnx"); });
  return names;
}

class PruneGroupsGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  fs::path folder() const { return kGolden / GetParam(); }
  fs::path FirstOf(const std::string& one, const std::string& other) const {
    return fs::exists(folder() / one) ? folder() / one : folder() / other;
  }
  std::string Expected() const { return Text(Parse(ReadFile(FirstOf("record.txt", "record_created.txt")))); }
  PruneGroups Found(const ReferenceDefects& defects) const {
    return Find(folder() / "model.onnx", FirstOf("prune.cfg", "compress.cfg"), {}, defects);
  }
};

TEST_P(PruneGroupsGoldenTest, AllDefectsGiveTheReferencesRecords) {
  EXPECT_EQ(Checked(Found(ReferenceDefects::All()).records), Expected());
}

TEST_P(PruneGroupsGoldenTest, WithoutDefectsOnlyFlaggedCasesDiffer) {
  const nlohmann::json about = nlohmann::json::parse(ReadFile(folder() / "case.json"));
  const PruneGroups groups = Found({});
  if (about.contains("reference_bug")) {
    EXPECT_NE(Checked(groups.records), Expected());
    EXPECT_FALSE(groups.deviations.empty());
  } else {
    EXPECT_EQ(Checked(groups.records), Expected());
    EXPECT_EQ(groups.deviations, std::vector<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, PruneGroupsGoldenTest, testing::ValuesIn(Cases()), [](const auto& info) { return info.param; });

class NetworksGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  fs::path folder() const { return kGolden / "torchvision" / GetParam(); }

  std::vector<PruneRecord> Expected() const {
    if (fs::exists(folder() / "structure.txt")) {
      return Parse(ReadFile(folder() / "structure.txt"));
    }
    const std::string packed = ReadFile(folder() / "structure.txt.gz");
    google::protobuf::io::ArrayInputStream bytes(packed.data(), static_cast<int>(packed.size()));
    google::protobuf::io::GzipInputStream unpacked(&bytes);
    std::string text;
    const void* data = nullptr;
    int size = 0;
    while (unpacked.Next(&data, &size)) {
      text.append(static_cast<const char*>(data), size);
    }
    return Parse(text);
  }
  PruneGroups Found(const ReferenceDefects& defects) const {
    return Find(folder() / "skeleton.onnx", folder() / "prune.cfg", {}, defects);
  }
};

TEST_P(NetworksGoldenTest, TheRecordsAreThoseOfTheReference) {
  for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
    const PruneGroups groups = Found(defects);
    const std::vector<PruneRecord> expected = Expected();
    EXPECT_EQ(groups.deviations, std::vector<std::string>());
    if (GetParam() != "googlenet") {
      EXPECT_EQ(Text(groups.records), Text(expected));
      continue;
    }
    // The reference drops eight records in a training run, in which auxiliary heads read their channels. The exported graph has
    // no such heads.
    size_t next = 0;
    for (const PruneRecord& record : groups.records) {
      next += next < expected.size() && Text({record}) == Text({expected[next]}) ? 1 : 0;
    }
    EXPECT_EQ(next, expected.size());
    EXPECT_EQ(groups.records.size(), expected.size() + 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, NetworksGoldenTest, testing::ValuesIn(CasesWith(kGolden / "torchvision", "skeleton.onnx")),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace modelpress::engine
