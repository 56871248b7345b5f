#include "engine/functions/report.h"

#include "absl/strings/str_cat.h"
#include "engine/quantize/op_rules.h"
#include "google/protobuf/stubs/common.h"
#include "onnxruntime_c_api.h"

namespace modelpress::engine {
namespace {

using Json = nlohmann::ordered_json;

uint64_t ElementsOf(const std::vector<int64_t>& dims) {
  uint64_t count = 1;
  for (int64_t dim : dims) {
    count *= dim;
  }
  return count;
}

}  // namespace

Json StartReport(const std::string& function, const CallContext& context, const std::set<std::string>& inputs_read) {
  Json report;
  report["function"] = function;
  report["engine_version"] = MODELPRESS_VERSION;
  report["libraries"] = {{"onnxruntime", OrtGetApiBase()->GetVersionString()},
                         {"protobuf", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)}};
  report["validate_only"] = context.validate_only;
  Json inputs = Json::array();
  for (const InputDigest& input : context.digests) {
    if (inputs_read.contains(input.name)) {
      inputs.push_back({{"name", input.name}, {"size_bytes", input.size}, {"sha256", input.sha256}});
    }
  }
  report["inputs"] = std::move(inputs);
  return report;
}

Json DescribeLayers(const Graph& graph, const FactorsByLayer& factors) {
  Json layers = Json::array();
  for (ItemId id : graph.Order()) {
    const Item& item = graph.item(id);
    const OpRule* rule = item.is_node() ? FindOpRule(item.node.proto.op_type()) : nullptr;
    if (rule == nullptr) {
      continue;
    }
    Json layer = {{"name", item.name}, {"op_type", item.node.proto.op_type()}};
    auto it = factors.find(item.name);
    layer["quantized"] = it != factors.end();
    if (it == factors.end()) {
      const std::string why_not = WhyNotQuantizable(graph, id);
      layer["reason"] =
          why_not.empty() ? "the record file has no factors for it" : absl::StrCat("cannot be quantized: ", why_not);
    } else {
      const LayerFactors& f = it->second;
      layer["activation_bits"] = rule->is_rnn() ? f.rnn_activation_bits : f.activation_bits;
      layer["scale_d"] = f.scale_d;
      layer["offset_d"] = f.offset_d;
      layer["weight_scales"] = f.scale_w.size();
      layer["balanced"] = !f.tensor_balance_factor.empty();
      if (rule->weight >= 0) {
        layer["weight_bits"] = f.weight_bits;
        if (auto weight = FindConstantOperand(graph, graph.InputOf(id, rule->weight)); weight.has_value()) {
          layer["weight_shape"] = DimsOf(graph.item(weight->holder));
          layer["weight_elements"] = ElementsOf(DimsOf(graph.item(weight->holder)));
        }
        layer["has_bias"] = FindBias(graph, id, *rule).has_value();
      }
    }
    layers.push_back(std::move(layer));
  }
  return layers;
}

Json DescribeFile(const WrittenFile& file) { return {{"name", file.name}, {"size_bytes", file.size}, {"sha256", file.sha256}}; }

std::string PrintReport(const Json& report) { return report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace modelpress::engine
