// The arithmetic of calibration against the reference: the unit vectors of golden/ptq/_units, and for every case the activation
// factors of its record from the activations that the reference saw.
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/calibrate/estimators.h"
#include "engine/calibrate/range_estimator.h"
#include "engine/calibrate/weights.h"
#include "engine/formats/record.h"
#include "engine/runtime/npz.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "onnx/onnx_pb.h"
#include "tests/golden/files.h"

namespace modelpress::engine {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(MODELPRESS_TEST_DATA) / "golden" / "ptq";

// An .npz file in memory.
class Arrays {
 public:
  explicit Arrays(const fs::path& path) : npz_(*NpzFile::Open(*InputFile::Open(path.filename().string(), path.string()))) {}

  const std::vector<std::string>& names() const { return npz_->names(); }
  std::vector<int64_t> Dims(const std::string& name) const { return (*npz_->OpenArray(name))->dims(); }
  // `data_type`: what T is in ONNX.
  template <typename T>
  std::vector<T> Get(const std::string& name, int data_type) const {
    const std::unique_ptr<ArrayReader> reader = *npz_->OpenArray(name);
    EXPECT_EQ(reader->data_type(), data_type) << name;
    size_t count = 1;
    for (const int64_t dim : reader->dims()) {
      count *= dim;
    }
    std::vector<T> values(count);
    const absl::Status status = reader->Read({reinterpret_cast<uint8_t*>(values.data()), count * sizeof(T)});
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }
  std::vector<float> Floats(const std::string& name) const { return Get<float>(name, onnx::TensorProto::FLOAT); }
  std::vector<double> Doubles(const std::string& name) const { return Get<double>(name, onnx::TensorProto::DOUBLE); }
  std::vector<int32_t> Ints(const std::string& name) const { return Get<int32_t>(name, onnx::TensorProto::INT32); }

 private:
  std::unique_ptr<NpzFile> npz_;
};

const Arrays& Units() {
  static const Arrays& units = *new Arrays(kGolden / "_units" / "units.npz");
  return units;
}

Tensor MakeTensor(const std::vector<float>& values, const std::vector<int64_t>& dims) {
  onnx::TensorProto proto;
  proto.set_name("w");
  proto.set_data_type(onnx::TensorProto::FLOAT);
  for (const int64_t dim : dims) {
    proto.add_dims(dim);
  }
  proto.mutable_float_data()->Add(values.begin(), values.end());
  return FromProto(std::move(proto));
}

ActivationFactors Estimate(RangeEstimator& estimator, const std::vector<std::vector<float>>& batches) {
  while (estimator.wants_pass()) {
    for (const std::vector<float>& batch : batches) {
      const absl::Span<const float> piece = batch;
      EXPECT_TRUE(estimator.Add({piece}, 1).ok());
    }
    EXPECT_TRUE(estimator.EndPass().ok());
  }
  return estimator.Factors().value_or(ActivationFactors{.scale = -1});
}

// Equal bits, but for the sign of zero.
void ExpectEqual(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i], expected[i]) << what << " [" << i << "]";
  }
}

TEST(CalibrationUnitsTest, SearchRatios) {
  const std::vector<double> arguments = Units().Doubles("arange_args");
  for (size_t i = 0; i < arguments.size() / 3; ++i) {
    ExpectEqual(SearchRatios(arguments[3 * i], arguments[3 * i + 1], arguments[3 * i + 2]),
                Units().Floats(absl::StrCat("arange_", i)), absl::StrCat("arange_", i));
  }
}

TEST(CalibrationUnitsTest, Histogram) {
  const std::vector<float> values = Units().Floats("hist_in");
  MergingHistogram histogram(1024);
  const absl::Span<const float> piece = values;
  ASSERT_TRUE(histogram.Add({piece}, 1).ok());
  ExpectEqual({histogram.counts().begin(), histogram.counts().end()}, Units().Floats("hist_1024"), "hist_1024");
}

TEST(CalibrationUnitsTest, Ifmr) {
  const std::vector<float> values = Units().Floats("ifmr_in");
  for (const auto& [mode, asymmetric, bits] :
       {std::tuple{"asym8", true, 8}, std::tuple{"sym8", false, 8}, std::tuple{"asym16", true, 16}}) {
    const std::string prefix = absl::StrCat("ifmr_", mode);
    const ActivationConfig config = {.bits = bits, .asymmetric = asymmetric};
    const absl::StatusOr<std::vector<ClipCandidate>> candidates =
        ClipCandidates(config, std::min(0.0f, *std::min_element(values.begin(), values.end())),
                       std::max(0.0f, *std::max_element(values.begin(), values.end())));
    ASSERT_TRUE(candidates.ok());
    const std::vector<float> scales = Units().Floats(prefix + "_scales");
    const std::vector<float> losses = Units().Floats(prefix + "_losses");
    ASSERT_EQ(candidates->size(), scales.size());
    std::vector<float> padded = values;
    padded.resize((values.size() + kCalibrateLanes - 1) / kCalibrateLanes * kCalibrateLanes);
    std::vector<double> sums(scales.size());
    SumSquaredErrors(padded, *candidates, sums.data());
    for (size_t i = 0; i < scales.size(); ++i) {
      EXPECT_EQ((*candidates)[i].scale, scales[i]) << prefix << i;
      EXPECT_NEAR(sums[i] / static_cast<double>(values.size()), losses[i], losses[i] * 3e-7)
          << prefix << i;  // float32 sums there
    }
    const std::vector<double> result = Units().Doubles(prefix + "_result");
    const ActivationFactors factors = Estimate(*NewIfmrEstimator(config), {values});
    EXPECT_EQ(factors.scale, static_cast<float>(result[0])) << prefix;
    EXPECT_EQ(factors.offset, result[1]) << prefix;
    EXPECT_EQ(factors.scale, scales[static_cast<size_t>(result[2])]) << prefix;
  }
}

TEST(CalibrationUnitsTest, Hfmg) {
  const std::vector<std::vector<float>> batches = {Units().Floats("hfmg_in_0"), Units().Floats("hfmg_in_1")};
  MergingHistogram histogram(1024);
  for (const absl::Span<const float> piece : batches) {
    ASSERT_TRUE(histogram.Add({piece}, 1).ok());
  }
  const std::vector<float> range = Units().Floats("hfmg_minmax");
  EXPECT_EQ(histogram.minimum(), range[0]);
  EXPECT_EQ(histogram.maximum(), range[1]);
  const std::vector<int32_t> counts = Units().Ints("hfmg_merged_hist");
  EXPECT_TRUE(std::equal(counts.begin(), counts.end(), histogram.counts().begin(), histogram.counts().end()));
  const HistogramSearch search = SearchHistogram(histogram, 8, 1);
  const std::vector<int32_t> ranges = Units().Ints("hfmg_ranges");
  const std::vector<float> losses = Units().Floats("hfmg_losses");
  ASSERT_EQ(search.ranges.size() * 2, ranges.size());
  for (size_t i = 0; i < search.ranges.size(); ++i) {
    ASSERT_EQ(search.ranges[i], std::pair(ranges[2 * i], ranges[2 * i + 1])) << i;
    EXPECT_NEAR(search.losses[i], losses[i], losses[i] * 5e-7) << i;  // float32 sums there
  }
  const std::vector<double> result = Units().Doubles("hfmg_result");
  const ActivationFactors factors =
      Estimate(*NewRangeEstimator({.algorithm = ActivationConfig::Algorithm::kHfmg, .bins = 1024}), batches);
  EXPECT_EQ(factors.scale, static_cast<float>(result[0]));
  EXPECT_EQ(factors.offset, result[1]);
}

TEST(CalibrationUnitsTest, Arq) {
  const Tensor weight = MakeTensor(Units().Floats("arq_w"), Units().Dims("arq_w"));
  const std::map<std::string, ChannelMap> maps = {{"cw", {.run = 40, .period = 6, .block = 240, .elements = 240}},
                                                  {"pt", {.run = 1, .period = 1, .block = 240, .elements = 240}}};
  for (const int bits : {4, 6, 7, 8}) {
    for (const auto& [name, map] : maps) {
      const std::string prefix = absl::StrCat("arq_", bits, "_", name);
      const absl::StatusOr<std::vector<float>> scales = ArqScales(weight, map, bits, 1);
      ASSERT_TRUE(scales.ok());
      ExpectEqual(*scales, Units().Floats(prefix + "_scale"), prefix);
      std::vector<float> fake(240);
      ASSERT_TRUE(ReadFloats(FakeQuantized(weight, map, *scales, bits), 0, absl::MakeSpan(fake)).ok());
      const std::vector<float> expected = Units().Floats(prefix + "_weight");
      for (size_t i = 0; i < fake.size(); ++i) {
        EXPECT_EQ(std::bit_cast<uint32_t>(fake[i]), std::bit_cast<uint32_t>(expected[i]))
            << prefix << " [" << i << "] " << fake[i] << ", " << expected[i];
      }
    }
  }
}

TEST(CalibrationUnitsTest, Kl) {
  const Tensor weight = MakeTensor(Units().Floats("kl_w"), Units().Dims("kl_w"));
  ExpectEqual(*KlScales(weight, {.run = 40, .period = 4, .block = 160, .elements = 160}, 1), Units().Floats("kl_scale_cw"),
              "channels");
  ExpectEqual(*KlScales(weight, {.run = 1, .period = 1, .block = 160, .elements = 160}, 1), Units().Floats("kl_scale_pt"),
              "tensor");
}

TEST(CalibrationUnitsTest, BalanceFactors) {
  const absl::StatusOr<std::vector<float>> activation = MaxAbs(MakeTensor(Units().Floats("dmq_act"), Units().Dims("dmq_act")),
                                                               {.run = 50, .period = 6, .block = 300, .elements = 300}, 1);
  const absl::StatusOr<std::vector<float>> weight =
      MaxAbs(MakeTensor(Units().Floats("dmq_w"), Units().Dims("dmq_w")), {.run = 9, .period = 6, .block = 54, .elements = 54}, 1);
  ASSERT_TRUE(activation.ok() && weight.ok());
  ExpectEqual(*BalanceFactors(*activation, *weight, 0.5), Units().Floats("dmq_factor_0.5"), "0.5");
  const std::vector<float> expected = Units().Floats("dmq_factor_0.3");
  const std::vector<float> actual = *BalanceFactors(*activation, *weight, 0.3);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 5e-7 * expected[i]) << i;  // powf
  }
}

// What a layer's entry of config.json says.
ActivationConfig ReadConfig(const nlohmann::json& parameters, bool activation_offset) {
  ActivationConfig config;
  config.algorithm =
      parameters.value("act_algo", "ifmr") == "hfmg" ? ActivationConfig::Algorithm::kHfmg : ActivationConfig::Algorithm::kIfmr;
  config.bits = parameters.value("num_bits", 8);
  config.asymmetric = parameters.value("asymmetric", activation_offset);
  config.max_percentile = parameters.value("max_percentile", config.max_percentile);
  config.min_percentile = parameters.value("min_percentile", config.min_percentile);
  config.search_step = parameters.value("search_step", config.search_step);
  config.bins = parameters.value("num_of_bins", config.bins);
  if (parameters.contains("search_range")) {
    config.search_start = parameters["search_range"][0];
    config.search_end = parameters["search_range"][1];
  }
  return config;
}

std::vector<std::vector<float>> Batches(const Arrays& activations, const std::string& layer) {
  const std::set<std::string> names(activations.names().begin(), activations.names().end());
  std::vector<std::vector<float>> batches;
  for (std::string name = layer + "__0"; names.contains(name); name = absl::StrCat(layer, "__", batches.size())) {
    batches.push_back(activations.Floats(name));
  }
  return batches;
}

class CalibrationGoldenTest : public testing::TestWithParam<std::string> {};

std::vector<std::string> Cases() { return CasesWith(kGolden, "acts.npz"); }

INSTANTIATE_TEST_SUITE_P(Cases, CalibrationGoldenTest, testing::ValuesIn(Cases()), [](const auto& info) { return info.param; });

TEST_P(CalibrationGoldenTest, FactorsOfTheActivations) {
  const fs::path folder = kGolden / GetParam();
  const Arrays activations(folder / "acts.npz");
  const nlohmann::json config = nlohmann::json::parse(ReadFile(folder / "config.json"));
  const absl::StatusOr<ParsedRecord> parsed = ParseRecord(ReadFile(folder / "record.txt"), "record.txt");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const bool activation_offset = config["activation_offset"];
  const bool has_half_scales = config.value("fakequant_precision_mode", "") == "FORCE_FP16_QUANT";
  int checked = 0;
  const auto check = [&](const std::string& input, const ActivationConfig& settings, float scale, int offset) {
    const std::vector<std::vector<float>> batches = Batches(activations, input);
    ASSERT_FALSE(batches.empty()) << input;
    const ActivationFactors factors = Estimate(*NewRangeEstimator(settings), batches);
    EXPECT_EQ(has_half_scales ? Float16Scale(factors.scale) : factors.scale, scale) << input;
    EXPECT_EQ(factors.offset, offset) << input;
    ++checked;
  };
  for (const auto& entry : parsed->record.record()) {
    const nlohmann::json& layer = config[entry.key()];
    if (entry.has_kv_cache_value()) {
      const nlohmann::json& parameters = layer["kv_data_quant_config"];
      const ActivationConfig settings = ReadConfig(parameters, activation_offset);
      const size_t channels = parameters["quant_granularity"] == 1 ? activations.Dims(entry.key() + "__0").back() : 1;
      ASSERT_EQ(entry.kv_cache_value().scale_size(), channels);
      const std::vector<std::vector<float>> batches = Batches(activations, entry.key());
      for (size_t channel = 0; channel < channels; ++channel) {
        std::vector<std::vector<float>> own;
        for (const std::vector<float>& batch : batches) {
          std::vector<float>& values = own.emplace_back();
          for (size_t i = channel; i < batch.size(); i += channels) {
            values.push_back(batch[i]);
          }
        }
        const ActivationFactors factors = Estimate(*NewRangeEstimator(settings), own);
        EXPECT_EQ(factors.scale, entry.kv_cache_value().scale(static_cast<int>(channel))) << entry.key() << channel;
        EXPECT_EQ(factors.offset, entry.kv_cache_value().offset(static_cast<int>(channel))) << entry.key() << channel;
        ++checked;
      }
      continue;
    }
    const ActivationConfig settings = ReadConfig(layer["activation_quant_params"], activation_offset);
    check(entry.key(), settings, entry.value().scale_d(), entry.value().offset_d());
    if (entry.value().has_scale_h()) {
      check(entry.key() + "#h", settings, entry.value().scale_h(), entry.value().offset_h());
    }
  }
  EXPECT_GT(checked, 0);
}

}  // namespace
}  // namespace modelpress::engine
