#include "engine/quantize/weights.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/kernels/quantize.h"
#include "engine/model/element_payload.h"

namespace modelpress::engine {
namespace {

// Elements worked on at a time: their floats fit the second-level cache.
constexpr uint64_t kPiece = 64 << 10;
// Runs shorter than this are done element by element with a scale each: one kernel call per run would cost more.
constexpr uint64_t kShortRun = 64;
// Elements of a transposed stripe: wide enough that rows are read in long runs.
constexpr uint64_t kStripeElements = 8 << 20;

// A payload whose elements come from one member function of the weight.
template <typename T>
class WeightPayload final : public ElementPayload<T> {
 public:
  using Reader = absl::Status (IntegerWeight::*)(uint64_t, absl::Span<T>) const;
  WeightPayload(IntegerWeightPtr weight, Reader reader)
      : ElementPayload<T>(weight->element_count()), weight_(std::move(weight)), reader_(reader) {}

 protected:
  absl::Status ReadElements(uint64_t first, absl::Span<T> out) const override { return (weight_.get()->*reader_)(first, out); }

 private:
  IntegerWeightPtr weight_;
  Reader reader_;
};

class NibblePayload final : public ElementPayload<uint8_t> {
 public:
  explicit NibblePayload(IntegerWeightPtr weight)
      : ElementPayload((weight->element_count() + 1) / 2), weight_(std::move(weight)) {}

 protected:
  absl::Status ReadElements(uint64_t first, absl::Span<uint8_t> out) const override {
    std::vector<int8_t> q(std::min<uint64_t>(kPiece, out.size() * 2));
    for (uint64_t done = 0; done < out.size(); done += kPiece / 2) {
      const uint64_t begin = (first + done) * 2;
      const uint64_t count = std::min<uint64_t>({kPiece, (out.size() - done) * 2, weight_->element_count() - begin});
      auto piece = absl::MakeSpan(q).first(count);
      MP_RETURN_IF_ERROR(weight_->Integers(begin, piece));
      PackNibbles(piece, out.data() + done);
    }
    return absl::OkStatus();
  }

 private:
  IntegerWeightPtr weight_;
};

class AxisNibblePayload final : public ElementPayload<uint8_t> {
 public:
  AxisNibblePayload(IntegerWeightPtr weight, uint64_t inner)
      : ElementPayload(weight->element_count() / 2), weight_(std::move(weight)), inner_(inner) {}

 protected:
  // With an even axis, output row r holds source rows 2r and 2r + 1 of `inner_` elements each, whatever the outer dimensions are.
  absl::Status ReadElements(uint64_t first, absl::Span<uint8_t> out) const override {
    std::vector<int8_t> q;
    while (!out.empty()) {
      const uint64_t row = first / inner_;
      const uint64_t column = first % inner_;
      uint64_t done = 0;
      if (column == 0 && out.size() >= inner_ && inner_ <= kPiece) {  // whole rows, as many as a piece holds
        const uint64_t rows = std::min(out.size() / inner_, std::max<uint64_t>(1, kPiece / 2 / inner_));
        q.resize(rows * inner_ * 2);
        MP_RETURN_IF_ERROR(weight_->Integers(row * 2 * inner_, absl::MakeSpan(q)));
        if (inner_ == 1) {
          PackNibbles(q, out.data());
        } else {
          for (uint64_t i = 0; i < rows; ++i) {
            Pack(absl::MakeSpan(q).subspan(i * 2 * inner_, inner_ * 2), out.data() + i * inner_);
          }
        }
        done = rows * inner_;
      } else {  // part of a row
        done = std::min<uint64_t>({out.size(), inner_ - column, kPiece});
        q.resize(done * 2);
        MP_RETURN_IF_ERROR(weight_->Integers(row * 2 * inner_ + column, absl::MakeSpan(q).first(done)));
        MP_RETURN_IF_ERROR(weight_->Integers((row * 2 + 1) * inner_ + column, absl::MakeSpan(q).subspan(done)));
        Pack(q, out.data());
      }
      first += done;
      out.remove_prefix(done);
    }
    return absl::OkStatus();
  }

 private:
  // The first half of `rows` is the even row, the second the odd one.
  static void Pack(absl::Span<const int8_t> rows, uint8_t* out) {
    PackNibbleRows(rows.first(rows.size() / 2), rows.subspan(rows.size() / 2), out);
  }

  IntegerWeightPtr weight_;
  uint64_t inner_;
};

class TransposedPayload final : public ElementPayload<float> {
 public:
  TransposedPayload(Tensor source, uint64_t rows, uint64_t columns, std::shared_ptr<StripeCache> cache)
      : ElementPayload(rows * columns),
        source_(std::move(source)),
        rows_(rows),
        columns_(columns),
        stripe_columns_(std::clamp<uint64_t>(kStripeElements / std::max<uint64_t>(rows, 1), 1, std::max<uint64_t>(columns, 1))),
        cache_(std::move(cache)),
        tensor_(cache_->NewTensor()) {}

 protected:
  // Element e of the result is source[e % rows][e / rows].
  absl::Status ReadElements(uint64_t first, absl::Span<float> out) const override {
    const uint64_t stripe_elements = stripe_columns_ * rows_;
    while (!out.empty()) {
      const uint64_t index = first / stripe_elements;
      const std::shared_ptr<StripeCache::Stripe> stripe = cache_->Find(tensor_, index);
      std::call_once(stripe->filled, [&] { stripe->status = Gather(index * stripe_columns_, stripe->values); });
      MP_RETURN_IF_ERROR(stripe->status);
      const uint64_t at = first % stripe_elements;
      const uint64_t count = std::min<uint64_t>(out.size(), stripe->values.size() - at);
      std::copy_n(stripe->values.data() + at, count, out.data());
      first += count;
      out.remove_prefix(count);
    }
    return absl::OkStatus();
  }

 private:
  // Transposes the stripe that begins with `begin`.
  absl::Status Gather(uint64_t begin, std::vector<float>& values) const {
    const uint64_t width = std::min(stripe_columns_, columns_ - begin);
    values.resize(width * rows_);
    // Whole rows lie one behind the other and are read many at a time.
    const uint64_t rows_at_once = width == columns_ ? std::max<uint64_t>(1, kPiece / width) : 1;
    std::vector<float> segment(width * rows_at_once);
    for (uint64_t row = 0; row < rows_; row += rows_at_once) {
      const uint64_t count = std::min(rows_at_once, rows_ - row);
      MP_RETURN_IF_ERROR(ReadFloats(source_, row * columns_ + begin, absl::MakeSpan(segment).first(width * count)));
      for (uint64_t r = 0; r < count; ++r) {
        for (uint64_t column = 0; column < width; ++column) {
          values[column * rows_ + row + r] = segment[r * width + column];
        }
      }
    }
    return absl::OkStatus();
  }

  Tensor source_;
  uint64_t rows_;
  uint64_t columns_;
  uint64_t stripe_columns_;
  std::shared_ptr<StripeCache> cache_;
  int tensor_;
};

}  // namespace

int StripeCache::NewTensor() {
  const std::lock_guard lock(mutex_);
  return ++tensors_;
}

std::shared_ptr<StripeCache::Stripe> StripeCache::Find(int tensor, uint64_t index) {
  const std::lock_guard lock(mutex_);
  auto it = std::find_if(stripes_.begin(), stripes_.end(),
                         [&](const Entry& entry) { return entry.tensor == tensor && entry.index == index; });
  if (it == stripes_.end()) {
    if (stripes_.size() == kStripes) {
      stripes_.pop_back();
    }
    stripes_.push_front({tensor, index, std::make_shared<Stripe>()});
  } else {
    std::rotate(stripes_.begin(), it, it + 1);
  }
  return stripes_.front().stripe;
}

IntegerWeight::IntegerWeight(Tensor source, ScaleRuns scales, int bits, std::string layer)
    : source_(std::move(source)),
      scales_(std::move(scales)),
      bits_(bits),
      layer_(std::move(layer)),
      element_count_(source_.ElementCount()) {}

absl::Status IntegerWeight::NotFinite(uint64_t element) const {
  return MakeError(v1::TENSOR_INVALID, absl::StrCat("element ", element, " of weight '", source_.name(), "' is not finite"),
                   {.layer = layer_});
}

absl::Status IntegerWeight::ReadSource(uint64_t first, absl::Span<float> values) const {
  if (source_.header.data_type() != onnx::TensorProto::INT8) {
    return ReadFloats(source_, first, values);
  }
  std::vector<uint8_t> bytes(values.size());
  MP_RETURN_IF_ERROR(source_.payload->Read(first, absl::MakeSpan(bytes)));
  std::transform(bytes.begin(), bytes.end(), values.begin(),
                 [](uint8_t byte) { return static_cast<float>(static_cast<int8_t>(byte)); });
  return absl::OkStatus();
}

template <typename PerRun, typename ByElement>
absl::Status IntegerWeight::ForEachPiece(uint64_t first, uint64_t count, PerRun per_run, ByElement by_element) const {
  std::vector<float> values(std::min(count, kPiece));
  std::vector<float> scales;
  for (uint64_t done = 0; done < count;) {
    const uint64_t at = first + done;
    uint64_t size = std::min<uint64_t>(values.size(), count - done);
    const bool short_runs = scales_.run_length < kShortRun && scales_.scales.size() > 1;
    if (!short_runs) {
      size = std::min(size, scales_.run_length - at % scales_.run_length);
    }
    auto piece = absl::MakeSpan(values).first(size);
    MP_RETURN_IF_ERROR(ReadSource(at, piece));
    size_t bad;
    if (short_runs) {
      scales.resize(size);
      for (uint64_t i = 0; i < size; ++i) {
        scales[i] = scales_.scales[(at + i) / scales_.run_length];
      }
      bad = by_element(piece, scales.data(), done);
    } else {
      bad = per_run(piece, scales_.scales[at / scales_.run_length], done);
    }
    if (bad < size) {
      return NotFinite(at + bad);
    }
    done += size;
  }
  return absl::OkStatus();
}

absl::Status IntegerWeight::Integers(uint64_t first, absl::Span<int8_t> q) const {
  return ForEachPiece(
      first, q.size(),
      [&](absl::Span<const float> w, float scale, uint64_t at) { return QuantizeWeights(w, scale, bits_, q.data() + at); },
      [&](absl::Span<const float> w, const float* scale, uint64_t at) {
        return QuantizeWeightsByElement(w, scale, bits_, q.data() + at);
      });
}

absl::Status IntegerWeight::IntegersAsFloat(uint64_t first, absl::Span<float> values) const {
  return ForEachPiece(
      first, values.size(),
      [&](absl::Span<const float> w, float scale, uint64_t at) {
        return FakeQuantizeWeights(w, scale, bits_, values.data() + at);
      },
      [&](absl::Span<const float> w, const float* scale, uint64_t at) {
        return FakeQuantizeWeightsByElement(w, scale, bits_, values.data() + at);
      });
}

absl::Status IntegerWeight::Dequantized(uint64_t first, absl::Span<float> values) const {
  MP_RETURN_IF_ERROR(IntegersAsFloat(first, values));
  for (uint64_t i = 0; i < values.size(); ++i) {
    values[i] *= scales_.scales[(first + i) / scales_.run_length];
  }
  return absl::OkStatus();
}

PayloadPtr AsInt8(IntegerWeightPtr weight) {
  return std::make_shared<WeightPayload<int8_t>>(std::move(weight), &IntegerWeight::Integers);
}

PayloadPtr AsNibbles(IntegerWeightPtr weight) { return std::make_shared<NibblePayload>(std::move(weight)); }

PayloadPtr AsNibblesAlongAxis(IntegerWeightPtr weight, uint64_t inner) {
  return std::make_shared<AxisNibblePayload>(std::move(weight), inner);
}

PayloadPtr AsFloatIntegers(IntegerWeightPtr weight) {
  return std::make_shared<WeightPayload<float>>(std::move(weight), &IntegerWeight::IntegersAsFloat);
}

PayloadPtr AsDequantized(IntegerWeightPtr weight) {
  return std::make_shared<WeightPayload<float>>(std::move(weight), &IntegerWeight::Dequantized);
}

PayloadPtr TransposeToFloat(Tensor source, uint64_t rows, uint64_t columns, std::shared_ptr<StripeCache> cache) {
  return std::make_shared<TransposedPayload>(std::move(source), rows, columns, std::move(cache));
}

}  // namespace modelpress::engine
