// JSON as AMCT's configuration files use it (docs/spec/formats.md sections 5.1, 5.2, 5.5): read with the place of everything and
// without hiding repeated keys, printed as Python's json module does.
#ifndef MODELPRESS_ENGINE_FORMATS_JSON_TEXT_H_
#define MODELPRESS_ENGINE_FORMATS_JSON_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/formats/text_format.h"
#include "nlohmann/json_fwd.hpp"

namespace modelpress::engine {

struct JsonMember;

struct JsonValue {
  enum class Kind { kNull, kBool, kInteger, kFloat, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;  // kInteger; beyond 64 bits the nearest that there is
  double number = 0;    // kInteger and kFloat
  std::string string;
  std::vector<JsonValue> items;
  std::vector<JsonMember> members;  // in the order of the text
  TextPosition position;            // where it begins; of a member, where its key begins

  bool is(Kind wanted) const { return kind == wanted; }
  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kFloat; }
  const JsonValue* Find(absl::string_view key) const;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

// "a whole number", "true or false", ...: for errors.
absl::string_view NameOfKind(JsonValue::Kind kind);

// CONFIG_SYNTAX with file, line and column: not JSON (NaN and Infinity are not), not UTF-8, a number beyond double, nested deeper
// than kMaxJsonDepth, more than kMaxJsonBytes or kMaxJsonValues, a key repeated within an object (metadata "key"; layer: the
// outermost key that it lies under).
absl::StatusOr<JsonValue> ParseJson(absl::string_view text, const std::string& file);

// Byte for byte as json.dumps(value, indent=4, separators=(",", ":")).
std::string PrintPythonJson(const nlohmann::ordered_json& value);

}  // namespace modelpress::engine

#endif  // MODELPRESS_ENGINE_FORMATS_JSON_TEXT_H_
