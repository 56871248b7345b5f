// What a pass is, and what the passes of the save step share.
#ifndef MODELPRESS_ENGINE_QUANTIZE_PASS_H_
#define MODELPRESS_ENGINE_QUANTIZE_PASS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/base/reference_defects.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layer_factors.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/weights.h"

namespace modelpress::engine {

// One rewriting step. It evaluates its match on the whole graph first, then acts in list order; the runner sorts afterwards.
class Pass {
 public:
  virtual ~Pass() = default;
  virtual absl::string_view name() const = 0;
  virtual absl::Status Run(Graph& graph) = 0;
};

// Runs the passes in order, sorting after each, and validating the graph after each in debug builds.
absl::Status RunPasses(Graph& graph, const std::vector<std::unique_ptr<Pass>>& passes);

// What has become of a layer's tensors, by tensor name; the fake-quant passes start from it.
struct QuantizedTensors {
  std::map<std::string, IntegerWeightPtr> weights;
  std::map<std::string, std::vector<int32_t>> biases;
};

// The input of all passes of one save step. Outlives them.
struct SaveStep {
  FactorsByLayer factors;
  ReferenceDefects defects;
  absl::flat_hash_set<std::string> float16_layers;  // op_data_type "float16" in the file
  QuantizedTensors quantized;
  std::set<std::string> deviations;  // where the result differs from the reference's, for the report
};

// A layer that carries factors.
struct RecordedLayer {
  ItemId id;
  const OpRule* rule;
  const LayerFactors* factors;
};
// In list order.
std::vector<RecordedLayer> RecordedLayers(const Graph& graph, const FactorsByLayer& factors);

// "NAME.output0", the tensor that a new node NAME emits.
std::string OutputName(absl::string_view node_name);
// An op_type with a doc_string.
onnx::NodeProto NewNode(const std::string& op_type, const std::string& doc_string = "");
// A FLOAT tensor without name in float_data; without dims it is a scalar.
onnx::TensorProto FloatTensor(const std::vector<float>& values, const std::vector<int64_t>& dims = {});
// Adds a Constant node NAME with output NAME.output0.
ItemId AddConstant(Graph& graph, const std::string& name, onnx::TensorProto value, const std::string& doc_string);
// Gives `tensor` another type and content; name, dims and everything else stay.
void SetData(Tensor& tensor, onnx::TensorProto::DataType type, DataField field, PayloadPtr payload);
// Little-endian float32 values as they stand in float_data and raw_data.
PayloadPtr FloatPayload(const std::vector<float>& values);
// Packed varints as they stand in int32_data and uint64_data.
PayloadPtr Int32Payload(const std::vector<int32_t>& values);
PayloadPtr Uint64Payload(const std::vector<uint64_t>& values);
// Each scale times `factor`: one float32 multiplication each.
std::vector<float> Times(std::vector<float> scales, float factor);
// Adds the initializer `<layer>.dequant.param`: the float32 bits of every scale in the low half of a uint64. `truncate` keeps
// their upper 19 bits (FORCE_FP16_QUANT).
ItemId AddDequantParam(Graph& graph, const std::string& layer, const std::vector<float>& scales, bool truncate);
// scale_w * scale_d for every one of the `count` elements of a layer's bias (RNN: the half of W, then the half of R with scale_r
// * scale_h). TENSOR_INVALID if the bias has another length.
absl::StatusOr<std::vector<float>> BiasScales(const RecordedLayer& layer, const Item& item, uint64_t count);

// The passes of docs/spec/save.md sections 6, 7 and 8, in their order. `step` outlives them.
std::vector<std::unique_ptr<Pass>> CommonPasses(SaveStep& step);
std::vector<std::unique_ptr<Pass>> DeployPasses(SaveStep& step);
std::vector<std::unique_ptr<Pass>> FakeQuantPasses(SaveStep& step);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_QUANTIZE_PASS_H_
