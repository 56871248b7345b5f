#include "engine/prune/prune_graph.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/model/model.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

// A constant that tells axes, pads or a shape has no more.
constexpr int64_t kSmall = 64;

// Pass 6. QuantIdentity is a mark (docs/spec/qat.md section 17.1), the rest is the reference's list.
constexpr absl::string_view kPassThrough[] = {"MaxPool",      "AveragePool", "GlobalAveragePool",
                                              "Pad",          "Relu",        "LeakyRelu",
                                              "LogSoftmax",   "Softmax",     "Abs",
                                              "Acos",         "Acosh",       "Asin",
                                              "Asinh",        "Atan",        "Atanh",
                                              "Bernoulli",    "Ceil",        "Celu",
                                              "Clip",         "Cast",        "CastLike",
                                              "Cos",          "Cosh",        "Dropout",
                                              "Identity",     "Round",       "Pow",
                                              "QuantIdentity"};

std::optional<Tensor> SmallConstant(const Graph& graph, Value value) {
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, value);
  if (!operand.has_value() || operand->transpose >= 0) {
    return std::nullopt;
  }
  int64_t elements = 1;
  for (int64_t dim : DimsOf(graph.item(operand->holder))) {
    elements *= dim >= 0 && dim <= kSmall ? dim : kSmall + 1;
    if (elements > kSmall) {
      return std::nullopt;
    }
  }
  return TensorOf(graph.item(operand->holder));
}

std::string TypeOf(const Item& item) {
  const onnx::NodeProto& node = item.node.proto;
  const bool standard = node.domain().empty() || node.domain() == "ai.onnx" || node.op_type() == "QuantIdentity";
  return standard ? node.op_type() : absl::StrCat(node.domain(), ".", node.op_type());
}

int64_t OpsetOf(const Graph& graph) {
  for (const onnx::OperatorSetIdProto& opset : graph.shell().opset_import()) {
    if (opset.domain().empty() || opset.domain() == "ai.onnx") {
      return opset.version();
    }
  }
  return 1;
}

class Simplifier {
 public:
  Simplifier(const Graph& graph, const absl::flat_hash_set<ItemId>& linears, const TensorShapes& shapes)
      : graph_(graph), linears_(linears), shapes_(shapes) {}

  PruneGraph Simplify() {
    Load();
    SkipCircularPadding();
    FusePoolsAndFlattens();
    SkipNodes([this](const PruneNode& node) { return IsPlainResize(node) ? 0 : -1; });
    SkipNodes([this](const PruneNode& node) { return MatMulOfBiasAdd(node); });
    SkipNodes([this](const PruneNode& node) { return IsPassThrough(node) ? 0 : -1; });
    RemoveDeadNodes();
    return std::move(simple_);
  }

 private:
  struct Reader {
    int node = -1;  // -1: the graph's outputs
    int input = 0;
  };
  using Readers = absl::flat_hash_map<std::pair<ItemId, int>, std::vector<Reader>>;

  void Load() {
    for (ItemId id : graph_.Order()) {
      const Item& item = graph_.item(id);
      for (int output = 0; output < static_cast<int>(item.uses.size()); ++output) {
        for (const Use& use : item.uses[output]) {
          if (use.item == Use::kGraphOutput) {
            simple_.outputs.resize(std::max<size_t>(simple_.outputs.size(), use.input + 1));
            simple_.outputs[use.input] = Value{id, output};
          }
        }
      }
      if (item.is_node()) {
        simple_.nodes.push_back({.item = id, .op_type = TypeOf(item), .name = item.name, .inputs = item.inputs});
        if (std::all_of(item.uses.begin(), item.uses.end(), [](const std::vector<Use>& uses) { return uses.empty(); })) {
          simple_.unused.insert(id);
        }
      }
    }
  }

  Readers FindReaders() const {
    Readers readers;
    for (int n = 0; n < static_cast<int>(simple_.nodes.size()); ++n) {
      const std::vector<Value>& inputs = simple_.nodes[n].inputs;
      for (int i = 0; i < static_cast<int>(inputs.size()); ++i) {
        readers[{inputs[i].item, inputs[i].output}].push_back({.node = n, .input = i});
      }
    }
    for (int i = 0; i < static_cast<int>(simple_.outputs.size()); ++i) {
      readers[{simple_.outputs[i].item, simple_.outputs[i].output}].push_back({.node = -1, .input = i});
    }
    return readers;
  }

  // The only node that reads output 0 of `node`; -1 if there is none, or more.
  static int OnlyReader(const Readers& readers, const PruneNode& node) {
    auto it = readers.find({node.item, 0});
    return it == readers.end() || it->second.size() != 1 ? -1 : it->second[0].node;
  }

  absl::flat_hash_map<ItemId, int> IndexNodes() const {
    absl::flat_hash_map<ItemId, int> index;
    for (int n = 0; n < static_cast<int>(simple_.nodes.size()); ++n) {
      index[simple_.nodes[n].item] = n;
    }
    return index;
  }

  // Pass 1. A Conv with circular padding reads a Concat on H or W of a tensor and slices of it. The reference asks the module; a
  // user's file has none, and no other such chain would concern channels either.
  void SkipCircularPadding() {
    const absl::flat_hash_map<ItemId, int> index = IndexNodes();
    auto find = [&](Value value) {
      auto it = index.find(value.item);
      return it == index.end() ? nullptr : &simple_.nodes[it->second];
    };
    for (PruneNode& conv : simple_.nodes) {
      while (conv.op_type == "Conv" && !conv.inputs.empty()) {
        const PruneNode* concat = find(conv.inputs[0]);
        if (concat == nullptr || concat->op_type != "Concat" || AxisOf(*concat) < 2) {
          break;
        }
        std::optional<Value> whole;
        bool slices_of_one = true;
        for (const Value& part : concat->inputs) {
          const PruneNode* slice = find(part);
          const bool is_slice = slice != nullptr && slice->op_type == "Slice" && SlicesSpace(*slice);
          const Value source = is_slice ? slice->inputs[0] : part;
          slices_of_one = slices_of_one && (!whole.has_value() || *whole == source);
          whole = source;
        }
        if (!slices_of_one || !whole.has_value()) {
          break;
        }
        conv.inputs[0] = *whole;
      }
    }
  }

  int64_t AxisOf(const PruneNode& node) const { return IntAttribute(graph_.item(node.item).node.proto, "axis", 0); }

  bool SlicesSpace(const PruneNode& slice) const {
    const std::optional<std::vector<int64_t>> axes =
        slice.inputs.size() > 3 ? ConstantInts(graph_, slice.inputs[3]) : std::nullopt;
    return axes.has_value() && std::all_of(axes->begin(), axes->end(), [](int64_t axis) { return axis >= 2; });
  }

  // Passes 2 and 3.
  void FusePoolsAndFlattens() {
    const Readers readers = FindReaders();
    const absl::flat_hash_map<ItemId, int> index = IndexNodes();
    std::vector<std::pair<int, int>> pairs;
    for (int n = 0; n < static_cast<int>(simple_.nodes.size()); ++n) {
      const PruneNode& pool = simple_.nodes[n];
      const int flatten = pool.op_type == "GlobalAveragePool" && !pool.inputs.empty() ? OnlyReader(readers, pool) : -1;
      if (flatten < 0) {
        continue;
      }
      const PruneNode& node = simple_.nodes[flatten];
      const bool flattens = node.op_type == "Flatten" && IntAttribute(graph_.item(node.item).node.proto, "axis", 1) == 1;
      if (flattens || (node.op_type == "Reshape" && ReshapesByBatchOf(readers, pool.inputs[0], flatten))) {
        pairs.emplace_back(n, flatten);
      }
    }
    // The fused node goes right behind the producer of what the pool reads; where that is no node, in front of all.
    std::vector<std::vector<PruneNode>> behind(simple_.nodes.size() + 1);
    for (const auto& [pool, flatten] : pairs) {
      PruneNode& first = simple_.nodes[pool];
      PruneNode& second = simple_.nodes[flatten];
      auto producer = index.find(first.inputs[0].item);
      behind[producer == index.end() ? 0 : producer->second + 1].push_back({.item = second.item,
                                                                            .op_type = kPoolFlatten,
                                                                            .name = absl::StrCat(first.name, ".", second.name),
                                                                            .inputs = {first.inputs[0]}});
      first.item = second.item = -1;
    }
    std::vector<PruneNode> nodes = std::move(behind[0]);
    for (size_t n = 0; n < simple_.nodes.size(); ++n) {
      if (simple_.nodes[n].item >= 0) {
        nodes.push_back(std::move(simple_.nodes[n]));
      }
      std::move(behind[n + 1].begin(), behind[n + 1].end(), std::back_inserter(nodes));
    }
    simple_.nodes = std::move(nodes);
    RemoveDeadNodes();
  }

  // True if the Reshape's target is put together from the batch size of `value`: Shape, Gather, Unsqueeze, Concat.
  bool ReshapesByBatchOf(const Readers& readers, Value value, int reshape) const {
    auto it = readers.find({value.item, value.output});
    for (const Reader& reader : it->second) {
      int next = reader.node;
      for (const char* op_type : {"Shape", "Gather", "Unsqueeze", "Concat"}) {
        if (next < 0 || simple_.nodes[next].op_type != op_type) {
          next = -1;
          break;
        }
        next = OnlyReader(readers, simple_.nodes[next]);
      }
      if (next == reshape) {
        return true;
      }
    }
    return false;
  }

  // Pass 4.
  bool IsPlainResize(const PruneNode& node) const {
    if (node.op_type != "Resize" || node.inputs.size() < 3 ||
        FindAttribute(graph_.item(node.item).node.proto, "axes") != nullptr) {
      return false;
    }
    const std::optional<Tensor> scales = SmallConstant(graph_, node.inputs[2]);
    if (!scales.has_value() || scales->ElementCount() != 4) {
      return false;
    }
    float values[4];
    return ReadFloats(*scales, 0, absl::MakeSpan(values)).ok() && values[1] == 1;
  }

  // Pass 5: the input of an Add that is the output of a Linear layer, where the other one is its bias.
  int MatMulOfBiasAdd(const PruneNode& node) const {
    if (node.op_type != "Add" || node.inputs.size() != 2) {
      return -1;
    }
    for (int input : {0, 1}) {
      const Value matmul = node.inputs[input];
      if (!matmul.is_item() || !linears_.contains(matmul.item) || !graph_.item(matmul.item).Is("MatMul")) {
        continue;
      }
      const std::optional<ConstantOperand> weight = FindConstantOperand(graph_, graph_.InputOf(matmul.item, 1));
      const std::optional<ConstantOperand> bias = FindConstantOperand(graph_, node.inputs[1 - input]);
      if (weight.has_value() && bias.has_value() &&
          DimsOf(graph_, *bias) == std::vector<int64_t>{DimsOf(graph_, *weight).back()}) {
        return input;
      }
    }
    return -1;
  }

  // Pass 6.
  bool IsPassThrough(const PruneNode& node) const {
    if (std::find(std::begin(kPassThrough), std::end(kPassThrough), node.op_type) == std::end(kPassThrough)) {
      return false;
    }
    if (node.op_type == "Pow") {  // a tensor as exponent would be lost
      return node.inputs.size() == 2 && IsScalarConstant(graph_, node.inputs[1]);
    }
    if ((node.op_type != "Softmax" && node.op_type != "LogSoftmax") || OpsetOf(graph_) < 13) {
      return true;
    }
    // From opset 13 on the axis may be any; torch's opset-11 form of another one than the last has Transposes around it.
    const Item& item = graph_.item(node.item);
    const int64_t axis = IntAttribute(item.node.proto, "axis", -1);
    const std::vector<int64_t>* shape = FindShape(shapes_, graph_.NameOf(Value{node.item, 0}));
    return axis == -1 || (shape != nullptr && axis == static_cast<int64_t>(shape->size()) - 1);
  }

  // Lets those who read output 0 of a node read its input `which(node)` instead; -1 leaves the node.
  template <typename Which>
  void SkipNodes(Which which) {
    absl::flat_hash_map<ItemId, Value> instead;
    auto redirect = [&instead](Value& value) {
      if (auto it = instead.find(value.item); it != instead.end() && value.output == 0) {
        value = it->second;
      }
    };
    for (const PruneNode& node : simple_.nodes) {
      const int input = which(node);
      if (input >= 0 && input < static_cast<int>(node.inputs.size())) {
        Value source = node.inputs[input];
        redirect(source);  // what stands before is redirected already
        instead[node.item] = source;
        if (simple_.unused.erase(node.item) > 0) {
          simple_.unused.insert(source.item);
        }
      }
    }
    for (PruneNode& node : simple_.nodes) {
      std::for_each(node.inputs.begin(), node.inputs.end(), redirect);
    }
    std::for_each(simple_.outputs.begin(), simple_.outputs.end(), redirect);
    RemoveDeadNodes();
  }

  // Pass 7: what only operators read that are left out. The nodes are in topological order.
  void RemoveDeadNodes() {
    absl::flat_hash_set<ItemId> read = simple_.unused;
    for (const Value& output : simple_.outputs) {
      read.insert(output.item);
    }
    std::vector<PruneNode> kept;
    kept.reserve(simple_.nodes.size());
    for (auto node = simple_.nodes.rbegin(); node != simple_.nodes.rend(); ++node) {
      if (read.contains(node->item)) {
        for (const Value& input : node->inputs) {
          read.insert(input.item);
        }
        kept.push_back(std::move(*node));
      }
    }
    std::reverse(kept.begin(), kept.end());
    simple_.nodes = std::move(kept);
  }

  const Graph& graph_;
  const absl::flat_hash_set<ItemId>& linears_;
  const TensorShapes& shapes_;
  PruneGraph simple_;
};

}  // namespace

PruneGraph SimplifyForPruning(const Graph& graph, const absl::flat_hash_set<ItemId>& linears, const TensorShapes& shapes) {
  return Simplifier(graph, linears, shapes).Simplify();
}

std::optional<std::vector<int64_t>> ConstantInts(const Graph& graph, Value value) {
  const std::optional<Tensor> tensor = SmallConstant(graph, value);
  if (!tensor.has_value() || tensor->header.data_type() != onnx::TensorProto::INT64) {
    return std::nullopt;
  }
  absl::StatusOr<onnx::TensorProto> proto = ToProto(*tensor);
  if (!proto.ok()) {
    return std::nullopt;
  }
  std::vector<int64_t> ints(proto->int64_data().begin(), proto->int64_data().end());
  if (proto->has_raw_data() && proto->raw_data().size() % sizeof(int64_t) == 0) {
    ints.resize(proto->raw_data().size() / sizeof(int64_t));
    std::memcpy(ints.data(), proto->raw_data().data(), proto->raw_data().size());
  }
  return ints.size() == tensor->ElementCount() ? std::optional(std::move(ints)) : std::nullopt;
}

bool IsScalarConstant(const Graph& graph, Value value) {
  const std::optional<Tensor> tensor = SmallConstant(graph, value);
  return tensor.has_value() && tensor->ElementCount() == 1;
}

}  // namespace modelpress::engine
