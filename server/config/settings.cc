#include "server/config/settings.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <regex>

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
  // In the authority of a URL up to the last @ of it, in its parameters, and in name=value pairs, quoted or not.
  static const auto& authority = *new std::regex("^([a-z]+://[^:/?#]*:).*(@)");
  static const auto& parameter = *new std::regex(R"re((\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s]*))re");
  const std::string masked = std::regex_replace(std::string(url), authority, "$1***$2");
  return std::regex_replace(masked, parameter, "$1***");
}

std::string DidYouMean(absl::string_view name, const std::vector<std::string>& names) {
  const auto nearest =
      std::ranges::min_element(names, {}, [name](const std::string& known) { return EditDistance(name, known); });
  // One slip in three characters is still a slip.
  if (nearest == names.end() || EditDistance(name, *nearest) > std::max<size_t>(1, name.size() / 3)) {
    return "";
  }
  return absl::StrCat("; did you mean ", *nearest, "?");
}

}  // namespace modelpress::server
