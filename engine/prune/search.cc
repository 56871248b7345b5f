#include "engine/prune/search.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/shapes.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;
using Dims = std::vector<int64_t>;

constexpr double kBitsPerProduct = 32 * 32;  // of 32-bit weights and activations
constexpr int64_t kAscendChannels = 16;
constexpr int64_t kChannelsPerTest = 100;  // of the reference: the target is looked at whenever that many have gone

// Entry `index` of an attribute of a convolution that has one per spatial axis.
int64_t SpatialAttribute(const Item& conv, absl::string_view name, int index, int64_t fallback) {
  const auto* attribute = FindAttribute(conv.node.proto, name);
  return attribute == nullptr || attribute->ints_size() <= index ? fallback : attribute->ints(index);
}

// Positions that a Conv2d would have on a feature map as large as its kernel: the reference's idea of its output.
double KernelPositions(const Item& conv, const Dims& weight) {
  double positions = 1;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = weight[2 + axis];
    const int64_t pads = 2 * SpatialAttribute(conv, "pads", axis, 0);
    const int64_t extent = SpatialAttribute(conv, "dilations", axis, 1) * (size - 1);
    const int64_t stride = std::max<int64_t>(1, SpatialAttribute(conv, "strides", axis, 1));
    positions *= std::floor(static_cast<double>(size + pads - extent - 1) / static_cast<double>(stride) + 1);
  }
  return positions;
}

// Positions of a layer's output, per sample: all axes but the batch and the channels. nullopt: not known.
std::optional<double> OutputPositions(const ShapeModel& shapes, const std::string& output, bool channels_last) {
  const auto found = shapes.original().shapes.find(output);
  if (found == shapes.original().shapes.end() || found->second.size() < 2) {
    return std::nullopt;
  }
  const Dims& dims = found->second;
  double positions = 1;
  for (size_t axis = channels_last ? 1 : 2; axis < dims.size() - (channels_last ? 1 : 0); ++axis) {
    if (dims[axis] < 0) {
      return std::nullopt;
    }
    positions *= static_cast<double>(dims[axis]);
  }
  return positions;
}

bool HasBias(const Graph& graph, ItemId layer, bool described) {
  return described || (graph.item(layer).input_count() > 2 && !graph.InputOf(layer, 2).is_none());
}

// A record as the search sees it.
struct SearchedGroup {
  const PruneRecord* record = nullptr;
  std::vector<float> sensitivities;  // of the channels that are left, descending
  int64_t channels = 0;              // at the start
  float cost = 0;                    // that a channel has
  int64_t pending = 0;               // channels that have gone since the costs were brought up to date
};

class Searcher {
 public:
  Searcher(const AutoChannelPruneSettings& settings, const std::vector<LayerCost>& costs, const ReferenceDefects& defects)
      : settings_(settings), defects_(defects) {
    for (const LayerCost& cost : costs) {
      order_.push_back(cost.layer);
      layers_[cost.layer] = cost;
    }
  }

  absl::Status Read(const std::vector<PruneRecord>& records, const std::map<std::string, std::vector<float>>& sensitivities) {
    for (const PruneRecord& record : records) {
      if (record.producer().empty()) {
        continue;
      }
      SearchedGroup group = {.record = &record};
      for (const PruneNode& producer : record.producer()) {
        const auto found = sensitivities.find(producer.name());
        if (found == sensitivities.end() || found->second.empty()) {
          return MakeError(v1::PRUNE_FAILED, "no sensitivities are given for its channels", {.layer = producer.name()});
        }
        const std::vector<float>& own = found->second;
        if (std::any_of(own.begin(), own.end(), [](float s) { return !std::isfinite(s); })) {
          return MakeError(v1::PRUNE_FAILED, "the sensitivity of a channel is not finite", {.layer = producer.name()});
        }
        if (group.sensitivities.empty()) {
          group.sensitivities = own;
        } else if (own.size() == group.sensitivities.size()) {
          std::transform(own.begin(), own.end(), group.sensitivities.begin(), group.sensitivities.begin(),
                         [](float more, float sum) { return sum + more; });
        } else {
          return MakeError(v1::PRUNE_FAILED,
                           absl::StrCat("it has ", own.size(), " channels, the layer '", record.producer(0).name(),
                                        "' that it is pruned with ", group.sensitivities.size()),
                           {.layer = producer.name()});
        }
      }
      group.channels = static_cast<int64_t>(group.sensitivities.size());
      std::sort(group.sensitivities.begin(), group.sensitivities.end(), std::greater<>());
      groups_.push_back(std::move(group));
    }
    return absl::OkStatus();
  }

  SearchResult Search() {
    const double total = TotalBitops();
    SearchResult result;
    UpdateCosts();
    int64_t amount = 0;
    double ratio = 1;
    while (ratio < settings_.compress_ratio) {
      SearchedGroup* best = FindBest();
      if (best == nullptr) {
        break;
      }
      const int64_t step = Step(defects_.searches_by_weight_shape ? groups_.back() : *best);
      const auto left = static_cast<int64_t>(best->sensitivities.size());
      best->sensitivities.resize(std::max<int64_t>(left - step, 0));
      best->pending += step;
      amount += step;
      if (!defects_.searches_by_weight_shape || amount >= kChannelsPerTest) {
        ratio = ApplyPending(total);
        amount = 0;
      }
    }
    result.compress_ratio = ApplyPending(total);
    if (result.compress_ratio < settings_.compress_ratio) {
      result.warnings.push_back(absl::StrCat("the search ends at a compress_ratio of ", result.compress_ratio, "; ",
                                             settings_.compress_ratio,
                                             " cannot be reached within max_prune_ratio by the layers that can be pruned"));
    }
    for (const SearchedGroup& group : groups_) {
      for (const PruneNode& producer : group.record->producer()) {
        result.kept[producer.name()] = static_cast<int64_t>(group.sensitivities.size());
      }
    }
    return result;
  }

 private:
  double TotalBitops() const {
    double total = 0;
    for (const std::string& layer : order_) {
      total += layers_.at(layer).bitops;
    }
    return total;
  }

  // Bit operations that one channel of each record stands for. The reference divides by the channels of the other side.
  void UpdateCosts() {
    for (SearchedGroup& group : groups_) {
      double cost = 0;
      for (const bool producer : {true, false}) {
        for (const PruneNode& node : producer ? group.record->producer() : group.record->consumer()) {
          if (const auto it = layers_.find(node.name()); it != layers_.end()) {
            const bool by_outputs = producer != defects_.searches_by_weight_shape;
            cost += it->second.bitops * static_cast<double>(producer ? 1 : PositionsPerChannel(node, group.channels)) /
                    static_cast<double>(by_outputs ? it->second.out_channels : it->second.in_channels);
          }
        }
      }
      group.cost = static_cast<float>(cost);
    }
  }

  int64_t Step(const SearchedGroup& group) const {
    if (!settings_.ascend_optimized) {
      return 1;
    }
    const auto rest = static_cast<int64_t>(group.sensitivities.size()) % kAscendChannels;
    return rest == 0 ? kAscendChannels : rest;
  }

  // The record whose next channels matter least for what they cost; null: none may lose any more.
  SearchedGroup* FindBest() {
    SearchedGroup* best = nullptr;
    double best_value = 0;
    for (SearchedGroup& group : groups_) {
      const int64_t step = Step(group);
      const int64_t left = static_cast<int64_t>(group.sensitivities.size()) - step;
      if (left <= 0 || static_cast<double>(left) <
                           static_cast<double>(group.channels) * (1 - static_cast<double>(settings_.max_prune_ratio))) {
        continue;
      }
      double value = 0;
      for (auto s = group.sensitivities.end() - step; s != group.sensitivities.end(); ++s) {
        value += static_cast<double>(*s) / static_cast<double>(group.cost);
      }
      if (best == nullptr || value < best_value) {
        best = &group;
        best_value = value;
      }
    }
    return best;
  }

  // Brings the costs up to date; returns the compression so far.
  double ApplyPending(double total) {
    for (SearchedGroup& group : groups_) {
      const auto removed = static_cast<double>(group.pending);
      for (const PruneNode& node : group.record->producer()) {
        if (const auto it = layers_.find(node.name()); it != layers_.end()) {
          Shrink(removed, it->second.out_channels, it->second.bitops);
        }
      }
      for (const PruneNode& node : group.record->consumer()) {
        if (const auto it = layers_.find(node.name()); it != layers_.end()) {
          Shrink(removed * static_cast<double>(PositionsPerChannel(node, group.channels)), it->second.in_channels,
                 it->second.bitops);
        }
      }
      group.pending = 0;
    }
    UpdateCosts();
    return total / TotalBitops();
  }

  static void Shrink(double removed, int64_t& channels, double& bitops) {
    bitops *= (static_cast<double>(channels) - removed) / static_cast<double>(channels);
    channels -= static_cast<int64_t>(removed);
  }

  const AutoChannelPruneSettings& settings_;
  const ReferenceDefects& defects_;
  std::vector<std::string> order_;
  std::map<std::string, LayerCost> layers_;
  std::vector<SearchedGroup> groups_;
};

}  // namespace

absl::StatusOr<std::vector<LayerCost>> CostTable(const Graph& graph, const Layers& layers, const ReferenceDefects& defects) {
  MP_ASSIGN_OR_RETURN(const ShapeModel shapes, ShapeModel::Create(graph));
  std::vector<LayerCost> costs;
  for (const Layer& layer : layers.layers) {
    if (layer.node < 0 || (layer.config.type != "Conv2d" && layer.config.type != "Linear")) {
      continue;
    }
    const Item& item = graph.item(layer.node);
    MP_ASSIGN_OR_RETURN(const LayerWeight weight, FindLayerWeight(graph, layer.node));
    const Dims& dims = weight.dims;
    const bool linear = layer.config.type == "Linear";
    LayerCost cost = {.layer = layer.config.name, .in_channels = dims[1] * weight.groups, .out_channels = dims[0]};
    // Products and sums for one output value.
    const double kernel = linear ? 1 : static_cast<double>(dims[2] * dims[3]);
    const auto per_group = static_cast<double>(dims[1]);
    const auto inputs = static_cast<double>(cost.in_channels);
    const auto outputs = static_cast<double>(cost.out_channels);
    const double bias = HasBias(graph, layer.node, layer.config.has_bias) ? 1 : 0;
    if (defects.searches_by_weight_shape) {
      const double positions = linear ? 1 : KernelPositions(item, dims);
      cost.bitops = (2 * inputs * kernel - 1 + bias) * positions * outputs * outputs * kBitsPerProduct;
    } else {
      const std::optional<double> positions = OutputPositions(shapes, item.outputs[0], linear);
      if (!positions.has_value()) {
        return MakeError(v1::PRUNE_FAILED,
                         "the size of its output is not known, and so not what it costs; export the model with fixed sizes, or "
                         "only the batch dynamic",
                         {.layer = cost.layer});
      }
      cost.bitops = (2 * per_group * kernel - 1 + bias) * *positions * outputs * kBitsPerProduct;
    }
    costs.push_back(std::move(cost));
  }
  return costs;
}

absl::StatusOr<SearchResult> GreedySearch(const AutoChannelPruneSettings& settings, const std::vector<LayerCost>& costs,
                                          const std::vector<PruneRecord>& records,
                                          const std::map<std::string, std::vector<float>>& sensitivities,
                                          const ReferenceDefects& defects) {
  Searcher searcher(settings, costs, defects);
  MP_RETURN_IF_ERROR(searcher.Read(records, sensitivities));
  return searcher.Search();
}

}  // namespace modelpress::engine
