#include "engine/quantize/pass.h"

#include <cstring>

#include "absl/base/casts.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace modelpress::engine {

absl::Status RunPasses(Graph& graph, const std::vector<std::unique_ptr<Pass>>& passes) {
  for (const auto& pass : passes) {
    MP_RETURN_IF_ERROR(pass->Run(graph));
    MP_RETURN_IF_ERROR(graph.Sort());
#ifndef NDEBUG
    MP_RETURN_IF_ERROR(graph.Validate());
#endif
  }
  return absl::OkStatus();
}

std::vector<RecordedLayer> RecordedLayers(const Graph& graph, const FactorsByLayer& factors) {
  std::vector<RecordedLayer> layers;
  for (ItemId id : graph.Order()) {
    const Item& item = graph.item(id);
    if (!item.is_node()) {
      continue;
    }
    const OpRule* rule = FindOpRule(item.node.proto.op_type());
    auto it = factors.find(item.name);
    if (rule != nullptr && it != factors.end()) {
      layers.push_back({id, rule, &it->second});
    }
  }
  return layers;
}

std::string OutputName(absl::string_view node_name) { return absl::StrCat(node_name, ".output0"); }

onnx::NodeProto NewNode(const std::string& op_type, const std::string& doc_string) {
  onnx::NodeProto node;
  node.set_op_type(op_type);
  if (!doc_string.empty()) {
    node.set_doc_string(doc_string);
  }
  return node;
}

onnx::TensorProto FloatTensor(const std::vector<float>& values, const std::vector<int64_t>& dims) {
  onnx::TensorProto tensor;
  tensor.set_data_type(onnx::TensorProto::FLOAT);
  tensor.mutable_dims()->Assign(dims.begin(), dims.end());
  tensor.mutable_float_data()->Assign(values.begin(), values.end());
  return tensor;
}

ItemId AddConstant(Graph& graph, const std::string& name, onnx::TensorProto value, const std::string& doc_string) {
  onnx::NodeProto node = NewNode("Constant", doc_string);
  AddTensor(node, "value", std::move(value));
  return graph.AddNode(name, std::move(node), 0, {OutputName(name)});
}

void SetData(Tensor& tensor, onnx::TensorProto::DataType type, DataField field, PayloadPtr payload) {
  tensor.header.set_data_type(type);
  tensor.field = field;
  tensor.payload = std::move(payload);
}

PayloadPtr FloatPayload(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return std::make_shared<MemoryPayload>(std::move(bytes));
}

namespace {
template <typename Range, typename Write>
PayloadPtr Varints(const Range& values, Write write) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    for (auto value : values) {
      write(coded, value);
    }
  }
  return std::make_shared<MemoryPayload>(std::move(bytes));
}
}  // namespace

PayloadPtr Int32Payload(const std::vector<int32_t>& values) {
  return Varints(values, [](auto& coded, int32_t value) { coded.WriteVarint32SignExtended(value); });
}

PayloadPtr Uint64Payload(const std::vector<uint64_t>& values) {
  return Varints(values, [](auto& coded, uint64_t value) { coded.WriteVarint64(value); });
}

std::vector<float> Times(std::vector<float> scales, float factor) {
  for (float& scale : scales) {
    scale *= factor;
  }
  return scales;
}

ItemId AddDequantParam(Graph& graph, const std::string& layer, const std::vector<float>& scales, bool truncate) {
  std::vector<uint64_t> bits;
  bits.reserve(scales.size());
  for (float scale : scales) {
    bits.push_back(absl::bit_cast<uint32_t>(scale) & (truncate ? 0xFFFFE000U : 0xFFFFFFFFU));
  }
  Tensor param;
  param.header.add_dims(static_cast<int64_t>(bits.size()));
  SetData(param, onnx::TensorProto::UINT64, DataField::kUint64, Uint64Payload(bits));
  return graph.AddInitializer(absl::StrCat(layer, ".dequant.param"), std::move(param));
}

absl::StatusOr<std::vector<float>> BiasScales(const RecordedLayer& layer, const Item& item, uint64_t count) {
  std::vector<float> scales = Times(layer.factors->scale_w, layer.factors->scale_d);
  if (layer.rule->is_rnn()) {  // [1, 2 * gates * hidden]: W's half, then R's
    std::vector<float> halves;
    auto append = [&](const std::vector<float>& half) {
      for (uint64_t i = 0; i < count / 2; ++i) {
        halves.push_back(half[i * half.size() / (count / 2)]);
      }
    };
    append(scales);
    append(Times(layer.factors->scale_r, layer.factors->scale_h));
    scales = std::move(halves);
  } else if (scales.size() == 1) {
    scales.resize(count, scales[0]);
  }
  if (scales.size() != count) {
    return MakeError(v1::TENSOR_INVALID, absl::StrCat("its bias has ", count, " elements for ", scales.size(), " scales"),
                     {.layer = item.name});
  }
  return scales;
}

}  // namespace modelpress::engine
