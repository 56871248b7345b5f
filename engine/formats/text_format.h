// Protobuf text format as AMCT's files use it (docs/spec/formats.md section 2): read with C++'s parser, printed as Python's
// printer does. For any message type; the record file and the config files share it.
#ifndef MODELPRESS_ENGINE_FORMATS_TEXT_FORMAT_H_
#define MODELPRESS_ENGINE_FORMATS_TEXT_FORMAT_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"
#include "modelpress/v1/errors.pb.h"

namespace modelpress::engine {

struct TextPosition {
  int line = 0;    // from 1
  int column = 0;  // from 1, in characters (not bytes)
};

// Field name -> where each message of that outermost field begins in the text, in the order in which they stand there: at the
// field's name, or at the opening brace where several share the name in a list.
using TextPositions = std::map<std::string, std::vector<TextPosition>>;

// Merges `text` into `message` by the rules of formats.md section 2.2: required fields may be absent, of a repeated singular
// scalar the last one counts, repeated singular messages are merged. Errors have `reason`, `file` and, where known, line and
// column: not UTF-8, not text format, unknown field or enum name, wrong kind of value, integer out of range. `message` is then
// unspecified.
//
// Stricter than Python, and refused with their place: numbers with leading zeros and no fraction in a float field (007; in an
// integer field they are octal), integers in Python's own 0b and 0o forms, `-0` in an unsigned field, unknown escapes in strings,
// white space outside ASCII. A byte order mark at the beginning is skipped.
absl::StatusOr<TextPositions> ParseTextFormat(absl::string_view text, v1::Reason reason, const std::string& file,
                                              google::protobuf::Message& message);

// Prints as Python's google.protobuf.text_format does, byte for byte (formats.md section 2.1).
std::string PrintTextFormat(const google::protobuf::Message& message);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_TEXT_FORMAT_H_
