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
// column: not UTF-8, not text format, unknown field or enum name, wrong kind of value, integer out of range, more bytes or
// messages than engine/base/limits.h allows. `message` is then unspecified.
//
// Stricter than Python, and refused with their place: numbers with leading zeros and no fraction in a float field (007; in an
// integer field they are octal), integers in Python's own 0b and 0o forms, `-0` in an unsigned field, unknown escapes in strings,
// white space outside ASCII. A byte order mark at the beginning is skipped.
absl::StatusOr<TextPositions> ParseTextFormat(absl::string_view text, v1::Reason reason, const std::string& file,
                                              google::protobuf::Message& message);

// A step on the way to a field inside a message: its name and, for a repeated field, which element.
struct TextStep {
  std::string field;
  int element = -1;  // -1: a singular field; of one that is given more than once, the last counts
};

// Where a field begins in a text that ParseTextFormat accepts: at its name, or, in a list, at the element. If the text does not
// hold the last steps (the field has its default), where the message begins that they would be in; {} if it holds none.
TextPosition LocateField(absl::string_view text, const std::vector<TextStep>& path);

// Prints as Python's google.protobuf.text_format does, byte for byte (formats.md section 2.1).
std::string PrintTextFormat(const google::protobuf::Message& message);

// Python's repr(float): the shortest digits that round-trip, positional from 1e-4 up to below 1e16.
std::string PythonRepr(double value);

// The double that the shortest decimal text of `value` stands for: 0.7F gives 0.7 (formats.md section 5.2).
double DecimalDouble(float value);

// What errors quote of a text of any length.
std::string ShortenedText(const std::string& text);

// Turns byte offsets into positions. Quick if asked in ascending order.
class PositionCursor {
 public:
  explicit PositionCursor(absl::string_view text) : text_(text) {}
  TextPosition At(size_t offset);

 private:
  absl::string_view text_;
  size_t next_ = 0;
  TextPosition position_ = {.line = 1, .column = 1};
};

inline TextPosition PositionAt(absl::string_view text, size_t offset) { return PositionCursor(text).At(offset); }

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_TEXT_FORMAT_H_
