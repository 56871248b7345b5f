// The record file: AMCT's protobuf-text file of quantization factors and prune records (docs/spec/formats.md sections 2 and 3).
#ifndef MODELPRESS_ENGINE_FORMATS_RECORD_H_
#define MODELPRESS_ENGINE_FORMATS_RECORD_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "amct/record.pb.h"
#include "engine/formats/text_format.h"

namespace modelpress::engine {

struct ParsedRecord {
  AMCTPytorchProto::ScaleOffsetRecord record;
  // Where entry i of record.record() begins in the text; as many as there are entries.
  std::vector<TextPosition> entry_positions;
};

// Parses with the merge semantics of formats.md section 2.2: partial messages are fine, of a repeated singular field the last
// one counts. `file` names the file in errors. RECORD_SYNTAX with line and column: not UTF-8, not protobuf text, unknown
// field, wrong kind of value, integer out of range.
absl::StatusOr<ParsedRecord> ParseRecord(absl::string_view text, const std::string& file);

// Prints as Python's protobuf text format does, byte for byte (formats.md section 2.1). C++'s own printer writes floats
// differently.
std::string PrintRecord(const AMCTPytorchProto::ScaleOffsetRecord& record);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_RECORD_H_
