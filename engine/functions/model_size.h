// How big a model is and how much it computes, for reports on pruning.
#ifndef MODELPRESS_ENGINE_FUNCTIONS_MODEL_SIZE_H_
#define MODELPRESS_ENGINE_FUNCTIONS_MODEL_SIZE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "engine/graph/graph.h"

namespace modelpress::engine {

struct LayerSize {
  uint64_t parameters = 0;       // elements of weight and bias
  std::optional<uint64_t> macs;  // multiply-accumulates for one sample; nullopt: its shapes are not known
};

struct ModelSize {
  uint64_t parameters = 0;                  // elements of all initializers
  uint64_t bytes = 0;                       // of them
  std::optional<uint64_t> macs;             // of all layers; nullopt: not all are known
  std::map<std::string, LayerSize> layers;  // convolutions, matrix products by constants, LSTM and GRU, by node name
};

ModelSize MeasureModel(const Graph& graph);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_MODEL_SIZE_H_
