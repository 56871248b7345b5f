#include "engine/retrain/retrain_layers.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/quantize/op_rules.h"

namespace modelpress::engine {
namespace {

// True if every group of the convolution has one input channel. The reference compares groups with in_channels, which one input
// channel satisfies too (prune.md section 16, P-6).
bool IsDepthwise(const Layer& layer, bool extended) {
  return layer.config.type == "Conv2d" && layer.config.packed_sizes == std::vector<int64_t>{1} &&
         (!extended || layer.config.groups > 1);
}

}  // namespace

RetrainLayers FindRetrainLayers(const Layers& layers, const ReferenceDefects& defects, bool extended) {
  RetrainLayers found;
  found.catalog.other_modules = layers.other_modules;
  for (const Layer& layer : layers.layers) {
    const ConfigLayer& config = layer.config;
    const RetrainType* type = FindRetrainType(config.type);
    if (type == nullptr) {
      found.catalog.other_modules.insert(config.name);
      continue;
    }
    const bool rnn = config.type == "LSTM" || config.type == "GRU";
    RetrainCatalogLayer entry = {.name = config.name,
                                 .type = config.type,
                                 .why_not_quant = rnn && defects.accepts_unsavable_rnn ? layer.why_not_at_all : config.why_not,
                                 .why_not_filter = layer.why_not_at_all,
                                 .why_not_selective = layer.why_not_at_all,
                                 .groups = config.groups,
                                 .packed_sizes = config.packed_sizes};
    if (!type->filter) {
      entry.why_not_filter = absl::StrCat("channels of a ", config.type, " cannot be pruned");
    } else if (entry.why_not_filter.empty() && IsDepthwise(layer, extended)) {
      entry.why_not_filter = config.groups > 1 ? "it is depthwise" : "it has one input channel";
    }
    if (!type->selective) {
      entry.why_not_selective = absl::StrCat("a ", config.type, " cannot be made 2:4 sparse");
    }
    found.catalog.layers.push_back(std::move(entry));
    found.nodes.push_back(layer.node);
  }
  return found;
}

}  // namespace modelpress::engine
