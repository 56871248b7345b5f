#include "engine/graph/graph.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

// Calls `visit` for every graph in the attributes of `node`.
void ForEachSubgraph(const onnx::NodeProto& node, const std::function<void(const onnx::GraphProto&)>& visit) {
  for (const onnx::AttributeProto& attribute : node.attribute()) {
    if (attribute.has_g()) {
      visit(attribute.g());
    }
    for (const onnx::GraphProto& graph : attribute.graphs()) {
      visit(graph);
    }
  }
}

// Names that `graph` defines itself.
absl::flat_hash_set<std::string> DefinedIn(const onnx::GraphProto& graph) {
  absl::flat_hash_set<std::string> names;
  for (const auto& input : graph.input()) {
    names.insert(input.name());
  }
  for (const auto& tensor : graph.initializer()) {
    names.insert(tensor.name());
  }
  for (const auto& sparse : graph.sparse_initializer()) {
    names.insert(sparse.values().name());
  }
  for (const auto& node : graph.node()) {
    names.insert(node.output().begin(), node.output().end());
  }
  return names;
}

// The names that subgraphs use and none of them, from there outwards, defines.
class FreeNames {
 public:
  // Appends those of `graph`, each once, in order of use.
  void Collect(const onnx::GraphProto& graph) {
    const absl::flat_hash_set<std::string> defined = DefinedIn(graph);
    for (const std::string& name : defined) {
      ++scopes_[name];
    }
    for (const auto& node : graph.node()) {
      for (const std::string& input : node.input()) {
        Use(input);
      }
      ForEachSubgraph(node, [this](const onnx::GraphProto& inner) { Collect(inner); });
    }
    for (const auto& output : graph.output()) {
      Use(output.name());
    }
    for (const std::string& name : defined) {
      if (auto it = scopes_.find(name); --it->second == 0) {
        scopes_.erase(it);
      }
    }
  }

  const std::vector<std::string>& names() const { return names_; }

 private:
  void Use(const std::string& name) {
    if (!name.empty() && !scopes_.contains(name) && seen_.insert(name).second) {
      names_.push_back(name);
    }
  }

  absl::flat_hash_map<std::string, int> scopes_;  // in how many of the graphs around the present place a name is defined
  absl::flat_hash_set<std::string> seen_;
  std::vector<std::string> names_;
};

// Replaces free uses of the names in `renames` in `graph`.
void RenameFree(onnx::GraphProto& graph, absl::flat_hash_map<std::string, std::string> renames) {
  for (const std::string& defined : DefinedIn(graph)) {
    renames.erase(defined);
  }
  if (renames.empty()) {
    return;
  }
  for (auto& node : *graph.mutable_node()) {
    for (std::string& input : *node.mutable_input()) {
      if (auto it = renames.find(input); it != renames.end()) {
        input = it->second;
      }
    }
    for (auto& attribute : *node.mutable_attribute()) {
      if (attribute.has_g()) {
        RenameFree(*attribute.mutable_g(), renames);
      }
      for (auto& inner : *attribute.mutable_graphs()) {
        RenameFree(inner, renames);
      }
    }
  }
  for (auto& output : *graph.mutable_output()) {
    if (auto it = renames.find(output.name()); it != renames.end()) {
      output.set_name(it->second);
    }
  }
}

void CollectDefined(const onnx::GraphProto& graph, absl::flat_hash_set<std::string>& names) {
  names.merge(DefinedIn(graph));
  for (const auto& node : graph.node()) {
    ForEachSubgraph(node, [&names](const onnx::GraphProto& inner) { CollectDefined(inner, names); });
  }
}

std::string FirstFree(const std::string& name, const absl::flat_hash_set<std::string>& taken) {
  std::string candidate = name;
  for (int suffix = 1; taken.contains(candidate); ++suffix) {
    candidate = absl::StrCat(name, suffix);
  }
  return candidate;
}

}  // namespace

absl::StatusOr<Graph> Graph::Create(Model model, const ReferenceDefects& defects) {
  Graph graph(defects);
  graph.shell_ = std::move(model.shell);
  for (Tensor& tensor : model.initializers) {
    Item item;
    item.kind = Item::Kind::kInitializer;
    item.name = tensor.name();
    item.outputs = {item.name};
    item.tensor = std::move(tensor);
    graph.items_.push_back(std::move(item));
  }
  for (onnx::SparseTensorProto& sparse : model.sparse_initializers) {
    Item item;
    item.kind = Item::Kind::kSparseInitializer;
    item.name = sparse.values().name();
    item.outputs = {item.name};
    item.sparse = std::move(sparse);
    graph.items_.push_back(std::move(item));
  }
  absl::flat_hash_set<std::string> node_names;
  for (size_t i = 0; i < model.nodes.size(); ++i) {
    Item item;
    item.node = std::move(model.nodes[i]);
    const onnx::NodeProto& proto = item.node.proto;
    item.name = proto.has_name() ? proto.name() : absl::StrCat("node_", i);
    if (!item.name.empty() && !node_names.insert(item.name).second) {
      return MakeError(v1::GRAPH_INVALID, "two nodes have this name; rename one of them", {.layer = item.name});
    }
    if (proto.output().empty()) {  // so that every item has a first output
      return MakeError(v1::GRAPH_INVALID, "the node has no output", {.layer = item.name});
    }
    item.outputs.assign(proto.output().begin(), proto.output().end());
    graph.items_.push_back(std::move(item));
  }
  for (ItemId id = 0; id < static_cast<ItemId>(graph.items_.size()); ++id) {
    graph.items_[id].uses.resize(graph.items_[id].outputs.size());
    graph.sorted_.push_back(id);
  }
  MP_RETURN_IF_ERROR(graph.Link());
  MP_RETURN_IF_ERROR(graph.Sort());
  return graph;
}

absl::Status Graph::Link() {
  onnx::GraphProto& graph = *shell_.mutable_graph();
  // Exports list initializers as graph inputs too; they are none.
  absl::flat_hash_set<std::string> initializers;
  for (const Item& item : items_) {
    if (item.is_initializer()) {
      initializers.insert(item.name);
    }
  }
  auto* inputs = graph.mutable_input();
  inputs->erase(
      std::remove_if(inputs->begin(), inputs->end(), [&](const auto& input) { return initializers.contains(input.name()); }),
      inputs->end());

  absl::flat_hash_map<std::string, Value> producers;
  for (int i = 0; i < graph.input_size(); ++i) {
    producers[graph.input(i).name()] = Value{Value::kGraphInput, i};
    tensor_names_.insert(graph.input(i).name());
  }
  input_uses_.resize(graph.input_size());
  for (ItemId id = 0; id < static_cast<ItemId>(items_.size()); ++id) {
    for (int output = 0; output < static_cast<int>(items_[id].outputs.size()); ++output) {
      const std::string& name = items_[id].outputs[output];
      if (!name.empty()) {
        producers[name] = Value{id, output};
        tensor_names_.insert(name);
      }
    }
    if (items_[id].is_node()) {
      ForEachSubgraph(items_[id].node.proto, [this](const onnx::GraphProto& inner) { CollectDefined(inner, tensor_names_); });
    }
  }

  auto link = [&](ItemId id, const std::string& name) {
    Item& item = items_[id];
    auto it = producers.find(name);
    if (it == producers.end()) {
      return false;
    }
    MutableUsesOf(it->second).push_back(Use{id, static_cast<int>(item.inputs.size())});
    item.inputs.push_back(it->second);
    return true;
  };
  for (ItemId id = 0; id < static_cast<ItemId>(items_.size()); ++id) {
    Item& item = items_[id];
    if (!item.is_node()) {
      continue;
    }
    for (const std::string& name : item.node.proto.input()) {
      if (name.empty()) {
        item.inputs.push_back(Value{});
      } else if (!link(id, name)) {
        return MakeError(v1::GRAPH_INVALID, absl::StrCat("input '", name, "' is produced by nothing"), {.layer = item.name});
      }
    }
    if (!defects_.ignores_subgraph_captures) {
      FreeNames free;
      ForEachSubgraph(item.node.proto, [&free](const onnx::GraphProto& inner) { free.Collect(inner); });
      for (const std::string& name : free.names()) {
        if (!link(id, name)) {
          return MakeError(v1::GRAPH_INVALID, absl::StrCat("its subgraph uses '", name, "', which nothing produces"),
                           {.layer = item.name});
        }
        item.captures.push_back(name);
      }
    }
  }
  for (int i = 0; i < graph.output_size(); ++i) {
    auto it = producers.find(graph.output(i).name());
    if (it == producers.end()) {
      return MakeError(v1::GRAPH_INVALID, absl::StrCat("graph output '", graph.output(i).name(), "' is produced by nothing"));
    }
    MutableUsesOf(it->second).push_back(Use{Use::kGraphOutput, i});
    graph_outputs_.push_back(it->second);
  }
  return absl::OkStatus();
}

absl::StatusOr<Model> Graph::ToModel() const {
  Model model;
  model.shell = shell_;
  for (ItemId id : Order()) {
    const Item& item = items_[id];
    switch (item.kind) {
      case Item::Kind::kInitializer:
        model.initializers.push_back(item.tensor);
        break;
      case Item::Kind::kSparseInitializer:
        model.sparse_initializers.push_back(item.sparse);
        break;
      case Item::Kind::kNode: {
        Node node = item.node;
        node.proto.set_name(item.name);
        node.proto.clear_input();
        for (int i = 0; i < item.input_count(); ++i) {
          node.proto.add_input(item.inputs[i].is_none() ? "" : NameOf(item.inputs[i]));
        }
        node.proto.clear_output();
        for (const std::string& output : item.outputs) {
          node.proto.add_output(output);
        }
        RenameCaptures(item, node.proto);
        model.nodes.push_back(std::move(node));
        break;
      }
    }
  }
  return model;
}

void Graph::RenameCaptures(const Item& item, onnx::NodeProto& proto) const {
  absl::flat_hash_map<std::string, std::string> renames;
  for (size_t i = 0; i < item.captures.size(); ++i) {
    const std::string& now = NameOf(item.inputs[item.input_count() + i]);
    if (now != item.captures[i]) {
      renames[item.captures[i]] = now;
    }
  }
  if (renames.empty()) {
    return;
  }
  for (auto& attribute : *proto.mutable_attribute()) {
    if (attribute.has_g()) {
      RenameFree(*attribute.mutable_g(), renames);
    }
    for (auto& inner : *attribute.mutable_graphs()) {
      RenameFree(inner, renames);
    }
  }
}

std::vector<ItemId> Graph::Order() const {
  std::vector<ItemId> order;
  order.reserve(items_.size());
  for (auto it = added_.rbegin(); it != added_.rend(); ++it) {
    if (!items_[*it].removed) {
      order.push_back(*it);
    }
  }
  for (ItemId id : sorted_) {
    if (!items_[id].removed) {
      order.push_back(id);
    }
  }
  return order;
}

ItemId Graph::Find(absl::string_view name) const {
  ItemId other = -1;
  for (ItemId id : Order()) {
    if (items_[id].name == name) {
      if (items_[id].is_node()) {
        return id;
      }
      other = other < 0 ? id : other;
    }
  }
  return other;
}

std::vector<Use>& Graph::MutableUsesOf(Value value) {
  return value.item == Value::kGraphInput ? input_uses_[value.output] : items_[value.item].uses[value.output];
}

const std::vector<Use>& Graph::UsesOf(Value value) const {
  static const auto* const none = new std::vector<Use>();
  return value.is_none() ? *none : const_cast<Graph*>(this)->MutableUsesOf(value);
}

const std::string& Graph::NameOf(Value value) const {
  static const auto* const none = new std::string();
  return value.is_none()                    ? *none
         : value.item == Value::kGraphInput ? shell_.graph().input(value.output).name()
                                            : items_[value.item].outputs[value.output];
}

Value Graph::InputOf(ItemId id, int input) const { return input < items_[id].input_count() ? items_[id].inputs[input] : Value{}; }

bool Graph::ReachableFromGraphInput(Value value) const {
  std::vector<Value> todo = {value};
  absl::flat_hash_set<ItemId> seen;
  while (!todo.empty()) {
    Value next = todo.back();
    todo.pop_back();
    if (next.item == Value::kGraphInput) {
      return true;
    }
    if (next.is_item() && seen.insert(next.item).second) {
      const Item& item = items_[next.item];
      todo.insert(todo.end(), item.inputs.begin(), item.inputs.end());
    }
  }
  return false;
}

std::string Graph::UniqueItemName(const std::string& name) {
  std::string unique = FirstFree(name, item_names_);
  item_names_.insert(unique);
  return unique;
}

std::string Graph::UniqueTensorName(const std::string& name) {
  std::string unique = defects_.repeats_tensor_names ? name : FirstFree(name, tensor_names_);
  if (unique != name && !name.empty()) {
    deviations_.push_back(
        absl::StrCat("a new tensor is called '", unique, "' because the model has one called '", name, "' (3.3)"));
  }
  tensor_names_.insert(unique);
  return unique;
}

ItemId Graph::AddNode(const std::string& name, onnx::NodeProto proto, int inputs, const std::vector<std::string>& outputs) {
  Item item;
  item.name = UniqueItemName(name);
  item.node.proto = std::move(proto);
  item.inputs.resize(inputs);
  for (const std::string& output : outputs) {
    item.outputs.push_back(UniqueTensorName(output));
  }
  item.uses.resize(outputs.size());
  items_.push_back(std::move(item));
  added_.push_back(static_cast<ItemId>(items_.size()) - 1);
  return added_.back();
}

ItemId Graph::AddReplacement(ItemId id, onnx::NodeProto proto, int inputs) {
  Item item;
  item.name = items_[id].name;
  item.node.proto = std::move(proto);
  item.inputs.resize(inputs);
  item.outputs = items_[id].outputs;
  item.uses.resize(item.outputs.size());
  items_.push_back(std::move(item));
  added_.push_back(static_cast<ItemId>(items_.size()) - 1);
  for (int output = 0; output < static_cast<int>(items_[id].outputs.size()); ++output) {
    TakeUses(Value{id, output}, Value{added_.back(), output});
  }
  return added_.back();
}

ItemId Graph::AddInitializer(const std::string& name, Tensor tensor) {
  Item item;
  item.kind = Item::Kind::kInitializer;
  // Item and tensor share the name, so it has to be free in both senses.
  item.name = UniqueItemName(name);
  while (!defects_.repeats_tensor_names && tensor_names_.contains(item.name)) {
    item.name = UniqueItemName(name);
  }
  tensor_names_.insert(item.name);
  item.tensor = std::move(tensor);
  item.tensor.header.set_name(item.name);
  item.outputs = {item.name};
  item.uses.resize(1);
  items_.push_back(std::move(item));
  added_.push_back(static_cast<ItemId>(items_.size()) - 1);
  return added_.back();
}

void Graph::ReplaceByInitializer(ItemId id, Tensor tensor) {
  Item& item = items_[id];
  for (int i = 0; i < static_cast<int>(item.inputs.size()); ++i) {
    SetInput(id, i, Value{});
  }
  item.inputs.clear();
  item.captures.clear();
  item.kind = Item::Kind::kInitializer;
  item.name = item.outputs[0];
  item.node = {};
  item.tensor = std::move(tensor);
  item.tensor.header.set_name(item.name);
}

void Graph::RenameNodes(const std::map<ItemId, std::string>& names) {
  absl::flat_hash_set<std::string> given;
  for (const auto& [id, name] : names) {
    given.insert(name);
    item_names_.insert(name);
  }
  for (ItemId id : Order()) {
    Item& item = items_[id];
    if (auto it = names.find(id); it != names.end()) {
      item.name = it->second;
    } else if (item.is_node() && given.contains(item.name)) {
      item.name = UniqueItemName(item.name);
    }
  }
}

void Graph::Remove(ItemId id) {
  for (int i = 0; i < static_cast<int>(items_[id].inputs.size()); ++i) {
    SetInput(id, i, Value{});
  }
  items_[id].removed = true;
}

void Graph::DropUse(Value value, Use use) {
  if (!value.is_none()) {
    std::vector<Use>& uses = MutableUsesOf(value);
    uses.erase(std::find(uses.begin(), uses.end(), use));
  }
}

void Graph::SetInput(ItemId id, int input, Value value) {
  DropUse(items_[id].inputs[input], Use{id, input});
  items_[id].inputs[input] = value;
  if (!value.is_none()) {
    MutableUsesOf(value).push_back(Use{id, input});
  }
}

void Graph::InsertBefore(ItemId id, int input, ItemId between) {
  Value producer = items_[id].inputs[input];
  SetInput(id, input, Value{between, 0});
  SetInput(between, 0, producer);
}

bool Graph::TakeUses(Value from, Value to) {
  bool is_graph_output = false;
  for (const Use& use : std::exchange(MutableUsesOf(from), {})) {
    if (use.item == Use::kGraphOutput) {
      graph_outputs_[use.input] = to;
      is_graph_output = true;
    } else {
      items_[use.item].inputs[use.input] = to;
    }
    MutableUsesOf(to).push_back(use);
  }
  return is_graph_output;
}

void Graph::MoveUses(Value from, Value to, const std::string& renamed) {
  if (TakeUses(from, to)) {
    std::string& name = items_[from.item].outputs[from.output];
    items_[to.item].outputs[to.output] = name;
    name = UniqueTensorName(renamed);
  }
}

absl::Status Graph::RenameInput(int index, const std::string& name) {
  onnx::ValueInfoProto& input = *shell_.mutable_graph()->mutable_input(index);
  if (input.name() == name) {
    return absl::OkStatus();
  }
  if (name.empty() || !tensor_names_.insert(name).second) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("input '", input.name(), "' cannot be called '", name,
                                                       "': ", name.empty() ? "it is empty" : "another tensor of the model is"));
  }
  tensor_names_.erase(input.name());
  for (const Use& use : input_uses_[index]) {  // outputs are known by the name of their tensor
    if (use.item == Use::kGraphOutput) {
      shell_.mutable_graph()->mutable_output(use.input)->set_name(name);
    }
  }
  input.set_name(name);
  return absl::OkStatus();
}

absl::Status Graph::RenameOutput(int index, const std::string& name) {
  const Value value = graph_outputs_[index];
  if (NameOf(value) == name) {
    return absl::OkStatus();
  }
  if (value.item == Value::kGraphInput) {
    return RenameInput(value.output, name);
  }
  Item& item = items_[value.item];
  if (name.empty() || !tensor_names_.insert(name).second) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat("output '", NameOf(value), "' cannot be called '", name,
                                                       "': ", name.empty() ? "it is empty" : "another tensor of the model is"));
  }
  tensor_names_.erase(NameOf(value));
  item.outputs[value.output] = name;
  if (!item.is_node()) {
    item.name = name;
    (item.is_initializer() ? *item.tensor.header.mutable_name() : *item.sparse.mutable_values()->mutable_name()) = name;
  }
  for (const Use& use : item.uses[value.output]) {
    if (use.item == Use::kGraphOutput) {
      shell_.mutable_graph()->mutable_output(use.input)->set_name(name);
    }
  }
  return absl::OkStatus();
}

absl::Status Graph::Sort() {
  std::vector<ItemId> list = Order();
  std::vector<int> position(items_.size(), -1);
  for (int i = 0; i < static_cast<int>(list.size()); ++i) {
    position[list[i]] = i;
  }
  std::vector<ItemId> placed;
  placed.reserve(list.size());
  std::vector<int> waiting_for(items_.size(), 0);                    // linked producers not yet placed, counted per link
  std::priority_queue<int, std::vector<int>, std::greater<>> ready;  // positions
  auto place = [&](ItemId id) {
    placed.push_back(id);
    for (const auto& uses : items_[id].uses) {
      for (const Use& use : uses) {
        if (use.item != Use::kGraphOutput && --waiting_for[use.item] == 0) {
          ready.push(position[use.item]);
        }
      }
    }
  };
  std::vector<ItemId> sources;
  for (ItemId id : list) {
    bool linked = false;
    for (const Value& value : items_[id].inputs) {
      linked = linked || !value.is_none();
      waiting_for[id] += value.is_item() ? 1 : 0;
    }
    if (!linked) {
      sources.push_back(id);
    } else if (waiting_for[id] == 0) {
      ready.push(position[id]);
    }
  }
  for (ItemId id : sources) {
    place(id);
  }
  while (!ready.empty()) {
    ItemId id = list[ready.top()];
    ready.pop();
    place(id);
  }
  if (placed.size() != list.size()) {
    for (ItemId id : list) {
      if (waiting_for[id] > 0) {
        return MakeError(v1::GRAPH_INVALID, "the graph has a cycle through this node", {.layer = items_[id].name});
      }
    }
  }
  sorted_ = std::move(placed);
  added_.clear();
  item_names_.clear();
  for (ItemId id : sorted_) {
    item_names_.insert(items_[id].name);
  }
  return absl::OkStatus();
}

absl::Status Graph::Validate() const {
  auto broken = [this](ItemId id, absl::string_view what) {
    return MakeError(v1::INTERNAL_ERROR, absl::StrCat("graph links are inconsistent: ", what), {.layer = items_[id].name});
  };
  for (ItemId id : Order()) {
    const Item& item = items_[id];
    if (item.uses.size() != item.outputs.size()) {
      return broken(id, "outputs");
    }
    for (int i = 0; i < static_cast<int>(item.inputs.size()); ++i) {
      const Value& value = item.inputs[i];
      if (value.is_none()) {
        continue;
      }
      if (value.is_item() && items_[value.item].removed) {
        return broken(id, "input of a removed item");
      }
      const std::vector<Use>& uses = UsesOf(value);
      if (std::count(uses.begin(), uses.end(), Use{id, i}) != 1) {
        return broken(id, "input without use");
      }
    }
    for (int output = 0; output < static_cast<int>(item.uses.size()); ++output) {
      for (const Use& use : item.uses[output]) {
        const Value& value = use.item == Use::kGraphOutput ? graph_outputs_[use.input] : items_[use.item].inputs[use.input];
        if (!(value == Value{id, output})) {
          return broken(id, "use without input");
        }
      }
    }
  }
  return absl::OkStatus();
}

const onnx::AttributeProto* FindAttribute(const onnx::NodeProto& node, absl::string_view name) {
  for (const onnx::AttributeProto& attribute : node.attribute()) {
    if (attribute.name() == name) {
      return &attribute;
    }
  }
  return nullptr;
}

int64_t IntAttribute(const onnx::NodeProto& node, absl::string_view name, int64_t fallback) {
  const onnx::AttributeProto* attribute = FindAttribute(node, name);
  return attribute == nullptr ? fallback : attribute->i();
}

namespace {
onnx::AttributeProto& AddAttribute(onnx::NodeProto& node, const std::string& name, onnx::AttributeProto::AttributeType type) {
  onnx::AttributeProto& attribute = *node.add_attribute();
  attribute.set_name(name);
  attribute.set_type(type);
  return attribute;
}
}  // namespace

void AddInt(onnx::NodeProto& node, const std::string& name, int64_t value) {
  AddAttribute(node, name, onnx::AttributeProto::INT).set_i(value);
}
void AddFloat(onnx::NodeProto& node, const std::string& name, float value) {
  AddAttribute(node, name, onnx::AttributeProto::FLOAT).set_f(value);
}
void AddString(onnx::NodeProto& node, const std::string& name, const std::string& value) {
  AddAttribute(node, name, onnx::AttributeProto::STRING).set_s(value);
}
void AddTensor(onnx::NodeProto& node, const std::string& name, onnx::TensorProto value) {
  *AddAttribute(node, name, onnx::AttributeProto::TENSOR).mutable_t() = std::move(value);
}

}  // namespace modelpress::engine
