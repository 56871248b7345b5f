// How records are found: every tensor has a layout, the list of its channels' segments, each with its width and the record that
// prunes it, if one does. A layer that is pruned starts a segment, operators hand layouts on, join them or end their records. The
// reference has lists of records per node instead and takes a record's first producer for its width, so it loses channels without
// a record. With widths in the lists the same rules come out right, and what the reference does wrong is a condition on one edit:
// to erase a segment instead of leaving its width (P-1, P-10), to move it (P-2), to take another width (P-3), to ignore one
// (P-4).
#include "engine/prune/groups.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/prune_graph.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/shapes.h"
#include "engine/quantize/op_rules.h"
#include "google/protobuf/util/message_differencer.h"

namespace modelpress::engine {
namespace {

using AMCTProto::AttrProto;

constexpr int kLast = -1;  // the channels are on the last axis: Linear
constexpr int kOpaque = -1;

// Channels of a tensor that stand together.
struct Segment {
  int record = kOpaque;  // what prunes them
  int64_t width = 0;
  // Elements that stand for one channel of the record: 49 behind a Flatten of [N, C, 7, 7].
  int64_t repeat = 1;
};

// The channels of a tensor; without segments none of them can be pruned, and they are not known.
struct Layout {
  std::vector<Segment> segments;
  int axis = 1;       // 1 or kLast
  bool flat = false;  // [N, C]: axis 1 is the last

  bool empty() const { return segments.empty(); }
  int64_t width() const {
    int64_t sum = 0;
    for (const Segment& segment : segments) {
      sum += segment.width;
    }
    return sum;
  }
};

struct Member {
  int node = 0;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t group = 1;
  int64_t prune_group = 0;  // 0: none
};

struct Record {
  std::vector<Member> producers;
  std::vector<Member> consumers;
  std::vector<int> carriers;  // nodes with a segment of it; a node may be listed more than once
  bool flattened = false;     // some path of it goes through a kPoolFlatten
  bool gone = false;          // deleted, or merged into another

  int64_t width() const { return producers[0].end - producers[0].begin; }
};

// A node with weights, as far as channels care.
struct Operator {
  std::string unusable;  // why it is a barrier; empty: it is none
  int axis = 1;
  int64_t in_channels = -1;  // -1: not known
  int64_t out_channels = -1;
  int64_t group = 1;  // group attribute, 1 where every group has one channel
  bool depthwise = false;
  bool can_be_active = false;  // its channels could be pruned, by its kind
};

bool IsWeighted(absl::string_view op_type) {
  return op_type == "Conv" || op_type == "ConvTranspose" || op_type == "Gemm" || op_type == "MatMul" ||
         op_type == "BatchNormalization";
}

bool Contains(absl::Span<const absl::string_view> list, absl::string_view op_type) {
  return std::find(list.begin(), list.end(), op_type) != list.end();
}

// Only with `extended`: operators that treat every element alike, so that a channel taken away before is one taken away behind.
constexpr absl::string_view kElementwise[] = {
    "Add",        "Sub",      "Mul", "Div",      "Min",  "Max",  "PRelu", "Sigmoid", "HardSigmoid",
    "HardSwish",  "Tanh",     "Elu", "Selu",     "Erf",  "Exp",  "Log",   "Sqrt",    "Neg",
    "Reciprocal", "Softplus", "Sin", "Softsign", "Gelu", "Mish", "Floor", "Sign",    "ThresholdedRelu",
    "Swish",      "Sinh",     "Tan"};
constexpr absl::string_view kReshapes[] = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"};
constexpr absl::string_view kReductions[] = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2"};

void AddInt(AMCTPytorchProto::PruneNode& node, const char* name, int64_t value) {
  AttrProto& attr = *node.add_attr();
  attr.set_name(name);
  attr.set_type(AttrProto::INT);
  attr.set_i(value);
}

class Finder {
 public:
  Finder(const Graph& graph, const Layers& layers, const std::map<std::string, FilterPruneConfig>& enabled,
         const ChannelPruneOptions& options, const ReferenceDefects& defects)
      : graph_(graph), layers_(layers), enabled_(enabled), extended_(options.extended), defects_(defects) {}

  absl::StatusOr<PruneGroups> Find() {
    MP_ASSIGN_OR_RETURN(const ShapeModel shapes, ShapeModel::Create(graph_));
    shapes_ = shapes.original().shapes;
    absl::flat_hash_set<ItemId> linears;
    for (const Layer& layer : layers_.layers) {
      if (layer.node >= 0) {
        layer_of_[layer.node] = &layer;
        if (layer.config.type == "Linear") {
          linears.insert(layer.node);
        }
      }
    }
    simple_ = SimplifyForPruning(graph_, linears, shapes_);
    layouts_.resize(simple_.nodes.size());
    for (int n = 0; n < static_cast<int>(simple_.nodes.size()); ++n) {
      index_[simple_.nodes[n].item] = n;
    }
    for (int n = 0; n < static_cast<int>(simple_.nodes.size()); ++n) {
      MP_RETURN_IF_ERROR(Visit(n));
    }
    for (size_t i = 0; i < simple_.outputs.size(); ++i) {
      MP_RETURN_IF_ERROR(Delete(LayoutOf(simple_.outputs[i]), absl::StrCat("its output reaches the graph's output '",
                                                                           graph_.shell().graph().output(i).name(), "'")));
    }
    WriteRecords();
    ExplainTheRest();
    return std::move(groups_);
  }

 private:
  // ---- what nodes are

  const PruneNode& node(int n) const { return simple_.nodes[n]; }

  std::string Described(int n) const { return absl::StrCat(node(n).op_type, " '", node(n).name, "'"); }

  // Null: not known.
  const std::vector<int64_t>* ShapeOf(Value value) const {
    return value.is_none() ? nullptr : FindShape(shapes_, graph_.NameOf(value));
  }

  Operator OperatorOf(int n) const {
    Operator op;
    const ItemId item = node(n).item;
    const std::string& type = node(n).op_type;
    const bool batch_norm = type == "BatchNormalization";
    // Modules that are used several times, weights that several layers have, and what is no layer at all (x @ y) stop the
    // reference with an error (P-7) or break the model (P-8).
    if (auto layer = layer_of_.find(item); layer != layer_of_.end()) {
      op.unusable = layer->second->why_not_at_all;
    } else if (!layers_.batch_norms.contains(item)) {
      op.unusable = "it is no layer of its own";
    }
    for (int input = 1; input < graph_.item(item).input_count() && op.unusable.empty(); ++input) {
      const Value value = graph_.InputOf(item, input);
      if (!value.is_none() && !FindConstantOperand(graph_, value).has_value()) {
        op.unusable = "not all its parameters are constants of the model";
      }
    }
    if (batch_norm) {
      const std::optional<ConstantOperand> scale = FindConstantOperand(graph_, graph_.InputOf(item, 1));
      const std::vector<int64_t> dims = scale.has_value() ? DimsOf(graph_, *scale) : std::vector<int64_t>();
      op.in_channels = op.out_channels = dims.size() == 1 ? dims[0] : -1;
      return op;
    }
    const absl::StatusOr<LayerWeight> weight = FindLayerWeight(graph_, item);
    if (!weight.ok()) {
      op.unusable = op.unusable.empty() ? "its weight is none of a torch module's" : op.unusable;
      return op;
    }
    const std::vector<int64_t>& dims = weight->dims;
    if (type == "Gemm" || type == "MatMul") {
      op.in_channels = dims[1];
      op.out_channels = dims[0];
      op.axis = kLast;
      op.can_be_active = true;
      return op;
    }
    const bool transposed = type == "ConvTranspose";
    op.in_channels = transposed ? dims[0] : dims[1] * weight->groups;
    op.out_channels = transposed ? dims[1] * weight->groups : dims[0];
    op.depthwise = !transposed && dims[1] == 1 && !(extended_ && weight->groups == 1);  // P-6
    op.can_be_active = !transposed && dims.size() == 4 && !op.depthwise;
    op.group = dims[1] == 1 ? 1 : weight->groups;
    return op;
  }

  // ---- layouts

  Layout LayoutOf(Value value) const {
    auto it = index_.find(value.item);
    return it == index_.end() || value.output != 0 ? Layout() : layouts_[it->second];
  }

  Layout InputLayout(int n, int input) const {
    return input < static_cast<int>(node(n).inputs.size()) ? LayoutOf(node(n).inputs[input]) : Layout();
  }

  // Channels up to the next segment, as a consumer counts them.
  int64_t Advance(const Segment& segment) const {
    return defects_.takes_width_of_first_producer && segment.record != kOpaque ? records_[segment.record].width() * segment.repeat
                                                                               : segment.width;
  }

  bool widths_are_wrong() const {
    return defects_.takes_width_of_first_producer || defects_.forgets_concat_widths || defects_.ignores_depthwise_multiplier;
  }

  void Carry(int n, Layout layout) {
    for (const Segment& segment : layout.segments) {
      if (segment.record != kOpaque) {
        std::vector<int>& carriers = records_[segment.record].carriers;
        if (carriers.empty() || carriers.back() != n) {
          carriers.push_back(n);
        }
      }
    }
    layouts_[n] = std::move(layout);
  }

  static std::vector<int> RecordsOf(const Layout& layout) {
    std::vector<int> records;
    absl::flat_hash_set<int> seen;
    for (const Segment& segment : layout.segments) {
      if (segment.record != kOpaque && seen.insert(segment.record).second) {
        records.push_back(segment.record);
      }
    }
    return records;
  }

  void Deviate(const std::string& text) {
    if (told_.insert(text).second) {
      groups_.deviations.push_back(text);
    }
  }

  // ---- edits of records

  absl::Status Delete(const Layout& layout, const std::string& reason) {
    for (int record : RecordsOf(layout)) {
      MP_RETURN_IF_ERROR(DeleteRecord(record, reason));
    }
    return absl::OkStatus();
  }

  // The channels of the record stay.
  absl::Status DeleteRecord(int r, const std::string& reason) {
    Record& record = records_[r];
    const std::string& producer = node(record.producers[0].node).name;
    if (record.gone) {  // P-10
      return MakeError(v1::NODE_UNSUPPORTED,
                       "its output is concatenated with itself and must be left unpruned, where the reference fails; skip the "
                       "layer or do without reference_defects",
                       {.layer = producer});
    }
    record.gone = true;
    for (const Member& member : record.producers) {
      groups_.left_alone[node(member.node).name] = reason;
    }
    for (int carrier : std::set<int>(record.carriers.begin(), record.carriers.end())) {
      std::vector<Segment>& segments = layouts_[carrier].segments;
      const int64_t count = std::count_if(segments.begin(), segments.end(), [r](const Segment& s) { return s.record == r; });
      if (count > 1 && !defects_.leaves_stale_prune_records) {
        Deviate(absl::StrCat("every use of '", producer, "' in what '", node(carrier).name,
                             "' reads is left unpruned (prune.md P-10)"));
      }
      for (size_t s = 0; s < segments.size();) {
        if (segments[s].record != r) {
          ++s;
          continue;
        }
        if (defects_.forgets_concat_widths) {
          segments.erase(segments.begin() + static_cast<std::ptrdiff_t>(s));
        } else {
          segments[s++].record = kOpaque;
        }
        if (defects_.leaves_stale_prune_records) {
          break;
        }
      }
      if (std::all_of(segments.begin(), segments.end(), [](const Segment& s) { return s.record == kOpaque; })) {
        segments.clear();
      } else if (!defects_.forgets_concat_widths) {
        Deviate(WidthsDeviation(carrier));
      }
    }
    return absl::OkStatus();
  }

  std::string WidthsDeviation(int n) const {
    return absl::StrCat("channels that stay count in what '", node(n).name, "' hands on (prune.md P-1)");
  }

  // Makes records `a` and `b` one, at the place of `a`.
  void Merge(int a, int b) {
    if (a == b) {
      return;
    }
    Record& kept = records_[a];
    Record& merged = records_[b];
    kept.producers.insert(kept.producers.end(), merged.producers.begin(), merged.producers.end());
    kept.consumers.insert(kept.consumers.end(), merged.consumers.begin(), merged.consumers.end());
    kept.flattened = kept.flattened || merged.flattened;
    merged.gone = true;
    for (int carrier : merged.carriers) {
      std::vector<Segment>& segments = layouts_[carrier].segments;
      if (defects_.reorders_concat_branches) {
        const auto moved =
            std::stable_partition(segments.begin(), segments.end(), [b](const Segment& s) { return s.record != b; });
        std::for_each(moved, segments.end(), [a](Segment& s) { s.record = a; });
      } else {
        if (!segments.empty() && segments.back().record != b) {
          Deviate(absl::StrCat("the channels of '", node(carrier).name, "' keep their order (prune.md P-2)"));
        }
        for (Segment& segment : segments) {
          segment.record = segment.record == b ? a : segment.record;
        }
      }
    }
    kept.carriers.insert(kept.carriers.end(), merged.carriers.begin(), merged.carriers.end());
    // The larger of two group counts that do not divide each other may take different numbers of channels from the groups of the
    // other layer. That depends on the weights: ChooseChannels sees it and takes the least common multiple then (P-9).
    int64_t prune_group = 0;
    for (const Member& producer : kept.producers) {
      prune_group = std::max(prune_group, producer.prune_group);
    }
    for (Member& producer : kept.producers) {
      producer.prune_group = prune_group;
    }
  }

  // Makes the first producer's channels be cut in multiples of `group`. False: they cannot be.
  static bool JoinGroup(Record& record, int64_t group) {
    int64_t& prune_group = record.producers[0].prune_group;
    if (prune_group == 0 || group % prune_group == 0) {
      prune_group = group;
      return true;
    }
    return prune_group % group == 0;
  }

  // Adds `n` to the consumers of every record of the layout.
  void AddConsumers(int n, const Layout& layout, int64_t group = 1) {
    int64_t pos = 0;
    for (const Segment& segment : layout.segments) {
      if (segment.record != kOpaque) {
        Record& record = records_[segment.record];
        record.consumers.push_back({.node = n, .begin = pos, .end = pos + record.width() * segment.repeat, .group = group});
      }
      pos += Advance(segment);
    }
  }

  // ---- rules

  absl::Status Visit(int n) {
    const std::string& type = node(n).op_type;
    if (IsWeighted(type)) {
      const Operator op = OperatorOf(n);
      if (op.unusable.empty()) {
        return VisitWeighted(n, op);
      }
      return Block(n, absl::StrCat(" (", op.unusable, ")"));
    }
    if (type == kPoolFlatten) {
      Layout layout = InputLayout(n, 0);
      if (layout.axis == kLast) {  // it takes the mean over the channels
        return Block(n);
      }
      layout.flat = true;
      for (int record : RecordsOf(layout)) {
        records_[record].flattened = true;
      }
      Carry(n, std::move(layout));
      return absl::OkStatus();
    }
    if (type == "Concat") {
      return VisitConcat(n);
    }
    if (extended_) {
      if (Contains(kElementwise, type)) {
        return VisitElementwise(n);
      }
      if (Contains(kReshapes, type)) {
        return VisitReshape(n);
      }
      if (Contains(kReductions, type)) {
        return VisitReduction(n);
      }
      if (type == "Shape") {  // tells the shape after pruning too
        return absl::OkStatus();
      }
    }
    return type == "Add" ? VisitAdd(n) : Block(n);
  }

  absl::Status Block(int n, const std::string& remark = "") {
    for (int input = 0; input < static_cast<int>(node(n).inputs.size()); ++input) {
      MP_RETURN_IF_ERROR(Delete(InputLayout(n, input), absl::StrCat("its output reaches ", Described(n), remark)));
    }
    return absl::OkStatus();
  }

  absl::Status VisitWeighted(int n, const Operator& op) {
    MP_ASSIGN_OR_RETURN(Layout layout, Consume(n, op));
    if (!op.can_be_active) {
      if (node(n).op_type != "ConvTranspose") {
        Carry(n, std::move(layout));
      } else if (!layout.empty() && !extended_) {
        // The reference hands the records on, as if the channels were the same; cutting them is then found not to fit (P-5).
        layout.segments.back().width += op.out_channels - layout.width();
        Carry(n, std::move(layout));
      }
      return absl::OkStatus();
    }
    if (enabled_.contains(node(n).name) && !simple_.unused.contains(node(n).item)) {
      const int64_t prune_group = op.group == 1 ? 0 : op.group;
      records_.push_back({.producers = {{.node = n, .end = op.out_channels, .group = op.group, .prune_group = prune_group}}});
      Carry(n, {.segments = {{.record = static_cast<int>(records_.size()) - 1, .width = op.out_channels}}, .axis = op.axis});
    }
    return absl::OkStatus();
  }

  // Makes `n` a consumer of the records that its input carries. Returns what is left of them, as `n` hands it on.
  absl::StatusOr<Layout> Consume(int n, const Operator& op) {
    Layout layout = InputLayout(n, 0);
    if (layout.empty()) {
      return layout;
    }
    auto stop = [&](const std::string& reason) -> absl::StatusOr<Layout> {
      MP_RETURN_IF_ERROR(Delete(layout, reason));
      return Layout();
    };
    if (op.group != 1) {
      if (layout.segments.size() > 1) {
        return stop(absl::StrCat("the groups of ", Described(n), " read channels of several layers"));
      }
      if (!JoinGroup(records_[layout.segments[0].record], op.group)) {
        return stop(absl::StrCat("the ", op.group, " groups of ", Described(n), " do not fit other groups"));
      }
    }
    if (extended_ && node(n).op_type == "ConvTranspose" && GroupOf(graph_.item(node(n).item)) != 1) {
      return stop(absl::StrCat("its output reaches ", Described(n), ", which has groups"));
    }
    bool last = layout.flat;
    bool from_matmul = true;  // all producers are MatMul
    bool some_matmul = false;
    for (int record : RecordsOf(layout)) {
      last = last || (!extended_ && records_[record].flattened);  // P-12
      for (const Member& producer : records_[record].producers) {
        const bool matmul = node(producer.node).op_type == "MatMul";
        from_matmul = from_matmul && matmul;
        some_matmul = some_matmul || matmul;
      }
    }
    if (node(n).op_type == "BatchNormalization") {
      const std::vector<int64_t>* shape = ShapeOf(graph_.InputOf(node(n).item, 0));
      const bool of_maps = shape != nullptr && shape->size() == 4;
      if (of_maps && some_matmul) {
        return layout;  // it normalizes another axis
      }
      if (!of_maps && from_matmul) {
        return stop(absl::StrCat("its output reaches ", Described(n)));
      }
    } else if (op.axis != layout.axis && !(op.axis == kLast && last)) {
      return stop(absl::StrCat(Described(n), " reads another axis than that of the channels"));
    }
    if (op.in_channels != layout.width() && !widths_are_wrong()) {
      return stop(absl::StrCat(Described(n), " reads ", op.in_channels, " channels where ", layout.width(), " are followed"));
    }
    if (op.depthwise && op.out_channels != op.in_channels && !defects_.ignores_depthwise_multiplier) {
      Deviate(absl::StrCat("what depthwise layer '", node(n).name, "' reads is left unpruned (prune.md P-4)"));
      return stop(absl::StrCat("its output reaches ", Described(n), ", which makes ", op.out_channels / op.in_channels,
                               " channels of each"));
    }
    AddConsumers(n, layout, op.group);
    return layout;
  }

  absl::Status VisitAdd(int n) {
    const Layout a = InputLayout(n, 0);
    const Layout b = InputLayout(n, 1);
    auto stop = [&](absl::string_view why) -> absl::Status {
      const std::string reason = absl::StrCat(Described(n), " adds its output to ", why);
      MP_RETURN_IF_ERROR(Delete(b, reason));
      return Delete(LayoutOf(node(n).inputs[0]), reason);
    };
    if (a.empty() && b.empty()) {
      return absl::OkStatus();
    }
    if (a.empty() || b.empty()) {
      return stop("channels that are not pruned");
    }
    if (a.segments.size() > 1 || b.segments.size() > 1) {
      return stop("concatenated channels");
    }
    if (a.axis != b.axis) {
      return stop("a tensor with channels on another axis");
    }
    if (a.width() != b.width() && !defects_.takes_width_of_first_producer) {
      Deviate(absl::StrCat("what '", node(n).name, "' adds is left unpruned: ", a.width(), " and ", b.width(),
                           " channels (prune.md P-3)"));
      return stop("another number of channels");
    }
    Unify(n, a, {b});
    return absl::OkStatus();
  }

  // Makes the layouts one, segment by segment; all have the same segments. `n` hands on the result.
  void Unify(int n, Layout all, std::vector<Layout> peers) {
    for (Layout& peer : peers) {
      for (size_t i = 0; i < all.segments.size(); ++i) {
        const int kept = all.segments[i].record;
        const int merged = peer.segments[i].record;
        if (kept == merged) {
          continue;
        }
        Merge(kept, merged);
        auto replace = [&](Layout& layout) {
          for (Segment& segment : layout.segments) {
            segment.record = segment.record == merged ? kept : segment.record;
          }
        };
        replace(all);
        std::for_each(peers.begin(), peers.end(), replace);
      }
    }
    AddConsumers(n, all);
    Carry(n, std::move(all));
  }

  absl::Status VisitConcat(int n) {
    const std::vector<int64_t>* shape = extended_ ? ShapeOf(Value{node(n).item, 0}) : nullptr;
    int64_t axis = IntAttribute(graph_.item(node(n).item).node.proto, "axis", 0);
    axis += axis < 0 && shape != nullptr ? static_cast<int64_t>(shape->size()) : 0;
    const bool on_last = shape != nullptr && axis == static_cast<int64_t>(shape->size()) - 1;
    if (axis != 1 && !on_last) {
      return Block(n);
    }
    Layout joined = {.axis = axis == 1 ? 1 : kLast, .flat = true};
    std::string problem;
    for (int i = 0; i < static_cast<int>(node(n).inputs.size()); ++i) {
      const Layout layout = InputLayout(n, i);
      if (layout.empty()) {
        const int64_t width = OpaqueWidth(n, i, axis);
        problem =
            width < 0 ? absl::StrCat(Described(n), " joins its output with channels of a number that is not known") : problem;
        joined.segments.push_back({.width = width});
        continue;
      }
      if (layout.axis == kLast ? !on_last : axis != 1) {
        problem = absl::StrCat(Described(n), " joins tensors on another axis than that of the channels");
      }
      joined.flat = joined.flat && layout.flat;
      joined.segments.insert(joined.segments.end(), layout.segments.begin(), layout.segments.end());
    }
    joined.flat = joined.flat || (axis == 1 && on_last);
    if (RecordsOf(joined).empty()) {
      return absl::OkStatus();
    }
    if (!problem.empty()) {
      return Delete(joined, problem);
    }
    AddConsumers(n, joined);
    if (defects_.forgets_concat_widths) {
      std::erase_if(joined.segments, [](const Segment& segment) { return segment.record == kOpaque; });
    } else if (std::any_of(joined.segments.begin(), joined.segments.end(),
                           [](const Segment& s) { return s.record == kOpaque; })) {
      Deviate(WidthsDeviation(n));
    }
    Carry(n, std::move(joined));
    return absl::OkStatus();
  }

  // Channels of an input of a Concat that has no layout; -1: not known.
  int64_t OpaqueWidth(int n, int input, int64_t axis) const {
    const Value value = node(n).inputs[input];
    if (auto source = index_.find(value.item); source != index_.end() && IsWeighted(node(source->second).op_type)) {
      return OperatorOf(source->second).out_channels;
    }
    const std::vector<int64_t>* shape = extended_ ? ShapeOf(graph_.InputOf(node(n).item, input)) : nullptr;
    const int64_t width = shape != nullptr && axis < static_cast<int64_t>(shape->size()) ? (*shape)[axis] : -1;
    return width <= std::numeric_limits<int32_t>::max() ? width : -1;
  }

  // ---- rules of `extended`

  static bool SameSegments(const Layout& a, const Layout& b) {
    return std::equal(a.segments.begin(), a.segments.end(), b.segments.begin(), b.segments.end(),
                      [](const Segment& x, const Segment& y) { return x.width == y.width && x.repeat == y.repeat; });
  }

  // Every operand has the same channels, one for all of them, or is a number.
  absl::Status VisitElementwise(int n) {
    bool done = false;
    while (!done) {
      MP_ASSIGN_OR_RETURN(done, JoinOperands(n));
    }
    return absl::OkStatus();
  }

  // False: a record had to go, so layouts have changed.
  absl::StatusOr<bool> JoinOperands(int n) {
    const ItemId item = node(n).item;
    const int inputs = static_cast<int>(node(n).inputs.size());
    int widest = 0;
    for (int i = 1; i < inputs; ++i) {
      widest = InputLayout(n, i).width() > InputLayout(n, widest).width() ? i : widest;
    }
    Layout all = inputs == 0 ? Layout() : InputLayout(n, widest);
    if (all.empty()) {
      return true;
    }
    // Axes are counted from the last, as broadcasting does. 0: not known.
    auto axis_from_end = [&](int input, const Layout& layout) -> int64_t {
      const std::vector<int64_t>* shape = ShapeOf(graph_.InputOf(item, input));
      return layout.axis == kLast || layout.flat ? 1 : shape == nullptr ? 0 : static_cast<int64_t>(shape->size()) - 1;
    };
    const int64_t axis = axis_from_end(widest, all);
    std::vector<Layout> peers;
    for (int i = 0; i < inputs; ++i) {
      if (i == widest || node(n).inputs[i].is_none() || IsScalarConstant(graph_, node(n).inputs[i])) {
        continue;
      }
      Layout layout = InputLayout(n, i);
      const std::vector<int64_t>* shape = ShapeOf(graph_.InputOf(item, i));
      const int64_t rank = shape == nullptr ? 0 : static_cast<int64_t>(shape->size());
      if (axis > 0 && shape != nullptr && all.width() > 1 && (rank < axis || (*shape)[rank - axis] == 1)) {
        MP_RETURN_IF_ERROR(Delete(layout, absl::StrCat(Described(n), " spreads its output over other channels")));
        continue;
      }
      if (layout.empty() || axis == 0 || axis_from_end(i, layout) != axis || !SameSegments(all, layout)) {
        MP_RETURN_IF_ERROR(Block(n));
        return true;
      }
      for (size_t s = 0; s < layout.segments.size(); ++s) {
        const int a = all.segments[s].record;
        const int b = layout.segments[s].record;
        if ((a == kOpaque) != (b == kOpaque)) {
          MP_RETURN_IF_ERROR(
              DeleteRecord(std::max(a, b), absl::StrCat(Described(n), " combines its output with channels that stay")));
          return false;
        }
      }
      peers.push_back(std::move(layout));
    }
    if (peers.empty()) {
      Carry(n, std::move(all));
      return true;
    }
    Unify(n, std::move(all), std::move(peers));
    return true;
  }

  // [N, C, ...] -> [N, C * k, ...]: the elements of a channel stay together, so it becomes k channels.
  absl::Status VisitReshape(int n) {
    Layout layout = InputLayout(n, 0);
    if (layout.empty()) {
      return absl::OkStatus();
    }
    const ItemId item = node(n).item;
    const std::vector<int64_t>* in = ShapeOf(graph_.InputOf(item, 0));
    if (in == nullptr || in->size() < 2 || (layout.axis == kLast && in->size() != 2)) {
      return Block(n);
    }
    // Elements behind the batch's axis; negative: not known.
    auto elements = [](const std::vector<int64_t>& shape) {
      int64_t product = 1;
      for (size_t i = 1; i < shape.size(); ++i) {
        if (shape[i] < 0 || __builtin_mul_overflow(product, shape[i], &product)) {
          return int64_t{-1};
        }
      }
      return product;
    };
    const int64_t channels = (*in)[1];
    const int64_t count = elements(*in);
    std::vector<int64_t> out;
    if (const std::vector<int64_t>* shape = ShapeOf(Value{item, 0}); shape != nullptr) {
      out = *shape;
    } else if (const std::vector<int64_t>* target = ShapeOf(graph_.InputOf(item, 1));
               target != nullptr && *target == std::vector<int64_t>{2}) {
      // A target that is computed, two numbers: [N, all]. Were it another one, its reader would not read as many channels.
      out = {-1, count};
    }
    if (count <= 0 || out.size() < 2 || count != elements(out) || channels != layout.width() || out[1] % channels != 0) {
      return Block(n);
    }
    const int64_t factor = out[1] / channels;
    for (Segment& segment : layout.segments) {
      segment.width *= factor;
      segment.repeat *= factor;
    }
    layout.axis = 1;
    layout.flat = out.size() == 2;
    if (node(n).op_type == "Reshape") {
      AddConsumers(n, layout);  // a constant target counts the channels
    }
    Carry(n, std::move(layout));
    return absl::OkStatus();
  }

  // Over other axes than that of the channels.
  absl::Status VisitReduction(int n) {
    Layout layout = InputLayout(n, 0);
    if (layout.empty()) {
      return absl::OkStatus();
    }
    const onnx::NodeProto& proto = graph_.item(node(n).item).node.proto;
    const std::vector<int64_t>* in = ShapeOf(graph_.InputOf(node(n).item, 0));
    std::optional<std::vector<int64_t>> axes;
    if (const auto* attribute = FindAttribute(proto, "axes"); attribute != nullptr) {
      axes.emplace(attribute->ints().begin(), attribute->ints().end());
    } else if (node(n).inputs.size() > 1) {
      axes = ConstantInts(graph_, node(n).inputs[1]);
    }
    if (in == nullptr || !axes.has_value() || axes->empty()) {
      return Block(n);
    }
    const auto rank = static_cast<int64_t>(in->size());
    const int64_t channels = layout.axis == kLast ? rank - 1 : 1;
    const bool keeps = IntAttribute(proto, "keepdims", 1) != 0;
    for (int64_t axis : *axes) {
      axis += axis < 0 ? rank : 0;
      // Without an axis in front of it, that of the channels is another one.
      if (axis == channels || (axis < channels && layout.axis == 1 && !keeps)) {
        return Block(n);
      }
    }
    layout.flat = (keeps ? rank : rank - static_cast<int64_t>(axes->size())) == 2;
    Carry(n, std::move(layout));
    return absl::OkStatus();
  }

  // ---- results

  AMCTPytorchProto::PruneNode Entry(const Member& member, bool producer) const {
    AMCTPytorchProto::PruneNode entry;
    entry.set_name(node(member.node).name);
    AttrProto& type = *entry.add_attr();
    type.set_name(kPruneTypeAttribute);
    type.set_type(AttrProto::STRING);
    type.set_s(node(member.node).op_type);
    AddInt(entry, kPruneBeginAttribute, member.begin);
    AddInt(entry, kPruneEndAttribute, member.end);
    if (member.group != 1) {
      AddInt(entry, kGroupAttribute, member.group);
    }
    if (producer && member.prune_group != 0) {
      AddInt(entry, kPruneGroupAttribute, member.prune_group);
    }
    return entry;
  }

  void WriteRecords() {
    for (const Record& record : records_) {
      if (record.gone) {
        continue;
      }
      AMCTPytorchProto::PruneRecord& written = groups_.records.emplace_back();
      for (const Member& producer : record.producers) {
        *written.add_producer() = Entry(producer, true);
        in_records_.insert(node(producer.node).name);
      }
      for (const Member& consumer : record.consumers) {
        *written.add_consumer() = Entry(consumer, false);
      }
    }
  }

  // Layers that never started a record.
  void ExplainTheRest() {
    absl::flat_hash_map<std::string, const Layer*> by_name;
    for (const Layer& layer : layers_.layers) {
      by_name[layer.config.name] = &layer;
    }
    for (const auto& [name, config] : enabled_) {
      if (in_records_.contains(name) || groups_.left_alone.contains(name)) {
        continue;
      }
      auto layer = by_name.find(name);
      std::string& reason = groups_.left_alone[name];
      if (layer == by_name.end()) {
        reason = "it is no layer of the model";
      } else if (!layer->second->why_not_at_all.empty()) {
        reason = layer->second->why_not_at_all;
      } else if (!index_.contains(layer->second->node) || simple_.unused.contains(layer->second->node)) {
        reason = "its output is not used";
      } else {
        const Operator op = OperatorOf(index_.at(layer->second->node));
        reason = !op.unusable.empty() ? op.unusable
                 : op.depthwise       ? "its groups have one input channel each"
                                      : "it is neither a Conv2d nor a Linear";
      }
    }
  }

  const Graph& graph_;
  const Layers& layers_;
  const std::map<std::string, FilterPruneConfig>& enabled_;
  const bool extended_;
  const ReferenceDefects& defects_;

  TensorShapes shapes_;
  PruneGraph simple_;
  absl::flat_hash_map<ItemId, int> index_;  // node of an item
  absl::flat_hash_map<ItemId, const Layer*> layer_of_;
  std::vector<Layout> layouts_;  // of each node's output 0
  std::vector<Record> records_;
  absl::flat_hash_set<std::string> in_records_;  // producers
  absl::flat_hash_set<std::string> told_;        // deviations
  PruneGroups groups_;
};

}  // namespace

absl::StatusOr<PruneGroups> FindPruneGroups(const Graph& graph, const Layers& layers,
                                            const std::map<std::string, FilterPruneConfig>& enabled,
                                            const ChannelPruneOptions& options, const ReferenceDefects& defects) {
  MP_ASSIGN_OR_RETURN(PruneGroups groups, Finder(graph, layers, enabled, options, defects).Find());
  if (!groups.deviations.empty()) {
    // What was done otherwise need not have made a difference.
    const ReferenceDefects all = ReferenceDefects::All();
    const absl::StatusOr<PruneGroups> reference = Finder(graph, layers, enabled, options, all).Find();
    if (reference.ok() && std::equal(groups.records.begin(), groups.records.end(), reference->records.begin(),
                                     reference->records.end(), google::protobuf::util::MessageDifferencer::Equals)) {
      groups.deviations.clear();
    }
  }
  return groups;
}

}  // namespace modelpress::engine
