// AdaRound against the reference. With 4 samples every draw of the reference is the whole data, so that even what it learns can
// be met: operators, activations, scales, start values, the loss with its gradient, and Adam.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/calibrate/adaround.h"
#include "engine/calibrate/layer_activation.h"
#include "engine/calibrate/weights.h"
#include "engine/graph/graph.h"
#include "engine/model/model.h"
#include "engine/runtime/npz.h"
#include "gtest/gtest.h"
#include "onnx/defs/schema.h"
#include "onnx/onnx_pb.h"
#include "onnxruntime_cxx_api.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;

struct Array {
  std::vector<int64_t> dims;
  std::vector<float> values;
};

size_t Count(const std::vector<int64_t>& dims) {
  return std::accumulate(dims.begin(), dims.end(), size_t{1}, std::multiplies<>());
}

// ONNX Runtime and onnx share a schema registry; whichever registers second says so at length.
const Ort::Env& RuntimeEnv() {
  static const Ort::Env& env = *[] {
    std::streambuf* const buffer = std::cerr.rdbuf(nullptr);
    auto* const created = new Ort::Env(ORT_LOGGING_LEVEL_ERROR, "test");
    onnx::OpSchemaRegistry::Schema("Conv");  // any look-up registers onnx's
    std::cerr.rdbuf(buffer);
    return created;
  }();
  return env;
}

struct GoldenCase {
  std::string name;
  WeightConfig config;
  float tolerance;  // in steps of a scale
};

class AdaRoundGoldenTest : public testing::TestWithParam<GoldenCase> {
 protected:
  void SetUp() override {
    folder_ = fs::path(MODELPRESS_TEST_DATA) / "golden" / "ptq" / GetParam().name;
    model_ = Read("model.onnx").initializers;
    auto graph = Graph::Create(Read("modified.onnx"), {});
    ASSERT_TRUE(graph.ok()) << graph.status();
    modified_ = std::make_unique<Graph>(*std::move(graph));
  }

  Model Read(const std::string& name) const {
    auto model = ReadModel(FileSet({{name, (folder_ / name).string()}}), name);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // What flowed into a layer when the reference calibrated: with the learnt weights in front of it.
  Array Input(const std::string& layer) const {
    const auto npz = *NpzFile::Open(*InputFile::Open("acts.npz", (folder_ / "acts.npz").string()));
    const auto reader = *npz->OpenArray(layer + "__0");
    Array array = {.dims = reader->dims(), .values = std::vector<float>(Count(reader->dims()))};
    const absl::Status status = reader->Read({reinterpret_cast<uint8_t*>(array.values.data()), array.values.size() * 4});
    EXPECT_TRUE(status.ok()) << status;
    return array;
  }

  // A tensor of the float model on the data, as ONNX Runtime computes it.
  Array Run(const std::string& tensor) const {
    std::ifstream file(folder_ / "model.onnx", std::ios::binary);
    std::ostringstream bytes;
    bytes << file.rdbuf();
    onnx::ModelProto proto;
    EXPECT_TRUE(proto.ParseFromString(bytes.str()));
    if (tensor != "output") {
      proto.mutable_graph()->add_output()->set_name(tensor);
    }
    const std::string model = proto.SerializeAsString();
    Array input = Input("c1");
    Ort::Session session(RuntimeEnv(), model.data(), model.size(), Ort::SessionOptions());
    const Ort::Value value =
        Ort::Value::CreateTensor<float>(Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), input.values.data(),
                                        input.values.size(), input.dims.data(), input.dims.size());
    const char* input_name = "input";
    const char* output_name = tensor.c_str();
    const std::vector<Ort::Value> outputs = session.Run({}, &input_name, &value, 1, &output_name, 1);
    const Ort::TensorTypeAndShapeInfo shape = outputs[0].GetTensorTypeAndShapeInfo();
    const auto* data = outputs[0].GetTensorData<float>();
    return {.dims = shape.GetShape(), .values = {data, data + shape.GetElementCount()}};
  }

  static std::vector<float> Values(const Tensor& tensor) {
    std::vector<float> values(tensor.ElementCount());
    EXPECT_TRUE(ReadFloats(tensor, 0, absl::MakeSpan(values)).ok());
    return values;
  }

  std::vector<float> ModelValues(const std::string& name) const {
    return Values(*std::find_if(model_.begin(), model_.end(), [&](const Tensor& tensor) { return tensor.name() == name; }));
  }

  // `tensor`: of the float model, behind the layer's activation.
  void Check(const std::string& layer, const std::vector<float>& weight, ChannelMap channels, const std::string& tensor) {
    SCOPED_TRACE(layer);
    const ItemId node = modified_->Find(layer);
    const Tensor& learnt = modified_->item(modified_->InputOf(node, 1).item).tensor;
    const Array inputs = Input(layer);
    const Array target = Run(tensor);
    auto op = LinearOperatorOf(*modified_, node, inputs.dims);
    auto activated = FindLayerActivation(*modified_, node);
    ASSERT_TRUE(op.ok() && activated.ok()) << op.status() << activated.status();
    onnx::TensorProto proto;
    proto.set_data_type(onnx::TensorProto::FLOAT);
    proto.mutable_dims()->Assign(op->weight_dims.begin(), op->weight_dims.end());
    proto.mutable_float_data()->Assign(weight.begin(), weight.end());
    channels.elements = weight.size();
    auto scales = KlScales(FromProto(proto), channels, 1);
    ASSERT_TRUE(scales.ok()) << scales.status();

    AdaRoundInput input = {.op = *op,
                           .activation = activated->activation,
                           .weight = weight,
                           .channels = channels,
                           .scales = *scales,
                           .samples = {inputs.dims, inputs.values, target.dims, target.values}};
    auto start = AdaRound(input, {.num_iteration = 0}, /*soft_weights=*/true);
    auto weights = AdaRound(input, GetParam().config, /*soft_weights=*/true);
    ASSERT_TRUE(start.ok() && weights.ok()) << start.status() << weights.status();
    const std::vector<float> expected = Values(learnt);
    float moved = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const float scale = (*scales)[channels.ChannelOf(i)];
      EXPECT_NEAR((*weights)[i] / scale, expected[i] / scale, GetParam().tolerance * (1 + std::abs(expected[i] / scale) / 128))
          << i;
      moved = std::max(moved, std::abs((*start)[i] - expected[i]) / scale);
    }
    if (GetParam().config.num_iteration > 0) {
      EXPECT_GT(moved, 4e-3f);
    }
  }

  fs::path folder_;
  std::vector<Tensor> model_;
  std::unique_ptr<Graph> modified_;
};

TEST_P(AdaRoundGoldenTest, LearnsWhatTheReferenceLearns) {
  std::vector<float> fused = ModelValues("c1.weight");  // by ptq.md section 5
  const std::vector<float> variance = ModelValues("b1.running_var"), gamma = ModelValues("b1.weight");
  for (size_t i = 0; i < fused.size(); ++i) {
    fused[i] *= gamma[i / 36] * (1 / std::sqrt(variance[i / 36] + 1e-5f));
  }
  Check("c1", fused, {.run = 36, .period = 8, .block = 288}, "/r/Relu_output_0");
  Check("t", ModelValues("t.weight"), {.run = 4, .period = 3, .block = 48}, "/t/ConvTranspose_output_0");
  Check("t2", ModelValues("t2.weight"), {.run = 4, .period = 6, .block = 144}, "/r6/Clip_output_0");
  Check("fc", ModelValues("fc.weight"), {.run = 1, .period = 1, .block = 24}, "/Sigmoid_output_0");
  Check("fn", ModelValues("onnx::MatMul_28"), {.run = 1, .period = 1, .block = 12}, "output");
}

INSTANTIATE_TEST_SUITE_P(Cases, AdaRoundGoldenTest,
                         testing::Values(GoldenCase{"ada_iter0", {.num_iteration = 0}, 2e-7f},
                                         GoldenCase{"ada_iter30", {.num_iteration = 30, .warm_start = 0.5}, 2e-5f}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace modelpress::engine
