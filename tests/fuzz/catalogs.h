// A small model as configurations see it, for the fuzz targets that read them. Its names are those of
// tests/golden/config/_models.
#ifndef MODELPRESS_TESTS_FUZZ_CATALOGS_H_
#define MODELPRESS_TESTS_FUZZ_CATALOGS_H_

#include "engine/formats/calibration_config.h"
#include "engine/formats/retrain_config.h"

namespace modelpress::engine {

inline LayerCatalog SmallCatalog() {
  return {.layers = {{.name = "conv1", .type = "Conv2d"},
                     {.name = "conv2", .type = "Conv2d", .groups = 2},
                     {.name = "layer1.0.conv1", .type = "Conv2d"},
                     {.name = "pool", .type = "AvgPool2d"},
                     {.name = "shared", .type = "Linear", .why_not = "it is used more than once"},
                     {.name = "rnn", .type = "LSTM", .packed_sizes = {8, 4}},
                     {.name = "fc", .type = "Linear", .has_bias = true}},
          .other_modules = {"relu", "layer1"}};
}

inline RetrainCatalog SmallRetrainCatalog() {
  return {.layers = {{.name = "conv1", .type = "Conv2d"},
                     {.name = "conv2", .type = "Conv2d", .groups = 2},
                     {.name = "layer1.0.conv1", .type = "Conv2d"},
                     {.name = "rnn", .type = "LSTM", .packed_sizes = {8, 4}},
                     {.name = "shared", .type = "Linear", .why_not_quant = "it is used more than once"},
                     {.name = "fc", .type = "Linear", .why_not_filter = "its outputs are the model's"}},
          .other_modules = {"relu", "layer1"}};
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_FUZZ_CATALOGS_H_
