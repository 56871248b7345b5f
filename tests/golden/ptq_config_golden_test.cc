// Every case of golden/config about post-training quantization, key-value caches and records: the JSON byte by byte, what is read
// out of it, and for rejected input who is to blame and where.
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/formats/kv_cache_config.h"
#include "engine/formats/record.h"
#include "engine/functions/create_quant_config.h"
#include "engine/functions/ptq_model.h"
#include "engine/quantize/layer_factors.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden/config_cases.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Where the reference is wrong and modelpress, unless asked otherwise, does something else.
const std::set<std::string> kDefectCases = {"ptq_dmq_rnn", "ptq_int16_type", "ptq_missing_required", "ptq_missing_required_cal"};

// Arguments of a type that the API cannot carry.
const std::set<std::string> kNotExpressible = {"bad_args_type"};

// Where the reference ends with a crash (AttributeError) and modelpress goes on with the defaults.
const std::set<std::string> kMoreAccepted = {"bad_json_no_act"};

std::vector<ConfigCase> CasesOf(const std::set<std::string>& kinds, bool successes_only = false) {
  return ConfigCasesOf(kinds, kNotExpressible, successes_only);
}

const std::map<std::string, std::string>& ExpectedBlames();

void ExpectBlame(const ConfigCase& golden, const absl::Status& status) {
  ASSERT_FALSE(status.ok()) << "it must be rejected: " << golden.info["error"];
  EXPECT_EQ(absl::StatusCode::kInvalidArgument, status.code()) << status;
  auto it = ExpectedBlames().find(golden.name);
  EXPECT_EQ(it == ExpectedBlames().end() ? "" : it->second, Blame(status)) << status;
}

class CreateTest : public testing::TestWithParam<ConfigCase> {
 protected:
  // Runs create_quant_config on the case; the content of the file that it has written.
  absl::StatusOr<std::string> Create(const ReferenceDefects& defects) {
    const ConfigCase& golden = GetParam();
    TemporaryFolder output;
    const FileSet files({{"model.onnx", (golden.folder() / std::string(golden.info["model"])).string()},
                         {"in.cfg", (golden.folder() / "in.cfg").string()}});
    CallContext context;
    context.files = &files;
    context.output_root = output.path().string();
    context.defects = defects;
    CreateQuantConfigCall call = {
        .config_file = "out/config.json", .model = "model.onnx", .kv_cache = golden.kind() == "kv_cache"};
    if (golden.has("in.cfg")) {
      call.config_definition = "in.cfg";
    } else {
      const json arguments = json::parse(ReadFile(golden.folder() / "args.json"));
      call.arguments.batch_num = arguments.value("batch_num", 1);
      call.arguments.activation_offset = arguments.value("activation_offset", true);
      call.arguments.skip_layers = arguments.value("skip_layers", std::vector<std::string>());
      if (call.kv_cache) {
        call.kv_cache_layers = arguments["quant_layers"]["kv_cache_quant_layers"].get<std::vector<std::string>>();
      }
    }
    context.validate_only = true;
    const absl::Status checked = CreateQuantConfig(context, call).status();
    EXPECT_TRUE(fs::is_empty(output.path())) << "validate_only has written something";
    context.validate_only = false;
    MP_ASSIGN_OR_RETURN(const SavedConfig saved, CreateQuantConfig(context, call));
    EXPECT_TRUE(checked.ok()) << checked;
    EXPECT_EQ("out/config.json", saved.config_file.name);
    return ReadFile(output.path() / "out" / "config.json");
  }
};

TEST_P(CreateTest, GivesTheReferencesBytes) {
  const ConfigCase& golden = GetParam();
  for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
    const absl::StatusOr<std::string> written = Create(defects);
    if (kDefectCases.contains(golden.name) && !defects.any()) {
      if (written.ok()) {
        EXPECT_NE(ReadFile(golden.folder() / "config.json"), *written) << "no defect case any more";
      } else {
        ExpectBlame(golden, written.status());
      }
    } else if (golden.succeeds()) {
      ASSERT_TRUE(written.ok()) << written.status();
      EXPECT_EQ(ReadFile(golden.folder() / "config.json"), *written);
    } else if (kDefectCases.contains(golden.name)) {
      EXPECT_FALSE(written.ok());
    } else {
      ExpectBlame(golden, written.status());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, CreateTest, testing::ValuesIn(CasesOf({"ptq", "ptq-args", "kv_cache"})), NameOf);

// ---- reading ------------------------------------------------------------------------------------------------------------------

json Effective(const QuantConfig& config) {
  const std::string mode = config.force_fp16_quant ? "FORCE_FP16_QUANT" : "DEFAULT";
  json result = {{"version", 1},
                 {"batch_num", config.batch_num},
                 {"activation_offset", config.activation_offset},
                 {"do_fusion", config.do_fusion},
                 {"fakequant_precision_mode", mode},
                 {"skip_fusion_layers", config.skip_fusion_layers}};
  for (const LayerConfig& layer : config.layers) {
    const ActivationConfig& activation = layer.activation;
    json act = {{"num_bits", activation.bits},
                {"with_offset", activation.asymmetric},
                {"batch_num", config.batch_num},
                {"fakequant_precision_mode", mode}};
    if (activation.algorithm == ActivationConfig::Algorithm::kIfmr) {
      act.update({{"act_algo", "ifmr"},
                  {"max_percentile", activation.max_percentile},
                  {"min_percentile", activation.min_percentile},
                  {"search_range_start", activation.search_start},
                  {"search_range_end", activation.search_end},
                  {"search_step", activation.search_step}});
    } else {
      act.update({{"act_algo", "hfmg"}, {"num_of_bins", activation.bins}});
    }
    const WeightConfig& weight = layer.weight;
    json wts = {{"num_bits", weight.bits}, {"channel_wise", weight.channel_wise}, {"with_offset", false}};
    wts["wts_algo"] = weight.algorithm == WeightConfig::Algorithm::kAda ? "ada_quantize" : "arq_quantize";
    result[layer.name] = {{"quant_enable", true}, {"activation_quant_params", act}, {"weight_quant_params", wts}};
    if (layer.migration_strength.has_value()) {
      result[layer.name]["dmq_balancer_param"] = *layer.migration_strength;
    }
  }
  return result;
}

LayerCatalog CatalogOf(const fs::path& model_path) {
  const FileSet files({{"model.onnx", model_path.string()}});
  CallContext context;
  context.files = &files;
  absl::StatusOr<NamedModel> model = ReadNamedModel(context, "model.onnx", "model", "");
  EXPECT_TRUE(model.ok()) << model.status();
  return model->layers.Catalog();
}

class ReadTest : public testing::TestWithParam<ConfigCase> {};

TEST_P(ReadTest, GivesTheEffectiveConfiguration) {
  const ConfigCase& golden = GetParam();
  const LayerCatalog catalog = CatalogOf(golden.folder() / std::string(golden.info["model"]));
  for (const ReferenceDefects& defects : {ReferenceDefects(), ReferenceDefects::All()}) {
    const absl::StatusOr<QuantConfig> config =
        ReadQuantConfig(catalog, ReadFile(golden.folder() / "config.json"), "config.json", defects);
    if (kMoreAccepted.contains(golden.name)) {
      EXPECT_TRUE(config.ok()) << config.status();
    } else if (golden.succeeds()) {
      ASSERT_TRUE(config.ok()) << config.status();
      json expected = json::parse(ReadFile(golden.folder() / "effective.json"));
      for (json& value : expected) {  // with_offset holds what it means
        if (value.is_object()) {
          value["activation_quant_params"].erase("asymmetric");
        }
      }
      EXPECT_EQ(expected, Effective(*config)) << json::diff(expected, Effective(*config));
    } else {
      ExpectBlame(golden, config.status());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, ReadTest, testing::ValuesIn(CasesOf({"ptq-json"})), NameOf);

// What was written can be read.
class RoundTripTest : public testing::TestWithParam<ConfigCase> {};

TEST_P(RoundTripTest, WrittenConfigurationsCanBeRead) {
  const ConfigCase& golden = GetParam();
  const LayerCatalog catalog = CatalogOf(golden.folder() / std::string(golden.info["model"]));
  const std::string text = ReadFile(golden.folder() / "config.json");
  EXPECT_EQ(golden.kind() == "kv_cache", *IsKvCacheConfig(text, "config.json"));
  if (golden.kind() == "kv_cache") {
    const absl::StatusOr<KvCacheConfig> config = ReadKvCacheConfig(catalog, text, "config.json");
    ASSERT_TRUE(config.ok()) << config.status();
    const json expected = json::parse(text);
    EXPECT_EQ(expected["batch_num"], config->batch_num);
    ASSERT_EQ(2, config->layers.size());
    for (const KvCacheLayer& layer : config->layers) {
      const json& section = expected[layer.name]["kv_data_quant_config"];
      EXPECT_EQ(section["quant_granularity"], layer.per_channel ? 1 : 0);
      EXPECT_EQ(section["act_algo"] == "hfmg", layer.activation.algorithm == ActivationConfig::Algorithm::kHfmg);
      EXPECT_EQ(section.value("num_of_bins", 4096), layer.activation.bins);
      EXPECT_EQ(section.value("max_percentile", 0.999999), layer.activation.max_percentile);
      EXPECT_EQ(section.value("asymmetric", expected["activation_offset"].get<bool>()), layer.activation.asymmetric);
    }
  } else if (golden.name == "ptq_int16_type") {  // the defect
    EXPECT_FALSE(ReadQuantConfig(catalog, text, "config.json", {}).ok());
  } else {
    const absl::StatusOr<QuantConfig> config = ReadQuantConfig(catalog, text, "config.json", {});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_FALSE(config->layers.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, RoundTripTest, testing::ValuesIn(CasesOf({"ptq", "ptq-args", "kv_cache"}, true)), NameOf);

// ---- records
// --------------------------------------------------------------------------------------------------------------------

std::vector<float> Flat(const json& value) {
  if (value.is_number()) {
    return {value.get<float>()};
  }
  std::vector<float> flat;
  for (const json& item : value) {
    const std::vector<float> inner = Flat(item);
    flat.insert(flat.end(), inner.begin(), inner.end());
  }
  return flat;
}

class RecordTest : public testing::TestWithParam<ConfigCase> {};

TEST_P(RecordTest, GivesTheReferencesFactors) {
  const ConfigCase& golden = GetParam();
  absl::StatusOr<Model> model =
      ReadModel(FileSet({{"m.onnx", (golden.folder() / std::string(golden.info["model"])).string()}}), "m.onnx");
  ASSERT_TRUE(model.ok()) << model.status();
  absl::StatusOr<Graph> graph = Graph::Create(*std::move(model), {});
  ASSERT_TRUE(graph.ok()) << graph.status();
  const absl::StatusOr<ParsedRecord> record = ParseRecord(ReadFile(golden.folder() / "record.txt"), "record.txt");
  const absl::StatusOr<FactorsByLayer> factors = record.ok() ? ReadFactors(*record, *graph, "record.txt", {}) : record.status();
  if (!golden.succeeds()) {
    ExpectBlame(golden, factors.status());
    return;
  }
  ASSERT_TRUE(factors.ok()) << factors.status();
  const json expected = json::parse(ReadFile(golden.folder() / "parsed.json"))["layers"];
  EXPECT_EQ(expected.size(), factors->size());
  for (const auto& [name, layer] : expected.items()) {
    ASSERT_TRUE(factors->contains(name)) << name;
    const LayerFactors& actual = factors->at(name);
    EXPECT_EQ(layer["data_scale"].get<float>(), actual.scale_d);
    EXPECT_EQ(layer["data_offset"].get<int>(), actual.offset_d);
    EXPECT_EQ(layer["act_type"].get<std::string>(), actual.merge_type);
    EXPECT_EQ(layer["fakequant_precision_mode"] == "FORCE_FP16_QUANT", actual.truncates_dequant_scale);
    EXPECT_EQ(Flat(layer["weight_scale"]), actual.scale_w);
    EXPECT_EQ(layer.contains("tensor_balance_factor") ? Flat(layer["tensor_balance_factor"]) : actual.tensor_balance_factor,
              actual.tensor_balance_factor);
    if (layer.contains("h_scale")) {
      EXPECT_EQ(layer["h_scale"].get<float>(), actual.scale_h);
      EXPECT_EQ(layer["h_offset"].get<int>(), actual.offset_h);
      EXPECT_EQ(Flat(layer["recurrence_weight_scale"]), actual.scale_r);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, RecordTest, testing::ValuesIn(CasesOf({"record"})), NameOf);

const std::map<std::string, std::string>& ExpectedBlames() {
  static const auto& blames = *new std::map<std::string, std::string>{
      {"bad_ada_beta", "CONFIG_VALUE key=beta_range_start in.cfg:1:32 layer=conv1"},
      {"bad_ada_beta_neg", "CONFIG_VALUE key=beta_range_start in.cfg:1:32 layer=conv1"},
      {"bad_ada_layer", "CONFIG_VALUE key=ada_quantize in.cfg:1:64 layer=c1"},
      {"bad_ada_reg", "CONFIG_VALUE key=reg_param in.cfg:1:32 layer=conv1"},
      {"bad_ada_type", "CONFIG_VALUE key=ada_quantize in.cfg:1:69"},
      {"bad_ada_warm", "CONFIG_VALUE key=warm_start in.cfg:1:32 layer=conv1"},
      {"bad_args_batch", "CONFIG_VALUE key=batch_num"},
      {"bad_args_skip", "CONFIG_UNKNOWN_LAYER key=skip_layers layer=zz"},
      {"bad_args_skip_all", "CONFIG_EMPTY key=skip_layers"},
      {"bad_batch_zero", "CONFIG_VALUE key=batch_num in.cfg:1:1"},
      {"bad_bins", "CONFIG_VALUE key=num_of_bins in.cfg:1:33 layer=conv1"},
      {"bad_bits_5", "CONFIG_VALUE key=quant_bits in.cfg:1:32 layer=conv1"},
      {"bad_bits_7_layer", "CONFIG_VALUE key=quant_bits in.cfg:1:83 layer=deconv"},
      {"bad_bits_7_type", "CONFIG_VALUE key=quant_bits in.cfg:1:81"},
      {"bad_bool", "CONFIG_SYNTAX key=activation_offset in.cfg:1:20"},
      {"bad_conv3d_layer", "CONFIG_VALUE key=asymmetric in.cfg:1:80 layer=c3"},
      {"bad_conv3d_type", "CONFIG_VALUE key=asymmetric in.cfg:1:82"},
      {"bad_cw_ada", "CONFIG_VALUE key=channel_wise in.cfg:1:79 layer=fc"},
      {"bad_cw_layer", "CONFIG_VALUE key=channel_wise in.cfg:1:79 layer=fc"},
      {"bad_cw_type", "CONFIG_VALUE key=channel_wise in.cfg:1:81"},
      {"bad_dmq_high", "CONFIG_VALUE key=migration_strength in.cfg:1:32 layer=conv1"},
      {"bad_dmq_layer", "CONFIG_VALUE key=dmq_balancer in.cfg:1:66 layer=pool"},
      {"bad_dmq_low", "CONFIG_VALUE key=migration_strength in.cfg:1:32 layer=conv1"},
      {"bad_dmq_type", "CONFIG_VALUE key=dmq_balancer in.cfg:1:69"},
      {"bad_dmq_type_rnn", "CONFIG_VALUE key=dmq_balancer in.cfg:1:64"},
      {"bad_enum", "CONFIG_SYNTAX key=dst_type in.cfg:1:43"},
      {"bad_fp16_mode", "CONFIG_SYNTAX key=fakequant_precision_mode in.cfg:1:27"},
      {"bad_fusion_repeat", "CONFIG_VALUE key=skip_fusion_layers in.cfg:1:29 layer=conv1"},
      {"bad_fusion_type", "CONFIG_VALUE key=skip_fusion_layers in.cfg:1:1 layer=fc"},
      {"bad_fusion_unknown", "CONFIG_UNKNOWN_LAYER key=skip_fusion_layers in.cfg:1:1 layer=nope"},
      {"bad_int16_layer", "CONFIG_VALUE key=dst_type in.cfg:1:81 layer=fc2"},
      {"bad_int16_type", "CONFIG_VALUE key=dst_type in.cfg:1:85"},
      {"bad_json_act_bits", "CONFIG_VALUE key=num_bits config.json:110:13 layer=grp"},
      {"bad_json_act_unknown", "CONFIG_VALUE key=foo config.json:120:13 layer=grp"},
      {"bad_json_ada_param", "CONFIG_VALUE key=num_iteration config.json:125:13 layer=grp"},
      {"bad_json_algo", "CONFIG_VALUE key=act_algo config.json:118:13 layer=grp"},
      {"bad_json_conv3d", "CONFIG_VALUE key=asymmetric config.json:39:13 layer=c3"},
      {"bad_json_dmq_type", "CONFIG_TYPE key=dmq_balancer_param config.json:126:9 layer=grp"},
      {"bad_json_dup_key", "CONFIG_SYNTAX key=version config.json:3:5"},
      {"bad_json_enable_type", "CONFIG_TYPE key=quant_enable config.json:108:9 layer=grp"},
      {"bad_json_int16", "CONFIG_VALUE key=num_bits config.json:150:13 layer=pool"},
      {"bad_json_layer_unknown", "CONFIG_UNKNOWN_LAYER key=zz config.json:167:5 layer=zz"},
      {"bad_json_layer_unsupported", "CONFIG_UNKNOWN_LAYER key=bn1 config.json:167:5 layer=bn1"},
      {"bad_json_mix", "CONFIG_VALUE key=num_of_bins config.json:120:13 layer=grp"},
      {"bad_json_none", "CONFIG_EMPTY key=quant_enable config.json:1:1"},
      {"bad_json_param_unknown", "CONFIG_VALUE key=foo config.json:126:9 layer=grp"},
      {"bad_json_range", "CONFIG_VALUE key=search_range config.json:113:13 layer=grp"},
      {"bad_json_syntax", "CONFIG_SYNTAX config.json:166:5"},
      {"bad_json_type", "CONFIG_TYPE key=batch_num config.json:3:5"},
      {"bad_json_version", "CONFIG_VALUE key=version config.json:2:5"},
      {"bad_json_wts_algo", "CONFIG_TYPE key=wts_algo config.json:124:13 layer=grp"},
      {"bad_json_wts_bits", "CONFIG_VALUE key=num_bits config.json:122:13 layer=grp"},
      {"bad_json_wts_unknown", "CONFIG_VALUE key=foo config.json:125:13 layer=grp"},
      {"bad_kv_pct", "CONFIG_VALUE key=max_percentile in.cfg:1:81 layer=fc"},
      {"bad_kv_repeat", "CONFIG_VALUE key=kv_cache_layers layer=fc"},
      {"bad_kv_type", "CONFIG_UNKNOWN_LAYER key=kv_cache_layers layer=conv1"},
      {"bad_kv_unknown", "CONFIG_UNKNOWN_LAYER key=kv_cache_layers layer=zz"},
      {"bad_max_pct", "CONFIG_VALUE key=max_percentile in.cfg:1:33 layer=conv1"},
      {"bad_min_pct", "CONFIG_VALUE key=min_percentile in.cfg:1:33 layer=conv1"},
      {"bad_override_layer_repeat", "CONFIG_VALUE key=layer_name in.cfg:1:94 layer=grp"},
      {"bad_override_layer_unknown", "CONFIG_UNKNOWN_LAYER key=layer_name in.cfg:1:26 layer=nope"},
      {"bad_override_type_repeat", "CONFIG_VALUE key=layer_type in.cfg:1:93"},
      {"bad_override_type_unknown", "CONFIG_UNKNOWN_LAYER key=layer_type in.cfg:1:24"},
      {"bad_parse", "CONFIG_SYNTAX key=ifmr_quantize in.cfg:1:33"},
      {"bad_range_order", "CONFIG_VALUE key=search_range_start in.cfg:1:33 layer=conv1"},
      {"bad_range_zero", "CONFIG_VALUE key=search_range_start in.cfg:1:33 layer=conv1"},
      {"bad_rec_act_type", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_balance_len", "RECORD_LENGTH record.txt:1:1 layer=c1"},
      {"bad_rec_balance_pool", "RECORD_UNEXPECTED record.txt:26:1 layer=p1"},
      {"bad_rec_balance_range", "RECORD_VALUE record.txt:1:1 layer=c1"},
      {"bad_rec_dst_type", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_empty", "RECORD_EMPTY record.txt"},
      {"bad_rec_fp16_mode", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_len_channels", "RECORD_LENGTH record.txt:1:1 layer=c2"},
      {"bad_rec_len_linear", "RECORD_LENGTH record.txt:1:1 layer=fc"},
      {"bad_rec_len_mismatch", "RECORD_LENGTH record.txt:1:1 layer=c"},
      {"bad_rec_lstm_no_h", "RECORD_INCOMPLETE record.txt:1:1 layer=rnn"},
      {"bad_rec_lstm_no_r", "RECORD_INCOMPLETE record.txt:1:1 layer=rnn"},
      {"bad_rec_lstm_offset_h", "RECORD_VALUE record.txt:1:1 layer=rnn"},
      {"bad_rec_no_key", "RECORD_INCOMPLETE record.txt:1:1"},
      {"bad_rec_no_offset_d", "RECORD_INCOMPLETE record.txt:1:1 layer=c"},
      {"bad_rec_no_offset_w", "RECORD_INCOMPLETE record.txt:1:1 layer=fc"},
      {"bad_rec_no_scale_d", "RECORD_INCOMPLETE record.txt:1:1 layer=c"},
      {"bad_rec_no_scale_w", "RECORD_INCOMPLETE record.txt:1:1 layer=fc"},
      {"bad_rec_no_value", "RECORD_INCOMPLETE record.txt:82:1 layer=zz"},
      {"bad_rec_not_quantizable", "RECORD_NOT_QUANTIZABLE record.txt:71:1 layer=/Relu"},
      {"bad_rec_offset_d_range", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_offset_w", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_scale_d_inf", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_scale_d_neg", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_scale_w_zero", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_rec_shift_bit", "RECORD_UNEXPECTED record.txt:1:1 layer=c"},
      {"bad_rec_syntax", "RECORD_SYNTAX key=wts_type record.txt:80:2"},
      {"bad_rec_unknown_field", "RECORD_SYNTAX key=scale_x record.txt:4:5"},
      {"bad_rec_unknown_layer", "RECORD_UNKNOWN_LAYER record.txt:71:1 layer=zz"},
      {"bad_rec_wts_type", "RECORD_VALUE record.txt:1:1 layer=c"},
      {"bad_skip_all_layers", "CONFIG_EMPTY key=skip_layer_types in.cfg:1:1"},
      {"bad_skip_all_types", "CONFIG_EMPTY key=skip_layer_types in.cfg:1:1"},
      {"bad_skip_repeat", "CONFIG_VALUE key=skip_layers in.cfg:1:22 layer=conv1"},
      {"bad_skip_type", "CONFIG_UNKNOWN_LAYER key=skip_layer_types in.cfg:1:1"},
      {"bad_skip_type_repeat", "CONFIG_VALUE key=skip_layer_types in.cfg:1:28"},
      {"bad_skip_unknown", "CONFIG_UNKNOWN_LAYER key=skip_layers in.cfg:1:1 layer=nope"},
      {"bad_skip_unsupported", "CONFIG_UNKNOWN_LAYER key=skip_layers in.cfg:1:1 layer=bn1"},
      {"bad_step_large", "CONFIG_VALUE key=search_step in.cfg:1:33 layer=conv1"},
      {"bad_step_zero", "CONFIG_VALUE key=search_step in.cfg:1:33 layer=conv1"},
      {"bad_uint_negative", "CONFIG_SYNTAX key=batch_num in.cfg:1:12"},
      {"bad_unknown_field", "CONFIG_SYNTAX key=batch_number in.cfg:1:1"},
      {"ptq_common_channel_wise_true", "CONFIG_VALUE key=channel_wise in.cfg:1:32 layer=pool"},
      {"ptq_missing_required", "CONFIG_VALUE key=layer_type in.cfg:1:1"},
      {"ptq_missing_required_cal", "CONFIG_VALUE key=calibration_config in.cfg:2:1 layer=grp"},
  };
  return blames;
}

}  // namespace
}  // namespace modelpress::engine
