// Builds the entries of prune records, for tests.
#ifndef MODELPRESS_TESTS_ENGINE_PRUNE_PRUNE_ENTRIES_H_
#define MODELPRESS_TESTS_ENGINE_PRUNE_PRUNE_ENTRIES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "amct/record.pb.h"
#include "engine/prune/record_attributes.h"

namespace modelpress::engine {

inline AMCTPytorchProto::PruneNode Entry(const std::string& name, const std::string& type, int64_t begin, int64_t end,
                                         const std::vector<int64_t>& indices = {}) {
  AMCTPytorchProto::PruneNode node;
  node.set_name(name);
  AMCTProto::AttrProto* attribute = node.add_attr();
  attribute->set_name(kPruneTypeAttribute);
  attribute->set_type(AMCTProto::AttrProto::STRING);
  attribute->set_s(type);
  for (const auto& [key, value] : {std::pair{kPruneBeginAttribute, begin}, std::pair{kPruneEndAttribute, end}}) {
    attribute = node.add_attr();
    attribute->set_name(key);
    attribute->set_type(AMCTProto::AttrProto::INT);
    attribute->set_i(value);
  }
  if (!indices.empty()) {
    AddRecordInts(node, kPruneIndexAttribute, indices);
  }
  return node;
}

inline AMCTPytorchProto::PruneRecord MakeRecord(const std::vector<AMCTPytorchProto::PruneNode>& producers,
                                                const std::vector<AMCTPytorchProto::PruneNode>& consumers) {
  AMCTPytorchProto::PruneRecord record;
  record.mutable_producer()->Assign(producers.begin(), producers.end());
  record.mutable_consumer()->Assign(consumers.begin(), consumers.end());
  return record;
}

inline void AddRecordInt(AMCTPytorchProto::PruneNode& entry, const std::string& name, int64_t value) {
  AMCTProto::AttrProto& attribute = *entry.add_attr();
  attribute.set_name(name);
  attribute.set_type(AMCTProto::AttrProto::INT);
  attribute.set_i(value);
}

}  // namespace modelpress::engine

#endif  // MODELPRESS_TESTS_ENGINE_PRUNE_PRUNE_ENTRIES_H_
