#include "engine/functions/functions.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "engine/base/status.h"
#include "engine/functions/save_model.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

TEST(SavePathTest, SplitsFolderAndPrefix) {
  struct Case {
    const char* save_path;
    const char* folder;
    const char* deploy;
  };
  for (const Case& c : {Case{"", "", "deploy_model.onnx"}, Case{"res/", "res", "res/deploy_model.onnx"},
                        Case{"res/x", "res", "res/x_deploy_model.onnx"},
                        Case{"a/b/x.onnx", "a/b", "a/b/x.onnx_deploy_model.onnx"}, Case{"x", "", "x_deploy_model.onnx"}}) {
    absl::StatusOr<SavePath> path = SavePath::Parse(c.save_path);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(path->folder, c.folder);
    EXPECT_EQ(path->WorkspaceName(path->FileName("deploy_model.onnx")), c.deploy);
  }
}

TEST(SavePathTest, RefusesWhatCouldLeaveTheWorkspaceOrDoesNotFit) {
  for (const std::string& bad :
       {std::string("/abs"), std::string("../x"), std::string("a/../x"), std::string("a//x"), std::string("."),
        std::string("a/."), std::string("a\\b"), std::string("a\nb"), std::string(234, 'x')}) {
    EXPECT_EQ(ReasonOf(SavePath::Parse(bad).status()), v1::NAME_INVALID) << bad;
  }
  EXPECT_TRUE(SavePath::Parse(std::string(233, 'x')).ok());
}

class SaveModelTest : public testing::Test {
 protected:
  SaveModelTest() {
    std::string name = (std::filesystem::temp_directory_path() / "modelpress-XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~SaveModelTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<SavedModels> Save(const ModelBuilder& builder, const ReferenceDefects& defects, bool validate_only = false) {
    ModelBuilder copy = builder;
    std::ofstream(folder_ / "m.onnx", std::ios::binary) << copy.proto().SerializeAsString();
    std::ofstream(folder_ / "r.txt") << R"(record { key: "fc" value { scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0 } })";
    const FileSet files({{"m.onnx", (folder_ / "m.onnx").string()}, {"r.txt", (folder_ / "r.txt").string()}});
    CallContext context;
    context.files = &files;
    context.output_root = (folder_ / "out").string();
    context.defects = defects;
    context.validate_only = validate_only;
    return SaveModel(context, "m.onnx", "r.txt", "x");
  }
  Model ReadOutput(const std::string& name) {
    absl::StatusOr<Model> model = ReadModel(FileSet({{name, (folder_ / "out" / name).string()}}), name);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // A Gemm whose output an If reads in both of its branches.
  static ModelBuilder GemmAndIf(int64_t opset = 13) {
    ModelBuilder builder(opset);
    builder.Input("x", {1, 2}).Output("z").Initializer("w", {2, 2}, {1, 2, 3, 4});
    builder.proto().mutable_graph()->add_input()->set_name("cond");
    auto& type = *builder.proto().mutable_graph()->mutable_input(1)->mutable_type()->mutable_tensor_type();
    type.set_elem_type(onnx::TensorProto::BOOL);
    type.mutable_shape();
    builder.Node("Gemm", "fc", {"x", "w"}, {"y"});
    auto& node = builder.Node("If", "if", {"cond"}, {"z"});
    for (const char* name : {"then_branch", "else_branch"}) {
      auto& attribute = *node.add_attribute();
      attribute.set_name(name);
      attribute.set_type(onnx::AttributeProto::GRAPH);
      auto& graph = *attribute.mutable_g();
      graph.set_name(name);
      auto& inner = *graph.add_node();
      inner.set_op_type("Relu");
      inner.add_input("y");
      inner.add_output("inner");
      graph.add_output()->set_name("inner");
      graph.mutable_output(0)->mutable_type()->mutable_tensor_type()->set_elem_type(onnx::TensorProto::FLOAT);
    }
    return builder;
  }

  static std::string InputOfBranch(const Model& model) {
    for (const Node& node : model.nodes) {
      if (node.proto.op_type() == "If") {
        return node.proto.attribute(0).g().node(0).input(0);
      }
    }
    return "";
  }

  std::filesystem::path folder_;
};

TEST_F(SaveModelTest, SubgraphsReadTheDequantizedTensor) {
  absl::StatusOr<SavedModels> saved = Save(GemmAndIf(), {});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_TRUE(saved->warnings.empty()) << saved->warnings[0];
  EXPECT_EQ(InputOfBranch(ReadOutput("x_deploy_model.onnx")), "fc.dequant.output0");
  EXPECT_EQ(InputOfBranch(ReadOutput("x_fake_quant_model.onnx")), "fc.fakedequant.mul.output0");
}

TEST_F(SaveModelTest, TheReferenceLetsSubgraphsReadIntegers) {
  absl::StatusOr<SavedModels> saved = Save(GemmAndIf(), {.ignores_subgraph_captures = true});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(InputOfBranch(ReadOutput("x_deploy_model.onnx")), "y");
}

TEST_F(SaveModelTest, OldOpsetsAreRefusedWithAHint) {
  const absl::Status status = Save(GemmAndIf(10), {}).status();
  EXPECT_EQ(ReasonOf(status), v1::OPSET_UNSUPPORTED);
  EXPECT_EQ(PlaceOf(status).field, "modified_onnx_file");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
}

TEST_F(SaveModelTest, ValidateOnlyReportsAndWritesNothing) {
  absl::StatusOr<SavedModels> saved = Save(GemmAndIf(), {}, /*validate_only=*/true);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_NE(saved->report_json.find("\"quantized\": true"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
}

TEST_F(SaveModelTest, MissingFilesAreNamed) {
  const FileSet files({});
  CallContext context;
  context.files = &files;
  context.output_root = folder_.string();
  const absl::Status status = SaveModel(context, "m.onnx", "r.txt", "x").status();
  EXPECT_EQ(ReasonOf(status), v1::FILE_NOT_FOUND);
  EXPECT_EQ(PlaceOf(status).file, "m.onnx");
}

}  // namespace
}  // namespace modelpress::engine
