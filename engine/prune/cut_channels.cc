#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/prune/channels.h"
#include "engine/prune/cut_tensor.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/shapes.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;
using Dims = std::vector<int64_t>;
using Indices = std::set<int64_t>;

constexpr int kWeight = 1;  // input of a layer
constexpr int kBias = 2;
constexpr int kSlope = 1;  // of a PRelu
// Inputs 1 to 4 of BatchNormalization, as their tensors are called in torch.
constexpr std::array<absl::string_view, 4> kBatchNormTensors = {"weight", "bias", "running_mean", "running_var"};

// How channels are cut from a node.
enum class Kind {
  kLayer,          // Conv, Gemm, MatMul: output channels as a producer, input channels as a consumer
  kDepthwise,      // Conv with a group per input channel: its output channels, as a consumer
  kConvTranspose,  // input channels, as a consumer
  kBatchNorm,      // length, as a consumer
  kPRelu,          // the same, of a slope with a value per channel
  kNone,           // nothing to cut: Add, Concat, pools, ...
};

absl::Status BadRecord(const std::string& layer, absl::string_view why) {
  return MakeError(v1::PRUNE_FAILED, absl::StrCat("the record does not fit the model: ", why), {.layer = layer});
}

// A constant operand that loses elements along one axis, as the node sees it.
struct Operand {
  ItemId user = -1;
  int input = 0;
  int axis = 0;
};

// A node that records name, and what can be cut from it.
struct Target {
  ItemId id = -1;
  Kind kind = Kind::kNone;
  std::string name;
  LayerWeight weight;  // kLayer, kDepthwise, kConvTranspose
  int64_t outputs = 0;
  int64_t inputs = 0;            // of kBatchNorm and kPRelu: the length
  std::optional<Operand> bias;   // one value per output channel
  std::vector<Operand> vectors;  // kBatchNorm, kPRelu

  // Length of the axis that a producer's or consumer's indices count along.
  int64_t Length(bool producer) const { return producer || kind == Kind::kDepthwise ? outputs : inputs; }
  int64_t multiplier() const { return outputs / weight.groups; }  // kDepthwise: output channels per input channel
};

// What goes from a target, in the numbers it has before any cut.
struct Cut {
  Indices outputs;
  Indices inputs;
  int64_t groups = 0;  // kDepthwise
};

// One record's cuts.
struct RecordCut {
  std::vector<std::pair<ItemId, Cut>> cuts;
  std::string problem;  // an entry's channels are none of its node
};

int64_t Remaining(int64_t length, const Indices& removed) { return length - static_cast<int64_t>(removed.size()); }

Dims Kept(int64_t length, const Indices& removed) {
  Dims kept;
  kept.reserve(Remaining(length, removed));
  for (int64_t i = 0; i < length; ++i) {
    if (!removed.contains(i)) {
      kept.push_back(i);
    }
  }
  return kept;
}

// The dims of the constant in input `input` of `user`. nullopt: it is none, or behind a Transpose.
std::optional<Dims> ConstantDims(const Graph& graph, ItemId user, int input) {
  const std::optional<ConstantOperand> operand = FindConstantOperand(graph, graph.InputOf(user, input));
  return operand.has_value() && operand->transpose < 0 ? std::optional(DimsOf(graph.item(operand->holder))) : std::nullopt;
}

// The operand with one value for each of `channels` channels in its last axis.
std::optional<Operand> LastAxisOperand(const Graph& graph, ItemId user, int input, int64_t channels) {
  const std::optional<Dims> dims = ConstantDims(graph, user, input);
  return dims.has_value() && !dims->empty() && dims->back() == channels && channels > 1
             ? std::optional(Operand{user, input, static_cast<int>(dims->size()) - 1})
             : std::nullopt;
}

// A MatMul's bias is a constant in either input of the Add behind it.
std::optional<Operand> MatMulBias(const Graph& graph, ItemId matmul, int64_t channels) {
  const std::vector<Use>& uses = graph.UsesOf(Value{matmul, 0});
  if (uses.size() != 1 || uses[0].item == Use::kGraphOutput || !graph.item(uses[0].item).Is("Add")) {
    return std::nullopt;
  }
  return LastAxisOperand(graph, uses[0].item, 1 - uses[0].input, channels);
}

// Describes the node as something to cut channels from.
absl::StatusOr<Target> DescribeTarget(const Graph& graph, ItemId id) {
  const Item& item = graph.item(id);
  Target target = {.id = id, .name = item.name};
  if (item.Is("Conv") || item.Is("Gemm") || item.Is("MatMul") || item.Is("ConvTranspose")) {
    MP_ASSIGN_OR_RETURN(target.weight, FindLayerWeight(graph, id));
    const LayerWeight& weight = target.weight;
    if (item.Is("ConvTranspose")) {
      target.kind = Kind::kConvTranspose;
      target.inputs = weight.dims[0];
      target.outputs = weight.dims[1] * weight.groups;
      return target;
    }
    target.kind = IsDepthwise(weight) ? Kind::kDepthwise : Kind::kLayer;
    target.outputs = weight.dims[0];
    target.inputs = weight.dims[1] * weight.groups;
    if (item.Is("MatMul")) {
      target.bias = MatMulBias(graph, id, target.outputs);
    } else if (!graph.InputOf(id, kBias).is_none()) {
      target.bias = LastAxisOperand(graph, id, kBias, target.outputs);
      if (!target.bias.has_value() && !ConstantDims(graph, id, kBias).has_value()) {
        return BadRecord(item.name, "the bias of the node is not a constant");
      }
    }
    return target;
  }
  if (item.Is("BatchNormalization")) {
    target.kind = Kind::kBatchNorm;
    for (int input = 1; input <= static_cast<int>(kBatchNormTensors.size()); ++input) {
      const std::optional<Dims> dims = ConstantDims(graph, id, input);
      if (!dims.has_value() || dims->size() != 1) {
        return BadRecord(item.name, "the batch norm's parameters are not constant vectors");
      }
      target.inputs = (*dims)[0];
      target.vectors.push_back({id, input, 0});
    }
  } else if (item.Is("PRelu")) {
    if (const std::optional<Dims> dims = ConstantDims(graph, id, kSlope); dims.has_value()) {
      const auto longest = std::max_element(dims->begin(), dims->end());
      if (longest != dims->end() && *longest > 1) {
        target.kind = Kind::kPRelu;
        target.inputs = *longest;
        target.vectors.push_back({id, kSlope, static_cast<int>(longest - dims->begin())});
      }
    }
  }
  return target;
}

// Both are what a Linear exports as, depending on its input.
bool IsLinear(absl::string_view op_type) { return op_type == "Gemm" || op_type == "MatMul"; }

bool LosesChannels(absl::string_view op_type) {
  return IsLinear(op_type) || op_type == "Conv" || op_type == "ConvTranspose" || op_type == "BatchNormalization";
}

// "f1, f2".
std::string Names(const PruneRecord& record) {
  return absl::StrJoin(record.producer(), ", ", [](std::string* out, const PruneNode& node) { out->append(node.name()); });
}

class Cutter {
 public:
  Cutter(Graph& graph, const std::vector<PruneRecord>& records, const Layers& layers)
      : graph_(graph), records_(records), layers_(layers) {}

  absl::StatusOr<CutChannelsResult> Run(CutPolicy policy) {
    MP_RETURN_IF_ERROR(ReadRecords(policy));
    MP_ASSIGN_OR_RETURN(const ShapeModel shapes, ShapeModel::Create(graph_));
    taken_.assign(cuts_.size(), true);
    if (policy == CutPolicy::kDropUnfitting) {
      taken_.assign(cuts_.size(), false);
      Take(shapes, 0, cuts_.size());
    } else if (const std::string problem = Problem(shapes, taken_); !problem.empty()) {
      return MakeError(v1::PRUNE_FAILED, absl::StrCat("the model that remains after the record's cuts is inconsistent: ", problem,
                                                      "; the record was made from another model, or edited"));
    }
    for (size_t i = 0; i < records_.size(); ++i) {
      if (taken_[i] && !records_[i].producer().empty()) {
        result_.records.push_back(records_[i]);
      }
    }
    MP_RETURN_IF_ERROR(Apply(shapes));
    return std::move(result_);
  }

 private:
  // ---- reading: everything is checked before anything is changed

  absl::Status ReadRecords(CutPolicy policy) {
    for (const ItemId id : graph_.Order()) {
      const Item& item = graph_.item(id);
      if (item.is_node()) {
        by_name_.emplace(item.name, id);
        order_.push_back(id);
      }
    }
    cuts_.resize(records_.size());
    for (size_t i = 0; i < records_.size(); ++i) {
      for (const bool producer : {true, false}) {
        for (const PruneNode& entry : producer ? records_[i].producer() : records_[i].consumer()) {
          MP_ASSIGN_OR_RETURN(const Target* target, FindTarget(entry, producer));
          const absl::Status status = ReadIndices(records_[i], entry, *target, producer, cuts_[i]);
          if (!status.ok() && policy == CutPolicy::kRequireAll) {
            return status;
          }
          if (!status.ok()) {
            cuts_[i].problem = std::string(status.message());
          }
        }
      }
    }
    return absl::OkStatus();
  }

  // The node of an entry, which is of the kind that the record says.
  absl::StatusOr<const Target*> FindTarget(const PruneNode& entry, bool producer) {
    const auto found = by_name_.find(entry.name());
    if (found == by_name_.end()) {
      return BadRecord(entry.name(), "the model has no such node; the record was made from another model");
    }
    auto it = targets_.find(found->second);
    if (it == targets_.end()) {
      MP_ASSIGN_OR_RETURN(Target target, DescribeTarget(graph_, found->second));
      it = targets_.emplace(found->second, std::move(target)).first;
    }
    const Target& target = it->second;
    const std::string& op_type = graph_.item(target.id).node.proto.op_type();
    const AMCTProto::AttrProto* type = FindRecordAttribute(entry, kPruneTypeAttribute);
    if (type != nullptr && type->s() != op_type && !(IsLinear(type->s()) && IsLinear(op_type)) &&
        (target.kind != Kind::kNone || LosesChannels(type->s()))) {
      return BadRecord(entry.name(), absl::StrCat("the record says the node is a ", type->s(), ", it is a ", op_type));
    }
    if (producer && target.kind != Kind::kLayer) {
      return BadRecord(entry.name(), target.kind == Kind::kDepthwise
                                         ? "a depthwise convolution keeps its input's channels and cannot be a producer"
                                         : absl::StrCat("a ", op_type, " cannot be a producer"));
    }
    return &target;
  }

  // Adds what the entry cuts from its node to `cut`.
  static absl::Status ReadIndices(const PruneRecord& record, const PruneNode& entry, const Target& target, bool producer,
                                  RecordCut& cut) {
    const AMCTProto::AttrProto* indices = FindRecordAttribute(entry, kPruneIndexAttribute);
    if (indices == nullptr || indices->ints().empty() || target.kind == Kind::kNone) {
      return absl::OkStatus();
    }
    const int64_t length = target.Length(producer);
    const int64_t begin = FindRecordInt(entry, kPruneBeginAttribute).value_or(0);
    const int64_t end = FindRecordInt(entry, kPruneEndAttribute).value_or(length);
    if (begin < 0 || end < begin || end > length) {
      return BadRecord(entry.name(), absl::StrCat("the range ", begin, " to ", end, " is none of its ", length, " channels"));
    }
    Indices removed;
    for (const int64_t index : indices->ints()) {
      if (!removed.insert(index).second) {
        return BadRecord(entry.name(), absl::StrCat("prune_index ", index, " is repeated"));
      }
    }
    // A layer of one channel that an Add broadcasts: there is nothing to cut (defect P-3 of prune.md writes such entries).
    const bool broadcast = producer && length == 1 && *removed.begin() > 0;
    if (broadcast) {
      return absl::OkStatus();
    }
    if (*removed.begin() < begin || *removed.rbegin() >= end) {
      return BadRecord(entry.name(), absl::StrCat("prune_index ", *removed.begin() < begin ? *removed.begin() : *removed.rbegin(),
                                                  " is out of the range ", begin, " to ", end - 1));
    }
    Cut of_entry;
    if (target.kind == Kind::kDepthwise) {
      // Indices are output channels. The reference writes those of the input, one for several output channels (P-4), and takes
      // as many groups; entries as wide as their output take a group for `multiplier` of them.
      const int64_t multiplier = end - begin == WidthOf(record) ? 1 : target.multiplier();
      of_entry.groups = static_cast<int64_t>(removed.size()) / multiplier;
      for (const int64_t index : removed) {
        if (multiplier > 1 && !(removed.contains(index / multiplier * multiplier) &&
                                removed.contains(index / multiplier * multiplier + multiplier - 1) &&
                                static_cast<int64_t>(removed.size()) % multiplier == 0)) {
          return BadRecord(entry.name(), absl::StrCat("prune_index ", index, " is one of ", multiplier,
                                                      " output channels of a group, of which all must go or none"));
        }
      }
      of_entry.outputs = std::move(removed);
    } else if (producer) {
      of_entry.outputs = std::move(removed);
    } else {
      of_entry.inputs = std::move(removed);
    }
    cut.cuts.emplace_back(target.id, std::move(of_entry));
    return absl::OkStatus();
  }

  // Channels of a record: those of its first producer. 0: it says nothing sensible.
  static int64_t WidthOf(const PruneRecord& record) {
    if (record.producer().empty()) {
      return 0;
    }
    const int64_t begin = FindRecordInt(record.producer(0), kPruneBeginAttribute).value_or(0);
    const int64_t end = FindRecordInt(record.producer(0), kPruneEndAttribute).value_or(0);
    return begin < 0 || end < begin ? 0 : end - begin;
  }

  // ---- choosing

  // What the records in `taken` cut together.
  std::map<ItemId, Cut> Together(const std::vector<bool>& taken) const {
    std::map<ItemId, Cut> together;
    for (size_t i = 0; i < cuts_.size(); ++i) {
      if (!taken[i]) {
        continue;
      }
      for (const auto& [id, cut] : cuts_[i].cuts) {
        Cut& sum = together[id];
        sum.outputs.insert(cut.outputs.begin(), cut.outputs.end());
        sum.inputs.insert(cut.inputs.begin(), cut.inputs.end());
        sum.groups += cut.groups;
      }
    }
    return together;
  }

  int DataTypeOf(const Operand& operand) const {
    return engine::DataTypeOf(graph_.item(FindConstantOperand(graph_, graph_.InputOf(operand.user, operand.input))->holder));
  }

  void Shrink(const Operand& operand, int64_t length, ShapeChanges& changes) const {
    Dims dims = *ConstantDims(graph_, operand.user, operand.input);
    dims[operand.axis] = length;
    changes.operands[{operand.user, operand.input}] = {DataTypeOf(operand), std::move(dims)};
  }

  // The shapes after `cuts`. A text: they make no sense already by themselves.
  std::string Describe(const std::map<ItemId, Cut>& cuts, ShapeChanges& changes) const {
    for (const auto& [id, cut] : cuts) {
      const Target& target = targets_.at(id);
      const Item& item = graph_.item(id);
      const int64_t outputs = Remaining(target.outputs, cut.outputs);
      const int64_t inputs = Remaining(target.inputs, cut.inputs);
      const bool has_outputs = target.kind == Kind::kLayer || target.kind == Kind::kDepthwise;
      const int64_t groups = target.weight.groups - cut.groups;
      if (inputs < 1 || (has_outputs && outputs < 1) || groups < 1) {
        return absl::StrCat(item.node.proto.op_type(), " '", item.name, "' would have no channels left");
      }
      if (!target.vectors.empty()) {
        for (const Operand& vector : target.vectors) {
          Shrink(vector, inputs, changes);
        }
        continue;
      }
      Dims dims = target.weight.dims;
      if (target.kind == Kind::kConvTranspose) {
        dims[0] = inputs;
      } else {
        dims[0] = outputs;
        if (inputs % target.weight.groups != 0 && target.kind == Kind::kLayer) {
          return absl::StrCat(item.node.proto.op_type(), " '", item.name, "' would have ", inputs, " input channels in ",
                              target.weight.groups, " groups");
        }
        dims[1] = target.kind == Kind::kDepthwise ? dims[1] : inputs / target.weight.groups;
      }
      if ((item.Is("Gemm") || item.Is("MatMul")) && IntAttribute(item.node.proto, "transB", 0) == 0) {
        std::swap(dims[0], dims[1]);  // as the node sees it
      }
      changes.operands[{id, kWeight}] = {engine::DataTypeOf(graph_.item(target.weight.operand.holder)), std::move(dims)};
      if (target.bias.has_value()) {
        Shrink(*target.bias, outputs, changes);
      }
      if (target.kind == Kind::kDepthwise) {
        changes.groups[id] = groups;
      }
    }
    return "";
  }

  // Why the records in `taken` cannot be applied together; empty: they can.
  std::string Problem(const ShapeModel& shapes, const std::vector<bool>& taken) const {
    for (size_t i = 0; i < cuts_.size(); ++i) {
      if (taken[i] && !cuts_[i].problem.empty()) {
        return cuts_[i].problem;
      }
    }
    ShapeChanges changes;
    if (std::string problem = Describe(Together(taken), changes); !problem.empty()) {
      return problem;
    }
    return changes.operands.empty() ? "" : shapes.With(changes).problem;
  }

  // Takes of records [begin, end) those that fit, in the order of trials of the reference (prune.md section 8).
  void Take(const ShapeModel& shapes, size_t begin, size_t end) {
    if (begin == end) {
      return;
    }
    std::vector<bool> trial = taken_;
    std::fill(trial.begin() + static_cast<std::ptrdiff_t>(begin), trial.begin() + static_cast<std::ptrdiff_t>(end), true);
    const std::string problem = Problem(shapes, trial);
    if (problem.empty()) {
      taken_ = std::move(trial);
    } else if (end - begin == 1) {
      result_.dropped.push_back(absl::StrCat("the channels of ", Names(records_[begin]), " stay: after the cut, ", problem));
    } else {
      const size_t middle = (begin + end) / 2;
      Take(shapes, begin, middle);
      Take(shapes, middle, end);
    }
  }

  // ---- acting

  absl::Status Apply(const ShapeModel& shapes) {
    const std::map<ItemId, Cut> cuts = Together(taken_);
    ShapeChanges changes;
    Describe(cuts, changes);
    if (changes.operands.empty()) {
      return absl::OkStatus();
    }
    const ShapeReport after = shapes.With(changes);
    for (const ItemId id : order_) {
      const auto cut = cuts.find(id);
      if (cut != cuts.end() && !(cut->second.outputs.empty() && cut->second.inputs.empty())) {
        MP_RETURN_IF_ERROR(CutNode(targets_.at(id), cut->second, shapes));
      }
    }
    for (const auto& [id, sizes] : after.reshapes) {
      MP_RETURN_IF_ERROR(SetSizes(id, sizes));
    }
    UpdateShapes(shapes.original(), after);
    return graph_.Sort();
  }

  // Cuts the operand and says so in `module`, whose tensor it is.
  absl::Status CutOperand(const Target& target, const Operand& operand, int64_t length, const Indices& removed,
                          absl::string_view tensor, v1::ModuleCut& module) {
    const Dims kept = Kept(length, removed);
    MP_ASSIGN_OR_RETURN(const ConstantOperand own, OwnOperand(graph_, target.id, operand.user, operand.input, tensor));
    MP_ASSIGN_OR_RETURN(Tensor cut, KeepAlongAxis(graph_.item(own.holder).tensor, operand.axis, kept));
    SetTensor(graph_, own, std::move(cut));
    AddTensorCut(tensor, 0, length, kept, module);
    return absl::OkStatus();
  }

  static v1::TensorCut& AddTensorCut(absl::string_view name, int axis, int64_t length, const Dims& kept, v1::ModuleCut& module) {
    v1::TensorCut& tensor = *module.add_tensors();
    tensor.set_name(std::string(name));
    tensor.set_axis(axis);
    tensor.set_size(length);
    tensor.mutable_kept()->Assign(kept.begin(), kept.end());
    return tensor;
  }

  absl::Status CutNode(const Target& target, const Cut& cut, const ShapeModel& shapes) {
    v1::ModuleCut module;
    module.set_module(target.name);
    module.set_type(ModuleType(target, shapes));
    const int64_t outputs = Remaining(target.outputs, cut.outputs);
    const int64_t inputs = Remaining(target.inputs, cut.inputs);
    const bool linear = IsLinear(graph_.item(target.id).node.proto.op_type());
    auto& attributes = *module.mutable_attributes();
    CutLayer layer = {.name = target.name, .op_type = graph_.item(target.id).node.proto.op_type()};
    if (!target.vectors.empty()) {
      for (const Operand& vector : target.vectors) {
        const absl::string_view name = target.kind == Kind::kPRelu ? "weight" : kBatchNormTensors[vector.input - 1];
        MP_RETURN_IF_ERROR(CutOperand(target, vector, target.inputs, cut.inputs, name, module));
      }
      attributes[target.kind == Kind::kPRelu ? "num_parameters" : "num_features"] = inputs;
      layer.channels_before = layer.input_channels_before = target.inputs;
      layer.channels_after = layer.input_channels_after = inputs;
    } else {
      MP_RETURN_IF_ERROR(CutWeight(target, cut, module));
      if (!cut.outputs.empty() && target.bias.has_value()) {
        MP_RETURN_IF_ERROR(CutOperand(target, *target.bias, target.outputs, cut.outputs, "bias", module));
      }
      const int64_t inputs_after = target.kind == Kind::kDepthwise ? target.inputs - cut.groups : inputs;
      if (outputs != target.outputs) {
        attributes[linear ? "out_features" : "out_channels"] = outputs;
      }
      if (inputs_after != target.inputs) {
        attributes[linear ? "in_features" : "in_channels"] = inputs_after;
      }
      if (cut.groups > 0) {
        attributes["groups"] = target.weight.groups - cut.groups;
        SetGroup(target.id, target.weight.groups - cut.groups);
      }
      layer.channels_before = target.outputs;
      layer.channels_after = outputs;
      layer.input_channels_before = target.inputs;
      layer.input_channels_after = inputs_after;
    }
    result_.cuts.push_back(std::move(module));
    result_.layers.push_back(std::move(layer));
    return absl::OkStatus();
  }

  // Columns first: then rows are still those that the groups are counted by.
  absl::Status CutWeight(const Target& target, const Cut& cut, v1::ModuleCut& module) {
    const LayerWeight& weight = target.weight;
    MP_ASSIGN_OR_RETURN(const ConstantOperand own, OwnOperand(graph_, target.id, target.id, kWeight, "weight"));
    Tensor tensor = graph_.item(own.holder).tensor;
    if (!cut.inputs.empty()) {
      const Dims kept = Kept(target.inputs, cut.inputs);
      const int axis = target.kind == Kind::kConvTranspose ? 0 : 1;
      const bool grouped = target.kind == Kind::kLayer && weight.groups > 1;
      MP_ASSIGN_OR_RETURN(tensor, grouped ? KeepGroupedInputs(tensor, weight.groups, kept)
                                          : KeepAlongAxis(tensor, weight.StoredAxis(axis), kept));
      v1::TensorCut& done = AddTensorCut("weight", axis, target.inputs, kept, module);
      if (grouped) {
        done.set_groups(weight.groups);
      }
    }
    if (!cut.outputs.empty()) {
      const Dims kept = Kept(target.outputs, cut.outputs);
      MP_ASSIGN_OR_RETURN(tensor, KeepAlongAxis(tensor, weight.StoredAxis(0), kept));
      AddTensorCut("weight", 0, target.outputs, kept, module);
    }
    SetTensor(graph_, own, std::move(tensor));
    return absl::OkStatus();
  }

  void SetGroup(ItemId id, int64_t groups) {
    onnx::NodeProto& node = graph_.mutable_item(id).node.proto;
    for (onnx::AttributeProto& attribute : *node.mutable_attribute()) {
      if (attribute.name() == "group") {
        attribute.set_i(groups);
      }
    }
  }

  absl::Status SetSizes(ItemId reshape, const Dims& sizes) {
    MP_ASSIGN_OR_RETURN(const ConstantOperand own, OwnOperand(graph_, reshape, reshape, 1, "shape"));
    onnx::TensorProto tensor;
    tensor.set_data_type(onnx::TensorProto::INT64);
    tensor.add_dims(static_cast<int64_t>(sizes.size()));
    tensor.mutable_raw_data()->assign(reinterpret_cast<const char*>(sizes.data()), sizes.size() * sizeof(int64_t));
    SetTensor(graph_, own, FromProto(std::move(tensor)));
    return absl::OkStatus();
  }

  // The class of the module, as far as the graph tells it.
  std::string ModuleType(const Target& target, const ShapeModel& shapes) const {
    const auto layer = std::find_if(layers_.layers.begin(), layers_.layers.end(),
                                    [&](const Layer& candidate) { return candidate.node == target.id; });
    if (layer != layers_.layers.end()) {
      return layer->config.type;
    }
    if (target.kind == Kind::kPRelu) {
      return "PReLU";
    }
    if (target.kind != Kind::kBatchNorm) {
      const std::string& op_type = graph_.item(target.id).node.proto.op_type();
      return IsLinear(op_type) ? "Linear" : absl::StrCat(op_type, target.weight.dims.size() - 2, "d");
    }
    const auto input = shapes.original().shapes.find(graph_.NameOf(graph_.InputOf(target.id, 0)));
    if (input == shapes.original().shapes.end() || input->second.size() < 2 || input->second.size() > 5) {
      return "";
    }
    return absl::StrCat("BatchNorm", std::max<size_t>(input->second.size() - 2, 1), "d");
  }

  // Outputs get their new sizes; what the model says of tensors in between stays where it is known to hold still.
  void UpdateShapes(const ShapeReport& before, const ShapeReport& after) {
    onnx::GraphProto& graph = *graph_.mutable_shell().mutable_graph();
    for (onnx::ValueInfoProto& output : *graph.mutable_output()) {
      const auto old_dims = before.shapes.find(output.name());
      const auto new_dims = after.shapes.find(output.name());
      if (old_dims == before.shapes.end() || new_dims == after.shapes.end() ||
          old_dims->second.size() != new_dims->second.size() || !output.type().has_tensor_type() ||
          output.type().tensor_type().shape().dim_size() != static_cast<int>(new_dims->second.size())) {
        continue;
      }
      for (size_t i = 0; i < new_dims->second.size(); ++i) {
        if (old_dims->second[i] != new_dims->second[i]) {
          auto& dim = *output.mutable_type()->mutable_tensor_type()->mutable_shape()->mutable_dim(static_cast<int>(i));
          dim.clear_dim_param();
          dim.clear_dim_value();
          if (new_dims->second[i] >= 0) {
            dim.set_dim_value(new_dims->second[i]);
          }
        }
      }
    }
    auto* infos = graph.mutable_value_info();
    infos->erase(std::remove_if(infos->begin(), infos->end(),
                                [&](const onnx::ValueInfoProto& info) {
                                  const auto old_dims = before.shapes.find(info.name());
                                  const auto new_dims = after.shapes.find(info.name());
                                  return old_dims == before.shapes.end() || new_dims == after.shapes.end() ||
                                         old_dims->second != new_dims->second;
                                }),
                 infos->end());
  }

  Graph& graph_;
  const std::vector<PruneRecord>& records_;
  const Layers& layers_;
  std::vector<ItemId> order_;                         // nodes, in list order
  absl::flat_hash_map<std::string, ItemId> by_name_;  // the first node of each name
  std::map<ItemId, Target> targets_;
  std::vector<RecordCut> cuts_;  // by record
  std::vector<bool> taken_;      // by record
  CutChannelsResult result_;
};

}  // namespace

absl::StatusOr<CutChannelsResult> CutChannels(Graph& graph, const std::vector<PruneRecord>& records, const Layers& layers,
                                              CutPolicy policy) {
  return Cutter(graph, records, layers).Run(policy);
}

}  // namespace modelpress::engine
