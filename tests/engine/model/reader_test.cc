#include <fcntl.h>
#include <sys/stat.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/model.h"
#include "engine/model/wire.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;
using ::testing::HasSubstr;

absl::StatusOr<Model> ReadBytes(const std::string& bytes, const ModelLimits& limits = {}) {
  TestFolder folder;
  folder.Write("m.onnx", bytes);
  return ReadModel(folder.Files(), "m.onnx", limits);
}

v1::Reason ReasonOfBytes(const std::string& bytes, const ModelLimits& limits = {}) {
  return ReasonOf(ReadBytes(bytes, limits).status());
}

onnx::ModelProto WithInitializer(const TensorProto& tensor) {
  onnx::ModelProto model;
  *model.mutable_graph()->add_initializer() = tensor;
  return model;
}

v1::Reason ReasonOfTensor(const TensorProto& tensor) { return ReasonOfBytes(WithInitializer(tensor).SerializeAsString()); }

std::string Field(int number, const std::string& content) {
  std::string bytes;
  AppendTag(bytes, number, WireType::kLength);
  AppendVarint(bytes, content.size());
  return bytes + content;
}

TEST(ReaderTest, KeepsLargeTensorsInTheFile) {
  TestFolder folder;
  folder.Write("dir/m.onnx", MakeModel(2000).SerializeAsString());
  auto model = ReadModel(folder.Files(), "dir/m.onnx");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->shell.graph().initializer_size(), 0);
  EXPECT_EQ(model->shell.graph().node_size(), 0);
  EXPECT_EQ(model->shell.graph().sparse_initializer_size(), 0);
  for (const Tensor& tensor : model->initializers) {
    EXPECT_LT(tensor.header.ByteSizeLong(), 100) << tensor.name();
    if (tensor.payload != nullptr && tensor.payload->size() >= 1024) {
      EXPECT_NE(tensor.payload->AsFileRange(), nullptr) << tensor.name();
    }
  }
  ASSERT_EQ(model->nodes.size(), 3);
  ASSERT_EQ(model->nodes[1].tensors.size(), 1);
  EXPECT_EQ(model->nodes[1].tensors[0].first, 1);
  EXPECT_FALSE(model->nodes[1].proto.attribute(1).has_t());
  EXPECT_TRUE(model->nodes[1].proto.attribute(0).has_t());
}

TEST(ReaderTest, RefusesWhatIsNoModel) {
  for (const std::string& bytes : {std::string(), std::string("hello, world"), std::string(100, '\0'), std::string("\x0b\x0c")}) {
    EXPECT_EQ(ReasonOfBytes(bytes), v1::MODEL_UNREADABLE) << bytes;
  }
  onnx::ModelProto no_graph;
  no_graph.set_ir_version(8);
  EXPECT_THAT(ReadBytes(no_graph.SerializeAsString()).status().message(), HasSubstr("no graph"));
  EXPECT_EQ(ReasonOf(ReadModel(FileSet({}), "m.onnx").status()), v1::FILE_NOT_FOUND);
}

// The model cut off at every byte and with every byte damaged: an answer, and a reason where it is an error.
TEST(ReaderTest, EveryTruncationAndDamageIsHandled) {
  const std::string bytes = MakeModel(8).SerializeAsString();
  TestFolder folder;
  for (size_t i = 0; i < bytes.size(); ++i) {
    folder.Write("m.onnx", bytes.substr(0, i));
    auto model = ReadModel(folder.Files(), "m.onnx", {.stream_threshold = 4});
    if (!model.ok()) {
      EXPECT_EQ(ReasonOf(model.status()), v1::MODEL_UNREADABLE) << i << ": " << model.status();
    }
    for (unsigned char flip : {0x80, 0xff}) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      folder.Write("m.onnx", damaged);
      auto result = ReadModel(folder.Files(), "m.onnx", {.stream_threshold = 4});
      EXPECT_TRUE(result.ok() || ReasonOf(result.status()) != v1::REASON_UNSPECIFIED) << result.status();
    }
  }
}

TEST(ReaderTest, HugeLengthsAllocateNothing) {
  for (uint64_t length : {uint64_t{1} << 31, uint64_t{1} << 40, ~uint64_t{0}}) {
    for (const std::string& prefix : {std::string("\x3a"), std::string("\x3a\x20\x2a"), std::string("\x3a\x20\x2a\x18\x4a")}) {
      std::string bytes = prefix;
      AppendVarint(bytes, length);
      bytes.resize(40, '\x01');
      EXPECT_EQ(ReasonOfBytes(bytes), v1::MODEL_UNREADABLE);
    }
  }
}

TEST(ReaderTest, ChecksDimsAndData) {
  TensorProto tensor = MakeRawTensor("w", 4);
  EXPECT_EQ(ReasonOfTensor(tensor), v1::REASON_UNSPECIFIED);
  tensor.set_dims(0, -4);
  EXPECT_EQ(ReasonOfTensor(tensor), v1::TENSOR_INVALID);
  tensor.set_dims(0, 5);
  EXPECT_EQ(ReasonOfTensor(tensor), v1::TENSOR_INVALID);
  tensor.set_dims(0, int64_t{1} << 62);
  tensor.add_dims(4);
  EXPECT_EQ(ReasonOfTensor(tensor), v1::MODEL_LIMIT);
  TensorProto many_dims = MakeTensor("w", TensorProto::FLOAT, std::vector<int64_t>(33, 1));
  many_dims.add_float_data(1);
  EXPECT_EQ(ReasonOfTensor(many_dims), v1::MODEL_LIMIT);

  TensorProto wrong_field = MakeTensor("w", TensorProto::FLOAT, {1});
  wrong_field.add_double_data(1);
  EXPECT_EQ(ReasonOfTensor(wrong_field), v1::TENSOR_INVALID);
  TensorProto both = MakeRawTensor("w", 1);
  both.add_float_data(1);
  EXPECT_EQ(ReasonOfTensor(both), v1::TENSOR_INVALID);
  EXPECT_EQ(ReasonOfTensor(MakeTensor("w", TensorProto::FLOAT, {1})), v1::TENSOR_INVALID);
  EXPECT_EQ(ReasonOfTensor(MakeTensor("w", 99, {})), v1::TENSOR_INVALID);
  TensorProto int4 = MakeTensor("w", TensorProto::INT4, {3});
  int4.set_raw_data("ab");
  EXPECT_EQ(ReasonOfTensor(int4), v1::REASON_UNSPECIFIED);
  int4.set_raw_data("abc");
  EXPECT_EQ(ReasonOfTensor(int4), v1::TENSOR_INVALID);
  TensorProto count = MakeTensor("w", TensorProto::INT64, {2});
  count.add_int64_data(-1);
  absl::Status status = ReadBytes(WithInitializer(count).SerializeAsString()).status();
  EXPECT_EQ(ReasonOf(status), v1::TENSOR_INVALID);
  EXPECT_EQ(PlaceOf(status).layer, "w");
  EXPECT_EQ(PlaceOf(status).file, "m.onnx");
}

TEST(ReaderTest, ChecksTensorsThatAreKeptWhole) {
  TensorProto bad = MakeRawTensor("inner", 4);
  bad.set_dims(0, 3);
  onnx::ModelProto in_subgraph;
  *AddNested(*in_subgraph.mutable_graph(), 2).add_initializer() = bad;
  onnx::ModelProto in_function;
  in_function.mutable_graph();
  *in_function.add_functions()->add_node()->add_attribute()->mutable_t() = bad;
  onnx::ModelProto in_sparse;
  *in_sparse.mutable_graph()->add_sparse_initializer()->mutable_values() = bad;
  onnx::ModelProto in_list;
  *in_list.mutable_graph()->add_node()->add_attribute()->add_tensors() = bad;
  onnx::ModelProto in_training;
  in_training.mutable_graph();
  *in_training.add_training_info()->mutable_initialization()->add_initializer() = bad;
  for (const onnx::ModelProto& model : {in_subgraph, in_function, in_sparse, in_list, in_training}) {
    EXPECT_EQ(ReasonOfBytes(model.SerializeAsString()), v1::TENSOR_INVALID);
  }
}

TEST(ReaderTest, CountsItemsDepthAndBytes) {
  onnx::ModelProto nested;
  AddNested(*nested.mutable_graph(), 30);
  EXPECT_EQ(ReasonOfBytes(nested.SerializeAsString()), v1::REASON_UNSPECIFIED);
  AddNested(*nested.mutable_graph(), 33);
  EXPECT_EQ(ReasonOfBytes(nested.SerializeAsString()), v1::MODEL_LIMIT);
  // A tag of two bytes per level must not become a stack frame per two bytes.
  std::string deep;
  for (int i = 0; i < 3000; ++i) {
    deep = Field(6, deep);
    deep = Field(5, deep);
    deep = Field(1, deep);
  }
  EXPECT_EQ(ReasonOfBytes(Field(7, deep)), v1::MODEL_LIMIT);

  onnx::ModelProto items = MakeModel(4);
  EXPECT_EQ(ReasonOfBytes(items.SerializeAsString(), {.max_items = 25}), v1::REASON_UNSPECIFIED);
  for (int i = 0; i < 10; ++i) {
    items.mutable_graph()->mutable_node(2)->mutable_attribute(0)->mutable_g()->add_node();
  }
  EXPECT_EQ(ReasonOfBytes(items.SerializeAsString(), {.max_items = 25}), v1::MODEL_LIMIT);

  onnx::ModelProto large = MakeModel(4);
  large.set_doc_string(std::string(10000, 'x'));
  EXPECT_EQ(ReasonOfBytes(large.SerializeAsString(), {.max_inline_bytes = 9000}), v1::MODEL_LIMIT);
  large.clear_doc_string();
  *large.mutable_graph()->add_initializer() = MakeRawTensor("w", 10000);
  EXPECT_EQ(ReasonOfBytes(large.SerializeAsString(), {.max_inline_bytes = 9000}), v1::REASON_UNSPECIFIED);
  // Empty messages cost more memory than bytes.
  EXPECT_EQ(ReasonOfBytes(Field(7, std::string(1, 0x72) + std::string(1, 0)) + std::string(), {}), v1::REASON_UNSPECIFIED);
  std::string annotations;
  for (int i = 0; i < 1000; ++i) {
    annotations += Field(14, "");
  }
  EXPECT_EQ(ReasonOfBytes(Field(7, annotations), {.max_inline_bytes = 9000}), v1::MODEL_LIMIT);
}

onnx::FunctionProto& AddFunction(onnx::ModelProto& model, const std::string& name, const std::vector<std::string>& calls) {
  onnx::FunctionProto& function = *model.add_functions();
  function.set_domain("local");
  function.set_name(name);
  for (const std::string& call : calls) {
    onnx::NodeProto& node = *function.add_node();
    node.set_domain("local");
    node.set_op_type(call);
  }
  return function;
}

TEST(ReaderTest, FollowsTheCallsOfFunctions) {
  onnx::ModelProto model = MakeModel(4);
  AddFunction(model, "f", {"g", "Relu"});
  AddFunction(model, "g", {"Relu"});
  EXPECT_EQ(ReasonOfBytes(model.SerializeAsString()), v1::REASON_UNSPECIFIED);

  onnx::ModelProto recursive = model;
  AddFunction(recursive, "h", {"i"});
  AddFunction(recursive, "i", {"f", "h"});
  const absl::Status status = ReadBytes(recursive.SerializeAsString()).status();
  EXPECT_EQ(ReasonOf(status), v1::GRAPH_INVALID);
  EXPECT_THAT(status.message(), HasSubstr("calls itself"));

  // The same through a subgraph.
  onnx::ModelProto hidden = model;
  onnx::FunctionProto& outer = AddFunction(hidden, "outer", {"If"});
  onnx::NodeProto& call = *outer.mutable_node(0)->add_attribute()->mutable_g()->add_node();
  call.set_domain("local");
  call.set_op_type("outer");
  EXPECT_EQ(ReasonOfBytes(hidden.SerializeAsString()), v1::GRAPH_INVALID);

  // Twelve functions of ten calls each stand for 10^12 nodes.
  onnx::ModelProto laughs = model;
  for (int i = 0; i < 12; ++i) {
    AddFunction(laughs, absl::StrCat("l", i), std::vector<std::string>(10, absl::StrCat("l", i + 1)));
  }
  EXPECT_EQ(ReasonOfBytes(laughs.SerializeAsString()), v1::MODEL_LIMIT);

  // A long chain of calls takes no stack.
  onnx::ModelProto chain = model;
  for (int i = 0; i < 100'000; ++i) {
    AddFunction(chain, absl::StrCat("c", i), {absl::StrCat("c", i + 1)});
  }
  EXPECT_EQ(ReasonOfBytes(chain.SerializeAsString()), v1::MODEL_LIMIT);
}

TEST(ReaderTest, LimitsWhatOneNodeHas) {
  onnx::ModelProto attributes = MakeModel(4);
  for (int i = 0; i <= kMaxNodeAttributes; ++i) {
    attributes.mutable_graph()->mutable_node(0)->add_attribute();
  }
  EXPECT_EQ(ReasonOfBytes(attributes.SerializeAsString()), v1::MODEL_LIMIT);

  onnx::ModelProto inputs = MakeModel(4);
  for (int i = 0; i <= kMaxNodeValues; ++i) {
    inputs.mutable_graph()->mutable_node(0)->add_input("x");
  }
  EXPECT_EQ(ReasonOfBytes(inputs.SerializeAsString()), v1::MODEL_LIMIT);

  const std::string name(kMaxModelNameBytes + 1, 'n');
  for (const auto& set : std::vector<std::function<void(onnx::GraphProto&)>>{
           [&](onnx::GraphProto& graph) { graph.mutable_node(0)->set_name(name); },
           [&](onnx::GraphProto& graph) { graph.mutable_node(0)->add_output(name); },
           [&](onnx::GraphProto& graph) { graph.mutable_node(0)->set_op_type(name); },
           [&](onnx::GraphProto& graph) { graph.add_initializer()->set_name(name); },
           [&](onnx::GraphProto& graph) { graph.add_value_info()->set_name(name); },
           [&](onnx::GraphProto& graph) { graph.add_node()->add_attribute()->mutable_g()->add_node()->set_name(name); },
           [&](onnx::GraphProto& graph) { graph.add_node()->add_attribute()->mutable_g()->add_input()->set_name(name); }}) {
    onnx::ModelProto model = MakeModel(4);
    set(*model.mutable_graph());
    EXPECT_EQ(ReasonOfBytes(model.SerializeAsString()), v1::MODEL_LIMIT);
  }
}

TEST(ReaderTest, RefusesWindowsThatWouldBeDividedByZero) {
  for (const char* name : {"strides", "dilations", "kernel_shape"}) {
    onnx::ModelProto model = MakeModel(4);
    onnx::AttributeProto& attribute = *model.mutable_graph()->mutable_node(0)->add_attribute();
    attribute.set_name(name);
    attribute.add_ints(1);
    EXPECT_EQ(ReasonOfBytes(model.SerializeAsString()), v1::REASON_UNSPECIFIED);
    attribute.add_ints(0);
    EXPECT_EQ(ReasonOfBytes(model.SerializeAsString()), v1::GRAPH_INVALID);
  }
}

// What protobuf merges, we merge: unpacked and split data fields, a graph and an attribute's tensor in several parts.
TEST(ReaderTest, MergesLikeProtobuf) {
  std::string header = Field(8, "w");
  for (int value : {0x0803, 0x1001}) {  // dims 3, data_type FLOAT
    header.push_back(static_cast<char>(value >> 8));
    header.push_back(static_cast<char>(value & 0xff));
  }
  const std::string one("\x00\x00\x80\x3f", 4);
  const std::string two("\x00\x00\x00\x40", 4);
  const std::string data = Field(4, one) + "\x25" + two + Field(4, one);  // packed, unpacked, packed
  const std::string tensor = header + data;
  const std::string attribute = Field(5, header) + Field(1, "value") + Field(5, data);
  const std::string bytes = Field(7, Field(5, tensor) + Field(2, "a")) + Field(7, Field(2, "b") + Field(1, Field(5, attribute)));
  for (uint64_t threshold : {uint64_t{4}, uint64_t{1024}}) {
    auto model = ReadBytes(bytes, {.stream_threshold = threshold});
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->shell.graph().name(), "b");
    onnx::ModelProto parsed;
    ASSERT_TRUE(parsed.ParseFromString(bytes));
    EXPECT_EQ(ToProto(model->initializers[0])->SerializeAsString(), parsed.graph().initializer(0).SerializeAsString());
    const Node& node = model->nodes[0];
    const TensorProto t = node.tensors.empty() ? node.proto.attribute(0).t() : *ToProto(node.tensors[0].second);
    EXPECT_EQ(node.tensors.empty(), threshold == 1024);
    EXPECT_EQ(t.SerializeAsString(), parsed.graph().node(0).attribute(0).t().SerializeAsString());
  }
}

class ExternalDataTest : public ::testing::Test {
 protected:
  absl::StatusOr<Model> Read(const std::vector<std::pair<std::string, std::string>>& entries) {
    TensorProto tensor = MakeRawTensor("w", 4);
    MakeExternal(tensor, entries);
    folder_.Write("dir/m.onnx", WithInitializer(tensor).SerializeAsString());
    return ReadModel(folder_.Files(), "dir/m.onnx");
  }
  v1::Reason ReasonFor(const std::vector<std::pair<std::string, std::string>>& entries) {
    return ReasonOf(Read(entries).status());
  }

  TestFolder folder_;
};

TEST_F(ExternalDataTest, IsLeftWhereItIs) {
  folder_.Write("dir/sub/w.bin", std::string(8, 'a') + Pattern(16) + "b");
  auto model = Read({{"location", "./sub/w.bin"}, {"offset", "8"}, {"length", "16"}, {"checksum", "?"}});
  ASSERT_TRUE(model.ok()) << model.status();
  const Tensor& tensor = model->initializers[0];
  EXPECT_TRUE(tensor.external);
  EXPECT_EQ(tensor.field, DataField::kRaw);
  EXPECT_FALSE(tensor.header.has_data_location());
  EXPECT_EQ(tensor.header.external_data_size(), 0);
  ASSERT_NE(tensor.payload->AsFileRange(), nullptr);
  EXPECT_EQ(ToProto(tensor)->raw_data(), Pattern(16));
}

TEST_F(ExternalDataTest, LengthDefaultsToTheEndOfTheFile) {
  folder_.Write("dir/w.bin", std::string(8, 'a') + Pattern(16));
  EXPECT_EQ(ReasonFor({{"location", "w.bin"}, {"offset", "8"}}), v1::REASON_UNSPECIFIED);
  EXPECT_EQ(ReasonFor({{"location", "w.bin"}}), v1::TENSOR_INVALID);
}

TEST_F(ExternalDataTest, RefusesPlacesOutsideFolderAndFile) {
  folder_.Write("x", Pattern(16));
  folder_.Write("dir/w.bin", Pattern(16));
  for (const std::string location : {"../x", "/etc/passwd", "a/../../x", "..", "", ".", "a\\w.bin", "/"}) {
    EXPECT_EQ(ReasonFor({{"location", location}}), v1::MODEL_EXTERNAL_DATA) << location;
  }
  EXPECT_EQ(ReasonFor({}), v1::MODEL_EXTERNAL_DATA);
  for (const std::string offset : {"17", "1", "-1", "x", "18446744073709551615", "18446744073709551616"}) {
    EXPECT_EQ(ReasonFor({{"location", "w.bin"}, {"offset", offset}, {"length", "16"}}), v1::MODEL_EXTERNAL_DATA) << offset;
  }
  EXPECT_EQ(ReasonFor({{"location", "w.bin"}, {"length", "18446744073709551615"}}), v1::MODEL_EXTERNAL_DATA);
  EXPECT_EQ(ReasonFor({{"location", "w.bin"}, {"length", "12"}}), v1::TENSOR_INVALID);
}

TEST_F(ExternalDataTest, AllMissingFilesAreReportedAtOnce) {
  onnx::ModelProto model;
  for (const char* name : {"b", "a"}) {
    MakeExternal(*model.mutable_graph()->add_initializer() = MakeRawTensor(name, 4), {{"location", name}});
  }
  TensorProto& inner = *AddNested(*model.mutable_graph(), 1).add_initializer() = MakeRawTensor("c", 4);
  MakeExternal(inner, {{"location", "c"}});
  folder_.Write("dir/m.onnx", model.SerializeAsString());
  absl::Status status = ReadModel(folder_.Files(), "dir/m.onnx").status();
  EXPECT_EQ(ReasonOf(status), v1::FILE_NOT_FOUND);
  EXPECT_EQ(MetadataOf(status)["missing"], "dir/a\ndir/b\ndir/c");
}

TEST_F(ExternalDataTest, InSubgraphsIsLoadedWithinTheLimit) {
  folder_.Write("dir/w.bin", Pattern(4096));
  onnx::ModelProto model;
  TensorProto& inner = *AddNested(*model.mutable_graph(), 1).add_initializer() = MakeRawTensor("inner", 1024);
  MakeExternal(inner, {{"location", "w.bin"}});
  folder_.Write("dir/m.onnx", model.SerializeAsString());
  auto read = ReadModel(folder_.Files(), "dir/m.onnx");
  ASSERT_TRUE(read.ok()) << read.status();
  const TensorProto& loaded = read->nodes[0].proto.attribute(0).g().initializer(0);
  EXPECT_EQ(loaded.SerializeAsString(), MakeRawTensor("inner", 1024).SerializeAsString());
  EXPECT_EQ(ReasonOf(ReadModel(folder_.Files(), "dir/m.onnx", {.max_inline_bytes = 4000}).status()), v1::MODEL_LIMIT);
}

TEST_F(ExternalDataTest, HasALimitOfFiles) {
  onnx::ModelProto model;
  for (int i = 0; i < 3; ++i) {
    const std::string name = absl::StrCat("w", i);
    folder_.Write(name, Pattern(16));
    MakeExternal(*model.mutable_graph()->add_initializer() = MakeRawTensor(name, 4), {{"location", name}});
  }
  folder_.Write("m.onnx", model.SerializeAsString());
  EXPECT_TRUE(ReadModel(folder_.Files(), "m.onnx", {.max_external_files = 3}).ok());
  EXPECT_EQ(ReasonOf(ReadModel(folder_.Files(), "m.onnx", {.max_external_files = 2}).status()), v1::MODEL_LIMIT);
}

TEST_F(ExternalDataTest, OfConstantsIsLeftWhereItIs) {
  folder_.Write("dir/w.bin", Pattern(16));
  onnx::ModelProto model;
  TensorProto& value = *model.mutable_graph()->add_node()->add_attribute()->mutable_t() = MakeRawTensor("", 4);
  MakeExternal(value, {{"location", "w.bin"}});
  folder_.Write("dir/m.onnx", model.SerializeAsString());
  auto read = ReadModel(folder_.Files(), "dir/m.onnx");
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->nodes[0].tensors.size(), 1);
  EXPECT_EQ(ToProto(read->nodes[0].tensors[0].second)->raw_data(), Pattern(16));
}

TEST(InputFileTest, OnlyRegularFiles) {
  TestFolder folder;
  folder.Write("file", "abc");
  std::filesystem::create_symlink(folder.Path("file"), folder.Path("link"));
  ASSERT_EQ(mkfifo(folder.Path("pipe").c_str(), 0600), 0);
  for (const char* name : {"link", "pipe", ".", "nothing"}) {
    EXPECT_EQ(ReasonOf(InputFile::Open(name, folder.Path(name)).status()), v1::STORAGE_ERROR) << name;
  }
  auto file = InputFile::Open("file", folder.Path("file"));
  ASSERT_TRUE(file.ok());
  std::vector<uint8_t> bytes(2);
  EXPECT_TRUE((*file)->ReadAt(1, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(bytes[0], 'b');
  EXPECT_EQ(ReasonOf((*file)->ReadAt(2, absl::MakeSpan(bytes))), v1::STORAGE_ERROR);
}

}  // namespace
}  // namespace modelpress::engine
