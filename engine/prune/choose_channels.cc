#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/prune/channels.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/rank.h"
#include "engine/prune/record_attributes.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;

// ascend_optimized: what remains is a multiple of this.
constexpr int64_t kAscendChannels = 16;

absl::StatusOr<RankedWeight> WeightOf(const Graph& graph, const PruneNode& producer) {
  MP_ASSIGN_OR_RETURN(const ItemId id, FindPrunedNode(graph, producer.name()));
  MP_ASSIGN_OR_RETURN(const LayerWeight weight, FindLayerWeight(graph, id));
  RankedWeight ranked = {.tensor = TensorOf(graph.item(weight.operand.holder)),
                         .layer = producer.name(),
                         .channels = weight.dims[0],
                         .row = 1,
                         .transposed = weight.transposed};
  for (size_t axis = 1; axis < weight.dims.size(); ++axis) {
    ranked.row *= weight.dims[axis];
  }
  return ranked;
}

// What is to be done with a record.
struct Choice {
  PruneRecord* record = nullptr;
  double ratio = 1;
  bool ascend = false;
  int64_t channels = 0;
  int64_t cut = 0;
  int64_t group = 1;
  size_t first_weight = 0;  // of its weights to be ranked; the others follow
  size_t weights = 0;
};

// The indices of an entry, in its own coordinates.
std::vector<int64_t> IndicesFor(const PruneNode& entry, const std::vector<int64_t>& removed, int64_t channels) {
  const int64_t begin = FindRecordInt(entry, kPruneBeginAttribute).value_or(0);
  const int64_t each = PositionsPerChannel(entry, channels);
  std::vector<int64_t> indices;
  indices.reserve(removed.size() * each);
  for (const int64_t channel : removed) {
    for (int64_t i = 0; i < each; ++i) {
      indices.push_back(begin + channel * each + i);
    }
  }
  return indices;
}

// True if each of `groups` equal blocks of the channels loses as many of them.
bool IsEven(const std::vector<int64_t>& removed, int64_t channels, int64_t groups) {
  if (groups < 1 || channels % groups != 0) {
    return false;
  }
  std::vector<int64_t> lost(groups);
  for (const int64_t channel : removed) {
    ++lost[channel / (channels / groups)];
  }
  return std::all_of(lost.begin(), lost.end(), [&lost](int64_t count) { return count == lost[0]; });
}

// The channels to remove, with regard to the groups of every layer of the record. Sets its prune_group if it has to be another.
std::vector<int64_t> Choose(const Choice& choice, const std::vector<float>& scores, const ReferenceDefects& defects) {
  std::vector<int64_t> removed = LeastChannels(scores, choice.cut, choice.group);
  if (defects.merges_groups_by_maximum) {
    return removed;
  }
  bool even = true;
  int64_t group = choice.group;
  for (auto* entries : {choice.record->mutable_producer(), choice.record->mutable_consumer()}) {
    for (const PruneNode& entry : *entries) {
      const int64_t own = FindRecordInt(entry, kGroupAttribute).value_or(1);
      if (own < 1 || own > choice.channels || group > choice.channels) {
        return {};
      }
      even = even && IsEven(removed, choice.channels, own);
      group = std::lcm(group, own);
    }
  }
  if (even) {
    return removed;
  }
  if (choice.channels % group != 0) {
    return {};
  }
  for (PruneNode& producer : *choice.record->mutable_producer()) {
    SetRecordInt(producer, kPruneGroupAttribute, group);
  }
  const int64_t cut = choice.channels - ChannelsToKeep(choice.channels, choice.ratio, choice.ascend, group);
  return cut > 0 ? LeastChannels(scores, cut, group) : std::vector<int64_t>();
}

}  // namespace

int64_t ChannelsToKeep(int64_t channels, double ratio, bool ascend_optimized, int64_t group) {
  // nearbyint rounds halves to even, as Python does.
  int64_t keep = channels - static_cast<int64_t>(std::nearbyint(static_cast<double>(channels) * ratio));
  if (ascend_optimized) {
    keep = std::max((keep + kAscendChannels - 1) / kAscendChannels * kAscendChannels, kAscendChannels);
  }
  if (group > 1) {
    keep = keep / group * group;
  }
  return keep == 0 ? group : keep;
}

absl::Status ChooseChannels(const Graph& graph, const std::map<std::string, FilterPruneConfig>& enabled,
                            const ChannelPruneOptions& options, const ReferenceDefects& defects, int threads,
                            std::vector<PruneRecord>& records) {
  std::vector<Choice> choices;
  std::vector<RankedWeight> weights;
  for (PruneRecord& record : records) {
    if (record.producer().empty()) {
      continue;
    }
    Choice choice = {.record = &record};
    choice.group = FindRecordInt(record.producer(0), kPruneGroupAttribute).value_or(1);
    std::vector<RankedWeight> own;
    for (const PruneNode& producer : record.producer()) {
      const auto config = enabled.find(producer.name());
      if (config == enabled.end()) {
        return MakeError(v1::PRUNE_FAILED, "the configuration has no prune_ratio for it", {.layer = producer.name()});
      }
      choice.ratio = std::min(choice.ratio, config->second.ratio);
      choice.ascend = choice.ascend || config->second.ascend_optimized;
      MP_ASSIGN_OR_RETURN(RankedWeight weight, WeightOf(graph, producer));
      own.push_back(std::move(weight));
    }
    for (const RankedWeight& weight : own) {
      if (choice.group < 1 || weight.channels < choice.group || (!choice.ascend && weight.channels % choice.group != 0)) {
        return MakeError(v1::PRUNE_FAILED,
                         absl::StrCat("its ", weight.channels, " channels cannot be pruned in ", choice.group,
                                      " equal groups, as the grouped convolutions that they go to need; list it in "
                                      "regular_prune_skip_layers"),
                         {.layer = weight.layer});
      }
    }
    choice.channels = own[0].channels;
    choice.cut = choice.channels - ChannelsToKeep(choice.channels, choice.ratio, choice.ascend, choice.group);
    if (choice.cut <= 0) {
      continue;
    }
    choice.first_weight = weights.size();
    for (RankedWeight& weight : own) {
      // A broadcast operand has nothing to say about single channels.
      if (choice.weights == 0 || (options.rank_by_all_producers && weight.channels == choice.channels)) {
        weights.push_back(std::move(weight));
        ++choice.weights;
      }
    }
    choices.push_back(choice);
  }
  MP_ASSIGN_OR_RETURN(std::vector<std::vector<float>> scores, ScoreChannels(weights, threads));
  for (const Choice& choice : choices) {
    std::vector<float>& total = scores[choice.first_weight];
    for (size_t w = choice.first_weight + 1; w < choice.first_weight + choice.weights; ++w) {
      std::transform(total.begin(), total.end(), scores[w].begin(), total.begin(), std::plus<>());
    }
    const std::vector<int64_t> removed = Choose(choice, total, defects);
    if (removed.empty()) {
      continue;
    }
    for (auto* entries : {choice.record->mutable_producer(), choice.record->mutable_consumer()}) {
      for (PruneNode& entry : *entries) {
        AddRecordInts(entry, kPruneIndexAttribute, IndicesFor(entry, removed, choice.channels));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace modelpress::engine
