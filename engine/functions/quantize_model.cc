#include "engine/functions/quantize_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/calibrate/balance.h"
#include "engine/calibrate/layer_activations.h"
#include "engine/calibrate/layer_weights.h"
#include "engine/calibrate/learn_rounding.h"
#include "engine/formats/record.h"
#include "engine/functions/ptq_model.h"
#include "engine/functions/save_model.h"
#include "engine/fuse/batch_norm.h"
#include "engine/quantize/layer_factors.h"
#include "engine/quantize/modified_model.h"
#include "engine/runtime/compare.h"
#include "engine/runtime/model_runner.h"

namespace modelpress::engine {
namespace {

using Json = nlohmann::ordered_json;

// The comparison at the end looks at about so many samples: enough to rank layers, at a small part of the calibration's cost.
constexpr int64_t kComparedSamples = 16;
constexpr double kWorstSqnr = -1000;  // dB

class QuantizeModelRun {
 public:
  QuantizeModelRun(const CallContext& context, const QuantizeModelCall& call) : context_(context), call_(call) {}

  absl::StatusOr<QuantizedModel> Run() {
    if (call_.saves) {
      MP_ASSIGN_OR_RETURN(const SavePath save_path, SavePath::Parse(call_.save_path));
      new_config_file_ = {.folder = save_path.folder, .name = save_path.FileName("config.json")};
    }
    MP_ASSIGN_OR_RETURN(modified_file_, OutputFile::Parse("modified_onnx_file", call_.modified_onnx_file));
    MP_ASSIGN_OR_RETURN(record_file_, OutputFile::Parse("record_file", call_.record_file));
    context_.progress("read", 0, 0);
    MP_ASSIGN_OR_RETURN(NamedModel model, ReadNamedModel(context_, call_.model, "model", call_.module_manifest,
                                                         {call_.input_names, call_.output_names, call_.dynamic_axes}));
    model_.emplace(std::move(model));
    inputs_read_ = model_->files_read;
    MP_RETURN_IF_ERROR(Configure());
    MP_ASSIGN_OR_RETURN(layers_, FindConfiguredLayers(model_->graph, config_));
    MP_ASSIGN_OR_RETURN(scratch_, ScratchFolder::Create(context_));
    float_graph_.emplace(model_->graph);
    if (config_.do_fusion) {
      MP_ASSIGN_OR_RETURN(folded_, FoldBatchNorms(model_->graph, LayersWithoutFusion(model_->layers, config_)));
      AddWarnings(folded_.warnings);
    }
    MP_RETURN_IF_ERROR(Balance());
    if (context_.validate_only) {
      return std::move(result_);
    }
    MP_RETURN_IF_ERROR(QuantizeAllWeights());
    Graph calibrated = model_->graph;
    MP_RETURN_IF_ERROR(WriteModifiedModel());
    if (data_ != nullptr) {
      MP_RETURN_IF_ERROR(MakeCalibrationGraph(calibrated, layers_, weights_.rnn_weights, weights_.balance));
      MP_ASSIGN_OR_RETURN(activations_, RunCalibration(context_, calibrated, layers_, config_, *data_, weights_.record));
    }
    MP_ASSIGN_OR_RETURN(result_.record_file, WriteText(context_, record_file_, PrintRecord(weights_.record)));
    if (call_.saves) {
      MP_RETURN_IF_ERROR(Save());
    }
    return std::move(result_);
  }

 private:
  void AddWarnings(const std::vector<std::string>& warnings) {
    result_.warnings.insert(result_.warnings.end(), warnings.begin(), warnings.end());
  }

  // Configuration and data, each of which may depend on the other: batch_num decides how many batches are used, and where nobody
  // has set it, it is the number of batches that are there.
  absl::Status Configure() {
    if (call_.config_file.empty()) {
      QuantConfigArguments arguments = call_.arguments;
      if (!call_.data.path.empty()) {
        MP_ASSIGN_OR_RETURN(data_, OpenData(context_, call_.data, model_->graph, arguments.batch_num));
        arguments.batch_num = data_->batch_count();
      } else if (arguments.batch_num == 0) {
        arguments.batch_num = 1;
      }
      MP_RETURN_IF_ERROR(MakeConfig(arguments));
    } else {
      MP_ASSIGN_OR_RETURN(config_, ReadConfigFile(context_, call_.config_file, model_->layers));
      inputs_read_.insert(call_.config_file);
    }
    if (!call_.data.path.empty() && (data_ == nullptr || data_->batch_count() != config_.batch_num)) {
      MP_ASSIGN_OR_RETURN(data_, OpenData(context_, call_.data, model_->graph, config_.batch_num));
    }
    if (data_ != nullptr) {
      AddWarnings(data_->warnings());
      inputs_read_.insert(call_.data.path);
    }
    return absl::OkStatus();
  }

  absl::Status MakeConfig(const QuantConfigArguments& arguments) {
    const LayerCatalog catalog = model_->layers.Catalog();
    absl::StatusOr<QuantConfigText> text =
        MakeQuantConfig(context_, catalog, arguments, call_.config_definition, arguments.batch_num);
    MP_RETURN_IF_ERROR(AtConfigSource(text.status(), call_.model, call_.config_definition));
    if (!call_.config_definition.empty()) {
      inputs_read_.insert(call_.config_definition);
    }
    AddWarnings(text->warnings);
    deviations_.insert(text->deviations.begin(), text->deviations.end());
    const std::string file = new_config_file_.WorkspaceName();
    MP_ASSIGN_OR_RETURN(config_, ReadQuantConfig(catalog, text->json, file, context_.defects));
    MP_ASSIGN_OR_RETURN(result_.config_file, WriteText(context_, new_config_file_, text->json));
    return absl::OkStatus();
  }

  // The factors of balanced layers: from the record file that quantize_preprocess wrote, else measured now.
  absl::Status Balance() {
    if (std::none_of(layers_.begin(), layers_.end(), IsBalanced)) {
      return absl::OkStatus();
    }
    if (!context_.files->Contains(call_.record_file)) {
      if (data_ == nullptr) {
        return MakeError(v1::FILE_NOT_FOUND,
                         "layers are configured for the DMQ balancer: run quantize_preprocess first, or give calibration data",
                         {.field = "record_file", .file = call_.record_file});
      }
      MP_ASSIGN_OR_RETURN(weights_.balance, MeasureBalance(model_->graph, layers_, *data_,
                                                           {.threads = context_.threads, .scratch_folder = scratch_->path()}));
      weights_.record = BalanceRecord(model_->graph, layers_, weights_.balance);
      return absl::OkStatus();
    }
    const ErrorPlace place = {.field = "record_file", .file = call_.record_file};
    MP_ASSIGN_OR_RETURN(ParsedRecord record, ReadRecordFile(context_, call_.record_file));
    inputs_read_.insert(call_.record_file);
    MP_RETURN_IF_ERROR(
        AtPlace(ReadFactors(record, model_->graph, call_.record_file, context_.defects, RecordUse::kQuantize).status(), place));
    absl::StatusOr<BalanceByLayer> balance = BalanceInRecord(record.record, model_->graph, layers_);
    MP_RETURN_IF_ERROR(AtPlace(balance.status(), place));
    weights_.balance = *std::move(balance);
    weights_.record = std::move(record.record);
    return absl::OkStatus();
  }

  absl::Status QuantizeAllWeights() {
    weights_.threads = context_.threads;
    weights_.progress = [this](uint64_t done, uint64_t total) { context_.progress("quantize", done, total); };
    MP_RETURN_IF_ERROR(QuantizeWeights(model_->graph, layers_, weights_));
    if (weights_.adaround_layers.empty()) {
      return absl::OkStatus();
    }
    std::unique_ptr<CalibrationData> sample;
    CalibrationData* data = data_.get();
    if (!call_.sample.path.empty()) {
      MP_ASSIGN_OR_RETURN(sample, OpenData(context_, call_.sample, model_->graph, 1));
      data = sample.get();
    }
    return LearnRounding(model_->graph, layers_, weights_, data,
                         {.soft_weights = context_.defects.leaves_soft_weights,
                          .threads = context_.threads,
                          .scratch_folder = scratch_->path(),
                          .progress = [this](uint64_t done, uint64_t total) { context_.progress("learn rounding", done, total); },
                          .checkpoint = CheckpointOf(context_, "rounding")});
  }

  absl::Status WriteModifiedModel() {
    Graph marked = model_->graph;
    for (const ConfiguredLayer& layer : layers_) {
      AddDataType(marked, layer.node, IsFloat16(marked, layer));
    }
    MP_ASSIGN_OR_RETURN(const Model modified, marked.ToModel());
    MP_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFolder> output, CreateOutputFolder(context_, modified_file_.folder));
    WriteOptions options{.threads = context_.threads};
    options.progress = [this](uint64_t done, uint64_t total) { context_.progress("write", done, total); };
    MP_RETURN_IF_ERROR(
        AtPlace(output->AddModels({{&modified, modified_file_.name, ""}}, options), {.field = "model", .file = call_.model}));
    MP_RETURN_IF_ERROR(output->Commit());
    for (WrittenFile file : output->files()) {
      const bool is_model = file.name == modified_file_.name;
      file.name = OutputFile{.folder = modified_file_.folder, .name = file.name}.WorkspaceName();
      if (is_model) {
        result_.modified_onnx_file = file;
      } else {
        result_.external_data.push_back(file);
      }
    }
    return absl::OkStatus();
  }

  // The type of the layer's output: that of its weight, or else of any weight of the model.
  bool IsFloat16(const Graph& graph, const ConfiguredLayer& layer) const {
    if (layer.rule->weight >= 0) {
      const std::optional<ConstantOperand> weight = FindConstantOperand(graph, graph.InputOf(layer.node, layer.rule->weight));
      return weight.has_value() && DataTypeOf(graph.item(weight->holder)) == onnx::TensorProto::FLOAT16;
    }
    return std::any_of(layers_.begin(), layers_.end(),
                       [&](const ConfiguredLayer& other) { return other.rule->weight >= 0 && IsFloat16(graph, other); });
  }

  // What this call did otherwise than the reference.
  std::set<std::string> Deviations() const {
    std::set<std::string> deviations = deviations_;
    deviations.insert(model_->layers.deviations.begin(), model_->layers.deviations.end());
    if (!weights_.adaround_layers.empty() && !context_.defects.leaves_soft_weights) {
      deviations.insert("weights learnt by AdaRound are rounded at the end (ptq.md 10)");
    }
    if (config_.force_fp16_quant && !context_.defects.omits_precision_mode) {
      deviations.insert("the record says that its scales are made for FORCE_FP16_QUANT (ptq.md 8.3)");
    }
    return deviations;
  }

  // save_model on what was just written, its report completed with what only this call knows.
  absl::Status Save() {
    std::map<std::string, std::string> paths;
    auto add = [&](const WrittenFile& file) {
      paths[file.name] = (std::filesystem::path(context_.output_root) / file.name).string();
    };
    add(result_.modified_onnx_file);
    add(result_.record_file);
    std::for_each(result_.external_data.begin(), result_.external_data.end(), add);
    const FileSet files(std::move(paths));
    CallContext context = context_;
    context.files = &files;
    ReportExtension extension{.function = "quantize_model", .inputs = inputs_read_, .deviations = Deviations(), .html = true};
    extension.extend = [this](const Model& fake_quant, absl::Span<const WrittenFile> written, Json& report) {
      return CompleteReport(fake_quant, written, report);
    };
    MP_ASSIGN_OR_RETURN(SavedModels saved, SaveModel(context, result_.modified_onnx_file.name, result_.record_file.name,
                                                     call_.save_path, &extension));
    result_.deploy_model = std::move(saved.deploy_model);
    result_.fake_quant_model = std::move(saved.fake_quant_model);
    result_.report = std::move(saved.report);
    result_.report_html = std::move(saved.report_html);
    result_.external_data.insert(result_.external_data.end(), saved.external_data.begin(), saved.external_data.end());
    AddWarnings(saved.warnings);
    return absl::OkStatus();
  }

  absl::Status CompleteReport(const Model& fake_quant, absl::Span<const WrittenFile> written, Json& report) {
    std::map<std::string, size_t> layers;  // index in `layers_`
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers[model_->graph.item(layers_[i].node).name] = i;
    }
    std::map<std::string, const ConfigLayer*> found;
    for (const Layer& layer : model_->layers.layers) {
      found[layer.config.name] = &layer.config;
    }
    for (Json& entry : report["layers"]) {
      const std::string name = entry["name"];
      if (auto it = found.find(name); it != found.end()) {
        entry["type"] = it->second->type;
        if (!layers.contains(name)) {
          entry["reason"] = it->second->why_not.empty() ? "the configuration leaves it out" : it->second->why_not;
        }
      }
      auto layer = layers.find(name);
      if (layer == layers.end()) {
        continue;
      }
      const LayerConfig& config = *layers_[layer->second].config;
      entry["activation_algorithm"] = config.activation.algorithm == ActivationConfig::Algorithm::kIfmr ? "ifmr" : "hfmg";
      if (layers_[layer->second].rule->weight >= 0) {
        entry["weight_algorithm"] = config.weight.algorithm == WeightConfig::Algorithm::kArq ? "arq_quantize" : "ada_quantize";
      }
      const ActivationStatistics& statistics = activations_.statistics.at(name);
      entry["activation"] = {{"count", statistics.count},
                             {"minimum", statistics.minimum},
                             {"maximum", statistics.maximum},
                             {"clip_minimum", statistics.clip_minimum},
                             {"clip_maximum", statistics.clip_maximum}};
    }
    report["configuration"] = {{"batch_num", config_.batch_num},
                               {"activation_offset", config_.activation_offset},
                               {"do_fusion", config_.do_fusion},
                               {"force_fp16_quant", config_.force_fp16_quant}};
    report["calibration"] = {
        {"batches", data_->batch_count()}, {"samples", data_->sample_count()}, {"passes", activations_.summary.passes}};
    MP_RETURN_IF_ERROR(MeasureErrors(fake_quant, report));
    return AddSizes(written, report);
  }

  // Pairs of tensors that stand for the same thing in the float and in the fake-quant model.
  struct Pair {
    std::string name;  // of the layer or graph output
    std::string float_tensor;
    std::string fake_tensor;
  };

  std::vector<Pair> LayerPairs(const Model& fake_quant) const {
    std::map<std::string, const onnx::NodeProto*> fake_nodes;
    for (const Node& node : fake_quant.nodes) {
      fake_nodes[node.proto.name()] = &node.proto;
    }
    std::map<std::string, std::string> folded;
    for (const FoldedBatchNorm& batch_norm : folded_.folded) {
      folded[batch_norm.layer] = batch_norm.output;
    }
    std::vector<Pair> pairs;
    for (const ConfiguredLayer& layer : layers_) {
      const Item& item = float_graph_->item(layer.node);
      int output = 0;
      while (layer.rule->is_rnn() && output + 1 < static_cast<int>(item.outputs.size()) && item.outputs[output].empty()) {
        ++output;
      }
      ItemId producer = layer.node;
      if (layer.rule->kind == OpKind::kMatMul && FindMatMulBiasAdd(*float_graph_, layer.node) >= 0) {
        producer = FindMatMulBiasAdd(*float_graph_, layer.node);
      }
      Pair pair{.name = item.name, .float_tensor = float_graph_->NameOf(Value{producer, output})};
      if (auto it = folded.find(item.name); it != folded.end()) {
        pair.float_tensor = it->second;
      }
      // The last node of what stands for AscendDequant (save.md section 8.4); an RNN stays one node.
      for (const char* suffix : {".fakedequant.cast", ".fakedequant.mul", ""}) {
        auto node = fake_nodes.find(item.name + suffix);
        if (node != fake_nodes.end() && output < node->second->output_size()) {
          pair.fake_tensor = node->second->output(output);
          break;
        }
      }
      if (!pair.fake_tensor.empty() && !pair.float_tensor.empty()) {
        pairs.push_back(std::move(pair));
      }
    }
    return pairs;
  }

  absl::Status MeasureErrors(const Model& fake_quant, Json& report) {
    context_.progress("compare", 0, 0);
    std::vector<Pair> pairs = LayerPairs(fake_quant);
    const size_t layer_pairs = pairs.size();
    for (const onnx::ValueInfoProto& output : fake_quant.shell.graph().output()) {
      pairs.push_back({output.name(), output.name(), output.name()});
    }
    ModelRunnerOptions float_options{.threads = context_.threads, .scratch_folder = scratch_->path()};
    ModelRunnerOptions fake_options = float_options;
    for (const Pair& pair : pairs) {
      float_options.tensors.push_back(pair.float_tensor);
      fake_options.tensors.push_back(pair.fake_tensor);
    }
    std::vector<std::string> bounded;
    std::vector<SaturationBounds> bounds;
    for (const ConfiguredLayer& layer : layers_) {
      const std::string& name = float_graph_->item(layer.node).name;
      if (weights_.balance.contains(name)) {
        continue;  // its quantizer sees the balanced input, which is no tensor of the float model
      }
      const ActivationStatistics& statistics = activations_.statistics.at(name);
      bounded.push_back(name);
      bounds.push_back({statistics.clip_minimum, statistics.clip_maximum});
      float_options.tensors.push_back(float_graph_->NameOf(float_graph_->InputOf(layer.node, 0)));
    }
    MP_ASSIGN_OR_RETURN(const Model reference, float_graph_->ToModel());
    absl::StatusOr<std::unique_ptr<ModelRunner>> float_runner = ModelRunner::Create(reference, float_options);
    absl::StatusOr<std::unique_ptr<ModelRunner>> fake_runner = ModelRunner::Create(fake_quant, fake_options);
    MP_RETURN_IF_ERROR(float_runner.status());
    MP_RETURN_IF_ERROR(fake_runner.status());
    const int64_t samples_per_batch = std::max<int64_t>(1, data_->sample_count() / std::max<int64_t>(1, data_->batch_count()));
    const int64_t batches = std::max<int64_t>(1, kComparedSamples / samples_per_batch);
    MP_ASSIGN_OR_RETURN(
        const Comparison comparison,
        Compare(**float_runner, **fake_runner, static_cast<int>(pairs.size()), bounds, *data_,
                {.max_batches = batches,
                 .threads = context_.threads,
                 .checkpoint = CheckpointOf(context_, "comparison"),
                 .progress = [this](uint64_t done, uint64_t total) { context_.progress("compare", done, total); }}));

    // Taken out while keys are added to the report: an ordered object copies its values when it grows.
    Json layers = std::move(report["layers"]);
    std::map<std::string, Json*> entries;
    for (Json& entry : layers) {
      entries[entry["name"]] = &entry;
    }
    // JSON knows neither infinity nor NaN: null where both are equal, kWorstSqnr where the fake-quant model overflowed.
    auto sqnr = [](const TensorError& error) { return error.sqnr_db >= kWorstSqnr ? error.sqnr_db : kWorstSqnr; };
    auto describe = [&](const TensorError& error) {
      return Json{{"sqnr_db", std::isinf(sqnr(error)) ? Json() : Json(sqnr(error))},
                  {"cosine", error.cosine},
                  {"max_error", error.max_error},
                  {"mean_error", error.mean_error}};
    };
    std::vector<size_t> worst(layer_pairs);
    std::iota(worst.begin(), worst.end(), 0);
    std::stable_sort(worst.begin(), worst.end(),
                     [&](size_t a, size_t b) { return sqnr(comparison.tensors[a]) < sqnr(comparison.tensors[b]); });
    Json worst_first = Json::array();
    for (size_t i : worst) {
      (*entries.at(pairs[i].name))["error"] = describe(comparison.tensors[i]);
      worst_first.push_back(pairs[i].name);
    }
    for (size_t i = 0; i < bounded.size(); ++i) {
      (*entries.at(bounded[i]))["activation"]["saturated_share"] = comparison.saturated[i];
    }
    report["layers"] = std::move(layers);
    report["worst_first"] = std::move(worst_first);
    report["outputs_error"] = Json::array();
    for (size_t i = layer_pairs; i < pairs.size(); ++i) {
      Json output = {{"name", pairs[i].name}};
      output.update(describe(comparison.tensors[i]));
      report["outputs_error"].push_back(std::move(output));
    }
    report["comparison"] = {{"batches", comparison.batches},
                            {"samples", std::min(data_->sample_count(), comparison.batches * samples_per_batch)}};
    return absl::OkStatus();
  }

  absl::Status AddSizes(absl::Span<const WrittenFile> written, Json& report) const {
    uint64_t model = 0;
    for (const std::string& name : model_->files_read) {
      if (name != call_.module_manifest) {
        MP_ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> file, context_.files->Open(name));
        model += file->size();
      }
    }
    uint64_t deploy = 0;
    uint64_t fake_quant = 0;
    bool is_fake_quant = false;  // models come first, each followed by its external data
    for (const WrittenFile& file : written) {
      is_fake_quant = is_fake_quant || file.name.ends_with("fake_quant_model.onnx");
      (is_fake_quant ? fake_quant : deploy) += file.size;
    }
    report["sizes"] = {{"model_bytes", model},
                       {"modified_bytes", result_.modified_onnx_file.size},
                       {"deploy_bytes", deploy},
                       {"fake_quant_bytes", fake_quant}};
    return absl::OkStatus();
  }

  const CallContext& context_;
  const QuantizeModelCall& call_;
  std::optional<NamedModel> model_;   // its graph becomes the modified one
  std::optional<Graph> float_graph_;  // as it was read
  std::set<std::string> inputs_read_;
  OutputFile new_config_file_;  // where a configuration that the call makes goes
  OutputFile modified_file_;
  OutputFile record_file_;
  QuantConfig config_;
  std::vector<ConfiguredLayer> layers_;
  std::unique_ptr<CalibrationData> data_;
  std::unique_ptr<ScratchFolder> scratch_;
  std::set<std::string> deviations_;
  FoldedBatchNorms folded_;
  WeightStep weights_;
  ActivationStepResult activations_;
  QuantizedModel result_;
};

}  // namespace

absl::StatusOr<QuantizedModel> QuantizeModel(const CallContext& context, const QuantizeModelCall& call) {
  return QuantizeModelRun(context, call).Run();
}

}  // namespace modelpress::engine
