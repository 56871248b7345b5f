#include "engine/prune/rank.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/base/parallel.h"
#include "engine/base/status.h"

namespace modelpress::engine {
namespace {

constexpr int kLanes = 8;
constexpr int64_t kPiece = 1 << 18;       // elements read at a time
constexpr int64_t kMinColumns = 1 << 12;  // of a transposed weight: shorter runs cost more to read than they save
constexpr int64_t kLanesPerVector = 4;    // the reference's tail loop takes products of four elements before it fuses

// Element `index` of a row added to its sum of squares, where `whole` = floor(row / 8) * 8 elements have gone into lanes.
float AddTail(float sum, float x, int64_t index, int64_t row) {
  const int64_t whole = row / kLanes * kLanes;
  const int64_t unfused = whole + (row - whole) / kLanesPerVector * kLanesPerVector;
  return index < unfused ? sum + x * x : std::fma(x, x, sum);
}

float SumOfSquares(absl::Span<const float> row) {
  const auto length = static_cast<int64_t>(row.size());
  const int64_t whole = length / kLanes * kLanes;
  std::array<float, kLanes> lanes = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lanes[j] += row[i + j] * row[i + j];
    }
  }
  float sum = lanes[0];
  for (int j = 1; j < kLanes; ++j) {
    sum += lanes[j];
  }
  for (int64_t i = whole; i < length; ++i) {
    sum = AddTail(sum, row[i], i, length);
  }
  return sum;
}

// The same of a row that does not fit into a piece, or of channels side by side: lanes are kept across pieces.
class LaneSums {
 public:
  LaneSums(int64_t channels, int64_t row) : channels_(channels), row_(row), lanes_(kLanes * channels), sums_(channels) {}

  // Element `index` of channels [0, values.size()).
  void Add(int64_t index, absl::Span<const float> values) {
    const int64_t whole = row_ / kLanes * kLanes;
    if (index < whole) {
      float* const lane = lanes_.data() + index % kLanes * channels_;
      for (size_t c = 0; c < values.size(); ++c) {
        lane[c] += values[c] * values[c];
      }
      return;
    }
    if (index == whole) {
      SumLanes();
    }
    for (size_t c = 0; c < values.size(); ++c) {
      sums_[c] = AddTail(sums_[c], values[c], index, row_);
    }
  }

  std::vector<float> Finish() && {
    if (row_ % kLanes == 0) {
      SumLanes();
    }
    return std::move(sums_);
  }

 private:
  void SumLanes() {
    for (int64_t c = 0; c < channels_; ++c) {
      float sum = lanes_[c];
      for (int64_t j = 1; j < kLanes; ++j) {
        sum += lanes_[j * channels_ + c];
      }
      sums_[c] = sum;
    }
  }

  int64_t channels_;
  int64_t row_;
  std::vector<float> lanes_;  // [lane][channel]
  std::vector<float> sums_;
};

// Channels [begin, end) of a weight.
struct Task {
  size_t weight = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

absl::Status SumRows(const RankedWeight& weight, const Task& task, absl::Span<float> sums) {
  std::vector<float> piece;
  if (weight.row > kPiece) {  // one channel at a time, in pieces
    for (int64_t c = task.begin; c < task.end; ++c) {
      LaneSums sum(1, weight.row);
      for (int64_t first = 0; first < weight.row; first += kPiece) {
        piece.resize(std::min(kPiece, weight.row - first));
        MP_RETURN_IF_ERROR(ReadFloats(weight.tensor, c * weight.row + first, absl::MakeSpan(piece)));
        for (size_t i = 0; i < piece.size(); ++i) {
          sum.Add(first + static_cast<int64_t>(i), absl::MakeConstSpan(piece).subspan(i, 1));
        }
      }
      sums[c] = std::move(sum).Finish()[0];
    }
    return absl::OkStatus();
  }
  piece.resize((task.end - task.begin) * weight.row);
  MP_RETURN_IF_ERROR(ReadFloats(weight.tensor, task.begin * weight.row, absl::MakeSpan(piece)));
  for (int64_t c = task.begin; c < task.end; ++c) {
    sums[c] = SumOfSquares(absl::MakeConstSpan(piece).subspan((c - task.begin) * weight.row, weight.row));
  }
  return absl::OkStatus();
}

absl::Status SumColumns(const RankedWeight& weight, const Task& task, absl::Span<float> sums) {
  const int64_t width = task.end - task.begin;
  const int64_t rows_at_once = width == weight.channels ? std::max<int64_t>(1, kPiece / std::max<int64_t>(1, width)) : 1;
  LaneSums lanes(width, weight.row);
  std::vector<float> piece;
  for (int64_t first = 0; first < weight.row; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, weight.row - first);
    piece.resize(rows * width);
    MP_RETURN_IF_ERROR(ReadFloats(weight.tensor, first * weight.channels + task.begin, absl::MakeSpan(piece)));
    for (int64_t i = 0; i < rows; ++i) {
      lanes.Add(first + i, absl::MakeConstSpan(piece).subspan(i * width, width));
    }
  }
  const std::vector<float> found = std::move(lanes).Finish();
  std::copy(found.begin(), found.end(), sums.begin() + task.begin);
  return absl::OkStatus();
}

// Sums of squares to scores, in place.
void Normalize(std::vector<float>& values, int64_t row) {
  const auto length = static_cast<float>(row);
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  bool has_nan = false;
  for (float& value : values) {
    value = std::sqrt(value) / length;
    has_nan = has_nan || std::isnan(value);
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const float range = has_nan ? std::numeric_limits<float>::quiet_NaN() : high - low;
  for (float& value : values) {
    value = (value - low) / range;
  }
}

}  // namespace

absl::StatusOr<std::vector<std::vector<float>>> ScoreChannels(const std::vector<RankedWeight>& weights, int threads) {
  std::vector<std::vector<float>> scores(weights.size());
  std::vector<Task> tasks;
  for (size_t w = 0; w < weights.size(); ++w) {
    const RankedWeight& weight = weights[w];
    scores[w].resize(weight.channels);
    if (weight.row < 1 || static_cast<int64_t>(weight.tensor.ElementCount()) != weight.channels * weight.row) {
      return MakeError(v1::TENSOR_INVALID, "its weight has no elements to rank the channels by", {.layer = weight.layer});
    }
    const int64_t step = weight.transposed ? kMinColumns : std::max<int64_t>(1, kPiece / weight.row);
    for (int64_t begin = 0; begin < weight.channels; begin += step) {
      tasks.push_back({.weight = w, .begin = begin, .end = std::min(begin + step, weight.channels)});
    }
  }
  std::vector<absl::Status> statuses(tasks.size());
  ParallelFor(threads, tasks.size(), [&](uint64_t i) {
    const RankedWeight& weight = weights[tasks[i].weight];
    const absl::Span<float> sums = absl::MakeSpan(scores[tasks[i].weight]);
    statuses[i] = weight.transposed ? SumColumns(weight, tasks[i], sums) : SumRows(weight, tasks[i], sums);
  });
  for (size_t i = 0; i < tasks.size(); ++i) {
    MP_RETURN_IF_ERROR(AtPlace(statuses[i], {.layer = weights[tasks[i].weight].layer}));
  }
  for (size_t w = 0; w < weights.size(); ++w) {
    Normalize(scores[w], weights[w].row);
  }
  return scores;
}

std::vector<int64_t> LeastChannels(absl::Span<const float> scores, int64_t cut, int64_t groups) {
  const auto count = static_cast<int64_t>(scores.size());
  const int64_t block = count / groups;
  const int64_t cut_of_block = std::min(cut / groups, block);
  std::vector<int64_t> removed;
  removed.reserve(count);
  std::vector<int64_t> order(block);
  for (int64_t g = 0; g < groups; ++g) {
    std::iota(order.begin(), order.end(), g * block);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return scores[a] < scores[b] || (std::isnan(scores[b]) && !std::isnan(scores[a]));
    });
    removed.insert(removed.end(), order.begin(), order.begin() + cut_of_block);
  }
  for (int64_t c = groups * block; c < count; ++c) {
    removed.push_back(c);
  }
  std::sort(removed.begin(), removed.end());
  return removed;
}

}  // namespace modelpress::engine
