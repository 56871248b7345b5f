// HFMG (docs/spec/ptq.md section 8.2): the range is that part of a histogram which quantizes with the smallest expected error.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/calibrate/estimators.h"
#include "engine/kernels/calibrate_scalar.h"

namespace modelpress::engine {
namespace {

// Whether two ends of histograms count as the same.
bool IsClose(float a, float b) {
  const double x = a;
  const double y = b;
  return std::fabs(x - y) <= std::max(1e-9 * std::max(std::fabs(x), std::fabs(y)), static_cast<double>(kMinScale));
}

std::vector<int64_t> CountBins(const Blocks& blocks, float low, float high, int bins, int threads) {
  if (low == high) {
    low -= 1;
    high += 1;
  }
  const uint64_t shards = UsefulThreads(threads, blocks.values());
  std::vector<std::vector<int64_t>> counts(shards, std::vector<int64_t>(bins));
  if (low == high) {  // so great that one more or less makes no difference
    counts.front().front() = static_cast<int64_t>(blocks.values());
    return counts.front();
  }
  ParallelFor(threads, shards, [&](uint64_t shard) {
    std::vector<float> scratch;
    std::vector<int32_t> indices(Blocks::kSize);
    for (uint64_t b = shard; b < blocks.count(); b += shards) {
      const absl::Span<const float> values = blocks.Get(b, scratch);
      FindBins(values, low, high, bins, indices.data());
      for (const int32_t bin : absl::MakeConstSpan(indices).first(values.size())) {
        ++counts[shard][bin];
      }
    }
  });
  for (uint64_t shard = 1; shard < shards; ++shard) {
    std::transform(counts[shard].begin(), counts[shard].end(), counts[0].begin(), counts[0].begin(), std::plus<>());
  }
  return counts.front();
}

// Ranges of bins, each within the one before, that leave out more and more values at the two ends.
std::vector<std::pair<int, int>> CandidateRanges(const std::vector<int64_t>& counts, uint64_t total) {
  const auto bins = static_cast<int>(counts.size());
  const auto share = static_cast<int64_t>(std::max(std::ceil(static_cast<double>(total) / 100000), 1.0));
  const int narrowest = (bins + 3) / 4;
  std::vector<std::pair<int, int>> ranges;
  int low = 0;
  int high = bins - 1;
  while (high - low > narrowest) {
    int next_low = low;
    int next_high = high;
    for (int64_t cut = 0; next_low < next_high && cut < share; ++next_low) {
      cut += counts[next_low];
    }
    for (int64_t cut = 0; next_low < next_high && cut < share; --next_high) {
      cut += counts[next_high];
    }
    if (high - next_high >= next_low - low) {
      high = next_high;
    } else {
      low = next_low;
    }
    ranges.emplace_back(low, high);
  }
  if (ranges.empty()) {
    ranges.emplace_back(low, high);
  }
  return ranges;
}

class HfmgEstimator final : public RangeEstimator {
 public:
  explicit HfmgEstimator(const ActivationConfig& config) : config_(config), histogram_(config.bins) {}

  bool wants_pass() const override { return !is_done_; }

  absl::Status Add(absl::Span<const absl::Span<const float>> batch, int threads) override {
    threads_ = std::max(threads, 1);
    return histogram_.Add(batch, threads);
  }

  absl::Status EndPass() override {
    is_done_ = true;
    if (histogram_.total() == 0) {
      return NoValuesError();
    }
    const HistogramSearch search = SearchHistogram(histogram_, config_.bits, threads_);
    const float lowest = -static_cast<float>(1 << (config_.bits - 1));
    if (config_.asymmetric) {
      const float high = std::max(search.clip_maximum, 0.0f);
      const float low = std::min(search.clip_minimum, 0.0f);
      const float scale = (high - low) / static_cast<float>((1 << config_.bits) - 1);
      factors_ = {.scale = 1, .offset = static_cast<int>(lowest)};
      if (scale >= kMinScale) {
        factors_ = {.scale = scale, .offset = static_cast<int>(std::nearbyint(lowest - low / scale))};
      }
    } else {
      const float high = std::fabs(search.clip_maximum);
      const float low = std::fabs(search.clip_minimum);
      const float scale = std::max(high, low) / (high < low ? -lowest : -lowest - 1);
      factors_ = {.scale = scale < kMinScale ? 1 : scale, .offset = 0};
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ActivationFactors> Factors() const override {
    if (!is_done_ || histogram_.total() == 0) {
      return NoValuesError();
    }
    return factors_;
  }

  ActivationStatistics Statistics() const override {
    ActivationStatistics statistics = {
        .count = histogram_.total(), .minimum = histogram_.minimum(), .maximum = histogram_.maximum()};
    SetClipRange(factors_, config_.bits, statistics);
    return statistics;
  }

  state::RangeEstimator Save() const override {
    state::RangeEstimator state;
    state::Hfmg& hfmg = *state.mutable_hfmg();
    histogram_.Save(hfmg);
    hfmg.set_is_done(is_done_);
    hfmg.set_scale(factors_.scale);
    hfmg.set_offset(factors_.offset);
    return state;
  }

  bool Load(const state::RangeEstimator& state) override {
    if (!state.has_hfmg() || !histogram_.Load(state.hfmg())) {
      return false;
    }
    is_done_ = state.hfmg().is_done();
    factors_ = {.scale = state.hfmg().scale(), .offset = state.hfmg().offset()};
    return true;
  }

 private:
  const ActivationConfig config_;
  MergingHistogram histogram_;
  bool is_done_ = false;
  int threads_ = 1;
  ActivationFactors factors_;
};

}  // namespace

absl::Status MergingHistogram::Add(absl::Span<const absl::Span<const float>> batch, int threads) {
  const Blocks blocks(batch);
  if (blocks.values() == 0) {
    return NoValuesError();
  }
  const uint64_t shards = UsefulThreads(threads, blocks.values());
  struct Range {
    float low = std::numeric_limits<float>::infinity();
    float high = -std::numeric_limits<float>::infinity();
    uint64_t bad = std::numeric_limits<uint64_t>::max();  // first value that is not finite
    float value = 0;
  };
  std::vector<Range> ranges(shards);
  ParallelFor(threads, shards, [&](uint64_t shard) {
    std::vector<float> scratch;
    Range& range = ranges[shard];
    for (uint64_t b = shard; b < blocks.count(); b += shards) {
      const absl::Span<const float> values = blocks.Get(b, scratch);
      if (const size_t bad = WidenRange(values, &range.low, &range.high); bad < values.size()) {
        range.bad = b * Blocks::kSize + bad;
        range.value = values[bad];
        return;
      }
    }
  });
  const auto bad = std::min_element(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.bad < b.bad; });
  if (bad->bad != std::numeric_limits<uint64_t>::max()) {
    return NotFiniteError(bad->bad, bad->value);
  }
  float low = total_ == 0 ? ranges.front().low : minimum_;
  float high = total_ == 0 ? ranges.front().high : maximum_;
  for (const Range& range : ranges) {
    low = std::min(low, range.low);
    high = std::max(high, range.high);
  }
  const auto bins = static_cast<float>(counts_.size());
  if (!std::isfinite((high - low) * bins)) {
    return MakeError(v1::CALIBRATION_FAILED,
                     absl::StrCat("the values go from ", low, " to ", high,
                                  ", too wide a range for a histogram: check the calibration data and the model"));
  }
  std::vector<int64_t> old = CountBins(blocks, low, high, static_cast<int>(counts_.size()), threads);
  std::swap(old, counts_);
  const float old_low = std::exchange(minimum_, low);
  const float old_high = std::exchange(maximum_, high);
  if (total_ > 0) {
    MergeOld(old, old_low, old_high);
  }
  total_ += blocks.values();
  return absl::OkStatus();
}

void MergingHistogram::Save(state::Hfmg& state) const {
  state.mutable_counts()->Assign(counts_.begin(), counts_.end());
  state.set_total(total_);
  state.set_minimum(minimum_);
  state.set_maximum(maximum_);
}

bool MergingHistogram::Load(const state::Hfmg& state) {
  if (state.counts_size() != static_cast<int>(counts_.size())) {
    return false;
  }
  std::copy(state.counts().begin(), state.counts().end(), counts_.begin());
  total_ = state.total();
  minimum_ = state.minimum();
  maximum_ = state.maximum();
  return true;
}

void MergingHistogram::MergeOld(const std::vector<int64_t>& old, float old_minimum, float old_maximum) {
  if (IsClose(minimum_, old_minimum) && IsClose(maximum_, old_maximum)) {
    std::transform(old.begin(), old.end(), counts_.begin(), counts_.begin(), std::plus<>());
    return;
  }
  const auto bins = static_cast<float>(counts_.size());
  const float last = bins - 1;
  const float width = (maximum_ - minimum_) / bins;
  const float old_width = (old_maximum - old_minimum) / bins;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i] == 0) {
      continue;
    }
    const float low = old_minimum + static_cast<float>(i) * old_width;
    const float high = old_minimum + static_cast<float>(i + 1) * old_width;
    // Rounding may put an end of the old range a bin beyond the new one.
    const float first_bin = std::clamp(scalar::FloorDivide(low - minimum_, width), 0.0f, last);
    const float last_bin = std::clamp(scalar::FloorDivide(high - minimum_, width), first_bin, last);
    if (first_bin == last_bin) {
      counts_[static_cast<size_t>(first_bin)] += old[i];
      continue;
    }
    const float border = minimum_ + (first_bin + 1) * width;
    const float share = (border - low) / (high - low);
    const auto moved = static_cast<int64_t>(static_cast<float>(old[i]) * share);
    counts_[static_cast<size_t>(first_bin)] += moved;
    counts_[static_cast<size_t>(last_bin)] += old[i] - moved;
  }
}

HistogramSearch SearchHistogram(const MergingHistogram& histogram, int bits, int threads) {
  const std::vector<int64_t>& counts = histogram.counts();
  const auto bins = static_cast<float>(counts.size());
  const float width = (histogram.maximum() - histogram.minimum()) / bins;
  const float start = histogram.minimum() + 0 * width;
  const float end = histogram.minimum() + bins * width;
  const float step = (end - start) / bins;
  HistogramSearch search;
  search.ranges = CandidateRanges(counts, histogram.total());
  search.losses.resize(search.ranges.size());
  // Empty bins add nothing, unless the cubes overflow: then they make the loss NaN, which counts as the smallest.
  const bool all_bins = !(end - start < 1e12f);
  std::vector<float> positions;
  std::vector<float> densities;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] != 0 || all_bins) {
      positions.push_back(static_cast<float>(i));
      densities.push_back(static_cast<float>(counts[i]) / step);
    }
  }
  const size_t padded = (positions.size() + kCalibrateLanes - 1) / kCalibrateLanes * kCalibrateLanes;
  positions.resize(padded, positions.empty() ? 0 : positions.back());
  densities.resize(padded, 0);
  const int levels = 1 << bits;
  ParallelFor(UsefulThreads(threads, padded * search.ranges.size()), search.ranges.size(), [&](uint64_t i) {
    const auto [first, last] = search.ranges[i];
    const float level_width = (step * static_cast<float>(last - first + 1)) / static_cast<float>(levels);
    search.losses[i] =
        level_width < kMinScale ? 0 : HistogramLoss(positions, densities, static_cast<float>(first), step, levels, level_width);
  });
  size_t best = 0;
  for (size_t i = 1; i < search.losses.size() && !std::isnan(search.losses[best]); ++i) {
    if (search.losses[i] < search.losses[best] || std::isnan(search.losses[i])) {
      best = i;
    }
  }
  const auto [first, last] = search.ranges[best];
  search.clip_minimum = start + static_cast<float>(first) * step;
  search.clip_maximum = start + static_cast<float>(last + 1) * step;
  return search;
}

std::unique_ptr<RangeEstimator> NewHfmgEstimator(const ActivationConfig& config) {
  return std::make_unique<HfmgEstimator>(config);
}

}  // namespace modelpress::engine
