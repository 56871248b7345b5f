#include "engine/calibrate/range_estimator.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/calibrate/estimators.h"
#include "hwy/base.h"

namespace modelpress::engine {
namespace {

// An input of no more values is held in memory: less than what a histogram of them would take.
constexpr uint64_t kMaxHeldValues = 1 << 14;

class HoldingEstimator final : public RangeEstimator {
 public:
  HoldingEstimator(std::unique_ptr<RangeEstimator> inner, uint64_t max_values)
      : inner_(std::move(inner)), max_values_(max_values) {}

  bool wants_pass() const override { return inner_->wants_pass(); }

  absl::Status Add(absl::Span<const absl::Span<const float>> batch, int threads) override {
    if (!holds_) {
      return inner_->Add(batch, threads);
    }
    const Blocks blocks(batch);
    if (blocks.values() > max_values_ - held_values_) {
      holds_ = false;
      MP_RETURN_IF_ERROR(Replay(threads));
      held_ = {};
      return inner_->Add(batch, threads);
    }
    std::vector<float> values;
    values.reserve(blocks.values());
    for (const absl::Span<const float> piece : batch) {
      values.insert(values.end(), piece.begin(), piece.end());
    }
    float unused[2] = {};
    if (const size_t bad = WidenRange(values, &unused[0], &unused[1]); bad < values.size()) {
      return NotFiniteError(bad, values[bad]);
    }
    if (values.empty()) {
      return NoValuesError();
    }
    held_values_ += values.size();
    held_.push_back(std::move(values));
    return absl::OkStatus();
  }

  absl::Status EndPass() override {
    if (!holds_) {
      return inner_->EndPass();
    }
    while (inner_->wants_pass()) {
      MP_RETURN_IF_ERROR(Replay(1));
      MP_RETURN_IF_ERROR(inner_->EndPass());
    }
    held_ = {};
    return absl::OkStatus();
  }

  absl::StatusOr<ActivationFactors> Factors() const override { return inner_->Factors(); }
  ActivationStatistics Statistics() const override { return inner_->Statistics(); }

  state::RangeEstimator Save() const override {
    state::RangeEstimator state;
    state::Holding& holding = *state.mutable_holding();
    holding.set_holds(holds_);
    for (const std::vector<float>& batch : held_) {
      holding.add_held()->mutable_values()->Assign(batch.begin(), batch.end());
    }
    *holding.mutable_inner() = inner_->Save();
    return state;
  }

  bool Load(const state::RangeEstimator& state) override {
    const state::Holding& holding = state.holding();
    uint64_t values = 0;
    for (const auto& batch : holding.held()) {
      values += batch.values_size();
    }
    if (!state.has_holding() || values > max_values_ || !inner_->Load(holding.inner())) {
      return false;
    }
    holds_ = holding.holds();
    held_.clear();
    held_.reserve(holding.held_size());
    for (const auto& batch : holding.held()) {
      held_.emplace_back(batch.values().begin(), batch.values().end());
    }
    held_values_ = values;
    return true;
  }

 private:
  absl::Status Replay(int threads) {
    for (const std::vector<float>& batch : held_) {
      const absl::Span<const float> piece = batch;
      MP_RETURN_IF_ERROR(inner_->Add({piece}, threads));
    }
    return absl::OkStatus();
  }

  std::unique_ptr<RangeEstimator> inner_;
  uint64_t max_values_;
  bool holds_ = true;
  std::vector<std::vector<float>> held_;  // batches
  uint64_t held_values_ = 0;
};

}  // namespace

Blocks::Blocks(absl::Span<const absl::Span<const float>> pieces) : pieces_(pieces), starts_(1, 0) {
  starts_.reserve(pieces.size() + 1);
  for (const absl::Span<const float> piece : pieces) {
    starts_.push_back(starts_.back() + piece.size());
  }
}

absl::Span<const float> Blocks::Get(uint64_t index, std::vector<float>& scratch) const {
  const uint64_t first = index * kSize;
  const uint64_t count = std::min<uint64_t>(kSize, values() - first);
  // The last piece that starts at or before the first value: it is not empty, as the next one starts behind that value.
  size_t piece = std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin() - 1;
  uint64_t at = first - starts_[piece];
  if (at + count <= pieces_[piece].size()) {
    return pieces_[piece].subspan(at, count);
  }
  scratch.clear();
  scratch.reserve(kSize);
  for (; scratch.size() < count; ++piece, at = 0) {
    const absl::Span<const float> part = pieces_[piece].subspan(at, count - scratch.size());
    scratch.insert(scratch.end(), part.begin(), part.end());
  }
  return scratch;
}

int UsefulThreads(int threads, uint64_t values) {
  constexpr uint64_t kValuesPerThread = 1 << 16;  // their work outweighs starting a thread
  return static_cast<int>(std::clamp<uint64_t>(values / kValuesPerThread, 1, std::max(threads, 1)));
}

absl::Status NotFiniteError(uint64_t element, float value) {
  return MakeError(v1::CALIBRATION_FAILED, absl::StrCat("a value is not finite (value ", element, " of the batch is ", value,
                                                        "): check the calibration data and the model"));
}

absl::Status NoValuesError() { return MakeError(v1::CALIBRATION_FAILED, "there are no values to calibrate with"); }

void SetClipRange(const ActivationFactors& factors, int bits, ActivationStatistics& statistics) {
  const int lowest = -(1 << (bits - 1));
  const int highest = (1 << (bits - 1)) - 1;
  statistics.clip_minimum = factors.scale * static_cast<float>(lowest - factors.offset);
  statistics.clip_maximum = factors.scale * static_cast<float>(highest - factors.offset);
}

std::unique_ptr<RangeEstimator> HoldSmallInputs(std::unique_ptr<RangeEstimator> inner, uint64_t max_values) {
  return std::make_unique<HoldingEstimator>(std::move(inner), max_values);
}

std::unique_ptr<RangeEstimator> NewRangeEstimator(const ActivationConfig& config) {
  return config.algorithm == ActivationConfig::Algorithm::kHfmg ? NewHfmgEstimator(config)
                                                                : HoldSmallInputs(NewIfmrEstimator(config), kMaxHeldValues);
}

std::string SaveEstimators(absl::Span<const std::unique_ptr<RangeEstimator>> estimators) {
  state::RangeEstimators state;
  for (const auto& estimator : estimators) {
    *state.add_estimators() = estimator->Save();
  }
  return state.SerializeAsString();
}

bool LoadEstimators(absl::string_view bytes, absl::Span<const std::unique_ptr<RangeEstimator>> estimators) {
  state::RangeEstimators state;
  if (!state.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      state.estimators_size() != static_cast<int>(estimators.size())) {
    return false;
  }
  for (size_t i = 0; i < estimators.size(); ++i) {
    state::RangeEstimator before = estimators[i]->Save();
    if (!estimators[i]->Load(state.estimators(static_cast<int>(i)))) {
      while (i-- > 0) {
        estimators[i]->Load(state.estimators(static_cast<int>(i)));
      }
      return false;
    }
    state.mutable_estimators(static_cast<int>(i))->Swap(&before);
  }
  return true;
}

float Float16Scale(float scale) {
  const auto to_half = [](double value) { return hwy::F32FromF16(hwy::F16FromF64(value)); };
  if (scale > 65504.0f || scale < 0x1p-14f) {
    const float root = to_half(std::sqrt(static_cast<double>(scale)));
    return root * root;
  }
  return to_half(scale);
}

}  // namespace modelpress::engine
