#include "engine/calibrate/balance.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/calibrate/weights.h"
#include "engine/quantize/operands.h"
#include "engine/quantize/pass.h"
#include "engine/runtime/floats.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {
namespace {

// The axis of the activation that holds its channels.
int64_t ChannelAxis(const OpRule& rule, size_t rank) {
  const bool linear = rule.kind == OpKind::kGemm || rule.kind == OpKind::kMatMul;
  return linear ? static_cast<int64_t>(rank) - 1 : 1;
}

// Greatest absolute value per channel.
absl::StatusOr<std::vector<float>> ChannelMaxima(const TensorView& view, const OpRule& rule, uint64_t channels) {
  const size_t axis = ChannelAxis(rule, view.dims.size());
  if (axis >= view.dims.size() || static_cast<uint64_t>(view.dims[axis]) != channels) {
    return MakeError(v1::CALIBRATION_FAILED, absl::StrCat("its input has no axis of ", channels, " channels"));
  }
  MP_ASSIGN_OR_RETURN(const std::vector<float> values, FloatsOf(view));
  const uint64_t count = values.size();
  uint64_t run = 1;
  for (size_t i = axis + 1; i < view.dims.size(); ++i) {
    run *= view.dims[i];
  }
  std::vector<float> maxima(channels, 0.0F);
  for (uint64_t i = 0; i < count; i += run) {
    float& maximum = maxima[i / run % channels];
    for (uint64_t k = i; k < i + run; ++k) {
      if (!std::isfinite(values[k])) {
        return MakeError(v1::CALIBRATION_FAILED, "its input has a value that is not finite");
      }
      maximum = std::max(maximum, std::abs(values[k]));
    }
  }
  return maxima;
}

}  // namespace

absl::StatusOr<BalanceByLayer> MeasureBalance(const Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                              CalibrationData& data, const BalanceOptions& options) {
  std::vector<ConfiguredLayer> balanced;
  ModelRunnerOptions runner_options{.threads = options.threads, .scratch_folder = options.scratch_folder};
  for (const ConfiguredLayer& layer : layers) {
    if (IsBalanced(layer)) {
      balanced.push_back(layer);
      runner_options.tensors.push_back(graph.NameOf(graph.InputOf(layer.node, 0)));
    }
  }
  MP_ASSIGN_OR_RETURN(const Model model, graph.ToModel());
  MP_ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner, ModelRunner::Create(model, runner_options));
  MP_RETURN_IF_ERROR(data.Rewind());
  MP_ASSIGN_OR_RETURN(const Batch batch, data.Next());
  MP_ASSIGN_OR_RETURN(const RunResult run, runner->Run(batch));
  BalanceByLayer factors;
  for (size_t i = 0; i < balanced.size(); ++i) {
    const ConfiguredLayer& layer = balanced[i];
    const Item& item = graph.item(layer.node);
    auto measure = [&]() -> absl::StatusOr<std::vector<float>> {
      MP_ASSIGN_OR_RETURN(const ConstantOperand operand,
                          RequireConstant(graph, layer.node, graph.InputOf(layer.node, layer.rule->weight), "weight"));
      const ChannelMap channels = InputChannelMap(item, *layer.rule, DimsOf(graph.item(operand.holder)), operand.transpose >= 0);
      MP_ASSIGN_OR_RETURN(const std::vector<float> weight_max,
                          MaxAbs(TensorOf(graph.item(operand.holder)), channels, options.threads));
      MP_ASSIGN_OR_RETURN(const std::vector<float> activation_max, ChannelMaxima(run.tensors[i], *layer.rule, weight_max.size()));
      return BalanceFactors(activation_max, weight_max, *layer.config->migration_strength);
    };
    absl::StatusOr<std::vector<float>> measured = measure();
    MP_RETURN_IF_ERROR(AtPlace(measured.status(), {.layer = item.name}));
    factors[item.name] = *std::move(measured);
  }
  return factors;
}

absl::Status DivideInputs(Graph& graph, const std::vector<ConfiguredLayer>& layers, const BalanceByLayer& balance) {
  for (const ConfiguredLayer& layer : layers) {
    const std::string base = graph.item(layer.node).name;
    auto factors = balance.find(base);
    if (factors == balance.end()) {
      continue;
    }
    MP_ASSIGN_OR_RETURN(const ConstantOperand operand,
                        RequireConstant(graph, layer.node, graph.InputOf(layer.node, layer.rule->weight), "weight"));
    const Item& weight = graph.item(operand.holder);
    const bool linear = layer.rule->kind == OpKind::kGemm || layer.rule->kind == OpKind::kMatMul;
    std::vector<int64_t> dims(linear ? 1 : DimsOf(weight).size(), 1);
    dims[linear ? 0 : 1] = static_cast<int64_t>(factors->second.size());
    const bool half = DataTypeOf(weight) == onnx::TensorProto::FLOAT16;
    const ItemId divisor =
        graph.AddInitializer(absl::StrCat(base, ".balance.factors"), FromProto(FloatTensor(factors->second, dims)));
    auto add = [&graph](const std::string& name, onnx::NodeProto node, int inputs) {
      return graph.AddNode(name, std::move(node), inputs, {OutputName(name)});
    };
    auto cast = [&](const std::string& name, onnx::TensorProto::DataType to) {
      onnx::NodeProto node = NewNode("Cast");
      AddInt(node, "to", to);
      return add(name, std::move(node), 1);
    };
    if (half) {  // the division is done in float32
      graph.InsertBefore(layer.node, 0, cast(absl::StrCat(base, ".balance.widen"), onnx::TensorProto::FLOAT));
    }
    const ItemId division = add(absl::StrCat(base, ".balance"), NewNode("Div"), 2);
    graph.InsertBefore(layer.node, 0, division);
    graph.SetInput(division, 1, Value{divisor, 0});
    if (half) {
      graph.InsertBefore(layer.node, 0, cast(absl::StrCat(base, ".balance.narrow"), onnx::TensorProto::FLOAT16));
    }
  }
  return graph.Sort();
}

AMCTPytorchProto::ScaleOffsetRecord BalanceRecord(const Graph& graph, const std::vector<ConfiguredLayer>& layers,
                                                  const BalanceByLayer& balance) {
  AMCTPytorchProto::ScaleOffsetRecord record;
  for (const ConfiguredLayer& layer : layers) {
    const std::string& name = graph.item(layer.node).name;
    if (auto factors = balance.find(name); factors != balance.end()) {
      RecordEntry(record, name).mutable_tensor_balance_factor()->Assign(factors->second.begin(), factors->second.end());
    }
  }
  return record;
}

absl::StatusOr<BalanceByLayer> BalanceInRecord(const AMCTPytorchProto::ScaleOffsetRecord& record, const Graph& graph,
                                               const std::vector<ConfiguredLayer>& layers) {
  BalanceByLayer balance;
  for (const ConfiguredLayer& layer : layers) {
    if (!IsBalanced(layer)) {
      continue;
    }
    const std::string& name = graph.item(layer.node).name;
    for (const auto& entry : record.record()) {
      if (entry.key() == name && entry.value().tensor_balance_factor_size() > 0) {
        balance[name].assign(entry.value().tensor_balance_factor().begin(), entry.value().tensor_balance_factor().end());
      }
    }
    if (!balance.contains(name)) {
      return MakeError(v1::RECORD_INCOMPLETE,
                       "it is configured for the DMQ balancer, but the record file has no tensor_balance_factor for it; run "
                       "quantize_preprocess with this configuration first",
                       {.layer = name});
    }
  }
  return balance;
}

}  // namespace modelpress::engine
