// Builds small ONNX models in code, for tests.
#ifndef MODELPRESS_TESTS_ENGINE_MODEL_BUILDER_H_
#define MODELPRESS_TESTS_ENGINE_MODEL_BUILDER_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/model.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

class ModelBuilder {
 public:
  explicit ModelBuilder(int64_t opset = 13) {
    proto_.set_ir_version(8);
    proto_.mutable_graph()->set_name("graph");
    proto_.add_opset_import()->set_version(opset);
  }

  ModelBuilder& Input(const std::string& name, const std::vector<int64_t>& dims) {
    Describe(*proto_.mutable_graph()->add_input(), name, dims);
    return *this;
  }
  ModelBuilder& Output(const std::string& name, const std::vector<int64_t>& dims = {}) {
    Describe(*proto_.mutable_graph()->add_output(), name, dims);
    return *this;
  }
  ModelBuilder& Initializer(const std::string& name, const std::vector<int64_t>& dims, const std::vector<float>& values) {
    onnx::TensorProto& tensor = *proto_.mutable_graph()->add_initializer();
    tensor.set_name(name);
    tensor.set_data_type(onnx::TensorProto::FLOAT);
    tensor.mutable_dims()->Assign(dims.begin(), dims.end());
    tensor.mutable_float_data()->Assign(values.begin(), values.end());
    return *this;
  }
  // Returns the node, for attributes.
  onnx::NodeProto& Node(const std::string& op_type, const std::string& name, const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs) {
    onnx::NodeProto& node = *proto_.mutable_graph()->add_node();
    node.set_op_type(op_type);
    node.set_name(name);
    node.mutable_input()->Assign(inputs.begin(), inputs.end());
    node.mutable_output()->Assign(outputs.begin(), outputs.end());
    return node;
  }

  onnx::ModelProto& proto() { return proto_; }

  // As the reader would give it.
  Model Build() const {
    Model model;
    model.shell = proto_;
    onnx::GraphProto& graph = *model.shell.mutable_graph();
    for (onnx::NodeProto& node : *graph.mutable_node()) {
      model.nodes.push_back({std::move(node), {}});
    }
    for (onnx::TensorProto& tensor : *graph.mutable_initializer()) {
      model.initializers.push_back(FromProto(std::move(tensor)));
    }
    graph.clear_node();
    graph.clear_initializer();
    return model;
  }

 private:
  static void Describe(onnx::ValueInfoProto& info, const std::string& name, const std::vector<int64_t>& dims) {
    info.set_name(name);
    auto& type = *info.mutable_type()->mutable_tensor_type();
    type.set_elem_type(onnx::TensorProto::FLOAT);
    for (int64_t dim : dims) {
      type.mutable_shape()->add_dim()->set_dim_value(dim);
    }
  }

  onnx::ModelProto proto_;
};

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_ENGINE_MODEL_BUILDER_H_
