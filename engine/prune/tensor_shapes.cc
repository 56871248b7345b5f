#include "engine/prune/tensor_shapes.h"

#include <exception>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "onnx/defs/schema.h"
#include "onnx/shape_inference/implementation.h"

namespace modelpress::engine {
namespace {

// Elements up to which a constant's values may matter to a shape: targets of Reshape, pads, axes.
constexpr uint64_t kShapeElements = 64;

// The tensor, without its data if it is not of a size to be a shape.
onnx::TensorProto ShapeOnly(const Tensor& tensor) {
  if (tensor.ElementCount() <= kShapeElements) {
    if (absl::StatusOr<onnx::TensorProto> proto = ToProto(tensor); proto.ok()) {
      return *std::move(proto);
    }
  }
  return tensor.header;
}

}  // namespace

TensorShapes TensorShapes::Infer(const Graph& graph) {
  TensorShapes shapes;
  absl::StatusOr<Model> model = graph.ToModel();
  if (!model.ok()) {
    return shapes;
  }
  onnx::ModelProto proto = std::move(model->shell);
  for (Node& node : model->nodes) {
    for (const auto& [attribute, tensor] : node.tensors) {
      *node.proto.mutable_attribute(attribute)->mutable_t() = ShapeOnly(tensor);
    }
    proto.mutable_graph()->add_node()->Swap(&node.proto);
  }
  for (const Tensor& tensor : model->initializers) {
    *proto.mutable_graph()->add_initializer() = ShapeOnly(tensor);
    shapes.shapes_[tensor.name()] = {tensor.header.dims().begin(), tensor.header.dims().end()};
  }
  try {
    onnx::shape_inference::InferShapes(proto, onnx::OpSchemaRegistry::Instance(),
                                       onnx::ShapeInferenceOptions(/*check_type_val=*/false, /*strict_mode_val=*/0,
                                                                   /*data_prop_val=*/true));
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): what was inferred before counts
  }
  for (const auto* infos : {&proto.graph().input(), &proto.graph().value_info(), &proto.graph().output()}) {
    for (const onnx::ValueInfoProto& info : *infos) {
      if (!info.type().has_tensor_type() || !info.type().tensor_type().has_shape()) {
        continue;
      }
      std::vector<int64_t>& dims = shapes.shapes_[info.name()];
      dims.clear();
      for (const auto& dim : info.type().tensor_type().shape().dim()) {
        dims.push_back(dim.has_dim_value() ? dim.dim_value() : -1);
      }
    }
  }
  return shapes;
}

}  // namespace modelpress::engine
