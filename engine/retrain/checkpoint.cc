#include "engine/retrain/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/quantize/op_rules.h"
#include "engine/quantize/operands.h"
#include "engine/quantize/weights.h"

namespace modelpress::engine {
namespace {

constexpr char kDataParallel[] = "module.";
constexpr size_t kListed = 10;  // names in an error

bool IsFloat(int type) {
  return type == onnx::TensorProto::FLOAT || type == onnx::TensorProto::FLOAT16 || type == onnx::TensorProto::BFLOAT16 ||
         type == onnx::TensorProto::DOUBLE;
}

std::vector<int64_t> ShapeOf(const Tensor& tensor) { return {tensor.header.dims().begin(), tensor.header.dims().end()}; }

// Elements of another floating-point type as float32.
class AsFloat32 final : public Payload {
 public:
  explicit AsFloat32(Tensor source) : source_(std::move(source)), size_(source_.ElementCount() * sizeof(float)) {}
  uint64_t size() const override { return size_; }
  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const override {
    const uint64_t first = offset / sizeof(float);
    const uint64_t last = (offset + out.size() + sizeof(float) - 1) / sizeof(float);
    std::vector<float> values(last - first);
    MP_RETURN_IF_ERROR(ReadFloats(source_, first, absl::MakeSpan(values)));
    std::copy_n(reinterpret_cast<const uint8_t*>(values.data()) + offset % sizeof(float), out.size(), out.data());
    return absl::OkStatus();
  }

 private:
  Tensor source_;
  uint64_t size_;
};

// Where a parameter of the module is in the graph.
struct Place {
  ItemId holder = -1;
  bool transposed = false;  // the graph has it transposed
  bool required = true;
};

// The gate blocks of ONNX in the order of torch's (docs/spec/qat.md section 8).
std::vector<int> GateOrder(absl::string_view op_type) {
  return op_type == "LSTM" ? std::vector<int>{0, 3, 1, 2} : std::vector<int>{1, 0, 2};
}

class Loader {
 public:
  Loader(Graph& graph, const Layers& layers, const v1::ModuleManifest* manifest, const v1::RewritePlan& plan)
      : graph_(graph), plan_(plan) {
    FindParameters(layers);
    if (manifest != nullptr) {
      ReadManifest(*manifest);
    }
  }

  absl::Status Load(std::vector<Tensor> weights, const std::string& state_dict_name) {
    MP_RETURN_IF_ERROR(Select(std::move(weights), state_dict_name));
    SortEntries();
    std::vector<std::string> missing;
    for (const auto& [name, place] : places_) {
      if (place.required && !parameters_.contains(name)) {
        missing.push_back(name);
      }
    }
    for (const auto& [name, rnn] : rnns_) {
      for (const std::string& parameter : ParametersOf(name, rnn)) {
        if (!parameters_.contains(parameter)) {
          missing.push_back(parameter);
        }
      }
    }
    MP_RETURN_IF_ERROR(CheckWrappers(missing));
    if (!missing.empty() || !unexpected_.empty()) {
      absl::Status status = MakeError(
          v1::WEIGHTS_INVALID, absl::StrCat("the weights are not those of the model: ", missing.size(), " missing",
                                            Listed(missing), ", ", unexpected_.size(), " unexpected", Listed(unexpected_)));
      status = WithMetadata(status, "missing", absl::StrJoin(missing, ","));
      return WithMetadata(status, "unexpected", absl::StrJoin(unexpected_, ","));
    }
    for (const auto& [name, tensor] : parameters_) {
      if (auto it = places_.find(name); it != places_.end()) {
        MP_RETURN_IF_ERROR(AtPlace(Replace(it->second, tensor), {.layer = name}));
      }
    }
    for (const auto& [name, rnn] : rnns_) {
      MP_RETURN_IF_ERROR(AtPlace(ReplaceRnn(name, rnn), {.layer = name}));
    }
    return graph_.Sort();
  }

 private:
  struct Rnn {
    ItemId node = -1;
    bool has_bias = false;
  };

  static std::string Listed(const std::vector<std::string>& names) {
    if (names.empty()) {
      return "";
    }
    const std::vector<std::string> first(names.begin(), names.begin() + static_cast<int64_t>(std::min(names.size(), kListed)));
    return absl::StrCat(" (", absl::StrJoin(first, ", "), names.size() > kListed ? ", ...)" : ")");
  }

  void FindParameters(const Layers& layers) {
    for (ItemId id : graph_.Order()) {
      const Item& item = graph_.item(id);
      if (item.is_initializer()) {
        // Other initializers are constants that the exporter computed; they may have names without a dot.
        const bool parameter = !absl::StrContains(item.name, "::") && absl::StrContains(item.name, '.');
        places_[ParameterName(item.name)] = {.holder = id, .required = parameter};
      }
    }
    for (const Layer& layer : layers.layers) {
      if (layer.node >= 0) {
        FindParameters(layer);
      }
    }
    for (const auto& [id, name] : layers.batch_norms) {
      int input = 1;
      for (const char* parameter : {"weight", "bias", "running_mean", "running_var"}) {
        AddPlace(absl::StrCat(name, ".", parameter), graph_.InputOf(id, input++), false);
      }
    }
  }

  void FindParameters(const Layer& layer) {
    const OpRule& rule = *FindOpRule(graph_.item(layer.node).node.proto.op_type());
    if (rule.is_rnn()) {
      const bool constant = FindConstantOperand(graph_, graph_.InputOf(layer.node, rule.weight)).has_value() &&
                            !places_.contains(layer.config.name + ".weight_ih_l0");
      if (constant) {
        rnns_[layer.config.name] = {.node = layer.node, .has_bias = !graph_.InputOf(layer.node, rule.bias).is_none()};
      }
      return;
    }
    if (rule.weight >= 0) {
      const bool gemm = rule.kind == OpKind::kGemm && IntAttribute(graph_.item(layer.node).node.proto, "transB", 0) == 0;
      AddPlace(layer.config.name + ".weight", graph_.InputOf(layer.node, rule.weight), gemm || rule.kind == OpKind::kMatMul);
    }
    if (const std::optional<BiasPlace> bias = FindBias(graph_, layer.node, rule); bias.has_value()) {
      AddPlace(layer.config.name + ".bias", graph_.InputOf(bias->item, bias->input), false);
    }
  }

  void AddPlace(const std::string& name, Value value, bool transposed) {
    if (const std::optional<ConstantOperand> operand = FindConstantOperand(graph_, value); operand.has_value()) {
      places_[name] = {.holder = operand->holder, .transposed = transposed != (operand->transpose >= 0)};
    }
  }

  void ReadManifest(const v1::ModuleManifest& manifest) {
    for (const v1::Module& module : manifest.modules()) {
      for (const v1::Parameter& parameter : module.parameters()) {
        known_.insert(absl::StrCat(module.name(), module.name().empty() ? "" : ".", parameter.name()));
      }
      if (absl::StrContains(module.type(), "BatchNorm")) {
        known_.insert({module.name() + ".running_mean", module.name() + ".running_var"});
      }
    }
  }

  // Takes the entries that count, by their names in the module.
  absl::Status Select(std::vector<Tensor> weights, const std::string& state_dict_name) {
    const std::string prefix = state_dict_name.empty() ? "" : state_dict_name + ".";
    std::erase_if(weights, [&](const Tensor& tensor) { return !absl::StartsWith(tensor.name(), prefix); });
    if (weights.empty()) {
      return MakeError(v1::WEIGHTS_INVALID,
                       state_dict_name.empty() ? "it has no entries" : absl::StrCat("it has no entries below '", prefix, "'"));
    }
    const bool parallel = std::all_of(weights.begin(), weights.end(), [&](const Tensor& tensor) {
      return absl::StartsWith(absl::string_view(tensor.name()).substr(prefix.size()), kDataParallel);
    });
    for (Tensor& tensor : weights) {
      const std::string name = tensor.name().substr(prefix.size() + (parallel ? absl::string_view(kDataParallel).size() : 0));
      entries_[name] = std::move(tensor);
    }
    return absl::OkStatus();
  }

  // Tells parameters of the float module from what wrappers hold.
  void SortEntries() {
    std::map<std::string, const v1::WrappedLayer*> layers;
    for (const v1::WrappedLayer& layer : plan_.layers()) {
      layers[layer.module()] = &layer;
    }
    std::set<std::string> of_rnns;
    for (const auto& [name, rnn] : rnns_) {
      for (const std::string& parameter : ParametersOf(name, rnn)) {
        of_rnns.insert(parameter);
      }
    }
    for (const auto& [name, tensor] : entries_) {
      if (absl::EndsWith(name, "num_batches_tracked")) {
        continue;
      }
      const v1::WrappedLayer* layer = nullptr;
      for (size_t dot = name.find('.'); dot != std::string::npos && layer == nullptr; dot = name.find('.', dot + 1)) {
        const auto it = layers.find(name.substr(0, dot));
        layer = it == layers.end() ? nullptr : it->second;
      }
      std::string parameter = name;
      if (layer != nullptr) {
        absl::string_view rest = absl::string_view(name).substr(layer->module().size() + 1);
        if (absl::ConsumePrefix(&rest, "quant_module.replaced_module.") || absl::ConsumePrefix(&rest, "replaced_module.")) {
          parameter = absl::StrCat(layer->module(), ".", rest);
        } else if (layer->has_bn() && absl::ConsumePrefix(&rest, "bn_module.")) {
          parameter = absl::StrCat(layer->bn(), ".", rest);
        } else {
          if (!IsWrapperState(rest)) {
            unexpected_.push_back(name);  // also the parameters of a module that is not wrapped
          }
          continue;
        }
      }
      if (places_.contains(parameter) || of_rnns.contains(parameter)) {
        parameters_[parameter] = tensor;
      } else if (!known_.contains(parameter)) {
        unexpected_.push_back(name);
      }
    }
  }

  // Entries of a wrapper but for the layer's own parameters (qat.md sections 5.2 and 8, prune.md section 11).
  static bool IsWrapperState(absl::string_view name) {
    if (absl::StartsWith(name, "quant_module.acts_comp_reuse.") || absl::StartsWith(name, "quant_module.comp_module.") ||
        name == "record_module.quant_layer_num") {
      return true;
    }
    absl::ConsumePrefix(&name, "quant_module.");
    static constexpr std::array<absl::string_view, 26> kNames = {"scale_w",
                                                                 "offset_w",
                                                                 "scale_r",
                                                                 "offset_r",
                                                                 "acts_clip_max",
                                                                 "acts_clip_min",
                                                                 "acts_h_clip_max",
                                                                 "acts_h_clip_min",
                                                                 "wts_scales",
                                                                 "wts_offsets",
                                                                 "rec_wts_scales",
                                                                 "rec_wts_offsets",
                                                                 "cur_batch",
                                                                 "acts_clip_max_pre",
                                                                 "acts_scale",
                                                                 "acts_offset",
                                                                 "acts_clip_min_pre",
                                                                 "acts_h_clip_max_pre",
                                                                 "acts_h_clip_min_pre",
                                                                 "acts_h_scale",
                                                                 "acts_h_offset",
                                                                 "prune_cur_batch",
                                                                 "wts_mask",
                                                                 "s_rec_flag",
                                                                 "acts_offset_deploy",
                                                                 "wts_offsets_deploy"};
    return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
  }

  // Trained values of every wrapped layer must be there, in the plan's shape.
  absl::Status CheckWrappers(std::vector<std::string>& missing) const {
    for (const v1::WrappedLayer& layer : plan_.layers()) {
      if (!layer.has_act()) {
        continue;
      }
      std::vector<std::pair<std::string, int64_t>> expected = {{"wts_scales", layer.num_scales()}};
      if (!layer.has_share_main()) {
        expected.insert(expected.end(), {{"acts_clip_max", 1}, {"acts_clip_min", 1}});
      }
      for (const auto& [state, elements] : expected) {
        const std::string name = absl::StrCat(layer.module(), ".quant_module.", state);
        const auto entry = entries_.find(name);
        if (entry == entries_.end()) {
          missing.push_back(name);
        } else if (static_cast<int64_t>(entry->second.ElementCount()) != elements) {
          return MakeError(
              v1::WEIGHTS_INVALID,
              absl::StrCat("it has ", entry->second.ElementCount(), " elements, but the rewrite plan needs ", elements),
              {.layer = name});
        }
      }
    }
    return absl::OkStatus();
  }

  static absl::Status WrongShape(const Tensor& tensor, const std::vector<int64_t>& expected) {
    return MakeError(v1::WEIGHTS_INVALID, absl::StrCat("it has the shape [", absl::StrJoin(ShapeOf(tensor), ", "),
                                                       "], but the model needs [", absl::StrJoin(expected, ", "), "]"));
  }

  absl::Status Replace(const Place& place, const Tensor& tensor) {
    const Item& item = graph_.item(place.holder);
    if (absl::StartsWith(item.outputs[0], "onnx::Conv")) {  // the exporter computed it
      return MakeError(v1::WEIGHTS_INVALID,
                       "the model has a batch norm folded into this layer: export it with the batch norms to load weights");
    }
    const std::vector<int64_t> dims = DimsOf(item);
    std::vector<int64_t> expected = dims;
    if (place.transposed) {
      std::reverse(expected.begin(), expected.end());
    }
    if (ShapeOf(tensor) != expected) {
      return WrongShape(tensor, expected);
    }
    const int type = DataTypeOf(item);
    const int given = tensor.header.data_type();
    const bool to_float = type == onnx::TensorProto::FLOAT && IsFloat(given);
    if (given != type && !to_float) {
      return MakeError(v1::WEIGHTS_INVALID, absl::StrCat("it has the type ", onnx::TensorProto::DataType_Name(given),
                                                         ", but the model needs ", onnx::TensorProto::DataType_Name(type)));
    }
    Tensor replacement = tensor;
    replacement.header.mutable_dims()->Assign(dims.begin(), dims.end());
    replacement.header.set_data_type(type);
    if (place.transposed) {
      if (!to_float || dims.size() != 2) {
        return MakeError(v1::WEIGHTS_INVALID, "the model has it transposed, which is supported for float32 only");
      }
      replacement.field = DataField::kRaw;
      replacement.payload = TransposeToFloat(tensor, expected[0], expected[1], stripes_);
    } else if (given != type) {
      replacement.field = DataField::kRaw;
      replacement.payload = std::make_shared<AsFloat32>(tensor);
    }
    SetHeld(place.holder, std::move(replacement));
    return absl::OkStatus();
  }

  void SetHeld(ItemId holder, Tensor tensor) {
    if (graph_.item(holder).is_initializer()) {
      SetTensor(graph_, {.holder = holder}, std::move(tensor));
    } else {
      graph_.ReplaceByInitializer(holder, std::move(tensor));
    }
  }

  // ---- LSTM and GRU

  static std::vector<std::string> ParametersOf(const std::string& name, const Rnn& rnn) {
    std::vector<std::string> names = {name + ".weight_ih_l0", name + ".weight_hh_l0"};
    if (rnn.has_bias) {
      names.insert(names.end(), {name + ".bias_ih_l0", name + ".bias_hh_l0"});
    }
    return names;
  }

  // The parameter's values with the gates in ONNX's order, behind those that `values` has.
  absl::Status AppendGates(const std::string& name, const std::vector<int64_t>& shape, absl::string_view op_type,
                           std::vector<float>& values) {
    const Tensor& tensor = parameters_.at(name);
    if (ShapeOf(tensor) != shape) {
      return AtPlace(WrongShape(tensor, shape), {.layer = name});
    }
    std::vector<float> torch_order(tensor.ElementCount());
    MP_RETURN_IF_ERROR(ReadFloats(tensor, 0, absl::MakeSpan(torch_order)));
    const std::vector<int> order = GateOrder(op_type);
    const size_t block = torch_order.size() / order.size();
    for (int gate : order) {
      const auto first = torch_order.begin() + static_cast<int64_t>(gate * block);
      values.insert(values.end(), first, first + static_cast<int64_t>(block));
    }
    return absl::OkStatus();
  }

  absl::Status SetRnnOperand(const Rnn& rnn, int input, const std::vector<float>& values) {
    const std::optional<ConstantOperand> operand = FindConstantOperand(graph_, graph_.InputOf(rnn.node, input));
    const Item& item = graph_.item(operand->holder);
    if (DataTypeOf(item) != onnx::TensorProto::FLOAT || operand->transpose >= 0) {
      return MakeError(v1::WEIGHTS_INVALID, "weights of an LSTM or GRU can be loaded only where the model has them as float32");
    }
    onnx::TensorProto proto;
    proto.set_data_type(onnx::TensorProto::FLOAT);
    const std::vector<int64_t> dims = DimsOf(item);
    proto.mutable_dims()->Assign(dims.begin(), dims.end());
    proto.mutable_float_data()->Assign(values.begin(), values.end());
    SetHeld(operand->holder, FromProto(std::move(proto)));
    return absl::OkStatus();
  }

  absl::Status ReplaceRnn(const std::string& name, const Rnn& rnn) {
    const Item& item = graph_.item(rnn.node);
    const std::string op_type = item.node.proto.op_type();
    const OpRule& rule = *FindOpRule(op_type);
    for (const auto& [input, parameter] :
         {std::pair(rule.weight, ".weight_ih_l0"), std::pair(rule.recurrence, ".weight_hh_l0")}) {
      const std::optional<ConstantOperand> operand = FindConstantOperand(graph_, graph_.InputOf(rnn.node, input));
      std::vector<int64_t> dims = operand.has_value() ? DimsOf(graph_.item(operand->holder)) : std::vector<int64_t>();
      if (dims.size() != 3) {
        return MakeError(v1::WEIGHTS_INVALID, "the model has no constant weights of this layer to be replaced");
      }
      std::vector<float> values;
      MP_RETURN_IF_ERROR(AppendGates(name + parameter, {dims[1], dims[2]}, op_type, values));
      MP_RETURN_IF_ERROR(SetRnnOperand(rnn, input, values));
    }
    if (rnn.has_bias) {
      const std::optional<ConstantOperand> operand = FindConstantOperand(graph_, graph_.InputOf(rnn.node, rule.bias));
      const std::vector<int64_t> dims = operand.has_value() ? DimsOf(graph_.item(operand->holder)) : std::vector<int64_t>();
      if (dims.size() != 2) {
        return MakeError(v1::WEIGHTS_INVALID, "the model has no constant bias of this layer to be replaced");
      }
      std::vector<float> values;
      for (const char* parameter : {".bias_ih_l0", ".bias_hh_l0"}) {
        MP_RETURN_IF_ERROR(AppendGates(name + parameter, {dims[1] / 2}, op_type, values));
      }
      MP_RETURN_IF_ERROR(SetRnnOperand(rnn, rule.bias, values));
    }
    return absl::OkStatus();
  }

  Graph& graph_;
  const v1::RewritePlan& plan_;
  std::map<std::string, Place> places_;  // by parameter name
  std::map<std::string, Rnn> rnns_;      // by layer
  std::set<std::string> known_;          // parameters by the manifest
  std::map<std::string, Tensor> entries_;
  std::map<std::string, Tensor> parameters_;
  std::vector<std::string> unexpected_;
  std::shared_ptr<StripeCache> stripes_ = std::make_shared<StripeCache>();
};

}  // namespace

absl::Status LoadCheckpoint(Graph& graph, const Layers& layers, const v1::ModuleManifest* manifest, const v1::RewritePlan& plan,
                            std::vector<Tensor> weights, const std::string& state_dict_name) {
  return Loader(graph, layers, manifest, plan).Load(std::move(weights), state_dict_name);
}

}  // namespace modelpress::engine
