// An ONNX model whose tensors' element data stays outside the protobuf objects.
#ifndef MODELPRESS_ENGINE_MODEL_MODEL_H_
#define MODELPRESS_ENGINE_MODEL_MODEL_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/limits.h"
#include "engine/model/file_set.h"
#include "engine/model/payload.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

// The TensorProto field that holds the elements; the values are the field numbers of onnx.proto.
enum class DataField : int {
  kNone = 0,  // no element data at all (an empty tensor)
  kFloat = 4,
  kInt32 = 5,
  kString = 6,  // never streamed: stays in the header
  kInt64 = 7,
  kRaw = 9,
  kDouble = 10,
  kUint64 = 11,
};

// A tensor: `header` holds everything but the elements (and never external_data or data_location), `payload` the elements as
// they stand in `field`. For a packed varint field (kInt32, kInt64, kUint64) the payload is the packed varints.
struct Tensor {
  onnx::TensorProto header;
  DataField field = DataField::kNone;
  PayloadPtr payload;     // null if and only if field is kNone or kString
  bool external = false;  // was, and is to be, in a file of its own beside the model

  const std::string& name() const { return header.name(); }
  // Number of elements by its dims; 1 for a scalar. The reader has checked that it cannot overflow.
  uint64_t ElementCount() const;
};

// Reads elements [first, first + out.size()) as float32. data_type must be FLOAT, FLOAT16, BFLOAT16 or DOUBLE, in any data
// field; TENSOR_INVALID otherwise. float16 and bfloat16 are widened exactly, double is rounded to nearest even.
absl::Status ReadFloats(const Tensor& tensor, uint64_t first, absl::Span<float> out);

// A tensor with its elements in the header, as one ordinary TensorProto. For small tensors only.
absl::StatusOr<onnx::TensorProto> ToProto(const Tensor& tensor);
// The other direction: takes the data out of `proto` (not external).
Tensor FromProto(onnx::TensorProto proto);

// A node; tensors in its attributes that are big keep their data outside, everything else is in `proto`.
struct Node {
  onnx::NodeProto proto;
  // Attributes of `proto` whose `t` lies outside: (attribute index, tensor). The attribute's own `t` is then unset.
  std::vector<std::pair<int, Tensor>> tensors;
};

struct Model {
  // Everything of the ModelProto but graph.node, graph.initializer, graph.sparse_initializer, in `shell`.
  onnx::ModelProto shell;
  std::vector<Node> nodes;
  std::vector<Tensor> initializers;
  std::vector<onnx::SparseTensorProto> sparse_initializers;
  // Names (as in the FileSet) of the external data files that the model refers to, sorted, each once.
  std::vector<std::string> external_files;
};

// What an uploaded file may make us do (engine/base/limits.h). Every limit is checked before anything is allocated by it.
struct ModelLimits {
  uint64_t max_items = kMaxModelItems;  // also of nodes after all calls of functions are inlined
  int max_depth = kMaxModelDepth;
  int max_dims = kMaxTensorDims;
  uint64_t max_inline_bytes = kMaxModelInlineBytes;  // that end up in protobuf objects: everything but streamed tensor data
  uint64_t max_external_files = kMaxExternalFiles;
  uint64_t stream_threshold = 1 << 10;  // bytes of data from which on a tensor stays outside
};

// Reads `name` of `files`. External data is looked up relative to the folder of `name`, checked against the sizes of the files
// and left where it is.
// Errors: FILE_NOT_FOUND, MODEL_UNREADABLE (with byte offset), MODEL_LIMIT, MODEL_EXTERNAL_DATA, TENSOR_INVALID (data does not
// fit its dims), GRAPH_INVALID (a function that calls itself), each with the file and, for tensors, the tensor's name. Missing
// external files are reported all at once.
absl::StatusOr<Model> ReadModel(const FileSet& files, const std::string& name, const ModelLimits& limits = {});

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_MODEL_MODEL_H_
