#include "engine/calibrate/weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/calibrate/estimators.h"
#include "engine/kernels/calibrate.h"
#include "engine/model/element_payload.h"

namespace modelpress::engine {
namespace {

using onnx::TensorProto;

// Elements worked on at a time: their floats fit the second-level cache.
constexpr uint64_t kPiece = 64 << 10;
// Runs shorter than this are done element by element: one kernel call per run would cost more.
constexpr uint64_t kShortRun = 32;

// Calls fn(channel, offset, length) for the runs of elements of one channel in [first, first + count); `offset` counts from
// `first`.
template <typename Fn>
void ForEachRun(const ChannelMap& channels, uint64_t first, uint64_t count, const Fn& fn) {
  const uint64_t run = channels.period == 1 ? channels.block : channels.run;
  uint64_t block = first / channels.block;
  uint64_t in_block = first % channels.block;
  uint64_t channel = in_block / run % channels.period;
  uint64_t in_run = in_block % run;
  for (uint64_t done = 0; done < count;) {
    const uint64_t length = std::min(run - in_run, count - done);
    fn(block * channels.period + channel, done, length);
    done += length;
    in_block += length;
    in_run = 0;
    if (++channel == channels.period) {
      channel = 0;
    }
    if (in_block == channels.block) {
      ++block;
      in_block = 0;
      channel = 0;
    }
  }
}

absl::Status CheckMap(const Tensor& weight, const ChannelMap& channels) {
  if (weight.ElementCount() == 0) {
    return MakeError(v1::CALIBRATION_FAILED, "the weight is empty");
  }
  const bool fits = channels.run > 0 && channels.period > 0 && channels.block > 0 && channels.elements == weight.ElementCount() &&
                    channels.elements % channels.block == 0 && channels.block % (channels.run * channels.period) == 0;
  return fits ? absl::OkStatus()
              : MakeError(v1::INTERNAL_ERROR, absl::StrCat("the channels of weight '", weight.name(), "' do not fit it"));
}

// Calls fn(shard, first, values) for all pieces of a weight, those of one shard in order on one thread. CALIBRATION_FAILED for
// the first weight that is not finite.
template <typename Fn>
absl::Status ForEachPiece(const Tensor& weight, uint64_t shards, const Fn& fn) {
  const uint64_t elements = weight.ElementCount();
  const uint64_t pieces = (elements + kPiece - 1) / kPiece;
  std::vector<absl::Status> statuses(shards);
  ParallelFor(static_cast<int>(shards), shards, [&](uint64_t shard) {
    std::vector<float> values;
    for (uint64_t piece = pieces * shard / shards; piece < pieces * (shard + 1) / shards; ++piece) {
      const uint64_t first = piece * kPiece;
      values.resize(std::min(kPiece, elements - first));
      absl::Status& status = statuses[shard];
      status = ReadFloats(weight, first, absl::MakeSpan(values));
      if (!status.ok()) {
        return;
      }
      float low = 0;
      float high = 0;
      if (const size_t bad = WidenRange(values, &low, &high); bad < values.size()) {
        status = MakeError(v1::CALIBRATION_FAILED, absl::StrCat("a weight is not finite (element ", first + bad, ")"));
        return;
      }
      fn(shard, first, absl::MakeConstSpan(values));
    }
  });
  const auto failed = std::find_if(statuses.begin(), statuses.end(), [](const absl::Status& status) { return !status.ok(); });
  return failed == statuses.end() ? absl::OkStatus() : *failed;
}

struct Range {
  float low = std::numeric_limits<float>::infinity();
  float high = -std::numeric_limits<float>::infinity();

  void Widen(const Range& other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
  float MaxAbs() const { return std::max(std::fabs(low), std::fabs(high)); }
};

// As many shards as threads, as long as their results, of `bytes` each, stay within bounds.
uint64_t Shards(int threads, const Tensor& weight, uint64_t bytes) {
  constexpr uint64_t kMaxBytes = 512 << 20;
  return std::clamp<uint64_t>(kMaxBytes / std::max<uint64_t>(bytes, 1), 1, UsefulThreads(threads, weight.ElementCount()));
}

absl::StatusOr<std::vector<Range>> ChannelRanges(const Tensor& weight, const ChannelMap& channels, int threads) {
  MP_RETURN_IF_ERROR(CheckMap(weight, channels));
  const uint64_t shards = Shards(threads, weight, channels.channels() * sizeof(Range));
  std::vector<std::vector<Range>> ranges(shards, std::vector<Range>(channels.channels()));
  MP_RETURN_IF_ERROR(ForEachPiece(weight, shards, [&](uint64_t shard, uint64_t first, absl::Span<const float> values) {
    ForEachRun(channels, first, values.size(), [&](uint64_t channel, uint64_t offset, uint64_t length) {
      Range& range = ranges[shard][channel];
      if (length < kShortRun) {
        for (const float value : values.subspan(offset, length)) {
          range.Widen({.low = value, .high = value});
        }
      } else {
        WidenRange(values.subspan(offset, length), &range.low, &range.high);
      }
    });
  }));
  for (uint64_t shard = 1; shard < shards; ++shard) {
    for (size_t channel = 0; channel < ranges[0].size(); ++channel) {
      ranges[0][channel].Widen(ranges[shard][channel]);
    }
  }
  return std::move(ranges[0]);
}

// --- AdaRound's start: the clipping of a symmetric histogram that loses the least information when it is quantized. ---

constexpr int kKlBins = 512;
constexpr int kKlClips = 20;
constexpr int kKlLevels = 255;
using KlHistogram = std::array<int64_t, kKlBins>;

// Takes a little of every bin that is not zero for those that are, as the divergence needs none to be zero.
void Smooth(std::vector<double>& bins) {
  constexpr double kLittle = 0.0001;
  const auto zeros = static_cast<double>(std::count(bins.begin(), bins.end(), 0.0));
  const double share = kLittle * zeros / (static_cast<double>(bins.size()) - zeros);
  if (share >= 1) {
    return;
  }
  for (double& bin : bins) {
    bin = bin == 0 ? kLittle : bin + share;
  }
}

double Divergence(const std::vector<double>& p, const std::vector<double>& q) {
  double p_sum = 0;
  double q_sum = 0;
  for (size_t k = 0; k < p.size(); ++k) {
    p_sum += p[k];
    q_sum += q[k];
  }
  double divergence = 0;
  for (size_t k = 0; k < p.size(); ++k) {
    divergence += p[k] / p_sum * std::log(p[k] / p_sum / (q[k] / q_sum));
  }
  return divergence;
}

// `greatest`: max |w|, the upper end of the histogram.
float KlScale(const KlHistogram& histogram, float greatest) {
  if (greatest == 0) {
    return 1;
  }
  float scale = 1;
  double smallest = std::numeric_limits<double>::infinity();
  for (int clip = 0; clip < kKlClips; ++clip) {
    const int length = kKlBins - 2 * clip;
    std::vector<double> p(histogram.begin() + clip, histogram.begin() + clip + length);
    p.front() += static_cast<double>(std::accumulate(histogram.begin(), histogram.begin() + clip, int64_t{0}));
    p.back() += static_cast<double>(std::accumulate(histogram.end() - clip, histogram.end(), int64_t{0}));
    std::vector<double> q(length);
    const double merged = static_cast<double>(length) / kKlLevels;
    for (int level = 0; level < kKlLevels; ++level) {
      const auto begin = static_cast<int>(std::ceil(level * merged));
      const int end = level == kKlLevels - 1 ? length : std::min(length, static_cast<int>(std::ceil((level + 1) * merged)));
      double sum = 0;
      int used = 0;
      for (int k = begin; k < end; ++k) {
        sum += p[k];
        used += p[k] != 0 ? 1 : 0;
      }
      for (int k = begin; k < end; ++k) {
        q[k] = p[k] != 0 ? sum / used : 0;
      }
    }
    Smooth(p);
    Smooth(q);
    if (const double divergence = Divergence(p, q); divergence < smallest) {
      smallest = divergence;
      const float step = 2 * greatest / kKlBins;
      scale = (-greatest + static_cast<float>(clip) * step) / -128.0f;
    }
  }
  return scale < kMinScale ? 1 : scale;
}

// Values of `source` changed by `transform`, as elements of type T.
template <typename T>
class TransformedPayload final : public ElementPayload<T> {
 public:
  using Transform = std::function<absl::Status(uint64_t first, absl::Span<float> values)>;
  TransformedPayload(Tensor source, Transform transform)
      : ElementPayload<T>(source.ElementCount()), source_(std::move(source)), transform_(std::move(transform)) {}

 protected:
  absl::Status ReadElements(uint64_t first, absl::Span<T> out) const override {
    if constexpr (std::is_same_v<T, float>) {
      MP_RETURN_IF_ERROR(ReadFloats(source_, first, out));
      return transform_(first, out);
    } else {
      std::vector<float> values(std::min<uint64_t>(kPiece, out.size()));
      for (uint64_t done = 0; done < out.size(); done += kPiece) {
        const auto piece = absl::MakeSpan(values).first(std::min<uint64_t>(kPiece, out.size() - done));
        MP_RETURN_IF_ERROR(ReadFloats(source_, first + done, piece));
        MP_RETURN_IF_ERROR(transform_(first + done, piece));
        FloatToHalf(piece, out.data() + done);
      }
      return absl::OkStatus();
    }
  }

 private:
  Tensor source_;
  Transform transform_;
};

// A tensor whose type cannot be transformed.
class UnsupportedPayload final : public Payload {
 public:
  explicit UnsupportedPayload(const Tensor& source)
      : size_(source.payload == nullptr ? 0 : source.payload->size()),
        error_(MakeError(v1::TENSOR_INVALID, absl::StrCat("weight '", source.name(), "' has the type ",
                                                          TensorProto::DataType_Name(source.header.data_type()),
                                                          "; quantization needs FLOAT or FLOAT16"))) {}
  uint64_t size() const override { return size_; }
  absl::Status Read(uint64_t /*offset*/, absl::Span<uint8_t> /*out*/) const override { return error_; }

 private:
  uint64_t size_;
  absl::Status error_;
};

}  // namespace

absl::StatusOr<std::vector<float>> ArqScales(const Tensor& weight, const ChannelMap& channels, int bits, int threads) {
  MP_ASSIGN_OR_RETURN(const std::vector<Range> ranges, ChannelRanges(weight, channels, threads));
  const auto half = static_cast<float>(1 << (bits - 1));
  std::vector<float> scales(ranges.size());
  std::transform(ranges.begin(), ranges.end(), scales.begin(), [&](const Range& range) {
    const float scale = range.MaxAbs() / (std::fabs(range.high) < std::fabs(range.low) ? half : half - 1);
    return scale < kMinScale ? 1 : scale;
  });
  return scales;
}

absl::StatusOr<std::vector<float>> MaxAbs(const Tensor& weight, const ChannelMap& channels, int threads) {
  MP_ASSIGN_OR_RETURN(const std::vector<Range> ranges, ChannelRanges(weight, channels, threads));
  std::vector<float> greatest(ranges.size());
  std::transform(ranges.begin(), ranges.end(), greatest.begin(), [](const Range& range) { return range.MaxAbs(); });
  return greatest;
}

absl::StatusOr<std::vector<float>> KlScales(const Tensor& weight, const ChannelMap& channels, int threads) {
  MP_ASSIGN_OR_RETURN(const std::vector<float> greatest, MaxAbs(weight, channels, threads));
  if (const auto bad = std::find_if(greatest.begin(), greatest.end(), [](float a) { return !std::isfinite(2 * a * kKlBins); });
      bad != greatest.end()) {
    return MakeError(v1::CALIBRATION_FAILED, absl::StrCat("channel ", bad - greatest.begin(), " has a weight of magnitude ", *bad,
                                                          ", too great for a histogram"));
  }
  const uint64_t shards = Shards(threads, weight, greatest.size() * sizeof(KlHistogram));
  std::vector<std::vector<KlHistogram>> histograms(shards, std::vector<KlHistogram>(greatest.size()));
  std::vector<std::vector<int32_t>> bins(shards, std::vector<int32_t>(kPiece));
  MP_RETURN_IF_ERROR(ForEachPiece(weight, shards, [&](uint64_t shard, uint64_t first, absl::Span<const float> values) {
    ForEachRun(channels, first, values.size(), [&](uint64_t channel, uint64_t offset, uint64_t length) {
      if (greatest[channel] == 0) {
        return;
      }
      int32_t* const found = bins[shard].data();
      FindBins(values.subspan(offset, length), -greatest[channel], greatest[channel], kKlBins, found);
      for (uint64_t i = 0; i < length; ++i) {
        ++histograms[shard][channel][found[i]];
      }
    });
  }));
  std::vector<float> scales(greatest.size());
  ParallelFor(UsefulThreads(threads, scales.size() * kKlBins * kKlClips), scales.size(), [&](uint64_t channel) {
    KlHistogram& sum = histograms[0][channel];
    for (uint64_t shard = 1; shard < shards; ++shard) {
      std::transform(sum.begin(), sum.end(), histograms[shard][channel].begin(), sum.begin(), std::plus<>());
    }
    scales[channel] = KlScale(sum, greatest[channel]);
  });
  return scales;
}

absl::StatusOr<std::vector<float>> BalanceFactors(absl::Span<const float> activation_max, absl::Span<const float> weight_max,
                                                  double strength) {
  if (activation_max.size() != weight_max.size()) {
    return MakeError(v1::CALIBRATION_FAILED,
                     absl::StrCat("the input has ", activation_max.size(), " channels and the weight ", weight_max.size()));
  }
  const size_t count = activation_max.size();
  std::vector<float> factors(count, 1.0f);
  const auto is_zero = [](float value) { return value < kMinScale; };
  bool has_both = false;
  for (size_t c = 0; c < count; ++c) {
    has_both = has_both || !(is_zero(activation_max[c]) || is_zero(weight_max[c]));
  }
  if (!has_both) {  // nothing to balance
    return factors;
  }
  const auto power = [](float base, double exponent) {
    return exponent == 0.5
               ? std::sqrt(base)
               : static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(static_cast<float>(exponent))));
  };
  float activation_rest = 0;  // greatest values after balancing
  float weight_rest = 0;
  for (size_t c = 0; c < count; ++c) {
    factors[c] = is_zero(weight_max[c]) ? 0 : power(activation_max[c], strength) / power(weight_max[c], 1 - strength);
    if (!is_zero(factors[c])) {
      activation_rest = std::max(activation_rest, activation_max[c] / factors[c]);
      weight_rest = std::max(weight_rest, weight_max[c] * factors[c]);
    }
  }
  for (size_t c = 0; c < count; ++c) {
    if (is_zero(activation_max[c]) && is_zero(weight_max[c])) {
      factors[c] = 1;
    } else if (is_zero(activation_max[c])) {
      factors[c] = weight_rest / weight_max[c];
    } else if (is_zero(weight_max[c])) {
      factors[c] = activation_max[c] / activation_rest;
    }
    if (!(factors[c] > kMinScale && factors[c] < 1 / kMinScale)) {
      return MakeError(v1::CALIBRATION_FAILED,
                       absl::StrCat("channel ", c, " cannot be balanced: its greatest input is ", activation_max[c],
                                    ", its greatest weight ", weight_max[c], ", and their factor ", factors[c],
                                    " would be out of range; take the layer out of the balancing"));
    }
  }
  return factors;
}

Tensor Transformed(const Tensor& source, std::function<absl::Status(uint64_t first, absl::Span<float> values)> transform) {
  Tensor result;
  result.header = source.header;
  result.field = source.field;
  result.external = source.external;
  if (source.payload == nullptr) {
    return result;
  }
  if (source.header.data_type() == TensorProto::FLOAT) {
    result.field = DataField::kFloat;
    result.payload = std::make_shared<TransformedPayload<float>>(source, std::move(transform));
  } else if (source.header.data_type() == TensorProto::FLOAT16) {
    result.field = DataField::kRaw;
    result.payload = std::make_shared<TransformedPayload<uint16_t>>(source, std::move(transform));
  } else {
    result.payload = std::make_shared<UnsupportedPayload>(source);
  }
  return result;
}

Tensor FakeQuantized(const Tensor& source, const ChannelMap& channels, std::vector<float> scales, int bits) {
  return Transformed(source, [=](uint64_t first, absl::Span<float> values) {
    if (channels.run >= kShortRun) {
      ForEachRun(channels, first, values.size(), [&](uint64_t channel, uint64_t offset, uint64_t length) {
        FakeQuantizeInPlace(values.subspan(offset, length), scales[channel], bits);
      });
      return absl::OkStatus();
    }
    std::vector<float> by_element(std::min<uint64_t>(kPiece, values.size()));
    for (uint64_t done = 0; done < values.size(); done += kPiece) {
      const uint64_t count = std::min<uint64_t>(kPiece, values.size() - done);
      ForEachRun(channels, first + done, count, [&](uint64_t channel, uint64_t offset, uint64_t length) {
        std::fill_n(by_element.begin() + static_cast<std::ptrdiff_t>(offset), length, scales[channel]);
      });
      FakeQuantizeInPlaceByElement(values.subspan(done, count), by_element.data(), bits);
    }
    return absl::OkStatus();
  });
}

Tensor Multiplied(const Tensor& source, const ChannelMap& channels, std::vector<float> factors) {
  return Transformed(source, [=](uint64_t first, absl::Span<float> values) {
    ForEachRun(channels, first, values.size(), [&](uint64_t channel, uint64_t offset, uint64_t length) {
      for (float& value : values.subspan(offset, length)) {
        value *= factors[channel];
      }
    });
    return absl::OkStatus();
  });
}

}  // namespace modelpress::engine
