// The attributes of the entries of prune records (docs/spec/prune.md section 5).
#ifndef MODELPRESS_ENGINE_PRUNE_RECORD_ATTRIBUTES_H_
#define MODELPRESS_ENGINE_PRUNE_RECORD_ATTRIBUTES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "amct/record.pb.h"

namespace modelpress::engine {

inline constexpr char kPruneTypeAttribute[] = "type";
inline constexpr char kPruneBeginAttribute[] = "begin";
inline constexpr char kPruneEndAttribute[] = "end";
inline constexpr char kGroupAttribute[] = "group";
inline constexpr char kPruneGroupAttribute[] = "prune_group";
inline constexpr char kPruneIndexAttribute[] = "prune_index";
inline constexpr char kMaskShapeAttribute[] = "mask_shape";
inline constexpr char kSelectiveMaskAttribute[] = "selective_mask";

// Null where the entry has none of that name.
inline const AMCTProto::AttrProto* FindRecordAttribute(const AMCTPytorchProto::PruneNode& entry, absl::string_view name) {
  for (const AMCTProto::AttrProto& attribute : entry.attr()) {
    if (attribute.name() == name) {
      return &attribute;
    }
  }
  return nullptr;
}

inline std::optional<int64_t> FindRecordInt(const AMCTPytorchProto::PruneNode& entry, absl::string_view name) {
  const AMCTProto::AttrProto* attribute = FindRecordAttribute(entry, name);
  return attribute == nullptr || !attribute->has_i() ? std::nullopt : std::optional(attribute->i());
}

// Positions that stand for one channel of a record of `channels` channels in what the entry's node reads or writes: more than one
// for a Linear behind a Flatten.
inline int64_t PositionsPerChannel(const AMCTPytorchProto::PruneNode& entry, int64_t channels) {
  const int64_t begin = FindRecordInt(entry, kPruneBeginAttribute).value_or(0);
  const int64_t end = FindRecordInt(entry, kPruneEndAttribute).value_or(begin);
  const int64_t width = begin < 0 || end < begin ? 0 : end - begin;
  return channels > 0 && width > channels && width % channels == 0 ? width / channels : 1;
}

// Changes an integer that is there.
inline void SetRecordInt(AMCTPytorchProto::PruneNode& entry, absl::string_view name, int64_t value) {
  for (AMCTProto::AttrProto& attribute : *entry.mutable_attr()) {
    if (attribute.name() == name) {
      attribute.set_i(value);
    }
  }
}

// Adds an attribute of the type INTS.
inline void AddRecordInts(AMCTPytorchProto::PruneNode& entry, const std::string& name, const std::vector<int64_t>& values) {
  AMCTProto::AttrProto& attribute = *entry.add_attr();
  attribute.set_name(name);
  attribute.set_type(AMCTProto::AttrProto::INTS);
  attribute.mutable_ints()->Assign(values.begin(), values.end());
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_PRUNE_RECORD_ATTRIBUTES_H_
