// A record file: what can be read is printed, and read back as the same.
#include <algorithm>
#include <string>

#include "engine/formats/record.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::engine {
namespace {

void Run(absl::string_view text) {
  const absl::StatusOr<ParsedRecord> parsed = ParseRecord(text, "r.txt");
  RequireClear(parsed.status());
  if (!parsed.ok()) {
    return;
  }
  Require(parsed->entry_positions.size() == parsed->record.record_size(), "a position for each entry");
  const std::string printed = PrintRecord(parsed->record);
  const absl::StatusOr<ParsedRecord> again = ParseRecord(printed, "printed.txt");
  Require(again.ok(), "a printed record can be read");
  Require(PrintRecord(again->record) == printed, "it prints as before");
  for (int i = 0; i < std::min(parsed->record.record_size(), 10); ++i) {
    const TextPosition key = LocateField(text, {{"record", i}, {"key"}});
    Require(!parsed->record.record(i).has_key() || key.line > 0, "a key that is there has a place");
  }
}

}  // namespace
}  // namespace modelpress::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::engine::Run(modelpress::AsText(data, size));
  return 0;
}
