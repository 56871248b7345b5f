#include "engine/prune/selective.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/parallel.h"
#include "engine/base/status.h"
#include "engine/calibrate/weights.h"
#include "engine/prune/layer_weight.h"
#include "engine/prune/record_attributes.h"
#include "engine/quantize/operands.h"

namespace modelpress::engine {
namespace {

using AMCTPytorchProto::PruneNode;
using AMCTPytorchProto::PruneRecord;
using AMCTPytorchProto::ScaleOffsetRecord;
using Dims = std::vector<int64_t>;

constexpr uint64_t kGroup = 4;        // M of M4N2
constexpr int kKept = 2;              // N
constexpr uint64_t kPiece = 1 << 18;  // elements read at a time, at least those of a group
constexpr uint64_t kWordBits = 64;

// `<` with NaN above everything.
bool Less(float a, float b) { return a < b || (std::isnan(b) && !std::isnan(a)); }

// How the elements of a weight stand in memory: [outer, length, inner], where `length` are the input channels. In torch's layout
// they stand the same way, or, of a Linear that is stored as [in, out], with length and inner exchanged.
struct Arrangement {
  uint64_t outer = 1;
  uint64_t length = 1;
  uint64_t inner = 1;
  bool transposed = false;

  // Position in torch's layout of element `element` of the tensor.
  uint64_t TorchPosition(uint64_t element) const { return transposed ? element % inner * length + element / inner : element; }
};

uint64_t Product(const Dims& dims, size_t begin, size_t end) {
  return std::accumulate(dims.begin() + static_cast<std::ptrdiff_t>(begin), dims.begin() + static_cast<std::ptrdiff_t>(end),
                         uint64_t{1}, std::multiplies<>());
}

Arrangement ArrangementOf(const Dims& torch_shape, int axis, bool transposed) {
  if (transposed) {
    return {.length = static_cast<uint64_t>(torch_shape[1]), .inner = static_cast<uint64_t>(torch_shape[0]), .transposed = true};
  }
  return {.outer = Product(torch_shape, 0, axis),
          .length = static_cast<uint64_t>(torch_shape[axis]),
          .inner = Product(torch_shape, axis + 1, torch_shape.size())};
}

// Calls visit(first, values, count) for every group of four input channels: element i of it is element first + i * inner of the
// tensor and values[i * inner], for i < count <= 4. In several threads, no group twice.
template <typename Visit>
absl::Status ForEachGroup(const Tensor& weight, const Arrangement& arrangement, int threads, const Visit& visit) {
  if (weight.ElementCount() == 0) {
    return absl::OkStatus();
  }
  const uint64_t groups = (arrangement.length + kGroup - 1) / kGroup;
  const uint64_t groups_at_once = std::max<uint64_t>(1, kPiece / (kGroup * arrangement.inner));
  const uint64_t pieces = (groups + groups_at_once - 1) / groups_at_once;
  std::vector<absl::Status> statuses(arrangement.outer * pieces);
  ParallelFor(threads, statuses.size(), [&](uint64_t task) {
    const uint64_t begin = task % pieces * groups_at_once * kGroup;  // input channels
    const uint64_t end = std::min(begin + groups_at_once * kGroup, arrangement.length);
    const uint64_t first = (task / pieces * arrangement.length + begin) * arrangement.inner;
    std::vector<float> values((end - begin) * arrangement.inner);
    statuses[task] = ReadFloats(weight, first, absl::MakeSpan(values));
    if (!statuses[task].ok()) {
      return;
    }
    for (uint64_t channel = begin; channel < end; channel += kGroup) {
      for (uint64_t i = 0; i < arrangement.inner; ++i) {
        const uint64_t offset = (channel - begin) * arrangement.inner + i;
        visit(first + offset, values.data() + offset, static_cast<int>(std::min(kGroup, end - channel)));
      }
    }
  });
  for (const absl::Status& status : statuses) {
    MP_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

// The bit of element `position` in an int64 read from bytes whose bits are filled from the most significant on.
uint64_t BitOf(uint64_t position) { return uint64_t{1} << (position % kWordBits / 8 * 8 + 7 - position % 8); }

// All ones for `count` elements.
std::vector<int64_t> FullMask(uint64_t count) {
  std::vector<int64_t> packed((count + kWordBits - 1) / kWordBits, -1);
  for (uint64_t position = count; position < packed.size() * kWordBits; ++position) {
    packed.back() &= ~static_cast<int64_t>(BitOf(position));
  }
  return packed;
}

absl::StatusOr<SelectiveMask> MaskOf(const Tensor& weight, const Dims& torch_shape, int axis, bool transposed, int threads) {
  SelectiveMask mask = {.shape = torch_shape, .axis = axis, .packed = FullMask(weight.ElementCount())};
  const Arrangement arrangement = ArrangementOf(torch_shape, axis, transposed);
  if (arrangement.length <= kKept) {
    return mask;
  }
  const auto clear = [&](uint64_t element) {
    const uint64_t position = arrangement.TorchPosition(element);
    std::atomic_ref<int64_t>(mask.packed[position / kWordBits])
        .fetch_and(~static_cast<int64_t>(BitOf(position)), std::memory_order_relaxed);
  };
  MP_RETURN_IF_ERROR(ForEachGroup(weight, arrangement, threads, [&](uint64_t first, const float* values, int count) {
    std::array<float, kGroup> magnitudes = {};  // zeros fill up the last group
    for (int i = 0; i < count; ++i) {
      magnitudes[i] = std::fabs(values[i * arrangement.inner]);
    }
    for (const int removed : SmallestTwoOfFour(magnitudes)) {
      if (removed < count) {
        clear(first + removed * arrangement.inner);
      }
    }
  }));
  return mask;
}

bool IsFloat(int data_type) { return data_type == onnx::TensorProto::FLOAT || data_type == onnx::TensorProto::FLOAT16; }

// Input channels in the weight's torch layout.
int AxisOf(const Item& layer) { return layer.Is("ConvTranspose") ? 0 : 1; }

struct SelectiveLayer {
  ItemId id = -1;
  LayerWeight weight;
  Tensor tensor;
};

absl::StatusOr<SelectiveLayer> FindSelectiveLayer(const Graph& graph, const std::string& name) {
  SelectiveLayer layer;
  MP_ASSIGN_OR_RETURN(layer.id, FindPrunedNode(graph, name));
  MP_ASSIGN_OR_RETURN(layer.weight, FindLayerWeight(graph, layer.id));
  layer.tensor = TensorOf(graph.item(layer.weight.operand.holder));
  if (!IsFloat(layer.tensor.header.data_type())) {
    return MakeError(v1::PRUNE_FAILED,
                     absl::StrCat("its weight has the type ", onnx::TensorProto::DataType_Name(layer.tensor.header.data_type()),
                                  ", not FLOAT or FLOAT16"),
                     {.layer = name});
  }
  return layer;
}

absl::Status CheckShape(const SelectiveLayer& layer, const std::string& name, const Dims& shape) {
  return layer.weight.dims == shape
             ? absl::OkStatus()
             : MakeError(v1::PRUNE_FAILED,
                         absl::StrCat("its mask has the shape ", ShapeText(shape), ", its weight ", ShapeText(layer.weight.dims),
                                      "; the record was made from another model"),
                         {.layer = name});
}

}  // namespace

std::array<int, 2> SmallestTwoOfFour(const std::array<float, 4>& magnitudes) {
  std::array<int, 4> x = {0, 1, 2, 3};  // positions, in the order that the search brings them into
  const auto less = [&](int a, int b) { return Less(magnitudes[a], magnitudes[b]); };
  // The median of the last three is the pivot and goes to the front.
  int pivot = 0;
  if (less(x[1], x[2])) {
    pivot = less(x[2], x[3]) ? 2 : less(x[1], x[3]) ? 3 : 1;
  } else {
    pivot = less(x[1], x[3]) ? 1 : less(x[2], x[3]) ? 3 : 2;
  }
  std::swap(x[0], x[pivot]);
  int first = 1;
  for (int last = 4;; ++first) {
    while (less(x[first], x[0])) {
      ++first;
    }
    --last;
    while (less(x[0], x[last])) {
      --last;
    }
    if (first >= last) {
      break;
    }
    std::swap(x[first], x[last]);
  }
  // The half that holds the second smallest is sorted.
  if (first <= 1) {
    std::stable_sort(x.begin() + first, x.end(), less);
  } else {
    std::stable_sort(x.begin(), x.begin() + first, less);
  }
  return {x[0], x[1]};
}

absl::StatusOr<SelectiveMask> MakeSelectiveMask(const Tensor& weight, const Dims& torch_shape, int axis, int threads) {
  if (axis < 0 || axis >= static_cast<int>(torch_shape.size()) ||
      Product(torch_shape, 0, torch_shape.size()) != weight.ElementCount()) {
    return MakeError(v1::PRUNE_FAILED, absl::StrCat("a weight of ", weight.ElementCount(), " elements has no mask of shape ",
                                                    ShapeText(torch_shape)));
  }
  return MaskOf(weight, torch_shape, axis, /*transposed=*/false, threads);
}

absl::StatusOr<std::map<std::string, SelectiveMask>> MakeSelectiveMasks(
    const Graph& graph, const Layers& layers, const std::map<std::string, SelectivePruneConfig>& enabled, int threads) {
  std::map<std::string, SelectiveMask> masks;
  for (const Layer& layer : layers.layers) {
    const std::string& name = layer.config.name;
    if (!enabled.contains(name)) {
      continue;
    }
    MP_ASSIGN_OR_RETURN(const SelectiveLayer found, FindSelectiveLayer(graph, name));
    absl::StatusOr<SelectiveMask> mask =
        MaskOf(found.tensor, found.weight.dims, AxisOf(graph.item(found.id)), found.weight.transposed, threads);
    if (!mask.ok()) {
      return AtPlace(mask.status(), {.layer = name});
    }
    masks.emplace(name, *std::move(mask));
  }
  return masks;
}

PruneRecord SelectiveRecord(const std::string& layer, const SelectiveMask& mask, bool with_mask) {
  PruneRecord record;
  PruneNode& node = *record.mutable_selective_prune();
  node.set_name(layer);
  AddRecordInts(node, kMaskShapeAttribute, mask.shape);
  if (with_mask) {
    AddRecordInts(node, kSelectiveMaskAttribute, mask.packed);
  }
  return record;
}

absl::Status ApplySelectiveMask(Graph& graph, const std::string& layer, const SelectiveMask& mask) {
  MP_ASSIGN_OR_RETURN(const SelectiveLayer found, FindSelectiveLayer(graph, layer));
  MP_RETURN_IF_ERROR(CheckShape(found, layer, mask.shape));
  if (mask.packed.size() != FullMask(found.tensor.ElementCount()).size()) {
    return MakeError(v1::PRUNE_FAILED,
                     absl::StrCat("its mask has ", mask.packed.size(), " words for ", found.tensor.ElementCount(), " weights"),
                     {.layer = layer});
  }
  const Arrangement arrangement = ArrangementOf(mask.shape, mask.axis, found.weight.transposed);
  const auto packed = std::make_shared<const std::vector<int64_t>>(mask.packed);
  MP_ASSIGN_OR_RETURN(const ConstantOperand own, OwnOperand(graph, found.id, found.id, 1, "weight"));
  SetTensor(graph, own, Transformed(found.tensor, [arrangement, packed](uint64_t first, absl::Span<float> values) {
              for (size_t i = 0; i < values.size(); ++i) {
                const uint64_t position = arrangement.TorchPosition(first + i);
                // The product keeps the sign of a zero and, as in training, what is not a number.
                values[i] *= ((*packed)[position / kWordBits] & static_cast<int64_t>(BitOf(position))) != 0 ? 1.0F : 0.0F;
              }
              return absl::OkStatus();
            }));
  return absl::OkStatus();
}

absl::Status CheckSelectiveSparsity(const Graph& graph, const ScaleOffsetRecord& record, int threads) {
  for (const PruneRecord& prune_record : record.prune_record()) {
    if (!prune_record.has_selective_prune()) {
      continue;
    }
    const PruneNode& node = prune_record.selective_prune();
    MP_ASSIGN_OR_RETURN(const SelectiveLayer layer, FindSelectiveLayer(graph, node.name()));
    const AMCTProto::AttrProto* shape = FindRecordAttribute(node, kMaskShapeAttribute);
    MP_RETURN_IF_ERROR(
        CheckShape(layer, node.name(), shape == nullptr ? Dims() : Dims(shape->ints().begin(), shape->ints().end())));
    const Arrangement arrangement = ArrangementOf(layer.weight.dims, AxisOf(graph.item(layer.id)), layer.weight.transposed);
    constexpr uint64_t kNone = ~uint64_t{0};
    std::atomic<uint64_t> dense = kNone;  // the first in torch's layout of the groups with too many weights
    MP_RETURN_IF_ERROR(AtPlace(ForEachGroup(layer.tensor, arrangement, threads,
                                            [&](uint64_t first, const float* values, int count) {
                                              int nonzero = 0;
                                              for (int i = 0; i < count; ++i) {
                                                nonzero += values[i * arrangement.inner] != 0 ? 1 : 0;
                                              }
                                              if (nonzero > kKept) {
                                                const uint64_t position = arrangement.TorchPosition(first);
                                                uint64_t known = dense;
                                                while (position < known && !dense.compare_exchange_weak(known, position)) {
                                                }
                                              }
                                            }),
                               {.layer = node.name()}));
    if (dense == kNone) {
      continue;
    }
    Dims indices(layer.weight.dims.size());
    uint64_t rest = dense;
    for (size_t axis = indices.size(); axis-- > 0; rest /= layer.weight.dims[axis]) {
      indices[axis] = static_cast<int64_t>(rest % layer.weight.dims[axis]);
    }
    return MakeError(v1::NOT_SPARSE,
                     absl::StrCat("its weight is not 2:4 sparse: of the four input channels from ", ShapeText(indices),
                                  " on, in torch's layout, more than two weights are not zero; save it with its masks applied"),
                     {.layer = node.name()});
  }
  return absl::OkStatus();
}

}  // namespace modelpress::engine
