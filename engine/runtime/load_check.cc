#include "engine/runtime/load_check.h"

#include <exception>
#include <set>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/runtime/runtime_env.h"
#include "onnxruntime_cxx_api.h"

namespace modelpress::engine {
namespace {

// Of the model without its big tensors. What ONNX Runtime takes in one piece ends at 2 GiB.
constexpr uint64_t kMaxSkeletonBytes = 1 << 30;

// The serialized model while it is put together: big tensors become graph inputs, the others are in it.
class Skeleton {
 public:
  explicit Skeleton(const Model& model, uint64_t stream_threshold) : stream_threshold_(stream_threshold), proto_(model.shell) {
    for (const onnx::ValueInfoProto& input : proto_.graph().input()) {
      inputs_.insert(input.name());
    }
  }

  absl::Status AddNode(const Node& node) {
    if (node.proto.op_type() == "Constant" && node.proto.output_size() == 1 && node.tensors.size() == 1 &&
        IsBig(node.tensors[0].second)) {
      AddInput(node.proto.output(0), node.tensors[0].second);
      return absl::OkStatus();
    }
    MP_RETURN_IF_ERROR(Reserve(node.proto.ByteSizeLong()));
    onnx::NodeProto* copy = proto_.mutable_graph()->add_node();
    *copy = node.proto;
    for (const auto& [attribute, tensor] : node.tensors) {
      MP_ASSIGN_OR_RETURN(*copy->mutable_attribute(attribute)->mutable_t(), Inline(tensor));
    }
    return absl::OkStatus();
  }

  absl::Status AddInitializer(const Tensor& tensor) {
    if (IsBig(tensor)) {
      AddInput(tensor.name(), tensor);
      return absl::OkStatus();
    }
    MP_ASSIGN_OR_RETURN(*proto_.mutable_graph()->add_initializer(), Inline(tensor));
    return absl::OkStatus();
  }

  absl::Status AddSparseInitializer(const onnx::SparseTensorProto& tensor) {
    MP_RETURN_IF_ERROR(Reserve(tensor.ByteSizeLong()));
    *proto_.mutable_graph()->add_sparse_initializer() = tensor;
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Serialize() {
    bytes_ = 0;
    MP_RETURN_IF_ERROR(Reserve(proto_.ByteSizeLong()));
    return proto_.SerializeAsString();
  }

 private:
  bool IsBig(const Tensor& tensor) const { return tensor.payload != nullptr && tensor.payload->size() > stream_threshold_; }

  // Fails before anything is copied that would make the skeleton too big.
  absl::Status Reserve(uint64_t bytes) {
    bytes_ += bytes;
    if (bytes_ > kMaxSkeletonBytes) {
      return absl::ResourceExhaustedError(absl::StrCat("the model without its big tensors has more than ", kMaxSkeletonBytes,
                                                       " bytes, too many to check that it loads"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<onnx::TensorProto> Inline(const Tensor& tensor) {
    MP_RETURN_IF_ERROR(Reserve(tensor.header.ByteSizeLong() + (tensor.payload == nullptr ? 0 : tensor.payload->size())));
    return ToProto(tensor);
  }

  void AddInput(const std::string& name, const Tensor& tensor) {
    if (!inputs_.insert(name).second) {
      return;  // an initializer that the graph lists among its inputs
    }
    onnx::ValueInfoProto* input = proto_.mutable_graph()->add_input();
    input->set_name(name);
    onnx::TypeProto::Tensor* type = input->mutable_type()->mutable_tensor_type();
    type->set_elem_type(tensor.header.data_type());
    type->mutable_shape();  // a scalar has a shape too
    for (const int64_t dim : tensor.header.dims()) {
      type->mutable_shape()->add_dim()->set_dim_value(dim);
    }
  }

  const uint64_t stream_threshold_;
  onnx::ModelProto proto_;
  std::set<std::string> inputs_;
  uint64_t bytes_ = 0;
};

absl::StatusOr<std::string> SerializeSkeleton(const Model& model, uint64_t stream_threshold) {
  Skeleton skeleton(model, stream_threshold);
  for (const Node& node : model.nodes) {
    MP_RETURN_IF_ERROR(skeleton.AddNode(node));
  }
  for (const Tensor& tensor : model.initializers) {
    MP_RETURN_IF_ERROR(skeleton.AddInitializer(tensor));
  }
  for (const onnx::SparseTensorProto& tensor : model.sparse_initializers) {
    MP_RETURN_IF_ERROR(skeleton.AddSparseInitializer(tensor));
  }
  return skeleton.Serialize();
}

}  // namespace

void InitializeRuntime() {
  try {
    RuntimeEnv();
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): CheckLoads meets it again and reports it
  }
}

absl::Status CheckLoads(const Model& model, uint64_t stream_threshold) {
  MP_ASSIGN_OR_RETURN(const std::string bytes, SerializeSkeleton(model, stream_threshold));
  try {
    Ort::SessionOptions options;
    options.SetGraphOptimizationLevel(ORT_DISABLE_ALL);
    options.SetIntraOpNumThreads(1);
    options.SetInterOpNumThreads(1);
    options.SetExecutionMode(ORT_SEQUENTIAL);
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    const Ort::Session session(RuntimeEnv(), bytes.data(), bytes.size(), options);
  } catch (const Ort::Exception& e) {
    return absl::InvalidArgumentError(e.what());
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat("ONNX Runtime failed: ", e.what()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CheckStillLoads(const Model& made, const Model& source, absl::string_view what) {
  const absl::Status loads = CheckLoads(made);
  if (loads.ok()) {
    return "";
  }
  if (CheckLoads(source).ok()) {
    return MakeError(v1::OUTPUT_INVALID, absl::StrCat("ONNX Runtime does not load the ", what, ": ", loads.message()));
  }
  return absl::StrCat("ONNX Runtime loads neither the model nor its ", what, ": ", loads.message());
}

}  // namespace modelpress::engine
