#include "engine/prune/shapes.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/prune/layer_weight.h"
#include "onnx/shape_inference/implementation.h"

namespace modelpress::engine {
namespace {

using Dims = std::vector<int64_t>;

// Tensors with more data are weights: inference needs none of their values.
constexpr uint64_t kMaxValueBytes = 1 << 10;
// Of IR versions before 4 inference wants every initializer among the inputs.
constexpr int64_t kIrVersion = 8;

void AddInput(onnx::GraphProto& graph, const std::string& name, int data_type, const Dims& dims) {
  onnx::ValueInfoProto& input = *graph.add_input();
  input.set_name(name);
  onnx::TypeProto::Tensor& type = *input.mutable_type()->mutable_tensor_type();
  type.set_elem_type(data_type);
  type.mutable_shape();  // a scalar has a shape too
  for (const int64_t dim : dims) {
    type.mutable_shape()->add_dim()->set_dim_value(dim);
  }
}

Dims DimsOfHeader(const onnx::TensorProto& header) { return {header.dims().begin(), header.dims().end()}; }

std::optional<Dims> ShapeOf(const onnx::TypeProto& type) {
  if (!type.has_tensor_type() || !type.tensor_type().has_shape()) {
    return std::nullopt;
  }
  Dims dims;
  dims.reserve(type.tensor_type().shape().dim_size());
  for (const auto& dim : type.tensor_type().shape().dim()) {
    dims.push_back(dim.has_dim_value() ? dim.dim_value() : -1);
  }
  return dims;
}

// -1 where a factor is unknown.
int64_t Product(Dims::const_iterator begin, Dims::const_iterator end) {
  return std::accumulate(begin, end, int64_t{1}, [](int64_t a, int64_t b) { return a < 0 || b < 0 ? -1 : a * b; });
}

// The sizes of a Reshape for an input whose shape is `after` instead of `before`. nullopt: the channels cannot be told in them.
std::optional<Dims> AdjustedSizes(const Dims& sizes, bool allow_zero, const Dims& before, const Dims& after) {
  if (before.size() != after.size()) {
    return std::nullopt;
  }
  size_t axis = before.size();
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i] != after[i]) {
      if (axis < before.size()) {
        return std::nullopt;
      }
      axis = i;
    }
  }
  if (axis == before.size()) {
    return sizes;
  }
  if (before[axis] < 1 || after[axis] < 1) {
    return std::nullopt;
  }
  Dims resolved = sizes;
  for (size_t i = 0; i < sizes.size() && !allow_zero; ++i) {
    if (sizes[i] == 0 && i < before.size()) {
      resolved[i] = before[i];
    }
  }
  // The channels start a size where what follows, or what comes before, is the same on both sides.
  const auto at = [](const Dims& dims, size_t i) { return dims.begin() + static_cast<std::ptrdiff_t>(i); };
  const int64_t behind = Product(at(before, axis), before.end());
  const int64_t ahead = Product(before.begin(), at(before, axis));
  for (size_t k = 0; k < sizes.size(); ++k) {
    const int64_t sizes_behind = Product(at(resolved, k), resolved.end());
    const int64_t sizes_ahead = Product(resolved.begin(), at(resolved, k));
    if (!(behind > 0 && sizes_behind == behind) && !(ahead > 0 && sizes_ahead == ahead)) {
      continue;
    }
    if (sizes[k] == -1 || sizes[k] == 0) {
      return sizes;  // follows by itself
    }
    if (sizes[k] % before[axis] == 0) {
      Dims adjusted = sizes;
      adjusted[k] = sizes[k] / before[axis] * after[axis];
      return adjusted;
    }
  }
  return std::nullopt;
}

int64_t AttributeOf(const onnx::NodeProto& node, absl::string_view name, int64_t fallback) {
  return IntAttribute(node, name, fallback);
}

// Checks of single nodes where the library's inference is lenient. `shape` gives the shape of an input, null where unknown.
class NodeCheck {
 public:
  NodeCheck(const onnx::NodeProto& node, const absl::flat_hash_map<std::string, Dims>& shapes) : node_(node), shapes_(shapes) {}

  std::string Problem() const {
    const std::string& op = node_.op_type();
    if (op == "Conv") {
      return Convolution();
    }
    if (op == "ConvTranspose") {
      return TransposedConvolution();
    }
    if (op == "BatchNormalization" || op == "InstanceNormalization") {
      return ChannelVectors();
    }
    if (op == "Gemm") {
      return Gemm();
    }
    if (op == "MatMul") {
      return MatMul();
    }
    if (op == "LSTM" || op == "GRU" || op == "RNN") {
      const Dims* data = Shape(0);
      const Dims* weight = Shape(1);
      return Differ(Last(data), Last(weight)) ? absl::StrCat("takes ", Last(weight), " features, its input has ", Last(data))
                                              : "";
    }
    if (op == "PRelu" || op == "Add" || op == "Sub" || op == "Mul" || op == "Div" || op == "Pow" || op == "Max" || op == "Min" ||
        op == "Sum" || op == "Mean" || op == "Where") {
      return Broadcast();
    }
    if (op == "Reshape") {
      const Dims* data = Shape(0);
      const auto output = shapes_.find(node_.output(0));
      if (data == nullptr || output == shapes_.end()) {
        return "";
      }
      const int64_t in = Product(data->begin(), data->end());
      const int64_t out = Product(output->second.begin(), output->second.end());
      return Differ(in, out) ? absl::StrCat("makes ", ShapeText(output->second), " of ", ShapeText(*data)) : "";
    }
    return "";
  }

 private:
  static bool Differ(int64_t a, int64_t b) { return a >= 0 && b >= 0 && a != b; }
  static int64_t At(const Dims* dims, size_t axis) { return dims == nullptr || axis >= dims->size() ? -1 : (*dims)[axis]; }
  static int64_t Last(const Dims* dims) { return dims == nullptr || dims->empty() ? -1 : dims->back(); }

  const Dims* Shape(int input) const {
    if (input >= node_.input_size()) {
      return nullptr;
    }
    const auto it = shapes_.find(node_.input(input));
    return it == shapes_.end() ? nullptr : &it->second;
  }

  std::string Channels(int64_t expected, int64_t actual) const {
    return Differ(expected, actual) ? absl::StrCat("takes ", expected, " channels, its input has ", actual) : "";
  }

  std::string Convolution() const {
    const Dims* weight = Shape(1);
    const int64_t groups = AttributeOf(node_, "group", 1);
    if (weight == nullptr || weight->size() < 3 || groups < 1) {
      return "";
    }
    if ((*weight)[0] % groups != 0) {
      return absl::StrCat("has ", (*weight)[0], " output channels in ", groups, " groups");
    }
    if (Differ(At(Shape(2), 0), (*weight)[0])) {
      return absl::StrCat("has ", (*weight)[0], " output channels and a bias of ", At(Shape(2), 0));
    }
    return Channels((*weight)[1] * groups, At(Shape(0), 1));
  }

  std::string TransposedConvolution() const {
    const Dims* weight = Shape(1);
    const int64_t groups = AttributeOf(node_, "group", 1);
    if (weight == nullptr || weight->size() < 3 || groups < 1) {
      return "";
    }
    if ((*weight)[0] % groups != 0) {
      return absl::StrCat("has ", (*weight)[0], " input channels in ", groups, " groups");
    }
    return Channels((*weight)[0], At(Shape(0), 1));
  }

  std::string ChannelVectors() const {
    for (int input = 1; input < node_.input_size(); ++input) {
      if (std::string problem = Channels(At(Shape(input), 0), At(Shape(0), 1)); !problem.empty()) {
        return problem;
      }
    }
    return "";
  }

  std::string Gemm() const {
    const bool trans_a = AttributeOf(node_, "transA", 0) != 0;
    const bool trans_b = AttributeOf(node_, "transB", 0) != 0;
    const int64_t outputs = At(Shape(1), trans_b ? 0 : 1);
    if (const int64_t bias = Last(Shape(2)); bias != 1 && Differ(bias, outputs)) {
      return absl::StrCat("has ", outputs, " outputs and a bias of ", bias);
    }
    const int64_t inputs = At(Shape(1), trans_b ? 1 : 0);
    const int64_t given = At(Shape(0), trans_a ? 0 : 1);
    return Differ(inputs, given) ? absl::StrCat("takes ", inputs, " features, its input has ", given) : "";
  }

  std::string MatMul() const {
    const Dims* right = Shape(1);
    if (right == nullptr || right->empty()) {
      return "";
    }
    const int64_t inputs = right->size() == 1 ? right->back() : (*right)[right->size() - 2];
    const int64_t given = Last(Shape(0));
    return Differ(inputs, given) ? absl::StrCat("takes ", inputs, " features, its input has ", given) : "";
  }

  std::string Broadcast() const {
    for (int a = 0; a < node_.input_size(); ++a) {
      for (int b = a + 1; b < node_.input_size(); ++b) {
        const Dims* left = Shape(a);
        const Dims* right = Shape(b);
        if (left == nullptr || right == nullptr) {
          continue;
        }
        for (size_t i = 1; i <= std::min(left->size(), right->size()); ++i) {
          const int64_t x = (*left)[left->size() - i];
          const int64_t y = (*right)[right->size() - i];
          if (x != 1 && y != 1 && Differ(x, y)) {
            return absl::StrCat("takes ", ShapeText(*left), " and ", ShapeText(*right));
          }
        }
      }
    }
    return "";
  }

  const onnx::NodeProto& node_;
  const absl::flat_hash_map<std::string, Dims>& shapes_;
};

}  // namespace

absl::StatusOr<ShapeModel> ShapeModel::Create(const Graph& graph) {
  MP_ASSIGN_OR_RETURN(const Model model, graph.ToModel());
  ShapeModel result;
  result.base_ = model.shell;
  result.base_.set_ir_version(kIrVersion);
  onnx::GraphProto& proto = *result.base_.mutable_graph();
  proto.clear_value_info();  // shapes are to come from the weights alone
  for (onnx::ValueInfoProto& output : *proto.mutable_output()) {
    if (output.type().has_tensor_type()) {
      output.mutable_type()->mutable_tensor_type()->clear_shape();
    }
  }
  const auto note_sizes = [&](const std::string& name, const onnx::TensorProto& tensor) {
    if (tensor.data_type() == onnx::TensorProto::INT64 && tensor.dims_size() == 1) {
      Dims values(tensor.dims(0));
      const std::string& raw = tensor.raw_data();
      if (raw.size() == values.size() * sizeof(int64_t)) {
        std::memcpy(values.data(), raw.data(), raw.size());
      } else if (static_cast<size_t>(tensor.int64_data_size()) == values.size()) {
        values.assign(tensor.int64_data().begin(), tensor.int64_data().end());
      } else {
        return;
      }
      result.sizes_[name] = std::move(values);
    }
  };
  for (const Tensor& tensor : model.initializers) {
    if (tensor.payload != nullptr && tensor.payload->size() > kMaxValueBytes) {
      AddInput(proto, tensor.name(), tensor.header.data_type(), DimsOfHeader(tensor.header));
    } else {
      MP_ASSIGN_OR_RETURN(onnx::TensorProto whole, ToProto(tensor));
      note_sizes(tensor.name(), whole);
      *proto.add_initializer() = std::move(whole);
    }
  }
  for (const ItemId id : graph.Order()) {
    if (graph.item(id).is_node()) {
      result.items_.push_back(id);
    }
  }
  size_t next = 0;
  std::vector<ItemId> items;
  items.reserve(result.items_.size());
  for (const Node& node : model.nodes) {
    const ItemId id = result.items_[next++];
    if (node.proto.op_type() == "Constant" && !node.tensors.empty() && node.proto.output_size() == 1) {
      const onnx::TensorProto& header = node.tensors[0].second.header;
      AddInput(proto, node.proto.output(0), header.data_type(), DimsOfHeader(header));
      continue;
    }
    if (const auto* value = FindAttribute(node.proto, "value"); node.proto.op_type() == "Constant" && value != nullptr) {
      note_sizes(node.proto.output(0), value->t());
    }
    onnx::NodeProto& copy = *proto.add_node();
    copy = node.proto;
    if (copy.op_type() == "QuantIdentity" && copy.input_size() == 1 && copy.output_size() == 1) {  // a mark hides nothing
      copy.set_op_type("Identity");
      copy.clear_domain();
      copy.clear_attribute();
    }
    result.nodes_[id] = static_cast<int>(items.size());
    items.push_back(id);
  }
  result.items_ = std::move(items);

  std::string error;
  result.original_ = result.Infer(result.base_, /*strict=*/true, error);
  if (!error.empty()) {
    result.strict_ = false;
    result.original_ = result.Infer(result.base_, /*strict=*/false, error);
  }
  result.known_problems_ = Problems(result.base_, result.original_);
  // What the model says itself counts where nothing can be inferred, behind operators that the library does not know.
  for (const auto* infos : {&model.shell.graph().value_info(), &model.shell.graph().output()}) {
    for (const onnx::ValueInfoProto& info : *infos) {
      if (std::optional<Dims> dims = ShapeOf(info.type()); dims.has_value()) {
        result.original_.shapes.try_emplace(info.name(), *std::move(dims));
      }
    }
  }
  return result;
}

ShapeReport ShapeModel::Infer(const onnx::ModelProto& proto, bool strict, std::string& error) const {
  ShapeReport report;
  onnx::ModelProto copy = proto;
  error.clear();
  try {
    const onnx::ShapeInferenceOptions options(/*check_type=*/false, strict ? 1 : 0, /*data_prop=*/true);
    onnx::shape_inference::InferShapes(copy, onnx::OpSchemaRegistry::Instance(), options);
  } catch (const std::exception& e) {
    error = e.what();
    if (strict) {
      return report;
    }
  }
  const onnx::GraphProto& graph = copy.graph();
  for (const auto* infos : {&graph.value_info(), &graph.output(), &graph.input()}) {
    for (const onnx::ValueInfoProto& info : *infos) {
      if (std::optional<Dims> dims = ShapeOf(info.type()); dims.has_value()) {
        report.shapes[info.name()] = *std::move(dims);
      }
    }
  }
  for (const onnx::TensorProto& tensor : graph.initializer()) {
    report.shapes[tensor.name()] = DimsOfHeader(tensor);
  }
  return report;
}

std::map<int, std::string> ShapeModel::Problems(const onnx::ModelProto& proto, const ShapeReport& report) {
  std::map<int, std::string> problems;
  for (int i = 0; i < proto.graph().node_size(); ++i) {
    const onnx::NodeProto& node = proto.graph().node(i);
    if (const std::string problem = NodeCheck(node, report.shapes).Problem(); !problem.empty()) {
      problems[i] = absl::StrCat(node.op_type(), " '", node.name(), "' ", problem);
    }
  }
  return problems;
}

bool ShapeModel::AdjustReshapes(onnx::ModelProto& proto, ShapeReport& report) const {
  bool changed = false;
  onnx::GraphProto& graph = *proto.mutable_graph();
  for (size_t i = 0; i < items_.size(); ++i) {
    const onnx::NodeProto& original = base_.graph().node(static_cast<int>(i));
    if (original.op_type() != "Reshape" || original.input_size() < 2) {
      continue;
    }
    const auto sizes = sizes_.find(original.input(1));
    const auto before = original_.shapes.find(original.input(0));
    const auto after = report.shapes.find(original.input(0));
    if (sizes == sizes_.end() || before == original_.shapes.end() || after == report.shapes.end() ||
        before->second == after->second) {
      continue;
    }
    const std::optional<Dims> adjusted =
        AdjustedSizes(sizes->second, AttributeOf(original, "allowzero", 0) != 0, before->second, after->second);
    if (!adjusted.has_value()) {
      continue;
    }
    const auto known = report.reshapes.find(items_[i]);
    if (*adjusted == (known == report.reshapes.end() ? sizes->second : known->second)) {
      continue;
    }
    report.reshapes[items_[i]] = *adjusted;
    changed = true;
    onnx::TensorProto& tensor = *graph.add_initializer();
    tensor.set_name(absl::StrCat("modelpress.sizes.", graph.initializer_size()));
    tensor.set_data_type(onnx::TensorProto::INT64);
    tensor.add_dims(static_cast<int64_t>(adjusted->size()));
    tensor.mutable_int64_data()->Assign(adjusted->begin(), adjusted->end());
    graph.mutable_node(static_cast<int>(i))->set_input(1, tensor.name());
  }
  return changed;
}

ShapeReport ShapeModel::With(const ShapeChanges& changes) const {
  onnx::ModelProto proto = base_;
  onnx::GraphProto& graph = *proto.mutable_graph();
  for (const auto& [place, operand] : changes.operands) {
    onnx::NodeProto& node = *graph.mutable_node(nodes_.at(place.first));
    const std::string name = absl::StrCat("modelpress.operand.", place.first, ".", place.second);
    AddInput(graph, name, operand.data_type, operand.dims);
    node.set_input(place.second, name);
  }
  for (const auto& [id, group] : changes.groups) {
    onnx::NodeProto& node = *graph.mutable_node(nodes_.at(id));
    auto* attributes = node.mutable_attribute();
    attributes->erase(std::remove_if(attributes->begin(), attributes->end(), [](const auto& a) { return a.name() == "group"; }),
                      attributes->end());
    AddInt(node, "group", group);
  }
  // Each round adjusts at least one more Reshape, in the order of the data.
  ShapeReport report;
  std::string error;
  for (bool again = true; again;) {
    std::map<ItemId, Dims> reshapes = std::move(report.reshapes);
    report = Infer(proto, strict_, error);
    std::string ignored;
    if (!error.empty()) {
      report = Infer(proto, /*strict=*/false, ignored);
    }
    report.reshapes = std::move(reshapes);
    again = AdjustReshapes(proto, report);
  }
  for (const auto& [node, problem] : Problems(proto, report)) {
    if (report.problem.empty() && !known_problems_.contains(node)) {
      report.problem = problem;
    }
  }
  if (report.problem.empty() && strict_) {
    report.problem = error;
  }
  return report;
}

}  // namespace modelpress::engine
