#include "engine/formats/record.h"

#include <utility>

#include "engine/base/status.h"

namespace modelpress::engine {

absl::StatusOr<ParsedRecord> ParseRecord(absl::string_view text, const std::string& file) {
  ParsedRecord parsed;
  MP_ASSIGN_OR_RETURN(TextPositions positions, ParseTextFormat(text, v1::RECORD_SYNTAX, file, parsed.record));
  parsed.entry_positions = std::move(positions["record"]);
  parsed.entry_positions.resize(parsed.record.record_size());
  return parsed;
}

std::string PrintRecord(const AMCTPytorchProto::ScaleOffsetRecord& record) { return PrintTextFormat(record); }

}  // namespace modelpress::engine
