#include "engine/quantize/weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/kernels/quantize.h"

namespace modelpress::engine {
namespace {

// Elements worked on at a time: their floats fit the second-level cache.
constexpr uint64_t kPiece = 64 << 10;
// Runs shorter than this are done element by element with a scale each: one kernel call per run would cost more.
constexpr uint64_t kShortRun = 64;
// Sources from this size on give their file pages back after use, so that the resident set does not grow with them.
constexpr uint64_t kReleaseFrom = 64 << 20;

// Payloads of elements of type T: takes care of ranges that cut elements and of buffers that are not aligned for T.
template <typename T>
class ElementPayload : public Payload {
 public:
  explicit ElementPayload(uint64_t element_count) : element_count_(element_count) {}
  uint64_t size() const final { return element_count_ * sizeof(T); }

  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const final {
    if (out.empty()) {
      return absl::OkStatus();
    }
    const uint64_t first = offset / sizeof(T);
    const uint64_t last = (offset + out.size() + sizeof(T) - 1) / sizeof(T);
    const bool whole =
        offset % sizeof(T) == 0 && out.size() % sizeof(T) == 0 && reinterpret_cast<uintptr_t>(out.data()) % alignof(T) == 0;
    if (whole) {
      return ReadElements(first, absl::MakeSpan(reinterpret_cast<T*>(out.data()), last - first));
    }
    std::vector<T> elements(last - first);
    MP_RETURN_IF_ERROR(ReadElements(first, absl::MakeSpan(elements)));
    std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(elements.data()) + offset % sizeof(T), out.size());
    return absl::OkStatus();
  }

 protected:
  virtual absl::Status ReadElements(uint64_t first, absl::Span<T> out) const = 0;

 private:
  uint64_t element_count_;
};

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
  TransposedPayload(Tensor source, uint64_t rows, uint64_t columns)
      : ElementPayload(rows * columns), source_(std::move(source)), rows_(rows), columns_(columns) {
    const FileRange* range = source_.payload == nullptr ? nullptr : source_.payload->AsFileRange();
    if (range != nullptr && source_.header.data_type() == onnx::TensorProto::FLOAT && range->size == size()) {
      mapped_ = range->file->mapping().data() + range->offset;
    }
  }

 protected:
  // Element e of the result is source[e % rows][e / rows]: output columns are gathered from stripes of the source.
  absl::Status ReadElements(uint64_t first, absl::Span<float> out) const override {
    const uint64_t last = first + out.size();
    const uint64_t begin_column = first / rows_;
    const uint64_t end_column = (last + rows_ - 1) / rows_;
    const uint64_t stripe = end_column - begin_column;
    std::vector<float> segment(mapped_ == nullptr ? stripe : 0);
    for (uint64_t row = 0; row < rows_; ++row) {
      const uint64_t source = row * columns_ + begin_column;
      if (mapped_ == nullptr) {
        MP_RETURN_IF_ERROR(ReadFloats(source_, source, absl::MakeSpan(segment)));
      }
      for (uint64_t i = 0; i < stripe; ++i) {
        const uint64_t target = (begin_column + i) * rows_ + row;
        if (target >= first && target < last) {
          if (mapped_ == nullptr) {
            out[target - first] = segment[i];
          } else {  // not aligned for float
            std::memcpy(&out[target - first], mapped_ + (source + i) * sizeof(float), sizeof(float));
          }
        }
      }
    }
    if (mapped_ != nullptr && size() >= kReleaseFrom) {
      // Whole pages inside the tensor only; the neighbours may be in use.
      constexpr uintptr_t kPage = 4096;
      const uintptr_t begin = (reinterpret_cast<uintptr_t>(mapped_) + kPage - 1) / kPage * kPage;
      const uintptr_t end = (reinterpret_cast<uintptr_t>(mapped_) + size()) / kPage * kPage;
      madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
    }
    return absl::OkStatus();
  }

 private:
  Tensor source_;
  uint64_t rows_;
  uint64_t columns_;
  const uint8_t* mapped_ = nullptr;  // float32 elements in the mapped file, where they lie there as they are
};

}  // namespace

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

PayloadPtr TransposeToFloat(Tensor source, uint64_t rows, uint64_t columns) {
  return std::make_shared<TransposedPayload>(std::move(source), rows, columns);
}

}  // namespace modelpress::engine
