#include "engine/model/layout.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "engine/model/wire.h"

namespace modelpress::engine {
namespace {

constexpr uint32_t kModelGraph = 7;
constexpr uint32_t kGraphNode = 1, kGraphInitializer = 5, kGraphSparseInitializer = 15;
constexpr uint32_t kNodeAttribute = 5;
constexpr uint32_t kAttributeTensor = 5;

constexpr uint64_t kMaxProtobufBytes = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxFileNameBytes = 255;

// Tag and length of a field that holds `size` bytes.
std::string FieldHead(uint32_t number, uint64_t size) {
  std::string head;
  AppendTag(head, number, WireType::kLength);
  AppendVarint(head, size);
  return head;
}

uint64_t FieldBytes(uint32_t number, uint64_t size) { return FieldHead(number, size).size() + size; }

// Serialized `message` with `insert` at the place of its field `number`.
Content WithField(absl::string_view message, uint32_t number, Content insert) {
  const size_t position = PositionOf(message, number);
  Content content;
  content.Add(message.substr(0, position));
  content.Add(std::move(insert));
  content.Add(message.substr(position));
  return content;
}

// `layer`: the name under which errors of the payload are reported where the tensor has none.
Content TensorContent(const Tensor& tensor, const std::string& layer = "") {
  Content data;
  // Protobuf omits an empty packed field, but not an empty raw_data that was set.
  if (tensor.payload != nullptr && (tensor.payload->size() > 0 || tensor.field == DataField::kRaw)) {
    data.Add(FieldHead(static_cast<uint32_t>(tensor.field), tensor.payload->size()));
    data.Add(tensor.payload, tensor.name().empty() ? layer : tensor.name());
  }
  return WithField(tensor.header.SerializeAsString(), static_cast<uint32_t>(tensor.field), std::move(data));
}

Content ExternalTensorContent(const Tensor& tensor, const std::string& location, uint64_t length) {
  onnx::TensorProto proto = tensor.header;
  proto.set_data_location(onnx::TensorProto::EXTERNAL);
  for (const auto& [key, value] :
       {std::pair<std::string, std::string>{"location", location}, {"offset", "0"}, {"length", absl::StrCat(length)}}) {
    onnx::StringStringEntryProto& entry = *proto.add_external_data();
    entry.set_key(key);
    entry.set_value(value);
  }
  Content content;
  content.Add(proto.SerializeAsString());
  return content;
}

Content NodeContent(const Node& node) {
  Content content;
  if (node.tensors.empty()) {
    content.Add(node.proto.SerializeAsString());
    return content;
  }
  onnx::NodeProto rest = node.proto;
  rest.clear_attribute();
  Content attributes;
  for (int i = 0; i < node.proto.attribute_size(); ++i) {
    auto tensor = std::find_if(node.tensors.begin(), node.tensors.end(), [i](const auto& entry) { return entry.first == i; });
    Content field;
    if (tensor != node.tensors.end()) {
      field.AddMessage(kAttributeTensor, TensorContent(tensor->second, node.proto.name()));
    }
    attributes.AddMessage(kNodeAttribute,
                          WithField(node.proto.attribute(i).SerializeAsString(), kAttributeTensor, std::move(field)));
  }
  return WithField(rest.SerializeAsString(), kNodeAttribute, std::move(attributes));
}

// A free file name for the external data of a tensor: a legal one, as the reference would choose it where that is possible.
std::string ExternalFileName(const std::string& tensor, const std::string& suffix, std::set<std::string>& taken) {
  std::string base = tensor;
  for (char& c : base) {
    if (static_cast<unsigned char>(c) < 0x20 || absl::string_view("/\\:*?\"<>|\x7f").find(c) != absl::string_view::npos) {
      c = '_';
    }
  }
  for (int i = 0;; ++i) {
    const std::string end = absl::StrCat(i == 0 ? "" : absl::StrCat("_", i), suffix, ".external");
    size_t size = std::min(base.size(), kMaxFileNameBytes - std::min(end.size(), kMaxFileNameBytes));
    while (size < base.size() && size > 0 && (base[size] & 0xc0) == 0x80) {
      --size;  // not in the middle of a UTF-8 character
    }
    std::string name = base.substr(0, size) + end;
    if (taken.insert(name).second) {
      return name;
    }
  }
}

}  // namespace

void Content::Add(absl::string_view bytes) {
  if (bytes.empty()) {
    return;
  }
  if (pieces_.empty() || pieces_.back().payload != nullptr) {
    pieces_.emplace_back();
  }
  pieces_.back().bytes.append(bytes.data(), bytes.size());
  size_ += bytes.size();
}

void Content::Add(PayloadPtr payload, const std::string& layer) {
  size_ += payload->size();
  pieces_.push_back({.payload = std::move(payload), .layer = layer});
}

void Content::Add(Content content) {
  for (Piece& piece : content.pieces_) {
    if (piece.payload == nullptr) {
      Add(piece.bytes);
    } else {
      size_ += piece.size();
      pieces_.push_back(std::move(piece));
    }
  }
}

void Content::AddMessage(uint32_t number, Content content) {
  Add(FieldHead(number, content.size()));
  Add(std::move(content));
}

absl::StatusOr<std::vector<FilePlan>> PlanModel(const ModelFile& file, uint64_t externalize_at, std::set<std::string>& taken) {
  const Model& model = *file.model;
  // Everything but the initializers, around which it is built: sizes decide which of these stay in the file.
  Content before;  // in the graph
  for (const Node& node : model.nodes) {
    before.AddMessage(kGraphNode, NodeContent(node));
  }
  const std::string graph_shell = model.shell.graph().SerializeAsString();
  const size_t initializers_at = PositionOf(graph_shell, kGraphInitializer);
  const size_t sparse_at = PositionOf(graph_shell, kGraphSparseInitializer);
  before.Add(absl::string_view(graph_shell).substr(0, initializers_at));
  Content after;
  after.Add(absl::string_view(graph_shell).substr(initializers_at, sparse_at - initializers_at));
  for (const onnx::SparseTensorProto& sparse : model.sparse_initializers) {
    Content content;
    content.Add(sparse.SerializeAsString());
    after.AddMessage(kGraphSparseInitializer, std::move(content));
  }
  after.Add(absl::string_view(graph_shell).substr(sparse_at));

  std::string model_shell = model.shell.SerializeAsString();
  const size_t graph_at = PositionOf(model_shell, kModelGraph);
  if (model.shell.has_graph()) {
    model_shell.erase(graph_at, FieldBytes(kModelGraph, graph_shell.size()));
  }

  const size_t count = model.initializers.size();
  std::vector<Content> initializers;
  std::vector<uint64_t> sizes;  // of the TensorProto with its data
  uint64_t graph_bytes = before.size() + after.size();
  for (const Tensor& tensor : model.initializers) {
    initializers.push_back(TensorContent(tensor));
    sizes.push_back(initializers.back().size());
    graph_bytes += FieldBytes(kGraphInitializer, sizes.back());
  }

  std::vector<FilePlan> external(count);
  std::vector<bool> is_external(count);
  auto externalize = [&](size_t i) {
    const Tensor& tensor = model.initializers[i];
    if (is_external[i] || tensor.payload == nullptr) {
      return;
    }
    is_external[i] = true;
    external[i].name = ExternalFileName(tensor.name(), file.external_suffix, taken);
    PayloadPtr data = RawElements(tensor);
    const uint64_t length = data->size();
    external[i].content.Add(std::move(data), tensor.name());
    graph_bytes -= FieldBytes(kGraphInitializer, initializers[i].size());
    initializers[i] = ExternalTensorContent(tensor, external[i].name, length);
    graph_bytes += FieldBytes(kGraphInitializer, initializers[i].size());
  };
  auto total = [&] { return model_shell.size() + FieldBytes(kModelGraph, graph_bytes); };
  for (size_t i = 0; i < count; ++i) {
    if (model.initializers[i].external) {
      externalize(i);
    }
  }
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&sizes](size_t a, size_t b) { return sizes[a] > sizes[b]; });
  for (auto it = order.begin(); it != order.end() && total() >= externalize_at; ++it) {
    externalize(*it);
  }
  if (total() > kMaxProtobufBytes) {
    return MakeError(
        v1::MODEL_LIMIT,
        absl::StrCat("the model takes ", total(), " bytes without its initializers, no ONNX file can be larger than ",
                     kMaxProtobufBytes, " bytes; turn large Constant nodes into initializers"),
        {.file = file.file_name});
  }

  Content graph = std::move(before);
  for (Content& initializer : initializers) {
    graph.AddMessage(kGraphInitializer, std::move(initializer));
  }
  graph.Add(std::move(after));
  std::vector<FilePlan> plans(1);
  plans[0].name = file.file_name;
  plans[0].content.Add(absl::string_view(model_shell).substr(0, graph_at));
  plans[0].content.AddMessage(kModelGraph, std::move(graph));
  plans[0].content.Add(absl::string_view(model_shell).substr(graph_at));
  for (size_t i = 0; i < count; ++i) {
    if (is_external[i]) {
      plans.push_back(std::move(external[i]));
    }
  }
  return plans;
}

}  // namespace modelpress::engine
