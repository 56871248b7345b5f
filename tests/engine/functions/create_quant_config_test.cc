#include "engine/functions/create_quant_config.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/base/status.h"
#include "engine/functions/ptq_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

class CreateQuantConfigTest : public testing::Test {
 protected:
  CreateQuantConfigTest() {
    std::string name = (fs::temp_directory_path() / "modelpress-XXXXXX").string();
    folder_ = mkdtemp(name.data());
    fs::create_directory(folder_ / "out");
    ModelBuilder builder;
    builder.Input("input", {1, 2, 4, 4}).Initializer("a.weight", {2, 2, 1, 1}, {1, 2, 3, 4}).Output("y");
    builder.Node("Conv", "same", {"input", "a.weight"}, {"x"});
    builder.Node("Relu", "same", {"x"}, {"y"});
    Write("model.onnx", builder.proto().SerializeAsString());
  }
  ~CreateQuantConfigTest() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    paths_[name] = (folder_ / name).string();
  }

  absl::StatusOr<SavedConfig> Create(CreateQuantConfigCall call, bool validate_only = false) {
    if (call.model.empty()) {
      call.model = "model.onnx";
    }
    const FileSet files(paths_);
    CallContext context;
    context.files = &files;
    context.output_root = (folder_ / "out").string();
    context.validate_only = validate_only;
    return CreateQuantConfig(context, call);
  }

  std::string Written(const std::string& name) {
    std::ifstream stream(folder_ / "out" / name, std::ios::binary);
    std::ostringstream content;
    content << stream.rdbuf();
    return content.str();
  }

  fs::path folder_;
  std::map<std::string, std::string> paths_;
};

TEST_F(CreateQuantConfigTest, WritesTheFile) {
  const absl::StatusOr<SavedConfig> saved = Create({.config_file = "new/folder/c.json", .arguments = {.batch_num = 7}});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ("new/folder/c.json", saved->config_file.name);
  EXPECT_EQ(64, saved->config_file.sha256.size());
  EXPECT_THAT(Written("new/folder/c.json"), HasSubstr("\"batch_num\":7"));
  EXPECT_EQ(fs::file_size(folder_ / "out/new/folder/c.json"), saved->config_file.size);
}

TEST_F(CreateQuantConfigTest, ValidateOnlyChecksAndWritesNothing) {
  const absl::StatusOr<SavedConfig> saved = Create({.config_file = "c.json"}, true);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ("", saved->config_file.name);
  EXPECT_TRUE(fs::is_empty(folder_ / "out"));
  EXPECT_FALSE(Create({.config_file = "c.json", .arguments = {.batch_num = 0}}, true).ok());
}

TEST_F(CreateQuantConfigTest, ErrorsNameTheFieldTheyCameInBy) {
  Write("bad.cfg", "batch_num: 1\nskip_layers: 'zz'");
  Write("bad.json", "{\"modules\": 1}");
  struct Case {
    CreateQuantConfigCall call;
    v1::Reason reason;
    const char* field;
    const char* file;
    const char* layer;
  };
  for (const Case& c : std::vector<Case>{
           {{.config_file = ""}, v1::NAME_INVALID, "config_file", "", ""},
           {{.config_file = "a/"}, v1::NAME_INVALID, "config_file", "", ""},
           {{.config_file = "/etc/x"}, v1::NAME_INVALID, "config_file", "", ""},
           {{.config_file = "../x"}, v1::NAME_INVALID, "config_file", "", ""},
           {{.config_file = std::string(255, 'x')}, v1::NAME_INVALID, "config_file", "", ""},
           {{.config_file = "c", .model = "none.onnx"}, v1::FILE_NOT_FOUND, "model", "none.onnx", ""},
           {{.config_file = "c", .model = "bad.cfg"}, v1::MODEL_UNREADABLE, "model", "bad.cfg", ""},
           {{.config_file = "c", .arguments = {.skip_layers = {"zz"}}}, v1::CONFIG_UNKNOWN_LAYER, "skip_layers", "", "zz"},
           {{.config_file = "c", .config_definition = "no.cfg"}, v1::FILE_NOT_FOUND, "config_definition", "no.cfg", ""},
           {{.config_file = "c", .config_definition = "bad.cfg"}, v1::CONFIG_UNKNOWN_LAYER, "config_definition", "bad.cfg", "zz"},
           {{.config_file = "c", .module_manifest = "bad.json"}, v1::MANIFEST_INVALID, "module_manifest", "bad.json", ""},
           {{.config_file = "c", .kv_cache = true, .kv_cache_layers = {"a"}},
            v1::CONFIG_UNKNOWN_LAYER,
            "kv_cache_layers",
            "",
            "a"},
       }) {
    const absl::Status status = Create(c.call).status();
    EXPECT_EQ(c.reason, ReasonOf(status)) << status;
    EXPECT_EQ(c.field, PlaceOf(status).field) << status;
    EXPECT_EQ(c.file, PlaceOf(status).file) << status;
    EXPECT_EQ(c.layer, PlaceOf(status).layer) << status;
    EXPECT_TRUE(fs::is_empty(folder_ / "out"));
  }
}

TEST_F(CreateQuantConfigTest, AModelWithoutLayersIsToBlameItself) {
  ModelBuilder builder;
  builder.Input("input", {1}).Output("y").Node("Relu", "r", {"input"}, {"y"});
  Write("relu.onnx", builder.proto().SerializeAsString());
  const absl::Status status = Create({.config_file = "c", .model = "relu.onnx"}).status();
  EXPECT_EQ(v1::CONFIG_EMPTY, ReasonOf(status));
  EXPECT_EQ("model", PlaceOf(status).field);
  EXPECT_EQ("relu.onnx", PlaceOf(status).file);
}

TEST_F(CreateQuantConfigTest, ArgumentsBesideADefinitionAreWarnedOf) {
  Write("in.cfg", "");
  const absl::StatusOr<SavedConfig> saved =
      Create({.config_file = "c", .arguments = {.skip_layers = {"a"}}, .config_definition = "in.cfg"});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_THAT(saved->warnings, ElementsAre(HasSubstr("no effect")));
}

TEST_F(CreateQuantConfigTest, ReadsModelsWithRepeatedNodeNames) {
  const FileSet files(paths_);
  CallContext context;
  context.files = &files;
  const absl::StatusOr<NamedModel> model = ReadNamedModel(context, "model.onnx", "model", "");
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_EQ(model->layers.layers.size(), 1);
  const Layer& layer = model->layers.layers[0];
  EXPECT_TRUE(model->graph.item(layer.node).Is("Conv"));
  EXPECT_EQ(model->graph.item(layer.node).name, layer.config.name);
  EXPECT_TRUE(model->graph.item(model->graph.Find("same_1")).Is("Relu"));
  EXPECT_THAT(model->files_read, UnorderedElementsAre("model.onnx"));
}

TEST_F(CreateQuantConfigTest, QuantizedModelsAreRefused) {
  ModelBuilder builder;
  builder.Input("input", {1}).Output("y").Node("AscendQuant", "q", {"input"}, {"y"});
  Write("deploy.onnx", builder.proto().SerializeAsString());
  const absl::Status status = Create({.config_file = "c", .model = "deploy.onnx"}).status();
  EXPECT_EQ(v1::MODEL_MARKED, ReasonOf(status));
  EXPECT_EQ("q", PlaceOf(status).layer);
}

}  // namespace
}  // namespace modelpress::engine
