#include "engine/calibrate/value_histogram.h"

namespace modelpress::engine {

void ValueHistogram::Add(absl::Span<const float> values) {
  pending_.resize(kPages);
  while (!values.empty()) {
    const absl::Span<const float> part = values.subspan(0, kMaxPending - pending_values_);
    for (const float value : part) {
      const uint32_t key = KeyOf(value);
      std::unique_ptr<PendingPage>& page = pending_[key >> (kLowBits + kPageBits)];
      if (page == nullptr) {
        page = std::make_unique<PendingPage>();
      }
      (*page)[key >> kLowBits & (kPageSize - 1)] += uint64_t{1} << kCountShift | (key & (kValuesPerBucket - 1));
    }
    pending_values_ += part.size();
    values.remove_prefix(part.size());
    if (pending_values_ == kMaxPending) {
      Flush(cells_);
      pending_.clear();
      pending_.resize(kPages);
      pending_values_ = 0;
    }
  }
}

void ValueHistogram::Add(absl::Span<const Bucket> buckets) {
  cells_.resize(kPages);
  for (const Bucket& bucket : buckets) {
    std::unique_ptr<Page>& page = cells_[bucket.id >> kPageBits];
    if (page == nullptr) {
      page = std::make_unique<Page>();
    }
    Cell& cell = (*page)[bucket.id & (kPageSize - 1)];
    cell.count += bucket.count;
    cell.low_sum += bucket.low_sum;
  }
}

ValueHistogram::Bucket ValueHistogram::MakeBucket(uint32_t id, uint64_t count, uint64_t low_sum) {
  const float first = ValueOf(id << kLowBits);
  const long double step = static_cast<long double>(ValueOf((id << kLowBits) + 1)) - first;
  return {.id = id,
          .first = first,
          .last = ValueOf((id << kLowBits) + kValuesPerBucket - 1),
          .count = count,
          .low_sum = low_sum,
          .sum = first * static_cast<long double>(count) + step * static_cast<long double>(low_sum)};
}

void ValueHistogram::Flush(std::vector<std::unique_ptr<Page>>& cells) const {
  cells.resize(kPages);
  for (size_t p = 0; p < pending_.size(); ++p) {
    if (pending_[p] == nullptr) {
      continue;
    }
    if (cells[p] == nullptr) {
      cells[p] = std::make_unique<Page>();
    }
    for (size_t i = 0; i < kPageSize; ++i) {
      const uint64_t pending = (*pending_[p])[i];
      (*cells[p])[i].count += pending >> kCountShift;
      (*cells[p])[i].low_sum += pending & ((uint64_t{1} << kCountShift) - 1);
    }
  }
}

std::vector<ValueHistogram::Bucket> ValueHistogram::Buckets(absl::Span<const ValueHistogram* const> others) const {
  std::vector<std::unique_ptr<Page>> sums;
  const auto add = [&](const ValueHistogram& histogram) {
    histogram.Flush(sums);
    for (size_t p = 0; p < histogram.cells_.size(); ++p) {
      if (histogram.cells_[p] == nullptr) {
        continue;
      }
      if (sums[p] == nullptr) {
        sums[p] = std::make_unique<Page>();
      }
      for (size_t i = 0; i < kPageSize; ++i) {
        (*sums[p])[i].count += (*histogram.cells_[p])[i].count;
        (*sums[p])[i].low_sum += (*histogram.cells_[p])[i].low_sum;
      }
    }
  };
  add(*this);
  for (const ValueHistogram* other : others) {
    add(*other);
  }
  std::vector<Bucket> buckets;
  for (size_t p = 0; p < sums.size(); ++p) {
    if (sums[p] == nullptr) {
      continue;
    }
    for (size_t i = 0; i < kPageSize; ++i) {
      const Cell& cell = (*sums[p])[i];
      if (cell.count == 0) {
        continue;
      }
      buckets.push_back(MakeBucket(static_cast<uint32_t>((p << kPageBits) + i), cell.count, cell.low_sum));
    }
  }
  return buckets;
}

}  // namespace modelpress::engine
