#include "engine/quantize/marks.h"

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

constexpr char kMarkType[] = "QuantIdentity";
constexpr size_t kMaxNodesOfModule = 1000;

// The first node that reads the item's first output; -1: none.
ItemId FirstConsumer(const Graph& graph, ItemId id) {
  for (const Use& use : graph.UsesOf(Value{id, 0})) {
    if (use.item != Use::kGraphOutput) {
      return use.item;
    }
  }
  return -1;
}

// The first node behind `id`, breadth first, that is one of `op_types`; -1: none among so many as a module may consist of.
ItemId FirstBehind(const Graph& graph, ItemId id, const std::vector<absl::string_view>& op_types) {
  std::deque<ItemId> queue = {id};
  absl::flat_hash_set<ItemId> seen = {id};
  for (size_t i = 0; !queue.empty() && i < kMaxNodesOfModule; ++i) {
    const ItemId next = queue.front();
    queue.pop_front();
    if (std::any_of(op_types.begin(), op_types.end(), [&](absl::string_view type) { return graph.item(next).Is(type); })) {
      return next;
    }
    for (const std::vector<Use>& uses : graph.item(next).uses) {
      for (const Use& use : uses) {
        if (use.item != Use::kGraphOutput && seen.insert(use.item).second) {
          queue.push_back(use.item);
        }
      }
    }
  }
  return -1;
}

// The node that a mark stands for (-1: none), and what nodes of its module in front of it are called.
ItemId FindMarkedNode(const Graph& graph, ItemId id, const Mark& mark, std::map<ItemId, std::string>& names) {
  ItemId node = FirstConsumer(graph, id);
  if (node < 0) {
    return -1;
  }
  if ((mark.type == "LSTM" || mark.type == "GRU") && !graph.item(node).Is(mark.type)) {
    return FirstBehind(graph, id, {mark.type});
  }
  for (const auto& [op_type, suffix] : {std::pair("Pad", "_pad"), std::pair("Transpose", "_transpose")}) {
    if (graph.item(node).Is(op_type) && FirstConsumer(graph, node) >= 0) {
      names.emplace(node, absl::StrCat(mark.module, suffix));
      node = FirstConsumer(graph, node);
    }
  }
  if (graph.item(node).Is("Unsqueeze")) {
    return FirstBehind(graph, id, {"Conv", "ConvTranspose", "LSTM", "GRU"});
  }
  return mark.type == "Conv2d" && !graph.item(node).Is("Conv") ? FirstBehind(graph, id, {"Conv"}) : node;
}

}  // namespace

std::optional<Mark> MarkOf(const Item& item) {
  if (!item.Is(kMarkType)) {
    return std::nullopt;
  }
  const auto* name = FindAttribute(item.node.proto, "op_name");
  const auto* type = FindAttribute(item.node.proto, "module_type");
  return name == nullptr ? std::nullopt : std::optional(Mark{name->s(), type == nullptr ? "" : type->s()});
}

absl::StatusOr<std::map<ItemId, std::string>> StripMarks(Graph& graph) {
  std::map<ItemId, std::string> names;
  std::map<ItemId, std::string> written;
  std::vector<ItemId> marks;
  std::vector<std::pair<ItemId, std::string>> further_uses;
  absl::flat_hash_set<std::string> modules;
  for (ItemId id : graph.Order()) {
    if (!graph.item(id).Is(kMarkType)) {
      continue;
    }
    if (graph.InputOf(id, 0).is_none()) {
      return MakeError(v1::GRAPH_INVALID, "the mark has no input: it stands behind nothing", {.layer = graph.item(id).name});
    }
    marks.push_back(id);
    const std::optional<Mark> mark = MarkOf(graph.item(id));
    const ItemId node = mark.has_value() ? FindMarkedNode(graph, id, *mark, names) : -1;
    if (node < 0) {
      continue;
    }
    written[node] = graph.NameOf(Value{id, 0});
    if (modules.insert(mark->module).second) {
      names[node] = mark->module;
    } else {
      further_uses.emplace_back(node, mark->module);
    }
  }
  for (const auto& [node, module] : further_uses) {
    int number = 1;
    while (!modules.insert(absl::StrCat(module, number)).second) {
      ++number;
    }
    names.emplace(node, absl::StrCat(module, number));
  }
  graph.RenameNodes(names);
  for (ItemId id : marks) {
    const std::vector<Use>& uses = graph.UsesOf(Value{id, 0});
    if (std::any_of(uses.begin(), uses.end(), [](const Use& use) { return use.item == Use::kGraphOutput; })) {
      onnx::NodeProto& node = graph.mutable_item(id).node.proto;  // the output's name has to stay
      node.set_op_type("Identity");
      node.clear_domain();
      node.clear_attribute();
      continue;
    }
    graph.MoveUses(Value{id, 0}, graph.InputOf(id, 0), "");
    graph.Remove(id);
  }
  MP_RETURN_IF_ERROR(graph.Sort());
  return written;
}

absl::Status CheckUnmarked(const Model& model) {
  for (const Node& node : model.nodes) {
    if (node.proto.op_type() == kMarkType) {
      return MakeError(
          v1::MODEL_MARKED,
          "the model still holds QuantIdentity marks: it is a raw export for training or quantization, not a finished model",
          {.layer = node.proto.name()});
    }
  }
  return absl::OkStatus();
}

void DropMarkOpset(onnx::ModelProto& shell) {
  auto* imports = shell.mutable_opset_import();
  if (imports->size() > 1) {
    imports->erase(
        std::remove_if(imports->begin(), imports->end(), [](const auto& import) { return import.domain() == kMarkDomain; }),
        imports->end());
  }
}

}  // namespace modelpress::engine
