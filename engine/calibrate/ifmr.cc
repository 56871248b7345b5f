// IFMR (docs/spec/ptq.md section 8.1): percentiles of the values give a range, and the scale is that of the candidate range
// around it with the smallest mean squared error. The values go by in up to three passes:
//   1. count them, in total and by their leading bits, and keep the greatest and the smallest ones;
//   2. only where a percentile is not among those: find it among the values of its bucket;
//   3. sum up the errors of the candidates that may be the best one. Often the histogram leaves a single one, and the pass is
//   dropped.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/calibrate/estimators.h"
#include "engine/calibrate/value_histogram.h"

namespace modelpress::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Most candidates that are searched: each costs a pass over all values.
constexpr double kMaxCandidates = 1 << 16;

// Where rounding the errors' squares to float32 cannot overflow.
constexpr float kMaxBoundable = 1e18f;

// The greatest values of those that are greater than zero.
class GreatestValues {
 public:
  static constexpr size_t kCount = 1024;

  // Values up to this one need not be added.
  float threshold() const { return threshold_; }

  void Add(float value) {
    if (value > threshold_) {
      values_.push_back(value);
      if (values_.size() == 4 * kCount) {
        Shrink();
      }
    }
  }
  void Add(const GreatestValues& other) {
    for (const float value : other.values_) {
      Add(value);
    }
    threshold_ = std::max(threshold_, other.threshold_);
  }
  // The kth greatest value, 0 where fewer are greater than zero; k counts from 1. None: not among those kept.
  std::optional<float> Find(uint64_t k) {
    if (k > values_.size()) {
      return threshold_ == 0 ? std::optional<float>(0) : std::nullopt;
    }
    if (k > kCount && threshold_ != 0) {
      return std::nullopt;  // those behind the first kCount may have gone
    }
    const auto at = values_.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(values_.begin(), at, values_.end(), std::greater<>());
    return *at;
  }

  void Save(state::Ifmr::GreatestValues& state) const {
    state.mutable_values()->Assign(values_.begin(), values_.end());
    state.set_threshold(threshold_);
  }
  void Load(const state::Ifmr::GreatestValues& state) {
    values_.assign(state.values().begin(), state.values().end());
    threshold_ = state.threshold();
  }

 private:
  void Shrink() {
    const auto last = values_.begin() + kCount - 1;
    std::nth_element(values_.begin(), last, values_.end(), std::greater<>());
    threshold_ = *last;
    values_.resize(kCount);
  }

  std::vector<float> values_;
  float threshold_ = 0;
};

// What one thread collects in the first pass.
struct Collector {
  float minimum = kInfinity;
  float maximum = -kInfinity;
  GreatestValues greatest;
  GreatestValues smallest;  // negated
  ValueHistogram nonzero;
  std::vector<float> block;
  std::vector<float> chosen;

  // Index of the first value that is not finite, or values.size().
  size_t Add(absl::Span<const float> values) {
    float low = kInfinity;
    float high = -kInfinity;
    if (const size_t bad = WidenRange(values, &low, &high); bad < values.size()) {
      return bad;
    }
    minimum = std::min(minimum, low);
    maximum = std::max(maximum, high);
    chosen.resize(Blocks::kSize + kCalibrateLanes);
    if (low < -smallest.threshold() || high > greatest.threshold()) {
      const size_t count = CopyOutside(values, -smallest.threshold(), greatest.threshold(), chosen.data());
      for (const float value : absl::MakeConstSpan(chosen).first(count)) {
        value > 0 ? greatest.Add(value) : smallest.Add(-value);
      }
    }
    const size_t count = CopyNonzero(values, chosen.data());
    nonzero.Add(absl::MakeConstSpan(chosen).first(count));
    return values.size();
  }

  void MergeEnds(const Collector& other) {
    minimum = std::min(minimum, other.minimum);
    maximum = std::max(maximum, other.maximum);
    greatest.Add(other.greatest);
    smallest.Add(other.smallest);
  }
};

// A percentile that the first pass only narrowed down to a bucket: counts of the bucket's values by their last bits.
struct Quantile {
  bool known = true;
  float value = 0;
  uint32_t bucket = 0;
  uint64_t rank = 0;  // of the value in the bucket, from its outer end, from 1 on
};

using LowCounts = std::array<uint64_t, ValueHistogram::kValuesPerBucket>;

void Save(const Quantile& quantile, state::Ifmr::Quantile& state) {
  state.set_known(quantile.known);
  state.set_value(quantile.value);
  state.set_bucket(quantile.bucket);
  state.set_rank(quantile.rank);
}

Quantile Load(const state::Ifmr::Quantile& state) {
  return {.known = state.known(), .value = state.value(), .bucket = state.bucket(), .rank = state.rank()};
}

void Save(absl::Span<const ValueHistogram::Bucket> buckets, state::Ifmr::Histogram& state) {
  state.mutable_skipped()->Reserve(static_cast<int>(buckets.size()));
  state.mutable_counts()->Reserve(static_cast<int>(buckets.size()));
  state.mutable_low_sums()->Reserve(static_cast<int>(buckets.size()));
  uint32_t next = 0;
  for (const ValueHistogram::Bucket& bucket : buckets) {
    state.add_skipped(bucket.id - next);
    state.add_counts(bucket.count);
    state.add_low_sums(bucket.low_sum);
    next = bucket.id + 1;
  }
}

// None: no histogram.
std::optional<std::vector<ValueHistogram::Bucket>> Load(const state::Ifmr::Histogram& state) {
  if (state.counts_size() != state.skipped_size() || state.low_sums_size() != state.skipped_size()) {
    return std::nullopt;
  }
  std::vector<ValueHistogram::Bucket> buckets;
  buckets.reserve(state.skipped_size());
  uint64_t id = 0;
  for (int i = 0; i < state.skipped_size(); ++i, ++id) {
    id += state.skipped(i);
    if (id >= ValueHistogram::kBuckets) {
      return std::nullopt;
    }
    buckets.push_back(ValueHistogram::MakeBucket(static_cast<uint32_t>(id), state.counts(i), state.low_sums(i)));
  }
  return buckets;
}

// Rank of the percentile's value from the end.
uint64_t RankOf(double percentile, uint64_t count) {
  if (1 - percentile < static_cast<double>(kMinScale)) {
    return 1;
  }
  const auto inside = static_cast<uint64_t>(std::max(0.0, percentile) * static_cast<double>(count));
  return std::clamp<uint64_t>(count - std::min(inside, count), 1, count);
}

// Finds the bucket of the kth value from the end where `buckets` begin. There are at least k values.
template <typename Iterator>
Quantile Narrow(Iterator bucket, uint64_t k) {
  while (k > bucket->count) {
    k -= bucket->count;
    ++bucket;
  }
  return {.known = false, .bucket = bucket->id, .rank = k};
}

// Bounds of a candidate's loss, less a number that is the same for all candidates: the sum of x^2.
struct LossBounds {
  long double low = 0;
  long double high = 0;
};

// Bounds the losses of candidates by the histogram alone. Over the values of a bucket, with count n and sum S, that are all
// quantized to the same q, the sum of (x - q)^2 is n q^2 - 2 q S + sum of x^2, exactly. So only the few buckets in which q
// changes are uncertain, and their mean narrows that down too.
class LossBounder {
 public:
  explicit LossBounder(std::vector<ValueHistogram::Bucket> buckets) : buckets_(std::move(buckets)) {
    counts_.reserve(buckets_.size() + 1);
    sums_.reserve(buckets_.size() + 1);
    squares_.reserve(buckets_.size());
    lasts_.reserve(buckets_.size());
    counts_.push_back(0);
    sums_.push_back(0);
    for (const ValueHistogram::Bucket& bucket : buckets_) {
      counts_.push_back(counts_.back() + bucket.count);
      sums_.push_back(sums_.back() + bucket.sum);
      absolute_sum_ += std::fabs(bucket.sum);
      squares_.push_back(Squares(bucket));
      lasts_.push_back(bucket.last);
      greatest_squares_ += squares_.back().high;
    }
  }

  LossBounds Bound(const ClipCandidate& candidate) const {
    LossBounds bounds;
    long double magnitude = 0;  // of what is added up
    for (size_t i = 0; i < buckets_.size();) {
      const ValueHistogram::Bucket& bucket = buckets_[i];
      if (bucket.last - bucket.first > 2 * candidate.scale && bucket.first >= candidate.low && bucket.last <= candidate.high) {
        // Too wide to say where in it q changes, but all values are near their q.
        const LossBounds part = BoundBlind(candidate, 0, i);
        bounds.low += part.low;
        bounds.high += part.high;
        magnitude += std::fabs(part.low) + std::fabs(part.high);
        ++i;
        continue;
      }
      const float q = Quantize(candidate, bucket.first);
      const size_t end = EndOf(candidate, q, i);
      if (end > i) {
        const auto count = static_cast<long double>(counts_[end] - counts_[i]);
        const long double part = count * q * q - 2.0L * q * (sums_[end] - sums_[i]);
        bounds.low += part;
        bounds.high += part;
        magnitude += count * q * q + 2.0L * std::fabs(q) * absolute_sum_;
        i = end;
      } else {
        const LossBounds part = BoundMixed(candidate, q, i);
        bounds.low += part.low;
        bounds.high += part.high;
        magnitude += std::fabs(part.low) + std::fabs(part.high) + 4 * squares_[i].high;
        ++i;
      }
    }
    // What rounding can do: the prefix sums and these sums here, of long doubles; the terms of the loss, of float32; their sum,
    // of float64, by blocks.
    const long double rounding =
        magnitude * std::numeric_limits<long double>::epsilon() * 4 * static_cast<long double>(buckets_.size() + 8);
    const auto count = static_cast<long double>(counts_.back());
    const long double loss = std::max(0.0L, bounds.high + greatest_squares_) + rounding;
    const long double relative = 1e-6L + count * std::numeric_limits<double>::epsilon() / 8192;
    const long double allowance = rounding + loss * relative + count * std::numeric_limits<float>::denorm_min();
    bounds.low -= allowance;
    bounds.high += allowance;
    return bounds;
  }

 private:
  // As the kernels do it: every step is monotone in x, so equal results for two values hold for all in between.
  static float Quantize(const ClipCandidate& candidate, float x) {
    const float clipped = std::min(std::max(x, candidate.low), candidate.high);
    // Rounds to even, as the quotient is far below 2^22; faster than a call.
    constexpr float kRounder = 0x1.8p23f;
    return (clipped / candidate.scale + kRounder - kRounder) * candidate.scale;
  }

  // The sum of x^2 over a bucket: at least that of its mean, at most that of the chord.
  static LossBounds Squares(const ValueHistogram::Bucket& bucket) {
    const long double first = bucket.first;
    const long double last = bucket.last;
    const auto count = static_cast<long double>(bucket.count);
    const long double low = bucket.sum / count * bucket.sum;
    return {low, std::max(low, (first + last) * bucket.sum - count * first * last)};
  }

  // The first bucket from `begin` on that has a value with another q. All of q from `begin` to there.
  size_t EndOf(const ClipCandidate& candidate, float q, size_t begin) const {
    const auto is_inside = [&](size_t i) { return Quantize(candidate, buckets_[i].last) == q; };
    // Where q should change, up to rounding.
    const float edge = q + candidate.scale / 2;
    size_t end = edge > candidate.high
                     ? buckets_.size()
                     : std::lower_bound(lasts_.begin() + static_cast<std::ptrdiff_t>(begin), lasts_.end(), edge) - lasts_.begin();
    while (end > begin && !is_inside(end - 1)) {
      --end;
    }
    while (end < buckets_.size() && is_inside(end)) {
      ++end;
    }
    return end;
  }

  // Nothing is known of the bucket's values but how far one can be from its q: half a step, or `error` where that is more.
  LossBounds BoundBlind(const ClipCandidate& candidate, long double error, size_t index) const {
    const ValueHistogram::Bucket& bucket = buckets_[index];
    const float rounding = std::max(std::fabs(bucket.first), std::fabs(bucket.last)) * 0x1p-21f;
    error = std::max(error, candidate.scale / 2.0L + rounding);
    return {-squares_[index].high, static_cast<long double>(bucket.count) * error * error - squares_[index].low};
  }

  // A bucket in which q changes, from `first_q` on.
  LossBounds BoundMixed(const ClipCandidate& candidate, float first_q, size_t index) const {
    const ValueHistogram::Bucket& bucket = buckets_[index];
    const float last_q = Quantize(candidate, bucket.last);
    const long double step = static_cast<long double>(last_q) - first_q;
    const auto count = static_cast<long double>(bucket.count);
    const long double first = bucket.first;
    const long double last = bucket.last;
    if (step < 1.5L * candidate.scale) {
      // One step at `edge`, up to rounding. Behind it the error is smaller by 2 step (x - edge) than with first_q, so that
      // the sum of max(0, x - edge) is wanted: convex in x, it lies between its value at the mean and that of the chord.
      const long double edge = (static_cast<long double>(first_q) + last_q) / 2;
      const long double inside = std::clamp(edge, first, last);
      const long double low = std::max(0.0L, bucket.sum - count * edge);
      const long double high = std::max(low, (bucket.sum - count * first) * ((last - inside) / (last - first)));
      const long double blur = count * std::fabs(edge) * 0x1p-21L;  // the step may be this far from `edge`, for each value
      const long double constant = count * first_q * first_q - 2.0L * first_q * bucket.sum;
      return {constant - 2 * step * (high + blur), constant - 2 * step * (low - blur)};
    }
    return BoundBlind(candidate, std::max(first_q - first, last - last_q), index);
  }

  std::vector<ValueHistogram::Bucket> buckets_;
  std::vector<float> lasts_;       // of the buckets
  std::vector<uint64_t> counts_;   // of all buckets before
  std::vector<long double> sums_;  // of all values in the buckets before
  long double absolute_sum_ = 0;
  std::vector<LossBounds> squares_;  // bounds of the sum of x^2, for each bucket
  long double greatest_squares_ = 0;
};

class IfmrEstimator final : public RangeEstimator {
 public:
  IfmrEstimator(const ActivationConfig& config, const IfmrOptions& options)
      : config_(config), options_(options), collectors_(1) {}

  bool wants_pass() const override { return pass_ != Pass::kNone; }

  absl::Status Add(absl::Span<const absl::Span<const float>> batch, int threads) override {
    const Blocks blocks(batch);
    if (blocks.values() == 0) {
      return NoValuesError();
    }
    passed_ += blocks.values();
    threads_ = std::max(threads, 1);
    switch (pass_) {
      case Pass::kCollect:
        return Collect(blocks, threads);
      case Pass::kQuantiles:
        CountLowBits(blocks, threads);
        break;
      case Pass::kLosses:
        AddLosses(blocks, threads);
        break;
      case Pass::kNone:
        break;
    }
    return absl::OkStatus();
  }

  absl::Status EndPass() override {
    status_ = FinishPass();
    if (!status_.ok()) {
      pass_ = Pass::kNone;
    }
    passed_ = 0;
    return status_;
  }

  absl::StatusOr<ActivationFactors> Factors() const override {
    MP_RETURN_IF_ERROR(status_);
    if (pass_ != Pass::kNone) {
      return MakeError(v1::CALIBRATION_FAILED, "the calibration data was not shown to the end");
    }
    const float scale = candidates_[best_].scale;
    const int offset = config_.asymmetric ? static_cast<int>(-std::nearbyint(low_.value / scale)) - (1 << (config_.bits - 1)) : 0;
    return ActivationFactors{.scale = scale, .offset = offset};
  }

  ActivationStatistics Statistics() const override {
    ActivationStatistics statistics = {.count = count_, .minimum = minimum_, .maximum = maximum_};
    if (const auto factors = Factors(); factors.ok()) {
      SetClipRange(*factors, config_.bits, statistics);
    }
    return statistics;
  }

  state::RangeEstimator Save() const override {
    state::RangeEstimator state;
    state::Ifmr& ifmr = *state.mutable_ifmr();
    ifmr.set_pass(static_cast<int>(pass_));
    ifmr.set_passed(passed_);
    ifmr.set_count(count_);
    ifmr.set_minimum(minimum_);
    ifmr.set_maximum(maximum_);
    engine::Save(low_, *ifmr.mutable_low());
    engine::Save(high_, *ifmr.mutable_high());
    switch (pass_) {
      case Pass::kCollect:
        SaveCollectors(ifmr);
        break;
      case Pass::kQuantiles:
        engine::Save(buckets_, *ifmr.mutable_nonzero());
        for (const LowCounts& counts : low_counts_) {
          ifmr.mutable_low_counts()->Add(counts.begin(), counts.end());
        }
        break;
      case Pass::kLosses:
        ifmr.mutable_searched()->Add(searched_.begin(), searched_.end());
        ifmr.mutable_losses()->Add(losses_.begin(), losses_.end());
        break;
      case Pass::kNone:
        ifmr.set_best(static_cast<uint32_t>(best_));
        break;
    }
    return state;
  }

  bool Load(const state::RangeEstimator& state) override {
    if (!state.has_ifmr()) {
      return false;
    }
    IfmrEstimator loaded(config_, options_);
    if (!loaded.LoadFresh(state.ifmr())) {
      return false;
    }
    *this = std::move(loaded);
    return true;
  }

 private:
  enum class Pass { kCollect, kQuantiles, kLosses, kNone };

  // The histogram does not tell which collector counted a value, the ends do.
  void SaveCollectors(state::Ifmr& ifmr) const {
    std::vector<const ValueHistogram*> others;
    others.reserve(collectors_.size());
    for (const Collector& collector : collectors_) {
      state::Ifmr::Collector& saved = *ifmr.add_collectors();
      saved.set_minimum(collector.minimum);
      saved.set_maximum(collector.maximum);
      collector.greatest.Save(*saved.mutable_greatest());
      collector.smallest.Save(*saved.mutable_smallest());
      if (&collector != &collectors_.front()) {
        others.push_back(&collector.nonzero);
      }
    }
    engine::Save(collectors_.front().nonzero.Buckets(others), *ifmr.mutable_nonzero());
  }

  // Load into an estimator that has seen nothing; of no use where it fails.
  bool LoadFresh(const state::Ifmr& ifmr) {
    passed_ = ifmr.passed();
    count_ = ifmr.count();
    minimum_ = ifmr.minimum();
    maximum_ = ifmr.maximum();
    low_ = engine::Load(ifmr.low());
    high_ = engine::Load(ifmr.high());
    std::optional<std::vector<ValueHistogram::Bucket>> buckets = engine::Load(ifmr.nonzero());
    if (!buckets.has_value()) {
      return false;
    }
    switch (ifmr.pass()) {
      case static_cast<int>(Pass::kCollect):
        pass_ = Pass::kCollect;
        return LoadCollectors(ifmr, *buckets);
      case static_cast<int>(Pass::kQuantiles):
        pass_ = Pass::kQuantiles;
        buckets_ = *std::move(buckets);
        if (ifmr.low_counts_size() != 2 * static_cast<int>(ValueHistogram::kValuesPerBucket)) {
          return false;
        }
        std::copy_n(ifmr.low_counts().begin(), ValueHistogram::kValuesPerBucket, low_counts_[0].begin());
        std::copy_n(ifmr.low_counts().begin() + ValueHistogram::kValuesPerBucket, ValueHistogram::kValuesPerBucket,
                    low_counts_[1].begin());
        return true;
      case static_cast<int>(Pass::kLosses):
        pass_ = Pass::kLosses;
        return LoadCandidates() && LoadLosses(ifmr);
      case static_cast<int>(Pass::kNone):
        pass_ = Pass::kNone;
        best_ = ifmr.best();
        return LoadCandidates() && best_ < candidates_.size();
      default:
        return false;
    }
  }

  bool LoadCollectors(const state::Ifmr& ifmr, absl::Span<const ValueHistogram::Bucket> buckets) {
    if (ifmr.collectors().empty()) {
      return false;
    }
    collectors_.resize(ifmr.collectors_size());
    for (int i = 0; i < ifmr.collectors_size(); ++i) {
      const state::Ifmr::Collector& saved = ifmr.collectors(i);
      collectors_[i].minimum = saved.minimum();
      collectors_[i].maximum = saved.maximum();
      collectors_[i].greatest.Load(saved.greatest());
      collectors_[i].smallest.Load(saved.smallest());
    }
    collectors_.front().nonzero.Add(buckets);
    return true;
  }

  bool LoadCandidates() {
    absl::StatusOr<std::vector<ClipCandidate>> candidates = ClipCandidates(config_, low_.value, high_.value);
    if (!candidates.ok()) {
      return false;
    }
    candidates_ = *std::move(candidates);
    return true;
  }

  bool LoadLosses(const state::Ifmr& ifmr) {
    if (ifmr.searched().empty() || ifmr.losses_size() != ifmr.searched_size()) {
      return false;
    }
    search_candidates_.reserve(ifmr.searched_size());
    for (const uint32_t i : ifmr.searched()) {
      if (i >= candidates_.size()) {
        return false;
      }
      searched_.push_back(i);
      search_candidates_.push_back(candidates_[i]);
    }
    losses_.assign(ifmr.losses().begin(), ifmr.losses().end());
    return true;
  }

  absl::Status Collect(const Blocks& blocks, int threads) {
    const uint64_t shards = UsefulThreads(threads, blocks.values());
    if (collectors_.size() < shards) {
      collectors_.resize(shards);
    }
    std::vector<uint64_t> bad(shards, blocks.count());  // the first block with a value that is not finite
    ParallelFor(threads, shards, [&](uint64_t shard) {
      Collector& collector = collectors_[shard];
      for (uint64_t b = shard; b < blocks.count(); b += shards) {
        const absl::Span<const float> values = blocks.Get(b, collector.block);
        if (collector.Add(values) < values.size()) {
          bad[shard] = b;
          break;
        }
      }
    });
    if (const uint64_t block = *std::min_element(bad.begin(), bad.end()); block < blocks.count()) {
      std::vector<float> scratch;
      const absl::Span<const float> values = blocks.Get(block, scratch);
      const auto value = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
      return NotFiniteError(block * Blocks::kSize + (value - values.begin()), *value);
    }
    return absl::OkStatus();
  }

  void CountLowBits(const Blocks& blocks, int threads) {
    const uint64_t shards = UsefulThreads(threads, blocks.values());
    // Of the buckets' values and those beyond; within (-inf, inf) where a percentile is known.
    const auto from = [](const Quantile& q, bool upper) {
      const uint32_t key = (q.bucket << ValueHistogram::kLowBits) + (upper ? -1U : ValueHistogram::kValuesPerBucket);
      return q.known ? (upper ? kInfinity : -kInfinity) : ValueHistogram::ValueOf(key);
    };
    const float low = from(low_, false);
    const float high = from(high_, true);
    std::vector<std::array<LowCounts, 2>> counts(shards);
    ParallelFor(threads, shards, [&](uint64_t shard) {
      std::vector<float> scratch;
      std::vector<float> chosen(Blocks::kSize + kCalibrateLanes);
      for (uint64_t b = shard; b < blocks.count(); b += shards) {
        const size_t count = CopyOutside(blocks.Get(b, scratch), low, high, chosen.data());
        for (const float value : absl::MakeConstSpan(chosen).first(count)) {
          const uint32_t key = ValueHistogram::KeyOf(value);
          const Quantile& quantile = value > 0 ? high_ : low_;
          if (!quantile.known && key >> ValueHistogram::kLowBits == quantile.bucket) {
            ++counts[shard][value > 0 ? 1 : 0][key % ValueHistogram::kValuesPerBucket];
          }
        }
      }
    });
    for (const std::array<LowCounts, 2>& shard : counts) {
      for (size_t side = 0; side < 2; ++side) {
        std::transform(shard[side].begin(), shard[side].end(), low_counts_[side].begin(), low_counts_[side].begin(),
                       std::plus<>());
      }
    }
  }

  void AddLosses(const Blocks& blocks, int threads) {
    const size_t candidates = searched_.size();
    // As many blocks at a time as keep their sums small; the number decides nothing else.
    const uint64_t wave = std::clamp<uint64_t>((1 << 20) / candidates, 8, 1 << 12);
    std::vector<double> sums(std::min(wave, blocks.count()) * candidates);
    for (uint64_t begin = 0; begin < blocks.count(); begin += wave) {
      const uint64_t count = std::min(wave, blocks.count() - begin);
      ParallelFor(UsefulThreads(threads, count * Blocks::kSize), count, [&](uint64_t b) {
        // Zeros add nothing to any loss: each candidate's range has them, and quantizes them to zero.
        std::vector<float> scratch;
        std::vector<float> nonzero(Blocks::kSize + kCalibrateLanes);
        const size_t size = CopyNonzero(blocks.Get(begin + b, scratch), nonzero.data());
        const size_t padded = (size + kCalibrateLanes - 1) / kCalibrateLanes * kCalibrateLanes;
        std::fill(nonzero.begin() + static_cast<std::ptrdiff_t>(size), nonzero.begin() + static_cast<std::ptrdiff_t>(padded),
                  0.0f);
        SumSquaredErrors(absl::MakeConstSpan(nonzero).first(padded), search_candidates_, sums.data() + b * candidates);
      });
      for (uint64_t b = 0; b < count; ++b) {
        for (size_t c = 0; c < candidates; ++c) {
          losses_[c] += sums[b * candidates + c];
        }
      }
    }
  }

  absl::Status FinishPass() {
    switch (pass_) {
      case Pass::kCollect:
        return FinishCollect();
      case Pass::kQuantiles:
        MP_RETURN_IF_ERROR(CheckCount());
        low_.value = FindLow(low_, low_counts_[0], false);
        high_.value = FindLow(high_, low_counts_[1], true);
        return StartSearch();
      case Pass::kLosses:
        MP_RETURN_IF_ERROR(CheckCount());
        best_ = searched_[std::min_element(losses_.begin(), losses_.end()) - losses_.begin()];
        pass_ = Pass::kNone;
        return absl::OkStatus();
      case Pass::kNone:
        return status_;
    }
    return status_;
  }

  absl::Status CheckCount() const {
    return passed_ == count_
               ? absl::OkStatus()
               : MakeError(v1::CALIBRATION_FAILED,
                           absl::StrCat("a layer got ", count_, " values when the calibration data went by the first time, and ",
                                        passed_, " the next time"));
  }

  absl::Status FinishCollect() {
    count_ = passed_;
    if (count_ == 0) {
      return NoValuesError();
    }
    if (SearchRatioCount(config_.search_start, config_.search_end, config_.search_step) > kMaxCandidates) {
      return MakeError(v1::CALIBRATION_FAILED, absl::StrCat("search_step ", config_.search_step, " makes more than ",
                                                            kMaxCandidates, " candidates: choose a greater one"));
    }
    Collector& all = collectors_.front();
    std::vector<const ValueHistogram*> others;
    for (size_t i = 1; i < collectors_.size(); ++i) {
      all.MergeEnds(collectors_[i]);
      others.push_back(&collectors_[i].nonzero);
    }
    minimum_ = all.minimum;
    maximum_ = all.maximum;
    buckets_ = all.nonzero.Buckets(others);
    const uint64_t low_rank = RankOf(config_.min_percentile, count_);
    const uint64_t high_rank = RankOf(config_.max_percentile, count_);
    const std::optional<float> low = all.smallest.Find(low_rank);
    const std::optional<float> high = all.greatest.Find(high_rank);
    const uint64_t negative = CountIf([](const auto& bucket) { return bucket.first < 0; });
    const uint64_t positive = CountIf([](const auto& bucket) { return bucket.last > 0; });
    if (low.has_value()) {
      low_.value = -*low;
    } else if (low_rank <= negative) {
      low_ = Narrow(buckets_.begin(), low_rank);
    }
    if (high.has_value()) {
      high_.value = *high;
    } else if (high_rank <= positive) {
      high_ = Narrow(buckets_.rbegin(), high_rank);
    }
    collectors_.clear();
    if (!low_.known || !high_.known) {
      pass_ = Pass::kQuantiles;
      return absl::OkStatus();
    }
    return StartSearch();
  }

  template <typename Predicate>
  uint64_t CountIf(Predicate predicate) const {
    return std::accumulate(
        buckets_.begin(), buckets_.end(), uint64_t{0},
        [&](uint64_t count, const ValueHistogram::Bucket& bucket) { return count + (predicate(bucket) ? bucket.count : 0); });
  }

  // The value of the quantile's rank.
  static float FindLow(const Quantile& quantile, const LowCounts& counts, bool from_above) {
    if (quantile.known) {
      return quantile.value;
    }
    uint64_t rank = quantile.rank;
    uint32_t low = from_above ? ValueHistogram::kValuesPerBucket - 1 : 0;
    // The counts add up to the bucket's, unless the values of this pass were others.
    for (uint32_t i = 1; i < ValueHistogram::kValuesPerBucket && rank > counts[low]; ++i) {
      rank -= counts[low];
      low = from_above ? low - 1 : low + 1;
    }
    return ValueHistogram::ValueOf((quantile.bucket << ValueHistogram::kLowBits) + low);
  }

  // With the range known: which candidates have to be searched.
  absl::Status StartSearch() {
    low_.known = high_.known = true;
    low_.value += 0.0f;  // no negative zero
    MP_ASSIGN_OR_RETURN(candidates_, ClipCandidates(config_, low_.value, high_.value));
    searched_.resize(candidates_.size());
    std::iota(searched_.begin(), searched_.end(), size_t{0});
    if (options_.preselect && std::max(-minimum_, maximum_) < kMaxBoundable) {
      Preselect();
    }
    buckets_ = {};
    if (searched_.size() == 1) {
      best_ = searched_.front();
      pass_ = Pass::kNone;
      return absl::OkStatus();
    }
    for (const size_t i : searched_) {
      search_candidates_.push_back(candidates_[i]);
    }
    losses_.assign(searched_.size(), 0);
    pass_ = Pass::kLosses;
    return absl::OkStatus();
  }

  void Preselect() {
    const LossBounder bounder(std::move(buckets_));
    std::vector<LossBounds> bounds(candidates_.size());
    ParallelFor(threads_, candidates_.size(), [&](uint64_t i) { bounds[i] = bounder.Bound(candidates_[i]); });
    const long double best = std::min_element(bounds.begin(), bounds.end(), [](const LossBounds& a, const LossBounds& b) {
                               return a.high < b.high;
                             })->high;
    searched_.erase(std::remove_if(searched_.begin(), searched_.end(), [&](size_t i) { return bounds[i].low > best; }),
                    searched_.end());
  }

  ActivationConfig config_;
  IfmrOptions options_;
  Pass pass_ = Pass::kCollect;
  uint64_t passed_ = 0;  // values of this pass
  int threads_ = 1;
  absl::Status status_;
  // First pass.
  std::vector<Collector> collectors_;
  std::vector<ValueHistogram::Bucket> buckets_;  // of the values but zeros
  uint64_t count_ = 0;
  float minimum_ = 0;
  float maximum_ = 0;
  // m and M.
  Quantile low_;
  Quantile high_;
  std::array<LowCounts, 2> low_counts_ = {};
  // The search.
  std::vector<ClipCandidate> candidates_;
  std::vector<size_t> searched_;
  std::vector<ClipCandidate> search_candidates_;  // those of `searched_`
  std::vector<double> losses_;                    // theirs: sums, not means
  size_t best_ = 0;
};

}  // namespace

double SearchRatioCount(double start, double end, double step) { return std::ceil((end - start) / step); }

std::vector<float> SearchRatios(double start, double end, double step) {
  const auto count = static_cast<int64_t>(std::max(0.0, SearchRatioCount(start, end, step)));
  std::vector<float> ratios(count);
  for (int64_t i = 0; i < count; ++i) {
    if (i < count / 16 * 16) {
      const auto base = static_cast<float>(start + step * static_cast<double>(i - i % 8));
      ratios[i] = static_cast<float>(static_cast<double>(base) + static_cast<double>(i % 8) * step);
    } else {
      ratios[i] = static_cast<float>(start + step * static_cast<double>(i));
    }
  }
  return ratios;
}

absl::StatusOr<std::vector<ClipCandidate>> ClipCandidates(const ActivationConfig& config, float minimum, float maximum) {
  const bool negative = std::fabs(maximum) < std::fabs(minimum);
  const auto half = static_cast<float>(1 << (config.bits - 1));
  const auto levels = static_cast<float>((1 << config.bits) - 1);
  const float greatest = config.asymmetric ? maximum : std::max(std::fabs(maximum), std::fabs(minimum));
  std::vector<ClipCandidate> candidates;
  for (const float ratio : SearchRatios(config.search_start, config.search_end, config.search_step)) {
    const float high = ratio * greatest;
    const float low = config.asymmetric ? minimum : -high;
    float scale = config.asymmetric ? (high - minimum) / levels : high / (negative ? half : half - 1);
    if (scale < kMinScale) {
      scale = 1;
    }
    if (!std::isfinite(scale) || !std::isfinite(1 / scale)) {
      return MakeError(v1::CALIBRATION_FAILED,
                       absl::StrCat("the values go from ", minimum, " to ", maximum,
                                    ", for which float32 has no scale: check the calibration data and the model"));
    }
    candidates.push_back({.low = low, .high = high, .scale = scale});
  }
  if (candidates.empty()) {
    return MakeError(v1::CALIBRATION_FAILED, "the search range has no candidate");
  }
  return candidates;
}

std::unique_ptr<RangeEstimator> NewIfmrEstimator(const ActivationConfig& config, const IfmrOptions& options) {
  return std::make_unique<IfmrEstimator>(config, options);
}

}  // namespace modelpress::engine
