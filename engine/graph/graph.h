// An editable graph over a Model: use-def links, a defined order, and the naming rules of docs/spec/save.md section 3. The order
// of items is part of the output format, so every edit says where things go.
#ifndef MODELPRESS_ENGINE_GRAPH_GRAPH_H_
#define MODELPRESS_ENGINE_GRAPH_GRAPH_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/reference_defects.h"
#include "engine/model/model.h"
#include "onnx/onnx_pb.h"

namespace modelpress::engine {

using ItemId = int;

// A tensor in the graph: output `output` of item `item`, a graph input, or nothing.
struct Value {
  static constexpr ItemId kGraphInput = -1;  // `output` is the index of the graph input
  static constexpr ItemId kNone = -2;        // an omitted optional input

  ItemId item = kNone;
  int output = 0;

  bool is_item() const { return item >= 0; }
  bool is_none() const { return item == kNone; }
  friend bool operator==(const Value&, const Value&) = default;
};

// One use of a tensor: input `input` of item `item`, or graph output `input`. Inputs from Item::inputs.size() - captures on are
// uses inside the item's subgraphs.
struct Use {
  static constexpr ItemId kGraphOutput = -1;

  ItemId item = kGraphOutput;
  int input = 0;

  friend bool operator==(const Use&, const Use&) = default;
};

// A node or an initializer.
struct Item {
  enum class Kind { kNode, kInitializer, kSparseInitializer };

  Kind kind = Kind::kNode;
  std::string name;
  Node node;      // kNode. Names of inputs and outputs in it are those of the file; the links below are the truth
  Tensor tensor;  // kInitializer
  onnx::SparseTensorProto sparse;      // kSparseInitializer
  std::vector<Value> inputs;           // the node's inputs, then the tensors its subgraphs capture
  std::vector<std::string> captures;   // names under which the subgraphs know the captured tensors
  std::vector<std::string> outputs;    // tensor names
  std::vector<std::vector<Use>> uses;  // of each output, in the order they were linked
  bool removed = false;

  bool is_node() const { return kind == Kind::kNode; }
  bool is_initializer() const { return kind == Kind::kInitializer; }
  bool Is(absl::string_view op_type) const { return is_node() && node.proto.op_type() == op_type; }
  // Inputs of the node itself, without captures.
  int input_count() const { return static_cast<int>(inputs.size() - captures.size()); }
};

class Graph {
 public:
  // Takes over `model`. GRAPH_INVALID: an input nothing produces, an output nothing produces, a cycle, two nodes of one name.
  static absl::StatusOr<Graph> Create(Model model, const ReferenceDefects& defects);

  // Back to a model, in the current order.
  absl::StatusOr<Model> ToModel() const;

  // Live items in list order. Items added since the last Sort come first, the newest in front.
  std::vector<ItemId> Order() const;
  const Item& item(ItemId id) const { return items_[id]; }
  // Editing what an item is; links and names are edited through the functions below.
  Item& mutable_item(ItemId id) { return items_[id]; }
  const onnx::ModelProto& shell() const { return shell_; }
  // Editing what the model says of its tensors: value_info, shapes of outputs. Their names are edited through the functions
  // below.
  onnx::ModelProto& mutable_shell() { return shell_; }

  // The first node of that name in list order, else the first initializer; -1 if none.
  ItemId Find(absl::string_view name) const;

  // Of kNone: no uses; "".
  const std::vector<Use>& UsesOf(Value value) const;
  const std::string& NameOf(Value value) const;
  // Input `input` of `id`; kNone where the node has fewer inputs.
  Value InputOf(ItemId id, int input) const;
  // True if the value is a graph input or computed from one.
  bool ReachableFromGraphInput(Value value) const;

  // Adds at the front of the list, under a name not yet taken (suffix 1, 2, ...). `proto` carries op_type, attributes and
  // doc_string; inputs start unlinked. Output tensors get the given names, made unique too unless repeats_tensor_names.
  ItemId AddNode(const std::string& name, onnx::NodeProto proto, int inputs, const std::vector<std::string>& outputs);
  // Adds a node at the front that stands for `id`: same name, same output tensors, all its uses. `id` is left unused, for Remove.
  ItemId AddReplacement(ItemId id, onnx::NodeProto proto, int inputs);
  // The same as AddNode for an initializer; its tensor is named like the item.
  ItemId AddInitializer(const std::string& name, Tensor tensor);
  // Exchanges the item for an initializer with the same single output and uses, at the same place in the list.
  void ReplaceByInitializer(ItemId id, Tensor tensor);
  // Names nodes. Any other node that has one of the names already gets a new one (suffix 1, 2, ...).
  void RenameNodes(const std::map<ItemId, std::string>& names);
  // Removes an item that has no uses left; its inputs are unlinked.
  void Remove(ItemId id);

  // Makes `value` the input; the use is appended to the value's uses, the one of the former value goes.
  void SetInput(ItemId id, int input, Value value);
  // Puts item `between` (its input 0, output 0) in front of input `input` of `id`.
  void InsertBefore(ItemId id, int input, ItemId between);
  // Moves every use of `from` to the end of the uses of `to`, in order. Where one is a graph output, `to` takes over the name of
  // `from`, and `from` is called `renamed` (made unique unless repeats_tensor_names).
  void MoveUses(Value from, Value to, const std::string& renamed);

  // Gives graph input or output number `index` another name. REQUEST_INVALID: a tensor of the graph has it already.
  absl::Status RenameInput(int index, const std::string& name);
  absl::Status RenameOutput(int index, const std::string& name);

  // What was done otherwise than the reference does it, in words for the report.
  const std::vector<std::string>& deviations() const { return deviations_; }

  // Orders the items: first, in list order, those without any linked input; then always the first in the list whose producers are
  // all placed (docs/spec/save.md section 3.2). Every pass ends with it. GRAPH_INVALID: a cycle.
  absl::Status Sort();
  // Checks that links agree in both directions; for debug builds and tests. INTERNAL_ERROR.
  absl::Status Validate() const;

 private:
  explicit Graph(const ReferenceDefects& defects) : defects_(defects) {}

  absl::Status Link();
  void DropUse(Value value, Use use);
  // Moves the uses; true if one is a graph output.
  bool TakeUses(Value from, Value to);
  std::vector<Use>& MutableUsesOf(Value value);
  std::string UniqueItemName(const std::string& name);
  std::string UniqueTensorName(const std::string& name);
  // Writes the current names of captured tensors into the subgraphs of `proto`.
  void RenameCaptures(const Item& item, onnx::NodeProto& proto) const;

  ReferenceDefects defects_;
  onnx::ModelProto shell_;
  std::vector<Item> items_;
  std::vector<ItemId> sorted_;  // list order at the last sort
  std::vector<ItemId> added_;   // since then, oldest first
  std::vector<std::vector<Use>> input_uses_;
  std::vector<Value> graph_outputs_;
  absl::flat_hash_set<std::string> item_names_;  // known since the last sort
  std::vector<std::string> deviations_;
  absl::flat_hash_set<std::string> tensor_names_;  // every tensor name of the graph and its subgraphs
};

// Attribute helpers. Find returns null where the node has no such attribute.
const onnx::AttributeProto* FindAttribute(const onnx::NodeProto& node, absl::string_view name);
int64_t IntAttribute(const onnx::NodeProto& node, absl::string_view name, int64_t fallback);
void AddInt(onnx::NodeProto& node, const std::string& name, int64_t value);
void AddFloat(onnx::NodeProto& node, const std::string& name, float value);
void AddString(onnx::NodeProto& node, const std::string& name, const std::string& value);
void AddTensor(onnx::NodeProto& node, const std::string& name, onnx::TensorProto value);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_GRAPH_GRAPH_H_
