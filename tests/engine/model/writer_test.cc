#include "engine/model/writer.h"

#include <sys/stat.h>

#include <cstring>

#include "engine/base/status.h"
#include "engine/model/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_testing.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

Model ReadProto(const TestFolder& folder, const std::string& name, const onnx::ModelProto& proto) {
  folder.Write(name, proto.SerializeAsString());
  auto model = ReadModel(folder.Files(), name);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// Writes one model and commits; returns the names.
std::vector<std::string> WriteModel(const TestFolder& folder, const Model& model, const WriteOptions& options = {}) {
  auto output = OutputFolder::Create(folder.string());
  EXPECT_TRUE(output.ok()) << output.status();
  const ModelFile file = {.model = &model, .file_name = "out.onnx", .external_suffix = "_deploy"};
  absl::Status status = (*output)->AddModels({file}, options);
  EXPECT_TRUE(status.ok()) << status;
  status = (*output)->Commit();
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> names;
  for (const WrittenFile& written : (*output)->files()) {
    names.push_back(written.name);
  }
  return names;
}

// Fails from `bad` on.
class BrokenPayload final : public Payload {
 public:
  BrokenPayload(uint64_t size, uint64_t bad) : size_(size), bad_(bad) {}
  uint64_t size() const override { return size_; }
  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const override {
    if (offset + out.size() > bad_) {
      return MakeError(v1::TENSOR_INVALID, "not finite after " + std::to_string(std::max(bad_, offset)));
    }
    std::fill(out.begin(), out.end(), 1);
    return absl::OkStatus();
  }

 private:
  uint64_t size_;
  uint64_t bad_;
};

TEST(WriterTest, WritesWhatProtobufWouldSerialize) {
  for (int elements : {1, 100, 2000, 400000}) {
    TestFolder in;
    TestFolder out;
    const onnx::ModelProto proto = MakeModel(elements);
    EXPECT_THAT(WriteModel(out, ReadProto(in, "m.onnx", proto), {.threads = 2}), ElementsAre("out.onnx"));
    EXPECT_TRUE(out.Read("out.onnx") == proto.SerializeAsString()) << elements;
  }
}

TEST(WriterTest, WritesWhatProtobufWouldSerializeWhenPartsAreAbsent) {
  std::vector<onnx::ModelProto> protos(6);
  protos[0].mutable_graph();
  protos[1].mutable_graph()->add_node();
  *protos[2].mutable_graph()->add_initializer() = MakeRawTensor("w", 2000);
  protos[3].mutable_graph()->set_doc_string("d");
  protos[3].add_functions();
  *protos[3].mutable_graph()->add_initializer() = MakeRawTensor("w", 2000);
  *protos[4].mutable_graph()->add_node()->add_attribute()->mutable_t() = MakeRawTensor("w", 2000);
  protos[5].mutable_graph()->add_sparse_initializer();
  protos[5].mutable_graph()->add_metadata_props();
  protos[5].set_ir_version(3);
  // A field that onnx.proto does not know stays.
  protos[5].mutable_unknown_fields()->AddVarint(127, 7);
  protos[5].mutable_graph()->mutable_unknown_fields()->AddVarint(127, 8);
  for (const onnx::ModelProto& proto : protos) {
    TestFolder in;
    TestFolder out;
    WriteModel(out, ReadProto(in, "m.onnx", proto));
    EXPECT_EQ(out.Read("out.onnx"), proto.SerializeAsString());
  }
}

TEST(WriterTest, ExternalInputBecomesExternalOutput) {
  TestFolder in;
  TestFolder out;
  in.Write("w.bin", Pattern(40));
  onnx::ModelProto proto;
  TensorProto& tensor = *proto.mutable_graph()->add_initializer() = MakeRawTensor("a/b", 10);
  tensor.set_doc_string("kept");
  MakeExternal(tensor, {{"location", "w.bin"}});
  MakeExternal(*proto.mutable_graph()->add_initializer() = MakeRawTensor("a_b", 10), {{"location", "w.bin"}});
  *proto.mutable_graph()->add_initializer() = MakeRawTensor("inline", 3000);
  EXPECT_THAT(WriteModel(out, ReadProto(in, "m.onnx", proto)),
              ElementsAre("out.onnx", "a_b_deploy.external", "a_b_1_deploy.external"));
  EXPECT_EQ(out.Read("a_b_deploy.external"), Pattern(40));
  EXPECT_EQ(out.Read("a_b_1_deploy.external"), Pattern(40));

  const std::string names[] = {"a_b_deploy.external", "a_b_1_deploy.external"};
  for (int i = 0; i < 2; ++i) {
    TensorProto& expected = *proto.mutable_graph()->mutable_initializer(i);
    expected.clear_external_data();
    MakeExternal(expected, {{"location", names[i]}, {"offset", "0"}, {"length", "40"}});
  }
  EXPECT_EQ(out.Read("out.onnx"), proto.SerializeAsString());
  EXPECT_TRUE(ReadModel(out.Files(), "out.onnx").ok());
}

// A quantized bias that came from an external file: packed in memory, little-endian elements in its file.
TEST(WriterTest, ExternalFilesHoldElements) {
  TestFolder out;
  Model model;
  model.shell.mutable_graph();
  TensorProto bias = MakeTensor("bias", TensorProto::INT32, {3});
  for (int value : {1, -2, 300}) {
    bias.add_int32_data(value);
  }
  model.initializers.push_back(FromProto(bias));
  model.initializers[0].external = true;
  WriteModel(out, model);
  const int32_t expected[] = {1, -2, 300};
  std::string bytes = out.Read("bias_deploy.external");
  ASSERT_EQ(bytes.size(), sizeof(expected));
  EXPECT_EQ(std::memcmp(bytes.data(), expected, sizeof(expected)), 0);
}

// Largest first, ties in the order of the file, until the whole is below the limit; then it reads back the same.
TEST(WriterTest, LargeModelsSpillTheirLargestTensors) {
  TestFolder in;
  onnx::ModelProto proto;
  for (int i = 0; i < 4; ++i) {
    *proto.mutable_graph()->add_initializer() = MakeRawTensor("w" + std::to_string(i), i == 2 ? 5000 : 4000, i);
  }
  const Model model = ReadProto(in, "m.onnx", proto);
  const uint64_t whole = proto.ByteSizeLong();
  struct Case {
    uint64_t limit;
    std::vector<std::string> names;
  };
  const Case cases[] = {{whole + 1, {}},
                        {whole, {"w2"}},
                        {whole - 20000, {"w0", "w2"}},
                        {17000, {"w0", "w1", "w2"}},
                        {0, {"w0", "w1", "w2", "w3"}}};
  for (const Case& c : cases) {
    TestFolder out;
    std::vector<std::string> expected = {"out.onnx"};
    for (const std::string& name : c.names) {
      expected.push_back(name + "_deploy.external");
    }
    EXPECT_EQ(WriteModel(out, model, {.externalize_at = c.limit}), expected);
    auto back = ReadModel(out.Files(), "out.onnx");
    ASSERT_TRUE(back.ok()) << back.status();
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(ToProto(back->initializers[i])->SerializeAsString(), proto.graph().initializer(i).SerializeAsString());
    }
  }
}

TEST(WriterTest, NamesOfExternalFilesAreLegalAndDistinct) {
  TestFolder out;
  Model model;
  model.shell.mutable_graph();
  for (const std::string& name :
       {std::string("../x"), std::string("a:b*c?d\"e<f>g|h\\i"), std::string(300, 'n'), std::string(301, 'n'), std::string()}) {
    model.initializers.push_back(FromProto(MakeRawTensor(name, 1)));
    model.initializers.back().external = true;
  }
  EXPECT_THAT(WriteModel(out, model), ElementsAre("out.onnx", ".._x_deploy.external", "a_b_c_d_e_f_g_h_i_deploy.external",
                                                  std::string(239, 'n') + "_deploy.external",
                                                  std::string(237, 'n') + "_1_deploy.external", "_deploy.external"));
}

TEST(WriterTest, SameBytesWithAnyNumberOfThreads) {
  TestFolder in;
  in.Write("big.bin", Pattern(size_t{3500000} * 4));
  onnx::ModelProto proto = MakeModel(300000);
  MakeExternal(*proto.mutable_graph()->add_initializer() = MakeRawTensor("big", 3500000), {{"location", "big.bin"}});
  *proto.mutable_graph()->add_initializer() = MakeRawTensor("inline_big", 2500000);
  const Model model = ReadProto(in, "m.onnx", proto);
  Model other = model;  // the same tensors, other sizes
  other.initializers[0] = FromProto(MakeRawTensor("inline_big2", 700000, 5));
  std::map<std::string, std::string> first;
  for (int threads : {1, 4, 3}) {
    TestFolder out;
    auto output = OutputFolder::Create(out.string());
    ASSERT_TRUE(output.ok());
    uint64_t last = 0;
    uint64_t total = 0;
    const ModelFile files[] = {{.model = &model, .file_name = "a.onnx", .external_suffix = "_deploy"},
                               {.model = &other, .file_name = "b.onnx", .external_suffix = "_fakequant"}};
    absl::Status status = (*output)->AddModels(files, {.threads = threads, .progress = [&](uint64_t done, uint64_t of) {
                                                         EXPECT_GT(done, last);
                                                         last = done;
                                                         total = of;
                                                       }});
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(last, total);
    ASSERT_EQ((*output)->files().size(), 4);
    uint64_t sum = 0;
    std::map<std::string, std::string> digests;
    for (const WrittenFile& file : (*output)->files()) {
      digests[file.name] = file.sha256;
      sum += file.size;
      EXPECT_EQ(std::filesystem::file_size((*output)->StagedPath(file.name)), file.size);
    }
    EXPECT_EQ(sum, total);
    EXPECT_TRUE(first.empty() || digests == first);
    first = digests;
    EXPECT_EQ(out.List().size(), 1) << "only the temporary folder before Commit";
  }
}

TEST(WriterTest, DigestsAndModesAreRight) {
  TestFolder in;
  TestFolder out;
  const std::string path = in.Write("source", "abc");
  auto source = InputFile::Open("source", path);
  ASSERT_TRUE(source.ok());
  auto output = OutputFolder::Create(out.Path("x/y"));
  ASSERT_TRUE(output.ok()) << output.status();
  const mode_t umask_before = umask(0077);
  EXPECT_TRUE((*output)->AddFile("empty", "").ok());
  EXPECT_TRUE((*output)->AddFile("text", "abc").ok());
  EXPECT_TRUE((*output)->AddCopy("copy", **source).ok());
  EXPECT_EQ(ReasonOf((*output)->AddFile("text", "again")), v1::NAME_INVALID);
  for (const char* name : {"a/b", "", "..", "/"}) {
    EXPECT_EQ(ReasonOf((*output)->AddFile(name, "x")), v1::NAME_INVALID) << name;
  }
  out.Write("x/y/text", "old content");
  EXPECT_TRUE((*output)->Commit().ok());
  umask(umask_before);
  const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const std::vector<WrittenFile>& files = (*output)->files();
  ASSERT_EQ(files.size(), 3);
  EXPECT_EQ(files[0].sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(files[1].sha256, abc);
  EXPECT_EQ(files[2].sha256, abc);
  EXPECT_EQ(files[2].size, 3);
  for (const WrittenFile& file : files) {
    struct stat info{};
    ASSERT_EQ(stat(out.Path("x/y/" + file.name).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0640);
  }
  EXPECT_EQ(out.Read("x/y/text"), "abc");
  struct stat info{};
  ASSERT_EQ(stat(out.Path("x/y").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0750 & ~umask_before);
  ASSERT_EQ(stat(out.Path("x").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0777 & ~umask_before);
  EXPECT_EQ(TestFolder().List().size(), 0);
}

TEST(WriterTest, LeavesNothingUnlessCommitted) {
  TestFolder out;
  {
    auto output = OutputFolder::Create(out.string());
    ASSERT_TRUE(output.ok());
    ASSERT_TRUE((*output)->AddFile("text", "abc").ok());
  }
  EXPECT_THAT(out.List(), IsEmpty());
}

// The error is that of the first bad chunk, whichever thread meets which first; nothing stays.
TEST(WriterTest, TheFirstErrorInTheFilesWins) {
  for (int threads : {1, 2, 4, 4, 4, 4}) {
    TestFolder out;
    Model model;
    model.shell.mutable_graph();
    for (const auto& [name, bad] : {std::pair<std::string, uint64_t>{"good", 8000000}, {"bad", 5500000}, {"worse", 0}}) {
      Tensor tensor = {.header = MakeTensor(name, TensorProto::INT8, {8000000}), .field = DataField::kRaw};
      tensor.payload = std::make_shared<BrokenPayload>(8000000, bad);
      model.initializers.push_back(tensor);
    }
    {
      auto output = OutputFolder::Create(out.string());
      ASSERT_TRUE(output.ok());
      const ModelFile file = {.model = &model, .file_name = "out.onnx", .external_suffix = ""};
      absl::Status status = (*output)->AddModels({file}, {.threads = threads});
      EXPECT_EQ(ReasonOf(status), v1::TENSOR_INVALID);
      EXPECT_EQ(status.message(), "layer 'bad': not finite after 5500000");
      EXPECT_THAT((*output)->files(), IsEmpty());
    }
    EXPECT_THAT(out.List(), IsEmpty());
  }
}

TEST(WriterTest, RefusesModelsTooLargeForProtobuf) {
  TestFolder out;
  Model model;
  model.shell.mutable_graph();
  Node& node = model.nodes.emplace_back();
  node.proto.add_attribute()->set_name("value");
  constexpr int64_t kSize = int64_t{1} << 31;
  node.tensors.emplace_back(0, Tensor{.header = MakeTensor("", TensorProto::INT8, {kSize}),
                                      .field = DataField::kRaw,
                                      .payload = std::make_shared<BrokenPayload>(kSize, kSize)});
  auto output = OutputFolder::Create(out.string());
  ASSERT_TRUE(output.ok());
  const ModelFile file = {.model = &model, .file_name = "out.onnx", .external_suffix = ""};
  EXPECT_EQ(ReasonOf((*output)->AddModels({file}, {})), v1::MODEL_LIMIT);
}

}  // namespace
}  // namespace modelpress::engine
