#include "engine/functions/retrain_model.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/formats/record.h"
#include "engine/formats/retrain_config.h"
#include "engine/formats/safetensors.h"
#include "engine/functions/model_size.h"
#include "engine/functions/named_model.h"
#include "engine/functions/report.h"
#include "engine/prune/channels.h"
#include "engine/prune/record_attributes.h"
#include "engine/prune/selective.h"
#include "engine/retrain/checkpoint.h"
#include "engine/retrain/plan.h"
#include "engine/retrain/plan_json.h"
#include "engine/retrain/retrain_layers.h"
#include "engine/runtime/load_check.h"

namespace modelpress::engine {
namespace {

using Json = nlohmann::ordered_json;

enum class Training { kPrune, kQuant, kCompressed };

class RetrainRun {
 public:
  RetrainRun(const CallContext& context, const RetrainModelCall& call, Training training, bool restores)
      : context_(context), call_(call), training_(training), restores_(restores) {}

  absl::StatusOr<RetrainModel> Run(const std::string& function) {
    MP_ASSIGN_OR_RETURN(path_, SavePath::Parse(call_.save_path));
    if (WritesRecord()) {
      MP_ASSIGN_OR_RETURN(record_file_, OutputFile::Parse("record_file", call_.record_file));
    }
    context_.progress("read", 0, 0);
    MP_ASSIGN_OR_RETURN(NamedModel model, ReadNamedModel(context_, call_.model, "model", call_.module_manifest));
    model_.emplace(std::move(model));
    inputs_read_ = model_->files_read;
    AddDeviations(model_->layers.deviations);
    // What was pruned with the option may be named when it is restored.
    layers_ = FindRetrainLayers(model_->layers, context_.defects, call_.prune_options.extended || restores_);
    MP_RETURN_IF_ERROR(Configure());
    MP_RETURN_IF_ERROR(ReadRecord());
    before_ = MeasureModel(model_->graph);
    MP_ASSIGN_OR_RETURN(unpruned_, model_->graph.ToModel());
    context_.progress("prune", 0, 0);
    MP_RETURN_IF_ERROR(AtModel(PruneChannels()));
    MP_RETURN_IF_ERROR(AtModel(MakePlan()));
    MP_RETURN_IF_ERROR(LoadWeights());
    MP_RETURN_IF_ERROR(AtModel(MakePrunedModel()));
    MP_RETURN_IF_ERROR(Write(function));
    return std::move(result_);
  }

 private:
  // The functions of quantization alone empty the record file, those that restore what was pruned read it.
  bool WritesRecord() const { return training_ == Training::kQuant || !restores_; }

  absl::Status AtModel(const absl::Status& status) const { return AtPlace(status, {.field = "model", .file = call_.model}); }

  void AddDeviations(const std::vector<std::string>& deviations) { deviations_.insert(deviations.begin(), deviations.end()); }
  void AddWarnings(const std::vector<std::string>& warnings) {
    result_.warnings.insert(result_.warnings.end(), warnings.begin(), warnings.end());
  }

  absl::Status Configure() {
    const bool json = training_ == Training::kQuant;
    const ErrorPlace place = {.field = json ? "config_file" : "config_definition",
                              .file = json ? call_.config_file : call_.config_definition};
    MP_ASSIGN_OR_RETURN(const std::string text, ReadText(context_, place.file, place.field));
    inputs_read_.insert(place.file);
    absl::StatusOr<RetrainConfig> config =
        json ? ReadRetrainConfig(layers_.catalog, text, place.file)
             : ReadRetrainDefinition(layers_.catalog, text, place.file,
                                     training_ == Training::kPrune ? RetrainAbilities::kPrune : RetrainAbilities::kQuantAndPrune,
                                     context_.defects);
    MP_RETURN_IF_ERROR(AtPlace(config.status(), place));
    config_ = *std::move(config);
    AddWarnings(config_.warnings);
    AddDeviations(config_.deviations);
    for (const LayerRetrainConfig& layer : config_.layers) {
      if (const auto* filter = std::get_if<FilterPruneConfig>(&layer.prune); filter != nullptr) {
        filters_[layer.name] = *filter;
      } else if (const auto* selective = std::get_if<SelectivePruneConfig>(&layer.prune); selective != nullptr) {
        selectives_[layer.name] = *selective;
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadRecord() {
    if (WritesRecord()) {
      return absl::OkStatus();
    }
    MP_ASSIGN_OR_RETURN(const ParsedRecord parsed, ReadRecordFile(context_, call_.record_file));
    inputs_read_.insert(call_.record_file);
    for (const AMCTPytorchProto::PruneRecord& record : parsed.record.prune_record()) {
      if (record.has_selective_prune()) {
        recorded_masks_[record.selective_prune().name()] = record.selective_prune();
      } else {
        records_.push_back(record);
      }
    }
    if (config_.prunes && parsed.record.prune_record_size() == 0) {
      result_.warnings.emplace_back("the record file has no prune records: nothing is cut");
    }
    return absl::OkStatus();
  }

  // ---- the steps

  absl::Status PruneChannels() {
    if (!restores_) {
      if (filters_.empty()) {
        return absl::OkStatus();
      }
      MP_ASSIGN_OR_RETURN(groups_,
                          FindPruneGroups(model_->graph, model_->layers, filters_, call_.prune_options, context_.defects));
      AddDeviations(groups_.deviations);
      records_ = groups_.records;
      MP_RETURN_IF_ERROR(
          ChooseChannels(model_->graph, filters_, call_.prune_options, context_.defects, context_.threads, records_));
    }
    absl::StatusOr<CutChannelsResult> cut =
        CutChannels(model_->graph, records_, model_->layers, restores_ ? CutPolicy::kRequireAll : CutPolicy::kDropUnfitting);
    if (restores_ && ReasonOf(cut.status()) == v1::PRUNE_FAILED) {
      return AtPlace(cut.status(), {.field = "record_file", .file = call_.record_file});
    }
    MP_RETURN_IF_ERROR(cut.status());
    cut_ = *std::move(cut);
    AddWarnings(cut_.dropped);
    return absl::OkStatus();
  }

  absl::Status MakePlan() {
    masks_.clear();
    if (!selectives_.empty()) {
      MP_ASSIGN_OR_RETURN(masks_, MakeSelectiveMasks(model_->graph, model_->layers, selectives_, context_.threads));
      MP_RETURN_IF_ERROR(TakeRecordedMasks());
    }
    plan_ = MakeWrapPlan(model_->graph, layers_, model_->layers, config_, masks_);
    plan_.set_engine_version(MODELPRESS_VERSION);
    plan_.mutable_cuts()->Assign(cut_.cuts.begin(), cut_.cuts.end());
    return absl::OkStatus();
  }

  // Restoring goes on with the masks of the training before, where the record file has them.
  absl::Status TakeRecordedMasks() {
    for (const auto& [name, node] : recorded_masks_) {
      auto invalid = [&](absl::string_view message) {
        return MakeError(v1::PRUNE_FAILED, message, {.field = "record_file", .file = call_.record_file, .layer = name});
      };
      const auto mask = masks_.find(name);
      if (mask == masks_.end()) {
        return invalid("the record file makes it 2:4 sparse, but the configuration does not");
      }
      const AMCTProto::AttrProto* shape = FindRecordAttribute(node, kMaskShapeAttribute);
      if (shape == nullptr ||
          !std::equal(shape->ints().begin(), shape->ints().end(), mask->second.shape.begin(), mask->second.shape.end())) {
        return invalid("its mask_shape is not the shape of the weight");
      }
      const AMCTProto::AttrProto* packed = FindRecordAttribute(node, kSelectiveMaskAttribute);
      if (packed == nullptr) {
        continue;
      }
      if (packed->ints_size() != static_cast<int>(mask->second.packed.size())) {
        return invalid(absl::StrCat("its selective_mask has ", packed->ints_size(), " numbers; the weight needs ",
                                    mask->second.packed.size()));
      }
      mask->second.packed.assign(packed->ints().begin(), packed->ints().end());
    }
    return absl::OkStatus();
  }

  absl::Status LoadWeights() {
    if (call_.weights.empty()) {
      return absl::OkStatus();
    }
    const ErrorPlace place = {.field = "weights", .file = call_.weights};
    absl::StatusOr<std::shared_ptr<const InputFile>> file = context_.files->Open(call_.weights);
    MP_RETURN_IF_ERROR(AtPlace(file.status(), place));
    inputs_read_.insert(call_.weights);
    absl::StatusOr<std::vector<Tensor>> tensors = ReadSafetensors(*file);
    MP_RETURN_IF_ERROR(AtPlace(tensors.status(), place));
    MP_RETURN_IF_ERROR(
        AtPlace(LoadCheckpoint(model_->graph, model_->layers, model_->manifest.has_value() ? &*model_->manifest : nullptr, plan_,
                               *std::move(tensors), call_.state_dict_name),
                place));
    return AtModel(MakePlan());  // its masks are those of the new weights
  }

  // The model as the first forward computes it: channels cut, 2:4 sparse weights masked.
  absl::Status MakePrunedModel() {
    after_ = MeasureModel(model_->graph);
    const bool cuts = std::any_of(cut_.records.begin(), cut_.records.end(), HasCut);
    if (call_.plan_only || training_ == Training::kQuant || (!cuts && masks_.empty())) {
      return absl::OkStatus();
    }
    for (const auto& [layer, mask] : masks_) {
      MP_RETURN_IF_ERROR(ApplySelectiveMask(model_->graph, layer, mask));
    }
    MP_RETURN_IF_ERROR(model_->graph.Sort());
    MP_ASSIGN_OR_RETURN(pruned_, model_->graph.ToModel());
    auto& value_info = *pruned_->shell.mutable_graph()->mutable_value_info();
    std::set<std::string> gone;
    for (const auto& [node, tensor] : model_->mark_tensors) {
      gone.insert(tensor);
    }
    value_info.erase(std::remove_if(value_info.begin(), value_info.end(),
                                    [&](const onnx::ValueInfoProto& value) { return gone.contains(value.name()); }),
                     value_info.end());
    context_.progress("check", 0, 0);
    MP_ASSIGN_OR_RETURN(const std::string warning, CheckStillLoads(*pruned_, *unpruned_, "pruned model"));
    if (!warning.empty()) {
      result_.warnings.push_back(warning);
    }
    return absl::OkStatus();
  }

  static bool HasCut(const AMCTPytorchProto::PruneRecord& record) {
    return std::any_of(record.producer().begin(), record.producer().end(), [](const AMCTPytorchProto::PruneNode& node) {
      return FindRecordAttribute(node, kPruneIndexAttribute) != nullptr;
    });
  }

  // ---- output

  // Channel records in their order, then the sparse layers in graph order; masks come with the first forward.
  std::string RecordText() const {
    AMCTPytorchProto::ScaleOffsetRecord record;
    for (const AMCTPytorchProto::PruneRecord& prune : cut_.records) {
      *record.add_prune_record() = prune;
    }
    for (ItemId id : model_->graph.Order()) {
      if (const auto mask = masks_.find(model_->graph.item(id).name); mask != masks_.end()) {
        *record.add_prune_record() = SelectiveRecord(mask->first, mask->second, false);
      }
    }
    return PrintRecord(record);
  }

  static Json BeforeAfter(const Json& before, const Json& after) { return {{"before", before}, {"after", after}}; }
  static Json OrNull(const std::optional<uint64_t>& value) { return value.has_value() ? Json(*value) : Json(nullptr); }

  // Why a layer keeps all its channels although the configuration prunes channels.
  std::string WhyNotCut(const RetrainCatalogLayer& layer) const {
    if (!filters_.contains(layer.name)) {
      return layer.why_not_filter.empty() ? "the configuration leaves it out" : layer.why_not_filter;
    }
    if (const auto it = groups_.left_alone.find(layer.name); it != groups_.left_alone.end()) {
      return it->second;
    }
    return "at its ratio no channel is cut, or the rest of the model needs them all";
  }

  Json DescribeLayer(const RetrainCatalogLayer& layer, const std::map<std::string, const CutLayer*>& cuts,
                     const std::map<std::string, const v1::WrappedLayer*>& wrapped) const {
    Json entry = {{"name", layer.name}, {"type", layer.type}};
    const auto cut = cuts.find(layer.name);
    const bool narrower = cut != cuts.end() && cut->second->channels_after < cut->second->channels_before;
    if (cut != cuts.end()) {
      entry["channels"] = BeforeAfter(cut->second->channels_before, cut->second->channels_after);
      entry["input_channels"] = BeforeAfter(cut->second->input_channels_before, cut->second->input_channels_after);
    }
    if (!filters_.empty() && !narrower) {
      entry["keeps_channels"] = WhyNotCut(layer);
    }
    const auto wrap = wrapped.find(layer.name);
    const v1::WrappedLayer* plan = wrap == wrapped.end() ? nullptr : wrap->second;
    if (!selectives_.empty()) {
      entry["sparse_2_4"] = plan != nullptr && plan->has_selective();
    }
    if (config_.quantizes) {
      entry["quantized"] = plan != nullptr && plan->has_act();
      if (plan != nullptr && plan->has_act()) {
        entry["activation_bits"] = plan->act().num_bits();
        entry["weight_bits"] = plan->weight().num_bits();
        entry["weight_scales"] = plan->num_scales();
        if (plan->has_bn()) {
          entry["batch_norm"] = plan->bn();
        }
        if (plan->has_share_main()) {
          entry["shares_quantizer_of"] = plan->share_main();
        }
      } else {
        entry["reason"] = layer.why_not_quant.empty() ? "the configuration leaves it out" : layer.why_not_quant;
      }
    }
    const auto before = before_.layers.find(layer.name);
    const auto after = after_.layers.find(layer.name);
    if (before != before_.layers.end() && after != after_.layers.end()) {
      entry["parameters"] = BeforeAfter(before->second.parameters, after->second.parameters);
      entry["macs"] = BeforeAfter(OrNull(before->second.macs), OrNull(after->second.macs));
    }
    return entry;
  }

  Json MakeReport(const std::string& function) const {
    Json report = StartReport(function, context_, inputs_read_);
    report["quantizes"] = config_.quantizes;
    report["prunes"] = config_.prunes;
    report["batch_num"] = config_.batch_num;
    report["sizes"] = {{"parameters", BeforeAfter(before_.parameters, after_.parameters)},
                       {"macs", BeforeAfter(OrNull(before_.macs), OrNull(after_.macs))},
                       {"tensor_bytes", BeforeAfter(before_.bytes, after_.bytes)}};
    std::map<std::string, const CutLayer*> cuts;
    for (const CutLayer& layer : cut_.layers) {
      cuts[layer.name] = &layer;
    }
    std::map<std::string, const v1::WrappedLayer*> wrapped;
    for (const v1::WrappedLayer& layer : plan_.layers()) {
      wrapped[layer.module()] = &layer;
    }
    report["layers"] = Json::array();
    for (const RetrainCatalogLayer& layer : layers_.catalog.layers) {
      report["layers"].push_back(DescribeLayer(layer, cuts, wrapped));
    }
    report["records"] = cut_.records.size();
    report["dropped_records"] = cut_.dropped;
    report["reference_defects"] = context_.defects.any();
    report["deviations"] = deviations_;
    report["warnings"] = result_.warnings;
    return report;
  }

  absl::Status Write(const std::string& function) {
    Json report = MakeReport(function);
    MP_ASSIGN_OR_RETURN(const std::string plan, PrintRewritePlan(plan_));
    if (context_.validate_only) {
      result_.report_json = PrintReport(report);
      return absl::OkStatus();
    }
    MP_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFolder> output, CreateOutputFolder(context_, path_.folder));
    if (pruned_.has_value()) {
      WriteOptions options;
      options.threads = context_.threads;
      options.progress = [this](uint64_t done, uint64_t total) { context_.progress("write", done, total); };
      MP_RETURN_IF_ERROR(AtModel(output->AddModels({{&*pruned_, path_.FileName("pruned_model.onnx"), "_pruned"}}, options)));
      for (const WrittenFile& file : output->files()) {
        WrittenFile named = file;
        named.name = path_.WorkspaceName(file.name);
        (file.name == path_.FileName("pruned_model.onnx") ? result_.pruned_model : result_.external_data.emplace_back()) = named;
      }
    }
    auto add = [&](const std::string& base, absl::string_view text, WrittenFile& file) -> absl::Status {
      MP_RETURN_IF_ERROR(output->AddFile(path_.FileName(base), text));
      file = output->files().back();
      file.name = path_.WorkspaceName(file.name);
      return absl::OkStatus();
    };
    MP_RETURN_IF_ERROR(add("rewrite_plan.json", plan, result_.rewrite_plan));
    if (WritesRecord()) {
      MP_ASSIGN_OR_RETURN(result_.record_file,
                          WriteText(context_, record_file_, training_ == Training::kQuant ? "" : RecordText()));
    }
    report["outputs"] = Json::array();
    for (const WrittenFile* file : {&result_.record_file, &result_.rewrite_plan, &result_.pruned_model}) {
      if (!file->name.empty()) {
        report["outputs"].push_back(DescribeFile(*file));
      }
    }
    for (const WrittenFile& file : result_.external_data) {
      report["outputs"].push_back(DescribeFile(file));
    }
    result_.report_json = PrintReport(report);
    MP_RETURN_IF_ERROR(add("report.json", result_.report_json, result_.report));
    return output->Commit();
  }

  const CallContext& context_;
  const RetrainModelCall& call_;
  const Training training_;
  const bool restores_;
  SavePath path_;
  OutputFile record_file_;
  std::optional<NamedModel> model_;
  std::set<std::string> inputs_read_;
  std::set<std::string> deviations_;
  RetrainLayers layers_;
  RetrainConfig config_;
  std::map<std::string, FilterPruneConfig> filters_;
  std::map<std::string, SelectivePruneConfig> selectives_;
  std::map<std::string, AMCTPytorchProto::PruneNode> recorded_masks_;
  std::vector<AMCTPytorchProto::PruneRecord> records_;
  PruneGroups groups_;
  CutChannelsResult cut_;
  std::map<std::string, SelectiveMask> masks_;
  v1::RewritePlan plan_;
  ModelSize before_;
  ModelSize after_;
  std::optional<Model> unpruned_;  // without tensor data: payloads are shared
  std::optional<Model> pruned_;
  RetrainModel result_;
};

}  // namespace

absl::StatusOr<RetrainModel> CreatePruneRetrainModel(const CallContext& context, const RetrainModelCall& call) {
  return RetrainRun(context, call, Training::kPrune, false).Run("create_prune_retrain_model");
}

absl::StatusOr<RetrainModel> RestorePruneRetrainModel(const CallContext& context, const RetrainModelCall& call) {
  return RetrainRun(context, call, Training::kPrune, true).Run("restore_prune_retrain_model");
}

absl::StatusOr<RetrainModel> CreateQuantRetrainModel(const CallContext& context, const RetrainModelCall& call) {
  return RetrainRun(context, call, Training::kQuant, false).Run("create_quant_retrain_model");
}

absl::StatusOr<RetrainModel> RestoreQuantRetrainModel(const CallContext& context, const RetrainModelCall& call) {
  return RetrainRun(context, call, Training::kQuant, true).Run("restore_quant_retrain_model");
}

absl::StatusOr<RetrainModel> CreateCompressedRetrainModel(const CallContext& context, const RetrainModelCall& call) {
  return RetrainRun(context, call, Training::kCompressed, false).Run("create_compressed_retrain_model");
}

absl::StatusOr<RetrainModel> RestoreCompressedRetrainModel(const CallContext& context, const RetrainModelCall& call) {
  return RetrainRun(context, call, Training::kCompressed, true).Run("restore_compressed_retrain_model");
}

}  // namespace modelpress::engine
