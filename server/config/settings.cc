#include "server/config/settings.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"

namespace modelpress::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

absl::Status BadValue(absl::string_view text, absl::string_view kind) {
  return MakeError(v1::REQUEST_INVALID, absl::StrCat("'", text, "' is not ", kind));
}

template <typename Int>
absl::StatusOr<Int> ParseWhole(absl::string_view text) {
  Int value = 0;
  if (!absl::SimpleAtoi(text, &value)) {
    return BadValue(text, std::is_signed_v<Int> ? "a whole number" : "a whole number of 0 or more");
  }
  return value;
}

double NumberOf(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    default:
      return 0;
  }
}

// `name`: how the field is called for people.
absl::Status CheckValue(const Message& message, const FieldDescriptor& field, absl::string_view name) {
  const SettingInfo& info = field.options().GetExtension(setting);
  const double number = NumberOf(message, field);
  if (!std::isfinite(number)) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat(name, " must be finite"));
  }
  if (info.has_min() && number < info.min()) {
    return MakeError(v1::REQUEST_INVALID, absl::StrCat(name, " must be ", info.min(), " or more, not ", number));
  }
  if (info.values_size() > 0) {
    const std::string value = message.GetReflection()->GetString(message, &field);
    if (std::ranges::find(info.values(), value) == info.values().end()) {
      return MakeError(v1::REQUEST_INVALID,
                       absl::StrCat(name, " must be ", absl::StrJoin(info.values(), " or "), ", not '", value, "'"));
    }
  }
  return absl::OkStatus();
}

// Optimal string alignment distance, with a swap of neighbours as one step.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> before(b.size() + 1);
  std::vector<size_t> last(b.size() + 1);
  std::iota(last.begin(), last.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    std::vector<size_t> row(b.size() + 1, i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before = std::move(last);
    last = std::move(row);
  }
  return last.back();
}

constexpr absl::string_view kSchemeEnd = "://";
constexpr absl::string_view kPassword = "password";
constexpr absl::string_view kMask = "***";

size_t SkipSpace(absl::string_view text, size_t begin) {
  while (begin < text.size() && absl::ascii_isspace(text[begin])) {
    ++begin;
  }
  return begin;
}

// Of the value of a parameter or pair that begins at `begin`, with quotes and backslashes as libpq has them; rather more than
// less.
size_t EndOfValue(absl::string_view text, size_t begin) {
  bool quoted = false;
  for (size_t i = begin; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '\'') {
      quoted = !quoted;
    } else if (!quoted && (text[i] == '&' || absl::ascii_isspace(text[i]))) {
      return i;
    }
  }
  return text.size();
}

}  // namespace

std::string Setting::variable() const { return absl::StrCat(kVariablePrefix, absl::AsciiStrToUpper(field_->name())); }

bool Setting::IsSet(const ServerConfig& config) const {
  const Reflection& reflection = *config.GetReflection();
  const Message& topic = reflection.GetMessage(config, topic_);
  return field_->is_repeated() ? topic.GetReflection()->FieldSize(topic, field_) > 0
                               : topic.GetReflection()->HasField(topic, field_);
}

std::string Setting::Text(const ServerConfig& config) const {
  const Message& topic = config.GetReflection()->GetMessage(config, topic_);
  const Reflection& reflection = *topic.GetReflection();
  std::string text;
  if (info().may_hold_password()) {
    // Printed by way of a copy, so that quotes and escapes are as for all others.
    std::unique_ptr<Message> masked(topic.New());
    masked->GetReflection()->SetString(masked.get(), field_, MaskPassword(reflection.GetString(topic, field_)));
    google::protobuf::TextFormat::PrintFieldValueToString(*masked, field_, -1, &text);
    return text;
  }
  google::protobuf::TextFormat::PrintFieldValueToString(topic, field_, -1, &text);
  return text;
}

absl::Status Setting::Set(ServerConfig& config, absl::string_view text) const {
  Message& topic = *config.GetReflection()->MutableMessage(&config, topic_);
  const Reflection& reflection = *topic.GetReflection();
  switch (field_->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      if (text != "true" && text != "false") {
        return BadValue(text, "true or false");
      }
      reflection.SetBool(&topic, field_, text == "true");
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      MP_ASSIGN_OR_RETURN(const int32_t value, ParseWhole<int32_t>(text));
      reflection.SetInt32(&topic, field_, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      MP_ASSIGN_OR_RETURN(const int64_t value, ParseWhole<int64_t>(text));
      reflection.SetInt64(&topic, field_, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      MP_ASSIGN_OR_RETURN(const uint64_t value, ParseWhole<uint64_t>(text));
      reflection.SetUInt64(&topic, field_, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value = 0;
      if (!absl::SimpleAtod(text, &value)) {
        return BadValue(text, "a number");
      }
      reflection.SetDouble(&topic, field_, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING:
      reflection.SetString(&topic, field_, std::string(text));
      return absl::OkStatus();
    default:
      return MakeError(v1::INTERNAL_ERROR, absl::StrCat(field_->full_name(), " has a type that settings cannot have"));
  }
}

std::vector<Setting> AllSettings() {
  std::vector<Setting> settings;
  const google::protobuf::Descriptor& config = *ServerConfig::descriptor();
  for (int i = 0; i < config.field_count(); ++i) {
    const FieldDescriptor& topic = *config.field(i);
    for (int j = 0; j < topic.message_type()->field_count(); ++j) {
      settings.emplace_back(topic, *topic.message_type()->field(j));
    }
  }
  return settings;
}

absl::Status Setting::Check(const ServerConfig& config) const {
  const Message& topic = config.GetReflection()->GetMessage(config, topic_);
  if (!field_->is_repeated()) {
    return CheckValue(topic, *field_, name());
  }
  for (int i = 0; i < topic.GetReflection()->FieldSize(topic, field_); ++i) {
    const Message& element = topic.GetReflection()->GetRepeatedMessage(topic, field_, i);
    for (int j = 0; j < element.GetDescriptor()->field_count(); ++j) {
      const FieldDescriptor& field = *element.GetDescriptor()->field(j);
      if (element.GetReflection()->HasField(element, &field)) {
        MP_RETURN_IF_ERROR(CheckValue(element, field, absl::StrCat(name(), "[", i, "].", field.name())));
      }
    }
  }
  return absl::OkStatus();
}

std::string MaskPassword(absl::string_view url) {
  std::string masked;
  // In the authority of a URL up to the last @ of it,
  const size_t scheme = std::min(url.find(kSchemeEnd), url.size());
  const size_t colon = std::min(url.find_first_of(":/?#", scheme + kSchemeEnd.size()), url.size());
  const size_t at = url.rfind('@');
  if (std::ranges::all_of(url.substr(0, scheme), absl::ascii_islower) && url.substr(colon, 1) == ":" &&
      at != absl::string_view::npos && at > colon) {
    masked = absl::StrCat(url.substr(0, colon + 1), kMask);
    url.remove_prefix(at);
  }
  // in its parameters, and in name=value pairs, quoted or not.
  for (size_t name = url.find(kPassword); name != absl::string_view::npos; name = url.find(kPassword)) {
    const size_t sign = SkipSpace(url, name + kPassword.size());
    const bool is_pair = url.substr(sign, 1) == "=";
    const size_t value = is_pair ? SkipSpace(url, sign + 1) : sign;
    absl::StrAppend(&masked, url.substr(0, value), is_pair ? kMask : "");
    url.remove_prefix(is_pair ? EndOfValue(url, value) : value);
  }
  return absl::StrCat(masked, url);
}

std::string DidYouMean(absl::string_view name, const std::vector<std::string>& names) {
  // One slip in three characters is still a slip.
  const size_t most = std::max<size_t>(1, name.size() / 3);
  const std::string* nearest = nullptr;
  size_t slips = most + 1;
  for (const std::string& known : names) {
    // What is longer by more than that needs no look: it may be as long as a file.
    const size_t distance = name.size() > known.size() + most ? slips : EditDistance(name, known);
    if (distance < slips) {
      nearest = &known;
      slips = distance;
    }
  }
  return nearest == nullptr ? "" : absl::StrCat("; did you mean ", *nearest, "?");
}

}  // namespace modelpress::server
