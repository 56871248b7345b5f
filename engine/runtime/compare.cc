#include "engine/runtime/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/checkpoint.pb.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/runtime/floats.h"

namespace modelpress::engine {
namespace {

// Over the values seen so far.
struct ErrorSums {
  uint64_t count = 0;
  double reference_squares = 0;
  double candidate_squares = 0;
  double products = 0;
  double error_squares = 0;
  double errors = 0;
  double max_error = 0;

  void Add(absl::Span<const float> reference, absl::Span<const float> candidate) {
    for (size_t i = 0; i < reference.size(); ++i) {
      const double x = reference[i];
      const double y = candidate[i];
      const double error = std::abs(x - y);
      reference_squares += x * x;
      candidate_squares += y * y;
      products += x * y;
      error_squares += error * error;
      errors += error;
      max_error = std::max(max_error, error);
    }
    count += reference.size();
  }

  void Save(state::Comparison::Errors& state) const {
    state.set_count(count);
    state.set_reference_squares(reference_squares);
    state.set_candidate_squares(candidate_squares);
    state.set_products(products);
    state.set_error_squares(error_squares);
    state.set_errors(errors);
    state.set_max_error(max_error);
  }
  static ErrorSums Load(const state::Comparison::Errors& state) {
    return {.count = state.count(),
            .reference_squares = state.reference_squares(),
            .candidate_squares = state.candidate_squares(),
            .products = state.products(),
            .error_squares = state.error_squares(),
            .errors = state.errors(),
            .max_error = state.max_error()};
  }

  TensorError Finish() const {
    TensorError result;
    result.count = count;
    result.max_error = std::isnan(errors) ? errors : max_error;  // std::max passes over a NaN
    const double n = static_cast<double>(std::max<uint64_t>(count, 1));
    result.mean_error = errors / n;
    result.signal_power = reference_squares / n;
    result.sqnr_db =
        error_squares == 0 ? std::numeric_limits<double>::infinity() : 10 * std::log10(reference_squares / error_squares);
    if (reference_squares == 0 || candidate_squares == 0) {
      result.cosine = reference_squares == candidate_squares ? 1 : 0;
    } else {
      result.cosine = products / (std::sqrt(reference_squares) * std::sqrt(candidate_squares));
    }
    return result;
  }
};

struct Saturation {
  uint64_t count = 0;
  uint64_t outside = 0;

  void Add(absl::Span<const float> values, const SaturationBounds& bounds) {
    count += values.size();
    outside += std::count_if(values.begin(), values.end(),
                             [&bounds](float value) { return value < bounds.minimum || value > bounds.maximum; });
  }
};

void Save(const StageCheckpoint& checkpoint, int64_t batches, const std::vector<ErrorSums>& errors,
          const std::vector<Saturation>& saturations) {
  if (!checkpoint.is_kept()) {
    return;
  }
  state::Comparison state;
  state.set_batches(batches);
  for (const ErrorSums& sums : errors) {
    sums.Save(*state.add_tensors());
  }
  for (const Saturation& saturation : saturations) {
    state::Comparison::Saturation& saved = *state.add_saturations();
    saved.set_count(saturation.count);
    saved.set_outside(saturation.outside);
  }
  checkpoint.Save(state);
}

// Returns the batches that the loaded sums are of.
int64_t Load(const StageCheckpoint& checkpoint, int64_t batches, std::vector<ErrorSums>& errors,
             std::vector<Saturation>& saturations) {
  const auto state = checkpoint.Load<state::Comparison>();
  if (!state.has_value()) {
    return 0;
  }
  if (state->batches() < 1 || state->batches() > batches || state->tensors_size() != static_cast<int>(errors.size()) ||
      state->saturations_size() != static_cast<int>(saturations.size())) {
    checkpoint.Ignore();
    return 0;
  }
  std::transform(state->tensors().begin(), state->tensors().end(), errors.begin(), ErrorSums::Load);
  std::transform(state->saturations().begin(), state->saturations().end(), saturations.begin(),
                 [](const auto& saved) { return Saturation{.count = saved.count(), .outside = saved.outside()}; });
  checkpoint.log(absl::StrCat("resumed ", checkpoint.key, " after batch ", state->batches(), " of ", batches,
                              " from an earlier attempt's checkpoint"));
  return state->batches();
}

}  // namespace

absl::StatusOr<Comparison> Compare(const ModelRunner& reference, const ModelRunner& candidate, int pairs,
                                   absl::Span<const SaturationBounds> bounds, CalibrationData& data,
                                   const CompareOptions& options) {
  const auto pair_count = static_cast<size_t>(std::max(pairs, 0));
  std::vector<ErrorSums> errors(pair_count);
  std::vector<Saturation> saturations(bounds.size());
  Comparison comparison;
  comparison.batches = std::min(std::max<int64_t>(options.max_batches, 0), data.batch_count());
  const int64_t first = Load(options.checkpoint, comparison.batches, errors, saturations);
  auto report = [&](int64_t done) {
    if (options.progress) {
      options.progress(static_cast<uint64_t>(done), static_cast<uint64_t>(comparison.batches));
    }
  };
  report(first);
  MP_RETURN_IF_ERROR(data.Rewind());
  for (int64_t b = 0; b < comparison.batches; ++b) {
    MP_ASSIGN_OR_RETURN(const Batch batch, data.Next());
    if (b < first) {
      continue;
    }
    absl::StatusOr<RunResult> expected;
    absl::StatusOr<RunResult> actual;
    ParallelFor(options.threads, 2,
                [&](uint64_t i) { (i == 0 ? expected : actual) = (i == 0 ? reference : candidate).Run(batch); });
    MP_RETURN_IF_ERROR(expected.status());
    MP_RETURN_IF_ERROR(actual.status());
    if (expected->tensors.size() != pair_count + bounds.size() || actual->tensors.size() < pair_count) {
      return MakeError(v1::INTERNAL_ERROR, "the two models do not show as many tensors as are to be compared");
    }
    std::vector<absl::Status> statuses(expected->tensors.size());
    ParallelFor(options.threads, statuses.size(), [&](uint64_t i) {
      auto add = [&]() -> absl::Status {
        std::vector<float> reference_memory;
        MP_ASSIGN_OR_RETURN(const absl::Span<const float> x, AsFloats(expected->tensors[i], reference_memory));
        if (i >= pair_count) {
          saturations[i - pair_count].Add(x, bounds[i - pair_count]);
          return absl::OkStatus();
        }
        std::vector<float> candidate_memory;
        MP_ASSIGN_OR_RETURN(const absl::Span<const float> y, AsFloats(actual->tensors[i], candidate_memory));
        if (x.size() != y.size()) {
          return MakeError(v1::INTERNAL_ERROR, "two tensors to be compared differ in size");
        }
        errors[i].Add(x, y);
        return absl::OkStatus();
      };
      statuses[i] = add();
    });
    for (const absl::Status& status : statuses) {
      MP_RETURN_IF_ERROR(status);
    }
    report(b + 1);
    Save(options.checkpoint, b + 1, errors, saturations);
  }
  comparison.tensors.reserve(errors.size());
  for (const ErrorSums& sums : errors) {
    comparison.tensors.push_back(sums.Finish());
  }
  comparison.saturated.reserve(saturations.size());
  for (const Saturation& saturation : saturations) {
    comparison.saturated.push_back(
        saturation.count == 0 ? 0 : static_cast<double>(saturation.outside) / static_cast<double>(saturation.count));
  }
  return comparison;
}

}  // namespace modelpress::engine
