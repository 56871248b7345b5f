#include "engine/runtime/load_check.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace modelpress::engine {
namespace {

using ::testing::HasSubstr;

// Many bytes of which none is in memory. Reading them is a failure: the check must not need the weights.
class UnreadablePayload final : public Payload {
 public:
  explicit UnreadablePayload(uint64_t size) : size_(size) {}
  uint64_t size() const override { return size_; }
  absl::Status Read(uint64_t, absl::Span<uint8_t>) const override { return absl::DataLossError("big weights were read"); }

 private:
  uint64_t size_;
};

// Elements are `value`, held in memory.
Tensor FloatTensor(const std::string& name, const std::vector<int64_t>& dims, float value = 0.5f) {
  Tensor tensor;
  tensor.header.set_name(name);
  tensor.header.set_data_type(onnx::TensorProto::FLOAT);
  size_t count = 1;
  for (const int64_t dim : dims) {
    tensor.header.add_dims(dim);
    count *= static_cast<size_t>(dim);
  }
  const std::vector<float> values(count, value);
  tensor.field = DataField::kRaw;
  tensor.payload =
      std::make_shared<MemoryPayload>(std::string(reinterpret_cast<const char*>(values.data()), count * sizeof(float)));
  return tensor;
}

void SetShape(onnx::ValueInfoProto* info, const std::string& name, int32_t type, const std::vector<int64_t>& dims) {
  info->set_name(name);
  info->mutable_type()->mutable_tensor_type()->set_elem_type(type);
  for (const int64_t dim : dims) {
    info->mutable_type()->mutable_tensor_type()->mutable_shape()->add_dim()->set_dim_value(dim);
  }
}

Node MakeNode(const std::string& op, const std::vector<std::string>& inputs, const std::string& output) {
  Node node;
  node.proto.set_op_type(op);
  node.proto.set_name(output + "_node");
  for (const std::string& input : inputs) {
    node.proto.add_input(input);
  }
  node.proto.add_output(output);
  return node;
}

// x -> Conv(w, b) -> y
Model ConvModel() {
  Model model;
  model.shell.set_ir_version(8);
  model.shell.add_opset_import()->set_version(13);
  model.shell.mutable_graph()->set_name("g");
  SetShape(model.shell.mutable_graph()->add_input(), "x", onnx::TensorProto::FLOAT, {1, 3, 8, 8});
  SetShape(model.shell.mutable_graph()->add_output(), "y", onnx::TensorProto::FLOAT, {1, 4, 6, 6});
  model.initializers = {FloatTensor("w", {4, 3, 3, 3}), FloatTensor("b", {4})};
  model.nodes = {MakeNode("Conv", {"x", "w", "b"}, "y")};
  return model;
}

TEST(CheckLoadsTest, TakesAGoodModel) {
  const absl::Status status = CheckLoads(ConvModel());
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CheckLoadsTest, TakesItWithAnyTensorAsInput) {
  Model model = ConvModel();
  EXPECT_TRUE(CheckLoads(model, 0).ok()) << CheckLoads(model, 0);
  // Exporters of old list initializers among the inputs.
  SetShape(model.shell.mutable_graph()->add_input(), "w", onnx::TensorProto::FLOAT, {4, 3, 3, 3});
  EXPECT_TRUE(CheckLoads(model, 0).ok()) << CheckLoads(model, 0);
  EXPECT_TRUE(CheckLoads(model).ok()) << CheckLoads(model);
}

TEST(CheckLoadsTest, RefusesAnUnknownAttributeWithTheRuntimesText) {
  Model model = ConvModel();
  onnx::AttributeProto* attribute = model.nodes[0].proto.add_attribute();
  attribute->set_name("op_data_type");
  attribute->set_type(onnx::AttributeProto::STRING);
  attribute->set_s("float");
  const absl::Status status = CheckLoads(model);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("op_data_type"));
  EXPECT_EQ(ReasonOf(status), v1::REASON_UNSPECIFIED);
}

TEST(CheckLoadsTest, RefusesAnUnknownOperator) {
  Model model = ConvModel();
  model.nodes[0].proto.set_op_type("AscendQuant");
  const absl::Status status = CheckLoads(model);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("AscendQuant"));
}

TEST(CheckLoadsTest, RefusesWrongTypesAndShapes) {
  Model wrong_type = ConvModel();
  wrong_type.initializers[0].header.set_data_type(onnx::TensorProto::INT32);
  EXPECT_EQ(CheckLoads(wrong_type).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckLoads(wrong_type, 0).code(), absl::StatusCode::kInvalidArgument);  // also without the elements
  Model wrong_rank = ConvModel();
  wrong_rank.initializers[0] = FloatTensor("w", {4, 27});
  EXPECT_EQ(CheckLoads(wrong_rank, 0).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CheckLoadsTest, RefusesADanglingInput) {
  Model model = ConvModel();
  model.nodes[0].proto.set_input(0, "nothing");
  EXPECT_THAT(CheckLoads(model).message(), HasSubstr("nothing"));
}

TEST(CheckLoadsTest, RefusesWhatIsNoModelAtAll) { EXPECT_EQ(CheckLoads(Model()).code(), absl::StatusCode::kInvalidArgument); }

// x -> MatMul(w) -> y, where w has 64 MiB.
Model BigModel(bool constant_node) {
  Model model = ConvModel();
  for (onnx::ValueInfoProto* info :
       {model.shell.mutable_graph()->mutable_input(0), model.shell.mutable_graph()->mutable_output(0)}) {
    const std::string name = info->name();
    info->Clear();
    SetShape(info, name, onnx::TensorProto::FLOAT, {1, 4096});
  }
  Tensor weight;
  weight.header.set_data_type(onnx::TensorProto::FLOAT);
  weight.header.add_dims(4096);
  weight.header.add_dims(4096);
  weight.field = DataField::kRaw;
  weight.payload = std::make_shared<UnreadablePayload>(64 << 20);
  model.nodes = {MakeNode("MatMul", {"x", "w"}, "y")};
  model.initializers.clear();
  if (constant_node) {
    Node constant = MakeNode("Constant", {}, "w");
    onnx::AttributeProto* attribute = constant.proto.add_attribute();
    attribute->set_name("value");
    attribute->set_type(onnx::AttributeProto::TENSOR);
    constant.tensors.emplace_back(0, std::move(weight));
    model.nodes.insert(model.nodes.begin(), std::move(constant));
  } else {
    weight.header.set_name("w");
    model.initializers.push_back(std::move(weight));
  }
  return model;
}

TEST(CheckLoadsTest, DoesNotReadBigTensors) {
  for (const bool constant_node : {false, true}) {
    const absl::Status status = CheckLoads(BigModel(constant_node));
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(CheckLoadsTest, ABigTensorMayBeAGraphOutput) {
  Model model = BigModel(false);
  SetShape(model.shell.mutable_graph()->add_output(), "w", onnx::TensorProto::FLOAT, {4096, 4096});
  const absl::Status status = CheckLoads(model);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CheckLoadsTest, SmallTensorsOfNodesAreReadIntoTheModel) {
  Model model = ConvModel();
  Node constant = MakeNode("Constant", {}, "b");
  onnx::AttributeProto* attribute = constant.proto.add_attribute();
  attribute->set_name("value");
  attribute->set_type(onnx::AttributeProto::TENSOR);
  constant.tensors.emplace_back(0, FloatTensor("", {4}));
  model.nodes.insert(model.nodes.begin(), std::move(constant));
  model.initializers.pop_back();
  const absl::Status status = CheckLoads(model);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CheckLoadsTest, PassesAnErrorOfATensorOn) {
  Model model = ConvModel();
  model.initializers[0].payload = std::make_shared<UnreadablePayload>(sizeof(float) * 4 * 3 * 3 * 3);
  EXPECT_EQ(CheckLoads(model).code(), absl::StatusCode::kDataLoss);
}

TEST(CheckLoadsTest, SaysThatASkeletonIsTooBig) {
  Model model = BigModel(false);
  model.initializers[0].payload = std::make_shared<UnreadablePayload>(uint64_t{2} << 30);
  const absl::Status status = CheckLoads(model, uint64_t{4} << 30);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

// A process of its own under ctest, so that this is the first use of both libraries.
TEST(CheckLoadsTest, PrintsNothing) {
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  InitializeRuntime();
  InitializeRuntime();
  Model bad = ConvModel();
  bad.nodes[0].proto.set_op_type("NoSuchOperator");
  EXPECT_FALSE(CheckLoads(bad).ok());
  EXPECT_TRUE(CheckLoads(ConvModel()).ok());
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace modelpress::engine
