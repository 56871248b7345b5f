#include "engine/prune/cut_tensor.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/element_type.h"
#include "engine/model/payload.h"

namespace modelpress::engine {
namespace {

// Which blocks of a source a result consists of. Block b of the result, in row b / columns, is block
// (row % rows) * stride + table[row / rows % groups * columns + b % columns] of the source.
struct BlockMap {
  uint64_t block_bytes = 0;
  uint64_t columns = 0;  // kept blocks of a row
  uint64_t rows = 0;     // of a group
  uint64_t stride = 0;   // blocks of a row of the source
  std::vector<int64_t> table;
};

class CutPayload final : public Payload {
 public:
  CutPayload(PayloadPtr source, BlockMap map, uint64_t size) : source_(std::move(source)), map_(std::move(map)), size_(size) {}

  uint64_t size() const override { return size_; }

  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const override {
    // Short runs are picked out of a window of the source, long ones are read where they belong.
    constexpr uint64_t kLongRun = 1 << 12;
    constexpr uint64_t kWindow = 1 << 16;
    std::vector<uint8_t> window;
    uint64_t window_start = 0;
    while (!out.empty()) {
      const auto [start, bytes] = RunAt(offset, out.size());
      if (bytes >= kLongRun) {
        MP_RETURN_IF_ERROR(source_->Read(start, out.first(bytes)));
      } else {
        if (start < window_start || start + bytes > window_start + window.size()) {
          window_start = start;
          window.resize(std::min(source_->size() - start, std::clamp<uint64_t>(2 * out.size(), bytes, kWindow)));
          MP_RETURN_IF_ERROR(source_->Read(start, absl::MakeSpan(window)));
        }
        std::memcpy(out.data(), window.data() + (start - window_start), bytes);
      }
      offset += bytes;
      out.remove_prefix(bytes);
    }
    return absl::OkStatus();
  }

 private:
  // Where in the source the result's bytes from `offset` on are, and how many of them stand there in a row, up to `limit`.
  std::pair<uint64_t, uint64_t> RunAt(uint64_t offset, uint64_t limit) const {
    const uint64_t block = offset / map_.block_bytes;
    const uint64_t skip = offset % map_.block_bytes;
    const uint64_t row = block / map_.columns;
    const uint64_t column = block % map_.columns;
    const int64_t* const of_row = map_.table.data() + row / map_.rows * map_.columns;
    uint64_t end = column + 1;
    while (end < map_.columns && of_row[end] == of_row[end - 1] + 1 && (end - column) * map_.block_bytes - skip < limit) {
      ++end;
    }
    const uint64_t first = row % map_.rows * map_.stride + of_row[column];
    return {first * map_.block_bytes + skip, std::min(limit, (end - column) * map_.block_bytes - skip)};
  }

  PayloadPtr source_;
  BlockMap map_;
  uint64_t size_;
};

uint64_t ProductOf(const Tensor& tensor, int begin, int end) {
  return std::accumulate(tensor.header.dims().begin() + begin, tensor.header.dims().begin() + end, uint64_t{1},
                         std::multiplies<>());
}

// `map.block_bytes` is still in elements.
absl::StatusOr<Tensor> Cut(const Tensor& source, BlockMap map, int axis, int64_t length) {
  const ElementType* type = FindElementType(source.header.data_type());
  if (source.payload == nullptr || type == nullptr || type->bits < 8) {
    return MakeError(v1::TENSOR_INVALID,
                     absl::StrCat("tensor '", source.name(), "' has elements that channels cannot be cut from: of type ",
                                  onnx::TensorProto::DataType_Name(source.header.data_type()), ", or none"));
  }
  map.block_bytes *= type->bits / 8;
  Tensor result = {.header = source.header, .field = DataField::kRaw, .external = source.external};
  result.header.set_dims(axis, length);
  result.payload = std::make_shared<CutPayload>(RawElements(source), std::move(map), type->RawBytes(result.ElementCount()));
  return result;
}

}  // namespace

absl::StatusOr<Tensor> KeepAlongAxis(const Tensor& source, int axis, const std::vector<int64_t>& kept) {
  const int rank = source.header.dims_size();
  BlockMap map = {.block_bytes = ProductOf(source, axis + 1, rank),
                  .columns = kept.size(),
                  .rows = ProductOf(source, 0, axis),
                  .stride = static_cast<uint64_t>(source.header.dims(axis)),
                  .table = kept};
  return Cut(source, std::move(map), axis, static_cast<int64_t>(kept.size()));
}

absl::StatusOr<Tensor> KeepGroupedInputs(const Tensor& source, int64_t groups, const std::vector<int64_t>& kept) {
  const int64_t rows = source.header.dims(0) / groups;
  const int64_t columns = source.header.dims(1);
  const auto kept_columns = static_cast<int64_t>(kept.size()) / groups;
  BlockMap map = {.block_bytes = ProductOf(source, 2, source.header.dims_size()),
                  .columns = static_cast<uint64_t>(kept_columns),
                  .rows = static_cast<uint64_t>(rows),
                  .stride = static_cast<uint64_t>(columns),
                  .table = kept};
  for (int64_t& channel : map.table) {  // of group channel / columns, whose first row is that many rows further on
    channel = channel / columns * rows * columns + channel % columns;
  }
  return Cut(source, std::move(map), 1, kept_columns);
}

}  // namespace modelpress::engine
