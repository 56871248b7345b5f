#include "engine/formats/text_format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/limits.h"
#include "engine/base/status.h"
#include "engine/base/utf8.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace modelpress::engine {
namespace {

using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::Reflection;

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// The offset of what protobuf's tokenizer calls (line, column): from 0, bytes, and tabs go to the next multiple of 8.
size_t FromTokenizer(absl::string_view text, int line, int column) {
  size_t offset = 0;
  for (int i = 0; i < line && offset < text.size(); ++i) {
    offset = std::min(text.find('\n', offset), text.size() - 1) + 1;
  }
  for (int i = 0; i < column && offset < text.size() && text[offset] != '\n'; ++offset) {
    i += text[offset] == '\t' ? 8 - i % 8 : 1;
  }
  return offset;
}

// Errors quote the text, whatever its length.
constexpr size_t kMaxErrorBytes = 300;

bool IsWord(char c) { return absl::ascii_isalnum(c) || c == '_'; }

// A number that Python reads and C++ does not, in C++'s spelling; nothing if `number` is fine as it is. Never longer.
std::optional<std::string> RespellNumber(absl::string_view number) {
  const absl::string_view original = number;
  std::string result;
  if (number[0] == '-' || (number.size() > 1 && number[0] == '+' && number[1] != '+' && number[1] != '-')) {
    result = number[0] == '-' ? "-" : "";
    number.remove_prefix(1);
  }
  for (absl::string_view name : {"inff", "infinityf", "nanf"}) {
    if (absl::EqualsIgnoreCase(number, name)) {
      number.remove_suffix(1);
      break;
    }
  }
  // Leading zeros of what can only be a float: 00.5, 01e3.
  const bool hex = absl::StartsWithIgnoreCase(number, "0x");
  if (!hex && number.find_first_of(".eE") != absl::string_view::npos) {
    while (number.size() > 1 && number[0] == '0' && absl::ascii_isdigit(number[1])) {
      number.remove_prefix(1);
    }
  }
  for (size_t i = 0; i < number.size(); ++i) {
    auto is_digit = [&](char c) { return hex ? absl::ascii_isxdigit(c) : absl::ascii_isdigit(c); };
    const bool between_digits =
        number[i] == '_' && i > 0 && i + 1 < number.size() && is_digit(number[i - 1]) && is_digit(number[i + 1]);
    if (!between_digits) {
      result += number[i];
    }
  }
  if (result == original) {
    return std::nullopt;
  }
  return result;
}

// The next token of a text in protobuf's text format; comments and white space are passed over.
struct Token {
  enum class Kind { kEnd, kName, kNumber, kString, kSymbol };  // kNumber may also be a lone sign

  Kind kind = Kind::kEnd;
  size_t begin = 0;
  size_t end = 0;
};

Token NextToken(absl::string_view text, size_t i) {
  for (; i < text.size(); ++i) {
    const size_t begin = i;
    const bool after_word = i > 0 && IsWord(text[i - 1]);  // a-1 is not a name and a number
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size() - 1);
    } else if (c == '"' || c == '\'') {
      for (++i; i < text.size() && text[i] != c && text[i] != '\n';) {
        i += text[i] == '\\' ? 2 : 1;
      }
      return {Token::Kind::kString, begin, std::min(i + 1, text.size())};
    } else if (absl::ascii_isdigit(c) || (!after_word && (c == '+' || c == '-')) || absl::ascii_isalpha(c) || c == '_' ||
               (c == '.' && i + 1 < text.size() && absl::ascii_isdigit(text[i + 1]))) {
      const bool name = absl::ascii_isalpha(c) || c == '_';
      ++i;
      while (i < text.size() && (IsWord(text[i]) || (!name && (text[i] == '.' || text[i] == '+' || text[i] == '-')))) {
        ++i;
      }
      return {name ? Token::Kind::kName : Token::Kind::kNumber, begin, i};
    } else if (!absl::ascii_isspace(c)) {
      return {Token::Kind::kSymbol, begin, begin + 1};
    }
  }
  return {Token::Kind::kEnd, text.size(), text.size()};
}

// One walk over the tokens of `text`, for what C++'s parser does not do: replaces numbers by the same in a spelling that it
// takes, filled up with spaces, so that positions stay; and notes where outermost messages begin (its ParseInfoTree has one
// location for a whole list of messages).
struct Prepared {
  std::string text;
  TextPositions positions;
  std::optional<size_t> over_limit;  // where the first message too many begins; the walk ends there
};

Prepared Prepare(absl::string_view text) {
  Prepared prepared = {.text = std::string(text)};
  PositionCursor cursor(text);
  std::string field;  // the last name outside of any braces
  size_t field_begin = 0;
  bool in_list = false;
  int depth = 0;
  uint64_t messages = 0;
  for (Token token = NextToken(text, 0); token.kind != Token::Kind::kEnd; token = NextToken(text, token.end)) {
    const absl::string_view word = text.substr(token.begin, token.end - token.begin);
    const char c = word[0];
    if (token.kind == Token::Kind::kName || token.kind == Token::Kind::kNumber) {
      const bool name = token.kind == Token::Kind::kName;
      if (name && depth == 0) {
        field = std::string(word);
        field_begin = token.begin;
      }
      // Names can only be respelled if they are the float values inff and the like.
      if (std::optional<std::string> spelling = name && word.find('_') != word.npos ? std::nullopt : RespellNumber(word)) {
        spelling->resize(word.size(), ' ');
        prepared.text.replace(token.begin, word.size(), *spelling);
      }
    } else if (token.kind == Token::Kind::kSymbol) {
      if (c == '{' || c == '<') {
        if (++messages > kMaxTextMessages) {
          prepared.over_limit = token.begin;
          return prepared;
        }
        if (depth++ == 0) {
          prepared.positions[field].push_back(cursor.At(in_list ? token.begin : field_begin));
        }
      } else if (c == '}' || c == '>') {
        depth = std::max(depth - 1, 0);
      } else if (depth == 0 && (c == '[' || c == ']')) {
        in_list = c == '[';
      }
    }
  }
  return prepared;
}

// One occurrence of a field in a text, and of those inside it.
struct Occurrence {
  std::string field;
  size_t begin = 0;
  std::vector<Occurrence> inner;
};

// Every field of a text that is known to be right: fields and their values take turns. Returns where the message ends.
size_t CollectOccurrences(absl::string_view text, size_t i, std::vector<Occurrence>& out) {
  for (Token token = NextToken(text, i); token.kind != Token::Kind::kEnd; token = NextToken(text, i)) {
    i = token.end;
    auto symbol = [&](const Token& t, absl::string_view any_of) {
      return t.kind == Token::Kind::kSymbol && any_of.find(text[t.begin]) != absl::string_view::npos;
    };
    if (symbol(token, "}>")) {
      return i;
    }
    if (token.kind != Token::Kind::kName) {
      continue;  // separators, the other pieces of a string
    }
    const std::string field(text.substr(token.begin, token.end - token.begin));
    Token value = NextToken(text, i);
    if (symbol(value, ":")) {
      value = NextToken(text, value.end);
    }
    const bool list = symbol(value, "[");
    size_t begin = token.begin;
    if (list) {
      value = NextToken(text, value.end);
      begin = value.begin;
    }
    while (value.kind != Token::Kind::kEnd && !(list && symbol(value, "]"))) {
      out.push_back({field, begin, {}});
      i = symbol(value, "{<") ? CollectOccurrences(text, value.end, out.back().inner) : value.end;
      if (text[value.begin] == '-' && value.end == value.begin + 1) {
        i = NextToken(text, i).end;  // a sign apart from its number
      }
      if (!list) {
        break;
      }
      do {  // to the next element, behind the other pieces of a string
        value = NextToken(text, i);
        i = value.end;
      } while (value.kind == Token::Kind::kString);
      if (symbol(value, ",")) {
        value = NextToken(text, i);
      }
      begin = value.begin;
    }
    i = list ? value.end : i;
  }
  return i;
}

// The offset of the longest beginning of `path` that is there, and how many steps that is.
std::pair<size_t, size_t> Locate(const std::vector<Occurrence>& fields, const std::vector<TextStep>& path, size_t step) {
  std::pair<size_t, size_t> best = {0, 0};
  if (step == path.size()) {
    return best;
  }
  int element = 0;
  for (const Occurrence& field : fields) {
    if (field.field != path[step].field || (path[step].element >= 0 && element++ != path[step].element)) {
      continue;
    }
    const auto [offset, found] = Locate(field.inner, path, step + 1);
    if (found + 1 >= best.second) {
      best = {found == 0 ? field.begin : offset, found + 1};
    }
  }
  return best;
}

// Keeps the first error.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  struct Error {
    int line;
    int column;
    std::string message;
  };

  void AddError(int line, int column, const std::string& message) override {
    if (!error_.has_value()) {
      error_ = {line, column, message};
    }
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::optional<Error> error_;
};

// Name of a string field somewhere in `message` whose value is not UTF-8 (escapes can make it so), or "".
std::string FieldWithBrokenUtf8(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  std::string scratch;
  for (const FieldDescriptor* field : fields) {
    const int size = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < size; ++i) {
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        const std::string& value = field->is_repeated() ? reflection.GetRepeatedStringReference(message, field, i, &scratch)
                                                        : reflection.GetStringReference(message, field, &scratch);
        if (ValidUtf8Prefix(value) < value.size()) {
          return field->name();
        }
      } else if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
        const Message& child =
            field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i) : reflection.GetMessage(message, field);
        if (std::string name = FieldWithBrokenUtf8(child); !name.empty()) {
          return name;
        }
      }
    }
  }
  return "";
}

// Where the first outermost message begins that has broken UTF-8 inside; {} if it is not in a repeated outermost message.
TextPosition PositionOfBrokenUtf8(const Message& message, const TextPositions& positions) {
  const Reflection& reflection = *message.GetReflection();
  for (const auto& [name, places] : positions) {
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    if (field == nullptr || !field->is_repeated() || field->type() != FieldDescriptor::TYPE_MESSAGE) {
      continue;
    }
    for (int i = 0; i < std::min<int>(reflection.FieldSize(message, field), static_cast<int>(places.size())); ++i) {
      if (!FieldWithBrokenUtf8(reflection.GetRepeatedMessage(message, field, i)).empty()) {
        return places[i];
      }
    }
  }
  return {};
}

// ---- printing ---------------------------------------------------------------------------------------------------------------

// The fewest of 6 to 9 significant digits that give `value` back.
std::string FloatText(float value) {
  double rounded = value;
  if (std::isfinite(value)) {
    for (int precision = 6; precision <= 9; ++precision) {
      char buffer[32];
      const char* end =
          std::to_chars(buffer, buffer + sizeof(buffer), static_cast<double>(value), std::chars_format::general, precision).ptr;
      std::from_chars(buffer, end, rounded);
      if (static_cast<float>(rounded) == value) {
        break;
      }
    }
  }
  return PythonRepr(rounded);
}

// `bytes`: what is not printable ASCII becomes octal; otherwise it stays as it is.
std::string Quoted(const std::string& value, bool bytes) {
  std::string text = "\"";
  for (const char c : value) {
    switch (c) {
      case '\n':
        text += "\\n";
        break;
      case '\r':
        text += "\\r";
        break;
      case '\t':
        text += "\\t";
        break;
      case '"':
      case '\'':
      case '\\':
        text += '\\';
        text += c;
        break;
      default:
        if (const unsigned byte = static_cast<unsigned char>(c); bytes && (byte < 32 || byte >= 127)) {
          text += '\\';
          for (const unsigned shift : {6u, 3u, 0u}) {
            text += static_cast<char>('0' + ((byte >> shift) & 7));
          }
        } else {
          text += c;
        }
    }
  }
  return text + '"';
}

// Text of element `i` of a field that is not a message; i is ignored for a singular field.
std::string ScalarText(const Message& message, const FieldDescriptor* field, int i) {
  const Reflection& reflection = *message.GetReflection();
  const bool repeated = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(repeated ? reflection.GetRepeatedInt32(message, field, i) : reflection.GetInt32(message, field));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(repeated ? reflection.GetRepeatedInt64(message, field, i) : reflection.GetInt64(message, field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(repeated ? reflection.GetRepeatedUInt32(message, field, i) : reflection.GetUInt32(message, field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(repeated ? reflection.GetRepeatedUInt64(message, field, i) : reflection.GetUInt64(message, field));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return FloatText(repeated ? reflection.GetRepeatedFloat(message, field, i) : reflection.GetFloat(message, field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return PythonRepr(repeated ? reflection.GetRepeatedDouble(message, field, i) : reflection.GetDouble(message, field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return (repeated ? reflection.GetRepeatedBool(message, field, i) : reflection.GetBool(message, field)) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return (repeated ? reflection.GetRepeatedEnum(message, field, i) : reflection.GetEnum(message, field))->name();
    case FieldDescriptor::CPPTYPE_STRING:
      return Quoted(repeated ? reflection.GetRepeatedString(message, field, i) : reflection.GetString(message, field),
                    field->type() == FieldDescriptor::TYPE_BYTES);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
  return "";
}

void AppendMessage(const Message& message, const std::string& indent, std::string& out) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;  // those that are set, by number
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int size = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < size; ++i) {
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        absl::StrAppend(&out, indent, field->name(), " {\n");
        AppendMessage(
            field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i) : reflection.GetMessage(message, field),
            indent + "  ", out);
        absl::StrAppend(&out, indent, "}\n");
      } else {
        absl::StrAppend(&out, indent, field->name(), ": ", ScalarText(message, field, i), "\n");
      }
    }
  }
}

// An error of protobuf's parser at its place, with the field before it as metadata "key".
template <typename MakeStatus>
absl::Status SyntaxError(absl::string_view text, const FirstError::Error& found, const MakeStatus& make) {
  // What is wrong with a name or value, the parser says when it has read it: the place is that of the token behind it.
  const absl::string_view message = found.message;
  const bool is_behind = absl::StartsWith(message, "Invalid value for") ||
                         absl::StartsWith(message, "Unknown enumeration value") ||
                         absl::StrContains(message, "has no field named");
  const size_t place = found.line < 0 ? text.size() : FromTokenizer(text, found.line, found.column);
  size_t begin = place;
  absl::string_view key;
  for (Token token = NextToken(text, 0); token.kind != Token::Kind::kEnd && token.begin < place;
       token = NextToken(text, token.end)) {
    begin = token.begin;
    if (token.kind == Token::Kind::kName) {
      const Token next = NextToken(text, token.end);
      const bool is_field = absl::StrContains(message, "has no field named") ||
                            (next.kind == Token::Kind::kSymbol && absl::StrContains(":{<", text[next.begin]));
      key = is_field ? text.substr(token.begin, token.end - token.begin) : key;
    }
  }
  const absl::Status status = make(ShortenedText(std::string(absl::StripSuffix(message, "."))),
                                   found.line < 0 ? TextPosition{} : PositionAt(text, is_behind ? begin : place));
  return key.empty() ? status : WithMetadata(status, "key", ShortenedText(std::string(key)));
}

}  // namespace

TextPosition PositionCursor::At(size_t offset) {
  for (; next_ < offset && next_ < text_.size(); ++next_) {
    if (text_[next_] == '\n') {
      ++position_.line;
      position_.column = 1;
    } else if (!IsContinuation(text_[next_])) {
      ++position_.column;
    }
  }
  return position_;
}

std::string ShortenedText(const std::string& text) {
  if (text.size() <= kMaxErrorBytes) {
    return text;
  }
  size_t end = kMaxErrorBytes;
  while (IsContinuation(text[end])) {
    --end;
  }
  return text.substr(0, end) + "...";
}

std::string PythonRepr(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value < 0 ? "-inf" : "inf";
  }
  char buffer[32];
  char* end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string text(buffer, end);
  const size_t e = text.find('e');
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    return text;
  }
  end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed).ptr;
  text.assign(buffer, end);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

double DecimalDouble(float value) {
  char buffer[32];
  const char* end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  double result = value;
  std::from_chars(buffer, end, result);
  return result;
}

absl::StatusOr<TextPositions> ParseTextFormat(absl::string_view text, v1::Reason reason, const std::string& file,
                                              Message& message) {
  auto error = [&](absl::string_view what, TextPosition position) {
    return MakeError(reason, what, {.file = file, .line = position.line, .column = position.column});
  };
  if (const uint64_t limit = reason == v1::RECORD_SYNTAX ? kMaxRecordBytes : kMaxCfgBytes; text.size() > limit) {
    return error(absl::StrCat("the file has ", text.size(), " bytes; at most ", limit, " are read"), {});
  }
  absl::ConsumePrefix(&text, "\xEF\xBB\xBF");  // the byte order mark that some editors write
  if (const size_t valid = ValidUtf8Prefix(text); valid < text.size()) {
    return error("the file is not UTF-8 text from this byte on; save it as UTF-8", PositionCursor(text).At(valid));
  }
  Prepared prepared = Prepare(text);
  if (prepared.over_limit.has_value()) {
    return error(absl::StrCat("the file holds more than ", kMaxTextMessages, " entries and parts of entries"),
                 PositionAt(text, *prepared.over_limit));
  }
  google::protobuf::TextFormat::Parser parser;
  FirstError first;
  parser.RecordErrorsTo(&first);
  parser.AllowPartialMessage(true);
  // Merge, not Parse: only it allows a singular field more than once.
  if (!parser.MergeFromString(prepared.text, &message) || first.error().has_value()) {
    FirstError::Error found = first.error().value_or(FirstError::Error{-1, 0, "not protobuf text format"});
    return SyntaxError(text, found, error);
  }
  if (const std::string field = FieldWithBrokenUtf8(message); !field.empty()) {
    return error(absl::StrCat("the escapes in '", field, "' do not form UTF-8"),
                 PositionOfBrokenUtf8(message, prepared.positions));
  }
  return std::move(prepared.positions);
}

TextPosition LocateField(absl::string_view text, const std::vector<TextStep>& path) {
  absl::ConsumePrefix(&text, "\xEF\xBB\xBF");
  std::vector<Occurrence> fields;
  CollectOccurrences(text, 0, fields);
  const auto [offset, steps] = Locate(fields, path, 0);
  return steps == 0 ? TextPosition{} : PositionAt(text, offset);
}

std::string PrintTextFormat(const Message& message) {
  std::string out;
  AppendMessage(message, "", out);
  return out;
}

}  // namespace modelpress::engine
