#include "engine/formats/json_text.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"

namespace modelpress::engine {
namespace {

// Builds the tree from nlohmann's events. They carry no positions, but each stands for exactly one token, and everything up to it
// is known to be JSON: so the tokens are counted off in the text.
class TreeBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  TreeBuilder(absl::string_view text, const std::string& file) : text_(text), file_(file), cursor_(text) {}

  bool null() override {
    Add(JsonValue::Kind::kNull);
    return Count();
  }
  bool boolean(bool value) override {
    Add(JsonValue::Kind::kBool)->boolean = value;
    return Count();
  }
  bool number_integer(number_integer_t value) override { return AddInteger(value, static_cast<double>(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    constexpr number_unsigned_t kMax = std::numeric_limits<int64_t>::max();
    return AddInteger(static_cast<int64_t>(std::min(value, kMax)), static_cast<double>(value));
  }
  bool number_float(number_float_t value, const string_t& token) override {
    if (token.find_first_of(".eE") == std::string::npos) {  // an integer beyond 64 bits
      return AddInteger(value < 0 ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max(), value);
    }
    Add(JsonValue::Kind::kFloat)->number = value;
    return Count();
  }
  bool string(string_t& value) override {
    Add(JsonValue::Kind::kString)->string = std::move(value);
    return Count();
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return Open(JsonValue::Kind::kObject); }
  bool end_object() override { return Close(); }
  bool start_array(std::size_t) override { return Open(JsonValue::Kind::kArray); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    const TextPosition position = NextToken();
    JsonValue& object = *open_.back();
    if (!keys_.back().insert(value).second) {
      status_ = WithMetadata(
          MakeError(v1::CONFIG_SYNTAX, absl::StrCat("key '", value, "' is given twice in one object; remove one of them"),
                    {.file = file_, .line = position.line, .column = position.column, .layer = Outermost()}),
          "key", value);
      return false;
    }
    object.members.push_back({.key = std::move(value), .value = {.position = position}});
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const nlohmann::json::exception& exception) override {
    absl::string_view what = exception.what();
    if (const size_t begin = what.find(": "); begin != absl::string_view::npos) {
      what.remove_prefix(begin + 2);
    }
    const TextPosition position = PositionAt(text_, byte == 0 ? 0 : byte - 1);
    status_ = MakeError(v1::CONFIG_SYNTAX, absl::StrCat("not JSON: ", ShortenedText(std::string(what))),
                        {.file = file_, .line = position.line, .column = position.column});
    return false;
  }

  const absl::Status& status() const { return status_; }
  JsonValue& root() { return root_; }

 private:
  // Where the next token begins; goes behind it.
  TextPosition NextToken() {
    next_ = text_.find_first_not_of(" \t\r\n,:", next_);
    const size_t begin = next_;
    if (text_[begin] == '"') {
      for (++next_; text_[next_] != '"'; ++next_) {
        next_ += text_[next_] == '\\' ? 1 : 0;
      }
      ++next_;
    } else if (absl::string_view("{}[]").find(text_[begin]) != absl::string_view::npos) {
      ++next_;
    } else {
      next_ = std::min(text_.find_first_of(" \t\r\n,:]}", next_), text_.size());
    }
    return cursor_.At(begin);
  }

  std::string Outermost() const { return open_.size() > 1 ? root_.members.back().key : ""; }

  JsonValue* Add(JsonValue::Kind kind) {
    const TextPosition position = NextToken();
    JsonValue* value = &root_;
    if (!open_.empty() && open_.back()->is(JsonValue::Kind::kObject)) {
      value = &open_.back()->members.back().value;
    } else if (!open_.empty()) {
      value = &open_.back()->items.emplace_back();
    }
    if (value->position.line == 0) {
      value->position = position;
    }
    value->kind = kind;
    return value;
  }

  bool AddInteger(int64_t integer, double number) {
    JsonValue* value = Add(JsonValue::Kind::kInteger);
    value->integer = integer;
    value->number = number;
    return Count();
  }

  // A value takes some 200 bytes where the text needs two.
  bool Count() {
    if (++values_ > kMaxJsonValues) {
      status_ =
          MakeError(v1::CONFIG_SYNTAX, absl::StrCat("the file holds more than ", kMaxJsonValues, " values"), {.file = file_});
    }
    return values_ <= kMaxJsonValues;
  }

  bool Open(JsonValue::Kind kind) {
    JsonValue* value = Add(kind);
    if (open_.size() == kMaxJsonDepth) {
      status_ = MakeError(v1::CONFIG_SYNTAX, absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels"),
                          {.file = file_, .line = value->position.line, .column = value->position.column});
      return false;
    }
    open_.push_back(value);
    keys_.emplace_back();
    return Count();
  }

  bool Close() {
    NextToken();
    open_.pop_back();
    keys_.pop_back();
    return true;
  }

  const absl::string_view text_;
  const std::string& file_;
  PositionCursor cursor_;
  size_t next_ = 0;
  JsonValue root_;
  std::vector<JsonValue*> open_;  // arrays and objects around the next value; only the last one grows
  std::vector<std::set<std::string>> keys_;
  uint64_t values_ = 0;
  absl::Status status_;
};

// nlohmann escapes as Python's ensure_ascii does; what is not UTF-8 becomes U+FFFD instead of an exception.
std::string Quoted(const std::string& value) {
  return nlohmann::json(value).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

void Append(const nlohmann::ordered_json& value, const std::string& indent, std::string& out) {
  const std::string inner = indent + "    ";
  const char* separator = "\n";
  if (value.is_object() && !value.empty()) {
    out += '{';
    for (const auto& [key, member] : value.items()) {
      absl::StrAppend(&out, separator, inner, Quoted(key), ":");
      Append(member, inner, out);
      separator = ",\n";
    }
    absl::StrAppend(&out, "\n", indent, "}");
  } else if (value.is_array() && !value.empty()) {
    out += '[';
    for (const auto& item : value) {
      absl::StrAppend(&out, separator, inner);
      Append(item, inner, out);
      separator = ",\n";
    }
    absl::StrAppend(&out, "\n", indent, "]");
  } else if (value.is_number_float()) {
    out += PythonRepr(value.get<double>());
  } else if (value.is_string()) {
    out += Quoted(value.get<std::string>());
  } else {
    out += value.dump();
  }
}

}  // namespace

const JsonValue* JsonValue::Find(absl::string_view key) const {
  for (const auto& [name, value] : members) {
    if (name == key) {
      return &value;
    }
  }
  return nullptr;
}

absl::string_view NameOfKind(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "true or false";
    case JsonValue::Kind::kInteger:
      return "a whole number";
    case JsonValue::Kind::kFloat:
      return "a number with a fraction";
    case JsonValue::Kind::kString:
      return "a text";
    case JsonValue::Kind::kArray:
      return "a list";
    case JsonValue::Kind::kObject:
      return "an object";
  }
  return "";
}

absl::StatusOr<JsonValue> ParseJson(absl::string_view text, const std::string& file) {
  if (text.size() > kMaxJsonBytes) {
    return MakeError(v1::CONFIG_SYNTAX,
                     absl::StrCat("the file has ", text.size(), " bytes; at most ", kMaxJsonBytes, " are read"), {.file = file});
  }
  absl::ConsumePrefix(&text, "\xEF\xBB\xBF");  // the byte order mark that some editors write
  // The parser takes a NUL for the end.
  if (const size_t nul = text.find('\0'); nul != absl::string_view::npos) {
    const TextPosition position = PositionAt(text, nul);
    return MakeError(v1::CONFIG_SYNTAX, "not JSON: a NUL", {.file = file, .line = position.line, .column = position.column});
  }
  TreeBuilder builder(text, file);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    return builder.status();
  }
  return std::move(builder.root());
}

std::string PrintPythonJson(const nlohmann::ordered_json& value) {
  std::string out;
  Append(value, "", out);
  return out;
}

}  // namespace modelpress::engine
