#include "engine/quantize/modified_model.h"

#include "absl/strings/str_cat.h"

namespace modelpress::engine {
namespace {
constexpr char kDataType[] = "op_data_type";
}  // namespace

void AddDataType(Graph& graph, ItemId layer, bool float16) {
  AddString(graph.mutable_item(layer).node.proto, kDataType, float16 ? "float16" : "float");
}

absl::flat_hash_set<std::string> TakeDataTypes(Model& model) {
  absl::flat_hash_set<std::string> float16_layers;
  for (size_t i = 0; i < model.nodes.size(); ++i) {
    onnx::NodeProto& node = model.nodes[i].proto;
    const std::string name = node.has_name() ? node.name() : absl::StrCat("node_", i);
    for (int a = node.attribute_size() - 1; a >= 0; --a) {
      if (node.attribute(a).name() == kDataType) {
        if (node.attribute(a).s() == "float16") {
          float16_layers.insert(name);
        }
        node.mutable_attribute()->DeleteSubrange(a, 1);
        for (auto& [attribute, tensor] : model.nodes[i].tensors) {
          attribute -= attribute > a ? 1 : 0;
        }
      }
    }
  }
  return float16_layers;
}

}  // namespace modelpress::engine
