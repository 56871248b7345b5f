#include "client/cpp/external_data.h"

#include "client/cpp/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "onnx/onnx_pb.h"
#include "tests/client/cpp/test_util.h"

namespace modelpress::client {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

void SetExternal(onnx::TensorProto* tensor, const std::string& location) {
  tensor->set_name("t");
  tensor->set_data_type(onnx::TensorProto::FLOAT);
  tensor->add_dims(4);
  auto* entry = tensor->add_external_data();
  entry->set_key("offset");
  entry->set_value("16");
  entry = tensor->add_external_data();
  entry->set_key("location");
  entry->set_value(location);
  tensor->set_data_location(onnx::TensorProto::EXTERNAL);
}

std::vector<std::string> Find(const onnx::ModelProto& model) {
  auto found = FindExternalData(model.SerializeAsString(), "m.onnx");
  EXPECT_TRUE(found.ok()) << found.status();
  return found.ok() ? *found : std::vector<std::string>();
}

std::string ReasonFor(const std::string& location) {
  onnx::ModelProto model;
  SetExternal(model.mutable_graph()->add_initializer(), location);
  absl::Status status = FindExternalData(model.SerializeAsString(), "m.onnx").status();
  return status.ok() ? "" : DetailsOf(status).reason;
}

TEST(ExternalDataTest, FindsTensorsWhereverOnnxKeepsThem) {
  onnx::ModelProto model;
  onnx::GraphProto* graph = model.mutable_graph();
  onnx::NodeProto* node = graph->add_node();
  SetExternal(node->add_attribute()->mutable_t(), "01_attribute");
  SetExternal(node->add_attribute()->add_tensors(), "02_attributes");
  SetExternal(node->add_attribute()->mutable_sparse_tensor()->mutable_values(), "03_sparse_attribute");
  SetExternal(node->add_attribute()->add_sparse_tensors()->mutable_indices(), "04_sparse_attributes");
  SetExternal(node->add_attribute()->mutable_g()->add_initializer(), "05_subgraph");
  onnx::GraphProto* inner = node->add_attribute()->add_graphs()->add_node()->add_attribute()->mutable_g();
  SetExternal(inner->add_sparse_initializer()->mutable_values(), "06_deep");
  SetExternal(graph->add_initializer(), "07_initializer");
  SetExternal(graph->add_sparse_initializer()->mutable_indices(), "08_sparse_initializer");
  onnx::TrainingInfoProto* training = model.add_training_info();
  SetExternal(training->mutable_initialization()->add_initializer(), "09_initialization");
  SetExternal(training->mutable_algorithm()->add_initializer(), "10_algorithm");
  onnx::FunctionProto* function = model.add_functions();
  SetExternal(function->add_node()->add_attribute()->mutable_t(), "11_function");
  SetExternal(function->add_attribute_proto()->mutable_t(), "12_function_default");
  EXPECT_THAT(Find(model),
              testing::UnorderedElementsAre("01_attribute", "02_attributes", "03_sparse_attribute", "04_sparse_attributes",
                                            "05_subgraph", "06_deep", "07_initializer", "08_sparse_initializer",
                                            "09_initialization", "10_algorithm", "11_function", "12_function_default"));
}

TEST(ExternalDataTest, NamesEachFileOnce) {
  onnx::ModelProto model;
  for (const char* location : {"w.bin", "./w.bin", "sub/x.bin", "sub//x.bin", "w.bin"}) {
    SetExternal(model.mutable_graph()->add_initializer(), location);
  }
  EXPECT_THAT(Find(model), ElementsAre("w.bin", "sub/x.bin"));
}

TEST(ExternalDataTest, LeavesInlineTensorsAlone) {
  onnx::ModelProto model;
  model.set_producer_name("location");
  onnx::TensorProto* tensor = model.mutable_graph()->add_initializer();
  SetExternal(tensor, "ignored");
  tensor->set_data_location(onnx::TensorProto::DEFAULT);
  // Raw data that looks like a tensor with external data.
  onnx::TensorProto bait;
  SetExternal(&bait, "bait");
  model.mutable_graph()->add_initializer()->set_raw_data(bait.SerializeAsString());
  EXPECT_THAT(Find(model), IsEmpty());
  EXPECT_THAT(Find(onnx::ModelProto()), IsEmpty());
}

TEST(ExternalDataTest, RefusesLocationsOutsideTheModelsFolder) {
  for (const char* location : {"", "/etc/passwd", "..", "../w.bin", "sub/../../w.bin", "sub/..", ".", "/"}) {
    EXPECT_EQ(ReasonFor(location), "MODEL_EXTERNAL_DATA") << location;
  }
  EXPECT_EQ(ReasonFor("a\\b"), "NAME_INVALID");
  EXPECT_EQ(ReasonFor("...w..bin"), "");
}

TEST(ExternalDataTest, RefusesEveryTruncation) {
  onnx::ModelProto model;
  SetExternal(model.mutable_graph()->add_initializer(), "w.bin");
  std::string bytes = model.SerializeAsString();
  // The graph is the last field, so every cut goes through it or its tag; nothing at all is an empty message.
  for (size_t size = 1; size < bytes.size(); ++size) {
    EXPECT_EQ(DetailsOf(FindExternalData(bytes.substr(0, size), "m.onnx").status()).reason, "MODEL_UNREADABLE") << size;
  }
}

TEST(ExternalDataTest, SurvivesHostileBytes) {
  using std::string_literals::operator""s;
  for (const std::string& bytes : {
           "\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"s,  // graph of 2^64 - 1 bytes
           "\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"s,  // varint without end
           "\x3a\x80"s, "\x00\x00"s, "\x3b"s, "\x3f"s, "\x3d\x00"s, "\x39\x00"s,
           "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"s,  // field number over 2^29
       }) {
    EXPECT_EQ(DetailsOf(FindExternalData(bytes, "m.onnx").status()).reason, "MODEL_UNREADABLE") << testing::PrintToString(bytes);
  }
  // Whatever one changed byte makes of a model, the scan ends and stays inside the bytes (the sanitizer's build sees that).
  onnx::ModelProto model;
  SetExternal(model.mutable_graph()->add_node()->add_attribute()->mutable_g()->add_initializer(), "w.bin");
  const std::string good = model.SerializeAsString();
  for (size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string bad = good;
      bad[at] = static_cast<char>(value);
      absl::StatusCode code = FindExternalData(bad, "m.onnx").status().code();
      EXPECT_TRUE(code == absl::StatusCode::kOk || code == absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST(ExternalDataTest, LimitsTheNesting) {
  auto nested = [](int levels) {
    onnx::GraphProto graph;
    SetExternal(graph.add_initializer(), "deep.bin");
    for (int i = 0; i < levels; ++i) {
      onnx::GraphProto outer;
      outer.add_node()->add_attribute()->mutable_g()->Swap(&graph);
      graph.Swap(&outer);
    }
    onnx::ModelProto model;
    model.mutable_graph()->Swap(&graph);
    return model.SerializeAsString();
  };
  auto found = FindExternalData(nested(30), "m.onnx");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(*found, ElementsAre("deep.bin"));
  EXPECT_EQ(DetailsOf(FindExternalData(nested(40), "m.onnx").status()).reason, "MODEL_LIMIT");
}

}  // namespace
}  // namespace modelpress::client
