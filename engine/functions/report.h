// <save_path>_report.json: what a call did, what it left alone and why, what went in and came out (docs/report.md).
#ifndef MODELPRESS_ENGINE_FUNCTIONS_REPORT_H_
#define MODELPRESS_ENGINE_FUNCTIONS_REPORT_H_

#include <set>
#include <string>
#include <vector>

#include "engine/functions/functions.h"
#include "engine/graph/graph.h"
#include "engine/quantize/layer_factors.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {

// The parts that every report has: function, versions, options, inputs.
nlohmann::ordered_json StartReport(const std::string& function, const CallContext& context,
                                   const std::set<std::string>& inputs_read);

// One object per quantizable operator in graph order, quantized or not, with the reason. `graph` is the model as read.
nlohmann::ordered_json DescribeLayers(const Graph& graph, const FactorsByLayer& factors);

// {name, size_bytes, sha256}
nlohmann::ordered_json DescribeFile(const WrittenFile& file);

// The report's text. Names in a model may be any bytes; what is no UTF-8 is replaced by U+FFFD.
std::string PrintReport(const nlohmann::ordered_json& report);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FUNCTIONS_REPORT_H_
