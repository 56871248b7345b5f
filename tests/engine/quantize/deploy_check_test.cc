#include "engine/quantize/deploy_check.h"

#include "engine/base/status.h"
#include "engine/quantize/pass.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model_builder.h"

namespace modelpress::engine {
namespace {

class DeployCheckTest : public testing::Test {
 protected:
  void SetUp() override {
    ModelBuilder builder;
    builder.Input("x", {1, 2}).Output("y").Initializer("w", {2, 2}, {1, 2, 3, 4}).Initializer("b", {2}, {1, 2});
    builder.Node("Gemm", "fc", {"x", "w", "b"}, {"y"});
    step_.factors["fc"] = {.scale_d = 0.1F, .scale_w = {0.1F}, .merge_type = "INT8"};
    auto graph = Graph::Create(builder.Build(), {});
    ASSERT_TRUE(graph.ok());
    ASSERT_TRUE(RunPasses(*graph, CommonPasses(step_)).ok());
    ASSERT_TRUE(RunPasses(*graph, DeployPasses(step_)).ok());
    auto model = graph->ToModel();
    ASSERT_TRUE(model.ok());
    model_ = *model;
  }

  onnx::NodeProto& NodeNamed(const std::string& name) {
    for (Node& node : model_.nodes) {
      if (node.proto.name() == name) {
        return node.proto;
      }
    }
    ADD_FAILURE() << name;
    return model_.nodes[0].proto;
  }
  Tensor& TensorNamed(const std::string& name) {
    for (Tensor& tensor : model_.initializers) {
      if (tensor.name() == name) {
        return tensor;
      }
    }
    ADD_FAILURE() << name;
    return model_.initializers[0];
  }
  void ExpectInvalid(const std::string& what) {
    const absl::Status status = CheckDeployModel(model_, step_.factors);
    EXPECT_EQ(ReasonOf(status), v1::OUTPUT_INVALID);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(what));
  }

  SaveStep step_;
  Model model_;
};

TEST_F(DeployCheckTest, PassesWhatThePassesMake) { EXPECT_TRUE(CheckDeployModel(model_, step_.factors).ok()); }

TEST_F(DeployCheckTest, FindsAFloatWeight) {
  TensorNamed("w").header.set_data_type(onnx::TensorProto::FLOAT);
  ExpectInvalid("weight");
}

TEST_F(DeployCheckTest, FindsAFloatBias) {
  TensorNamed("b").header.set_data_type(onnx::TensorProto::FLOAT);
  ExpectInvalid("bias");
}

TEST_F(DeployCheckTest, FindsAMissingQuantizer) {
  NodeNamed("fc").set_input(0, "x");
  ExpectInvalid("activation");
}

TEST_F(DeployCheckTest, FindsWrongParameters) {
  TensorNamed("fc.dequant.param").header.set_dims(0, 2);
  ExpectInvalid("parameters");
}

TEST_F(DeployCheckTest, FindsALeftMark) {
  AddString(NodeNamed("fc"), "op_data_type", "float");
  ExpectInvalid("mark");
}

TEST_F(DeployCheckTest, FindsWrongOrder) {
  std::swap(model_.nodes[0], model_.nodes[1]);
  ExpectInvalid("before it is produced");
}

}  // namespace
}  // namespace modelpress::engine
