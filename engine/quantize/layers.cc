#include "engine/quantize/layers.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/quantize/marks.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/operands.h"
#include "google/protobuf/util/json_util.h"

namespace modelpress::engine {
namespace {

constexpr char kScopesKey[] = "pkg.torch.onnx.name_scopes";
constexpr char kClassesKey[] = "pkg.torch.onnx.class_hierarchy";
constexpr char kWeightSuffix[] = ".weight";
// The level that a mark's wrapper adds to names (docs/spec/qat.md section 17.1).
constexpr char kWrapper[] = "sub_module";

// ---- names ------------------------------------------------------------------------------------------------------------------

std::optional<int> NumericSuffix(absl::string_view text, absl::string_view& base) {
  const size_t underscore = text.rfind('_');
  int number = 0;
  if (underscore == absl::string_view::npos || underscore == 0 || underscore + 1 == text.size() ||
      !std::all_of(text.begin() + underscore + 1, text.end(), absl::ascii_isdigit) ||
      !absl::SimpleAtoi(text.substr(underscore + 1), &number)) {
    return std::nullopt;
  }
  base = text.substr(0, underscore);
  return number;
}

bool IsWrapper(absl::string_view atom) {
  absl::string_view base;
  return atom == kWrapper || (NumericSuffix(atom, base).has_value() && base == kWrapper);
}

// Puts a path together, without the wrapper level.
std::string JoinPath(std::vector<absl::string_view> atoms) {
  atoms.erase(std::remove_if(atoms.begin(), atoms.end(), IsWrapper), atoms.end());
  return absl::StrJoin(atoms, ".");
}

bool HasScopes(absl::string_view node_name) { return absl::StartsWith(node_name, "/"); }

// "/layer1/layer1.0/conv1/Conv" -> "/layer1/layer1.0/conv1"; "" for a name without scopes.
absl::string_view ScopePrefix(absl::string_view node_name) {
  return HasScopes(node_name) ? node_name.substr(0, node_name.rfind('/') + 1) : "";
}

// The module path that a TorchScript node name tells (ptq.md section 2, rule 2): "/layer1/layer1.0/conv1/Conv" ->
// "layer1.0.conv1". torch names a scope by the shortest end of the module path that starts with an atom that is no number.
std::string PathFromScopes(absl::string_view node_name) {
  std::vector<absl::string_view> path;
  std::vector<absl::string_view> previous;
  for (absl::string_view segment : absl::StrSplit(ScopePrefix(node_name), '/', absl::SkipEmpty())) {
    std::vector<absl::string_view> atoms = absl::StrSplit(segment, '.');
    if (previous.size() < atoms.size() && std::equal(previous.begin(), previous.end(), atoms.begin())) {
      path.resize(path.size() - previous.size());
    }
    path.insert(path.end(), atoms.begin(), atoms.end());
    previous = std::move(atoms);
  }
  return JoinPath(std::move(path));
}

// "layer1.0.conv1.weight" -> "layer1.0.conv1"; "" where the name is none of a parameter of a module.
std::string ModuleOfParameter(absl::string_view tensor_name) {
  if (absl::StrContains(tensor_name, "::") && absl::StartsWith(tensor_name, "onnx::")) {
    return "";
  }
  const size_t dot = tensor_name.rfind('.');
  return dot == absl::string_view::npos ? "" : JoinPath(absl::StrSplit(tensor_name.substr(0, dot), '.'));
}

// A Python list literal of strings. nullopt: it is none.
std::optional<std::vector<std::string>> ParsePythonList(absl::string_view text) {
  std::vector<std::string> list;
  text = absl::StripAsciiWhitespace(text);
  if (!absl::ConsumePrefix(&text, "[") || !absl::ConsumeSuffix(&text, "]")) {
    return std::nullopt;
  }
  text = absl::StripAsciiWhitespace(text);
  while (!text.empty()) {
    const char quote = text[0];
    if (quote != '\'' && quote != '"') {
      return std::nullopt;
    }
    std::string value;
    size_t i = 1;
    for (; i < text.size() && text[i] != quote; ++i) {
      i += text[i] == '\\' && i + 1 < text.size() ? 1 : 0;
      value += text[i];
    }
    if (i >= text.size()) {
      return std::nullopt;
    }
    list.push_back(std::move(value));
    text = absl::StripLeadingAsciiWhitespace(text.substr(i + 1));
    if (!text.empty() && !absl::ConsumePrefix(&text, ",")) {
      return std::nullopt;
    }
    text = absl::StripLeadingAsciiWhitespace(text);
  }
  return list;
}

// What metadata or a mark tells of a node: exact.
struct KnownModule {
  std::string path;
  std::string type;  // class name; empty: not told
};

std::optional<KnownModule> ModuleFromMetadata(const onnx::NodeProto& node) {
  KnownModule module;
  bool found = false;
  for (const onnx::StringStringEntryProto& entry : node.metadata_props()) {
    if (entry.key() != kScopesKey && entry.key() != kClassesKey) {
      continue;
    }
    // The last entry is the operator, the first the whole model.
    std::optional<std::vector<std::string>> list = ParsePythonList(entry.value());
    if (!list.has_value() || list->size() < 2) {
      continue;
    }
    const std::string& last_module = (*list)[list->size() - 2];
    if (entry.key() == kScopesKey) {
      module.path = last_module;
      found = true;
    } else {
      module.type = last_module.substr(last_module.rfind('.') + 1);
    }
  }
  return found ? std::optional(module) : std::nullopt;
}

// The QuantIdentity mark in front of the node, which operators of its own module may separate from it.
std::optional<KnownModule> ModuleFromMark(const Graph& graph, ItemId id) {
  Value value = graph.InputOf(id, 0);
  for (int steps = 0; steps < 8 && value.is_item(); ++steps) {
    const Item& item = graph.item(value.item);
    if (item.Is("QuantIdentity")) {
      const std::optional<Mark> mark = MarkOf(item);
      return mark.has_value() ? std::optional(KnownModule{mark->module, mark->type}) : std::nullopt;
    }
    const bool inside = item.Is("Transpose") || item.Is("Pad") || item.Is("Unsqueeze") || item.Is("Concat") || item.Is("Slice");
    if (!inside || item.input_count() == 0) {
      return std::nullopt;
    }
    value = graph.InputOf(value.item, 0);
  }
  return std::nullopt;
}

// True if both nodes come from the forward of one module, as far as the exporter tells.
bool InSameModule(const Item& a, const Item& b) {
  const std::optional<KnownModule> known = ModuleFromMetadata(a.node.proto);
  if (known.has_value()) {
    const std::optional<KnownModule> other = ModuleFromMetadata(b.node.proto);
    return other.has_value() && other->path == known->path;
  }
  return HasScopes(a.name) && ScopePrefix(a.name) == ScopePrefix(b.name);
}

// ---- types and conditions ---------------------------------------------------------------------------------------------------

const std::array<absl::string_view, 9> kTypes = {"Conv2d",          "Conv3d", "Linear", "ConvTranspose2d", "AvgPool2d", "Conv1d",
                                                 "ConvTranspose1d", "GRU",    "LSTM"};

constexpr absl::string_view kBatchNorms[] = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"};

bool IsLayerType(absl::string_view type) { return std::find(kTypes.begin(), kTypes.end(), type) != kTypes.end(); }

// The weight of a node and the shape in which the node sees it.
struct Weight {
  ItemId holder = -1;
  std::vector<int64_t> dims;
};

std::optional<Weight> FindWeight(const Graph& graph, ItemId id, int input) {
  std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(id, input));
  if (!operand.has_value()) {
    return std::nullopt;
  }
  return Weight{.holder = operand->holder, .dims = DimsOf(graph, *operand)};
}

// Class name of the torch module that such a node would come from; empty: none that concerns us.
std::string TypeOf(const Graph& graph, ItemId id) {
  const Item& item = graph.item(id);
  const OpRule* rule = item.is_node() ? FindOpRule(item.node.proto.op_type()) : nullptr;
  if (rule == nullptr) {
    return "";
  }
  const std::optional<Weight> weight = rule->weight < 0 ? std::nullopt : FindWeight(graph, id, rule->weight);
  const auto* kernel_shape = FindAttribute(item.node.proto, "kernel_shape");
  size_t spatial = kernel_shape == nullptr ? 0 : kernel_shape->ints_size();
  switch (rule->kind) {
    case OpKind::kConv:
    case OpKind::kConvTranspose:
      if (weight.has_value()) {
        spatial = weight->dims.size() < 2 ? 0 : weight->dims.size() - 2;
      }
      return spatial >= 1 && spatial <= 3 ? absl::StrCat(rule->op_type, spatial, "d") : "";
    case OpKind::kGemm:
    case OpKind::kMatMul:  // without a constant matrix they are plain arithmetic
      return weight.has_value() && weight->dims.size() == 2 && !FindConstantOperand(graph, graph.InputOf(id, 0)).has_value()
                 ? "Linear"
                 : "";
    case OpKind::kAveragePool:
      return absl::StrCat("AvgPool", spatial, "d");
    case OpKind::kLstm:
    case OpKind::kGru:
      return std::string(rule->op_type);
  }
  return "";
}

// A MatMul's bias may be either input of the Add behind it (ptq.md section 3.2).
bool HasBias(const Graph& graph, ItemId id, const OpRule& rule, const std::vector<int64_t>& weight_dims) {
  if (rule.kind != OpKind::kMatMul) {
    return FindBias(graph, id, rule).has_value();
  }
  const std::vector<Use>& uses = graph.UsesOf(Value{id, 0});
  if (uses.size() != 1 || uses[0].item == Use::kGraphOutput || !graph.item(uses[0].item).Is("Add")) {
    return false;
  }
  const Value bias = graph.InputOf(uses[0].item, 1 - uses[0].input);
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, bias);
  if (!operand.has_value() || operand->transpose >= 0) {
    return false;
  }
  const std::vector<int64_t> dims = DimsOf(graph.item(operand->holder));
  return dims.size() == 1 && dims[0] == weight_dims.back();
}

// The node in front of a layer's data input (of an RNN behind its Transpose), if it belongs to the same module.
const Item* InnerProducer(const Graph& graph, ItemId id) {
  const Item& item = graph.item(id);
  Value data = graph.InputOf(id, 0);
  if (FindOpRule(item.node.proto.op_type())->is_rnn() && data.is_item() && graph.item(data.item).Is("Transpose") &&
      InSameModule(graph.item(data.item), item)) {
    data = graph.InputOf(data.item, 0);
  }
  return data.is_item() && graph.item(data.item).is_node() && InSameModule(graph.item(data.item), item) ? &graph.item(data.item)
                                                                                                        : nullptr;
}

bool IsConvolution(const OpRule& rule) { return rule.kind == OpKind::kConv || rule.kind == OpKind::kConvTranspose; }

// How a convolution pads if not with zeros, as the end of the sentence "its padding_mode is"; else empty.
std::string OtherPadding(const Graph& graph, ItemId id, const v1::Module* module) {
  if (!IsConvolution(*FindOpRule(graph.item(id).node.proto.op_type()))) {
    return "";
  }
  if (module != nullptr && !module->padding_mode().empty()) {
    return module->padding_mode() == "zeros" ? "" : absl::StrCat("'", module->padding_mode(), "', not 'zeros'");
  }
  const Item* producer = InnerProducer(graph, id);
  if (producer == nullptr) {
    return "";
  }
  const auto* mode = FindAttribute(producer->node.proto, "mode");
  return producer->Is("Concat") || (producer->Is("Pad") && mode != nullptr && mode->s() != "constant") ? "not 'zeros'" : "";
}

// The conditions of ptq.md section 3.1 that show at one node, as far as they follow from the graph, without padding and the
// wiring of RNN layers.
std::string WhyNotAtAll(const Graph& graph, ItemId id, absl::string_view type) {
  const Item& item = graph.item(id);
  const OpRule& rule = *FindOpRule(item.node.proto.op_type());
  if (!rule.is_rnn()) {
    if (std::string why_not = WhyNotQuantizable(graph, id); !why_not.empty()) {
      return why_not;
    }
  }
  for (int input : {rule.weight, rule.recurrence}) {
    if (input < 0) {
      continue;
    }
    const std::optional<Weight> weight = FindWeight(graph, id, input);
    if (!weight.has_value()) {
      return "its weight is not a constant of the model";
    }
    const int type_of_data = DataTypeOf(graph.item(weight->holder));
    if (type_of_data != onnx::TensorProto::FLOAT && type_of_data != onnx::TensorProto::FLOAT16) {
      return absl::StrCat("its weight has the type ", onnx::TensorProto::DataType_Name(type_of_data), ", not FLOAT or FLOAT16");
    }
  }
  if (type == "Conv3d") {
    const auto* dilations = FindAttribute(item.node.proto, "dilations");
    if (dilations != nullptr && (dilations->ints_size() != 3 || dilations->ints(0) != 1)) {
      return "its dilation is not 1 in depth";
    }
  }
  const Item* producer = InnerProducer(graph, id);
  if ((IsConvolution(rule) || rule.is_rnn()) && producer != nullptr && producer->Is("Unsqueeze")) {
    return "its input has no batch dimension";
  }
  return "";
}

std::string WhyNotByModule(const v1::Module& module) {
  if (module.type() != "LSTM" && module.type() != "GRU") {
    return "";
  }
  if (module.num_layers() > 1) {
    return absl::StrCat("it has ", module.num_layers(), " layers; one is supported");
  }
  return module.bidirectional()    ? "it is bidirectional"
         : module.dropout() != 0   ? "its dropout is not 0"
         : module.proj_size() != 0 ? "it has projections (proj_size)"
                                   : "";
}

void Describe(const Graph& graph, ItemId id, ConfigLayer& config) {
  const Item& item = graph.item(id);
  const OpRule& rule = *FindOpRule(item.node.proto.op_type());
  if (rule.kind == OpKind::kConv || rule.kind == OpKind::kConvTranspose) {
    config.groups = GroupOf(item);
  }
  if (rule.weight < 0) {
    return;
  }
  const std::optional<Weight> weight = FindWeight(graph, id, rule.weight);
  if (!weight.has_value()) {
    return;
  }
  config.has_bias = HasBias(graph, id, rule, weight->dims);
  int axis = rule.cin_axis;
  if (rule.kind == OpKind::kGemm) {
    axis = IntAttribute(item.node.proto, "transB", 0) == 0 ? 0 : 1;
  }
  for (int input : {rule.weight, rule.recurrence}) {
    const std::optional<Weight> packed = input < 0 ? std::nullopt : FindWeight(graph, id, input);
    if (packed.has_value() && axis < static_cast<int>(packed->dims.size())) {
      config.packed_sizes.push_back(packed->dims[axis]);
    }
  }
}

// ---- finding ----------------------------------------------------------------------------------------------------------------

enum class Source { kMetadata, kMark, kWeight, kScopes, kNode };

bool IsExact(Source source) { return source == Source::kMetadata || source == Source::kMark; }

// A node of a quantizable type, and what it may be called.
struct Candidate {
  ItemId node = -1;
  std::string type;
  std::string weight;  // tensor name; empty: it has none
  std::string scopes;  // the path that its scopes tell, or ""
  std::string name;
  Source source = Source::kNode;
  std::string why_not;
  bool dropped = false;
};

class Finder {
 public:
  Finder(const Graph& graph, const v1::ModuleManifest* manifest, const ReferenceDefects& defects)
      : graph_(graph), manifest_(manifest), defects_(defects) {}

  absl::StatusOr<Layers> Find() {
    CollectNames();
    for (ItemId id : graph_.Order()) {
      if (graph_.item(id).is_node()) {
        Visit(id);
      }
    }
    if (manifest_ != nullptr) {
      MP_RETURN_IF_ERROR(TakeNamesOfManifest());
    } else {
      FindReused();
      ResolveClashes();
      for (Candidate& candidate : candidates_) {
        if (!candidate.dropped) {
          layers_.layers.push_back(MakeLayer(candidate, nullptr));
        }
      }
    }
    CollideReusedNames();
    FinishOtherModules();
    return std::move(layers_);
  }

 private:
  // Names of constants, and every module path that scopes tell.
  void CollectNames() {
    for (ItemId id : graph_.Order()) {
      const Item& item = graph_.item(id);
      if (item.is_initializer()) {
        std::string module = ModuleOfParameter(item.name);
        if (!module.empty()) {
          parameters_.insert(absl::StrCat(module, absl::string_view(item.name).substr(item.name.rfind('.'))));
          layers_.other_modules.insert(std::move(module));
        }
      } else if (item.is_node() && HasScopes(item.name)) {
        paths_.insert(PathFromScopes(item.name));
      }
    }
  }

  // True if a module of that name has children, or parameters that a module of `type` does not have: then an operator in its
  // scope is part of its forward and no module of its own.
  bool HasInnerLife(const std::string& name, absl::string_view type) const {
    const std::string prefix = name + ".";
    if (auto it = paths_.lower_bound(prefix); it != paths_.end() && absl::StartsWith(*it, prefix)) {
      return true;
    }
    for (auto it = parameters_.lower_bound(prefix); it != parameters_.end() && absl::StartsWith(*it, prefix); ++it) {
      const absl::string_view rest = absl::string_view(*it).substr(prefix.size());
      const bool rnn = type == "LSTM" || type == "GRU";
      const bool own = rnn ? absl::StartsWith(rest, "weight_") || absl::StartsWith(rest, "bias_")
                           : type != "AvgPool2d" && (rest == "weight" || rest == "bias");
      if (!own || absl::StrContains(rest, '.')) {
        return true;
      }
    }
    return false;
  }

  static std::string NameOfNode(const Item& item) {
    return absl::StrReplaceAll(item.node.proto.name().empty() && !item.outputs.empty() ? item.outputs[0] : item.name,
                               {{":", "_"}});
  }

  void Visit(ItemId id) {
    const Item& item = graph_.item(id);
    if (item.Is("BatchNormalization")) {
      layers_.batch_norms[id] = NameOfBatchNorm(id);
      layers_.other_modules.insert(layers_.batch_norms[id]);
      return;
    }
    const std::string type = TypeOf(graph_, id);
    const std::string scopes = PathFromScopes(item.name);
    std::optional<KnownModule> known = ModuleFromMetadata(item.node.proto);
    Candidate candidate = {.node = id, .type = type, .scopes = scopes};
    if (!IsLayerType(type)) {
      AddOtherModule(known.has_value() ? known->path : HasScopes(item.name) ? scopes : NameOfNode(item));
      return;
    }
    if (const int input = FindOpRule(item.node.proto.op_type())->weight; input >= 0) {
      if (auto operand = FindConstantOperand(graph_, graph_.InputOf(id, input)); operand.has_value()) {
        candidate.weight = graph_.item(operand->holder).outputs[0];
      }
    }
    candidate.source = Source::kMetadata;
    if (!known.has_value()) {
      known = ModuleFromMark(graph_, id);
      candidate.source = Source::kMark;
    }
    if (known.has_value()) {
      candidate.name = known->path;
      const bool is_module = known->type.empty() ? !HasInnerLife(known->path, type) : known->type == type;
      if (known->path.empty() || !is_module) {
        AddOtherModule(known->path);
        return;
      }
    } else if (absl::EndsWith(candidate.weight, kWeightSuffix) && !ModuleOfParameter(candidate.weight).empty()) {
      candidate.name = absl::StrReplaceAll(ModuleOfParameter(candidate.weight), {{":", "_"}});
      candidate.source = Source::kWeight;
    } else if (HasScopes(item.name)) {
      candidate.name = scopes;
      candidate.source = Source::kScopes;
      // With a manifest the classes of modules are known.
      if (manifest_ == nullptr && (scopes.empty() || HasInnerLife(scopes, type))) {
        AddOtherModule(scopes);
        return;
      }
    } else {
      candidate.name = NameOfNode(item);
      candidate.source = Source::kNode;
    }
    candidates_.push_back(std::move(candidate));
  }

  std::string NameOfBatchNorm(ItemId id) const {
    const Item& item = graph_.item(id);
    std::optional<KnownModule> known = ModuleFromMetadata(item.node.proto);
    if (!known.has_value()) {
      known = ModuleFromMark(graph_, id);
    }
    if (known.has_value() && !known->path.empty()) {
      return known->path;
    }
    if (auto scale = FindConstantOperand(graph_, graph_.InputOf(id, 1)); scale.has_value()) {
      const std::string& tensor = graph_.item(scale->holder).outputs[0];
      // torch writes equal tensors once, and new batch norms are all equal: then the name is that of one of them.
      const std::vector<Use>& uses = graph_.UsesOf(Value{scale->holder, 0});
      const bool own = std::all_of(uses.begin(), uses.end(), [id](const Use& use) { return use.item == id; });
      if (own && absl::EndsWith(tensor, kWeightSuffix) && !ModuleOfParameter(tensor).empty()) {
        return ModuleOfParameter(tensor);
      }
    }
    const std::string path = PathFromScopes(item.name);
    return path.empty() ? NameOfNode(item) : path;
  }

  void AddOtherModule(const std::string& name) {
    if (!name.empty()) {
      layers_.other_modules.insert(name);
    }
  }

  // Conditions 5 and 8 of ptq.md section 3.1: a module that is used several times, modules that share a weight.
  void FindReused() {
    std::map<std::string, std::vector<Candidate*>> by_weight;
    std::map<std::string, std::vector<Candidate*>> pools;
    for (Candidate& candidate : candidates_) {
      if (!candidate.weight.empty()) {
        by_weight[candidate.weight].push_back(&candidate);
      } else if (candidate.type == "AvgPool2d" && candidate.source != Source::kNode) {
        pools[candidate.name].push_back(&candidate);
      }
    }
    for (auto& [weight, users] : by_weight) {
      if (users.size() < 2) {
        continue;
      }
      const std::string why_not = absl::StrCat("its weight '", weight, "' is used by ", users.size(), " nodes");
      absl::flat_hash_set<std::string> names = {users[0]->name};
      for (Candidate* user : users) {
        user->why_not = defects_.quantizes_shared_conv1d && user->type == "Conv1d" ? "" : why_not;
        if (user == users[0]) {
          continue;
        }
        // The weight tells the name of one of them only. Another scope is another module, unless torch has numbered it.
        if (!IsExact(user->source) && !user->scopes.empty() && !HasInnerLife(user->scopes, user->type)) {
          user->name = user->scopes;
          user->source = Source::kScopes;
          if (absl::string_view base; NumericSuffix(user->name, base).has_value() && names.contains(std::string(base))) {
            user->name = std::string(base);
          }
        } else if (user->source == Source::kNode) {
          user->name = NameOfNode(graph_.item(user->node));
        }
        if (!names.insert(user->name).second) {  // another use of the same module
          user->dropped = true;
          users[0]->why_not = why_not;
          ++uses_[user->name];
        }
      }
    }
    // torch calls the scope of the second use of `pool` `pool_1`.
    for (auto& [name, users] : pools) {
      absl::string_view base;
      auto first = users.size() > 1                        ? pools.find(name)
                   : NumericSuffix(name, base).has_value() ? pools.find(std::string(base))
                                                           : pools.end();
      if (first == pools.end()) {
        continue;
      }
      first->second[0]->why_not = "the module is used more than once";
      for (Candidate* user : users) {
        if (user != first->second[0]) {
          user->dropped = true;
          ++uses_[first->first];
        }
      }
    }
  }

  // Names that several nodes with different weights would get. Exact ones are another use of a module. Scopes do not tell apart
  // two modules of one name in containers that are not called (ModuleDict) or two operators in one module's forward: each can be
  // quantized for itself, so it goes by its node's name instead. An LSTM or GRU however has as many nodes as layers.
  void ResolveClashes() {
    std::map<std::string, std::vector<Candidate*>> by_name;
    for (Candidate& candidate : candidates_) {
      if (!candidate.dropped) {
        by_name[candidate.name].push_back(&candidate);
      }
    }
    for (auto& [name, users] : by_name) {
      if (users.size() < 2) {
        continue;
      }
      std::stable_sort(users.begin(), users.end(), [](const Candidate* a, const Candidate* b) { return a->source < b->source; });
      const bool rnn = users[0]->type == "LSTM" || users[0]->type == "GRU";
      for (size_t i = 0; i < users.size(); ++i) {
        Candidate& user = *users[i];
        if (rnn || IsExact(user.source)) {
          users[0]->why_not = rnn ? "the module has more than one layer" : "the module is used more than once";
          user.dropped = i > 0;
        } else if (user.source == Source::kScopes) {
          user.name = NameOfNode(graph_.item(user.node));
          user.source = Source::kNode;
        }
      }
    }
    absl::flat_hash_set<std::string> taken;
    for (Source source : {Source::kMetadata, Source::kMark, Source::kWeight, Source::kScopes, Source::kNode}) {
      for (Candidate& candidate : candidates_) {
        if (candidate.dropped || candidate.source != source) {
          continue;
        }
        const std::string wanted = candidate.name;
        for (int i = 1; !taken.insert(candidate.name).second; ++i) {
          candidate.name = absl::StrCat(wanted, "_", i);
        }
      }
    }
  }

  Layer MakeLayer(const Candidate& candidate, const v1::Module* module) const {
    Layer layer;
    layer.node = candidate.node;
    layer.config.name = candidate.name;
    layer.config.type = candidate.type;
    layer.why_not_at_all = candidate.why_not.empty() ? WhyNotAtAll(graph_, candidate.node, candidate.type) : candidate.why_not;
    const std::string padding = OtherPadding(graph_, candidate.node, module);
    layer.pads_otherwise = !padding.empty();
    layer.config.why_not = !layer.why_not_at_all.empty() ? layer.why_not_at_all
                           : layer.pads_otherwise        ? absl::StrCat("its padding_mode is ", padding)
                                                         : WhyNotQuantizable(graph_, candidate.node);
    Describe(graph_, candidate.node, layer.config);
    return layer;
  }

  // ---- with a manifest

  absl::Status Contradiction(const std::string& layer, absl::string_view message) const {
    return MakeError(v1::MANIFEST_INVALID, message, {.layer = layer});
  }

  static const v1::Parameter* ParameterOf(const v1::Module& module, absl::string_view name) {
    for (const v1::Parameter& parameter : module.parameters()) {
      if (parameter.name() == name) {
        return &parameter;
      }
    }
    return nullptr;
  }

  // True unless module and node have weights of different shapes.
  bool ShapesAgree(const Candidate& candidate, const v1::Module& module) const {
    const v1::Parameter* parameter = ParameterOf(module, "weight");
    const Item& item = graph_.item(candidate.node);
    const OpRule& rule = *FindOpRule(item.node.proto.op_type());
    if (parameter == nullptr || parameter->shape().empty() || rule.weight < 0 || rule.is_rnn()) {
      return true;
    }
    const std::optional<Weight> weight = FindWeight(graph_, candidate.node, rule.weight);
    std::vector<int64_t> shape(parameter->shape().begin(), parameter->shape().end());
    if (rule.kind == OpKind::kMatMul || (rule.kind == OpKind::kGemm && IntAttribute(item.node.proto, "transB", 0) == 0)) {
      std::reverse(shape.begin(), shape.end());
    }
    return !weight.has_value() || weight->dims == shape;
  }

  absl::Status TakeNamesOfManifest() {
    absl::flat_hash_map<std::string, const v1::Module*> modules;
    for (const v1::Module& module : manifest_->modules()) {
      modules[module.name()] = &module;
    }
    std::map<const v1::Module*, std::vector<Candidate*>> nodes;
    std::vector<Candidate*> by_suffix;
    for (Candidate& candidate : candidates_) {
      auto fits = [&](const std::string& name) -> const v1::Module* {
        auto it = modules.find(name);
        return it != modules.end() && it->second->type() == candidate.type && ShapesAgree(candidate, *it->second) ? it->second
                                                                                                                  : nullptr;
      };
      // The scope first where it tells a module with this very weight: of modules that share one, the weight names only one.
      const v1::Module* module = candidate.source == Source::kWeight ? fits(candidate.scopes) : nullptr;
      if (module != nullptr) {
        const v1::Parameter* weight = ParameterOf(*module, "weight");
        module = weight != nullptr && weight->identity() == candidate.name + kWeightSuffix ? module : nullptr;
      }
      if (module == nullptr) {
        module = fits(candidate.name);
      }
      auto named = modules.find(candidate.name);
      if (module != nullptr) {
        nodes[module].push_back(&candidate);
      } else if (named != modules.end() && candidate.source < Source::kScopes) {
        const v1::Module& other = *named->second;
        if (other.type() == candidate.type) {
          return Contradiction(candidate.name, "the module manifest gives its weight another shape than the model");
        }
        if (IsLayerType(other.type())) {
          return Contradiction(candidate.name, absl::StrCat("the module manifest says ", other.type(),
                                                            ", but in the model it is a ", candidate.type));
        }
      } else if (!candidate.scopes.empty()) {
        by_suffix.push_back(&candidate);
      }
    }
    for (Candidate* candidate : by_suffix) {
      std::vector<const v1::Module*> found;
      for (const v1::Module& module : manifest_->modules()) {
        if (module.type() == candidate->type && !nodes.contains(&module) &&
            absl::EndsWith(module.name(), "." + candidate->scopes) && ShapesAgree(*candidate, module)) {
          found.push_back(&module);
        }
      }
      if (found.size() == 1) {
        nodes[found[0]].push_back(candidate);
      }
    }
    TakeBatchNormsOfManifest();
    std::map<std::string, int> sharers;
    for (const v1::Module& module : manifest_->modules()) {
      layers_.other_modules.insert(module.name());
      if (const v1::Parameter* weight = ParameterOf(module, "weight"); weight != nullptr && IsLayerType(module.type())) {
        ++sharers[weight->identity().empty() ? absl::StrCat(module.name(), kWeightSuffix) : weight->identity()];
      }
    }
    for (const v1::Module& module : manifest_->modules()) {
      if (!IsLayerType(module.type())) {
        continue;
      }
      Layer layer;
      auto it = nodes.find(&module);
      if (it != nodes.end()) {
        Candidate& first = *it->second[0];
        first.name = module.name();
        uses_[module.name()] = static_cast<int>(it->second.size()) - 1;
        layer = MakeLayer(first, &module);
      } else {
        layer.why_not_at_all = "it is not executed in the exported model";
        layer.config = {.name = module.name(), .type = module.type(), .why_not = layer.why_not_at_all};
      }
      if (module.parameters_size() > 0) {
        layer.config.has_bias = ParameterOf(module, "bias") != nullptr;
      }
      const v1::Parameter* weight = ParameterOf(module, "weight");
      std::string why_not = WhyNotByModule(module);
      if (why_not.empty() && it != nodes.end() && it->second.size() > 1) {
        why_not = "the module is used more than once";
      }
      if (why_not.empty() && weight != nullptr && !weight->identity().empty() && sharers[weight->identity()] > 1 &&
          !(defects_.quantizes_shared_conv1d && module.type() == "Conv1d")) {
        why_not = absl::StrCat("it shares the weight '", weight->identity(), "' with another layer");
      }
      if (!why_not.empty()) {
        layer.config.why_not = why_not;
        layer.why_not_at_all = why_not;
      }
      layers_.layers.push_back(std::move(layer));
    }
    return absl::OkStatus();
  }

  // A batch norm that is no module, and one that is used several times, is left out. Like those of layers, names of scopes may be
  // the end of a path.
  void TakeBatchNormsOfManifest() {
    std::map<std::string, std::vector<ItemId>> nodes;
    for (const auto& [id, name] : layers_.batch_norms) {
      std::vector<std::string> found;
      for (const v1::Module& module : manifest_->modules()) {
        if (std::find(std::begin(kBatchNorms), std::end(kBatchNorms), module.type()) != std::end(kBatchNorms)) {
          if (module.name() == name) {
            found = {name};
            break;
          }
          if (absl::EndsWith(module.name(), "." + name)) {
            found.push_back(module.name());
          }
        }
      }
      if (found.size() == 1) {
        nodes[found[0]].push_back(id);
      }
    }
    layers_.batch_norms.clear();
    for (const auto& [name, ids] : nodes) {
      if (ids.size() == 1) {
        layers_.batch_norms[ids[0]] = name;
      }
    }
  }

  // ---- both

  // The second use of `conv` makes the reference take a real module `conv1` for a reused one too (ptq.md section 2).
  void CollideReusedNames() {
    for (const auto& [name, more_uses] : uses_) {
      for (int i = 1; i <= more_uses; ++i) {
        for (Layer& layer : layers_.layers) {
          if (layer.config.name == absl::StrCat(name, i) && layer.config.why_not.empty()) {
            if (defects_.reused_names_collide) {
              layer.config.why_not = absl::StrCat("use ", i + 1, " of module '", name, "' gets its name");
              layer.why_not_at_all = layer.config.why_not;
            } else {
              layers_.deviations.push_back(absl::StrCat("layer '", layer.config.name, "' is quantized although module '", name,
                                                        "' is used again (ptq.md 2)"));
            }
          }
        }
      }
    }
  }

  // Containers are modules too; layers are listed apart.
  void FinishOtherModules() {
    std::set<std::string> names = layers_.other_modules;
    for (const Candidate& candidate : candidates_) {
      if (candidate.source != Source::kNode) {
        names.insert(candidate.name);
      }
    }
    for (const std::string& name : names) {
      layers_.other_modules.insert(name);
      for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
        layers_.other_modules.insert(name.substr(0, dot));
      }
    }
    layers_.other_modules.erase("");
    for (const Layer& layer : layers_.layers) {
      layers_.other_modules.erase(layer.config.name);
    }
  }

  const Graph& graph_;
  const v1::ModuleManifest* const manifest_;
  const ReferenceDefects& defects_;
  std::set<std::string> paths_;       // that scopes tell
  std::set<std::string> parameters_;  // initializers named like parameters, without the wrapper level
  std::vector<Candidate> candidates_;
  std::map<std::string, int> uses_;  // of a module beyond the first
  Layers layers_;
};

}  // namespace

std::string ParameterName(absl::string_view tensor) { return JoinPath(absl::StrSplit(tensor, '.')); }

LayerCatalog Layers::Catalog() const {
  LayerCatalog catalog = {.other_modules = other_modules};
  for (const Layer& layer : layers) {
    catalog.layers.push_back(layer.config);
  }
  return catalog;
}

std::set<std::string> Layers::OtherwisePadded() const {
  std::set<std::string> names;
  for (const Layer& layer : layers) {
    if (layer.pads_otherwise) {
      names.insert(layer.config.name);
    }
  }
  return names;
}

absl::StatusOr<v1::ModuleManifest> ReadModuleManifest(absl::string_view json, const std::string& file) {
  if (json.size() > kMaxManifestBytes) {
    return MakeError(v1::MANIFEST_INVALID,
                     absl::StrCat("the file has ", json.size(), " bytes; at most ", kMaxManifestBytes, " are read"),
                     {.file = file});
  }
  v1::ModuleManifest manifest;
  const auto parsed = google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, &manifest);
  if (!parsed.ok()) {
    return MakeError(v1::MANIFEST_INVALID, absl::StrCat("not a module manifest: ", std::string(parsed.message()).substr(0, 300)),
                     {.file = file});
  }
  absl::flat_hash_set<std::string> names;
  for (const v1::Module& module : manifest.modules()) {
    if (!names.insert(module.name()).second) {
      return MakeError(v1::MANIFEST_INVALID, "two modules have this name", {.file = file, .layer = module.name()});
    }
  }
  return manifest;
}

absl::Status ResolveConstantIdentities(Graph& graph) {
  for (ItemId id : graph.Order()) {
    const Item& item = graph.item(id);
    if (!item.Is("Identity") || item.outputs.size() != 1) {
      continue;
    }
    const std::vector<Use>& uses = graph.UsesOf(Value{id, 0});
    const bool is_output = std::any_of(uses.begin(), uses.end(), [](const Use& use) { return use.item == Use::kGraphOutput; });
    const Value source = graph.InputOf(id, 0);
    const std::optional<ConstantOperand> operand = FindConstantOperand(graph, source);
    if (is_output || !operand.has_value() || operand->transpose >= 0) {
      continue;
    }
    graph.ReplaceByInitializer(id, TensorOf(graph.item(operand->holder)));
    if (graph.UsesOf(source).empty()) {
      graph.Remove(operand->holder);
    }
  }
  return graph.Sort();
}

absl::StatusOr<Layers> FindLayers(const Graph& graph, const v1::ModuleManifest* manifest, const ReferenceDefects& defects) {
  return Finder(graph, manifest, defects).Find();
}

void NameLayerNodes(Graph& graph, const Layers& layers) {
  std::map<ItemId, std::string> names;
  std::set<std::string> taken;
  for (const Layer& layer : layers.layers) {
    if (layer.node >= 0 && taken.insert(layer.config.name).second) {
      names[layer.node] = layer.config.name;
    }
  }
  for (const auto& [id, name] : layers.batch_norms) {
    if (taken.insert(name).second) {
      names[id] = name;
    }
  }
  graph.RenameNodes(names);
}

}  // namespace modelpress::engine
