#include "server/config/load.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "server/config/settings.h"

namespace modelpress::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::TextFormat;

constexpr char kConfig[] = "config";  // flag and variable that name the file

absl::Status Invalid(absl::string_view message) { return MakeError(v1::REQUEST_INVALID, message); }

// Keeps the first error with the name in the text that it is about.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (!found_.has_value()) {
      found_ = absl::StrCat(line + 1, ":", column + 1, ": ", message, Hint(message));
    }
  }
  void AddWarning(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
  const std::string& message() const { return *found_; }

 private:
  // What could have been meant by an unknown field: one of the right topic, or of another one.
  static std::string Hint(const std::string& message) {
    constexpr absl::string_view kUnknown = "has no field named \"";
    const size_t begin = message.find(std::string(kUnknown));
    if (begin == std::string::npos) {
      return "";
    }
    const std::string name =
        message.substr(begin + kUnknown.size(), message.find('"', begin + kUnknown.size()) - begin - kUnknown.size());
    std::vector<std::string> topics;
    std::vector<std::string> names;
    for (const Setting& setting : AllSettings()) {
      if (setting.name() == name) {
        return absl::StrCat("; it belongs into '", setting.topic().name(), " { }'");
      }
      names.push_back(setting.name());
      topics.push_back(setting.topic().name());
    }
    names.insert(names.end(), topics.begin(), topics.end());
    return DidYouMean(name, names);
  }

  std::optional<std::string> found_;
};

absl::StatusOr<std::string> ReadText(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
  std::string text;
  std::array<char, 4096> buffer;
  while (file != nullptr) {
    const size_t count = std::fread(buffer.data(), 1, buffer.size(), file.get());
    text.append(buffer.data(), count);
    if (count < buffer.size()) {
      break;
    }
  }
  if (file == nullptr || std::ferror(file.get()) != 0) {
    return Invalid(absl::StrCat("cannot read --config=", path, ": ", std::generic_category().message(errno)));
  }
  return text;
}

absl::Status LoadFile(const std::string& path, LoadedConfig& loaded) {
  MP_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  FirstError error;
  TextFormat::ParseInfoTree places;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(&places);
  if (!parser.ParseFromString(text, &loaded.config)) {
    return Invalid(absl::StrCat(path, ":", error.message()));
  }
  for (const Setting& setting : AllSettings()) {
    if (setting.IsSet(loaded.config)) {
      const TextFormat::ParseInfoTree& topic = *places.GetTreeForNested(&setting.topic(), setting.topic().is_repeated() ? 0 : -1);
      const int line = topic.GetLocation(&setting.field(), setting.field().is_repeated() ? 0 : -1).line;
      loaded.sources[setting.name()] = absl::StrCat(path, ":", line + 1);
    }
  }
  return absl::OkStatus();
}

// Kubernetes tells every process of a namespace about every service in it by variables that begin with the service's name.
bool IsServiceLink(absl::string_view variable) {
  absl::ConsumePrefix(&variable, kVariablePrefix);
  return variable == "PORT" || absl::StartsWith(variable, "SERVICE_") ||
         (absl::ConsumePrefix(&variable, "PORT_") && !variable.empty() && absl::ascii_isdigit(variable.front()));
}

absl::Status Apply(const Setting& setting, absl::string_view value, const std::string& source, LoadedConfig& loaded) {
  if (absl::Status set = setting.Set(loaded.config, value); !set.ok()) {
    return Invalid(absl::StrCat(source, ": ", set.message()));
  }
  loaded.sources[setting.name()] = source;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadedConfig> LoadConfig(const NamedValues& flags, const std::vector<std::string>& environment,
                                        const std::string& file) {
  std::vector<Setting> settings = AllSettings();
  std::erase_if(settings, [](const Setting& setting) { return !setting.is_flag(); });
  const std::string config_variable = absl::StrCat(kVariablePrefix, absl::AsciiStrToUpper(kConfig));

  NamedValues variables;
  std::string path = file;
  for (const std::string& entry : environment) {
    const std::vector<std::string> sides = absl::StrSplit(entry, absl::MaxSplits('=', 1));
    if (!absl::StartsWith(sides[0], kVariablePrefix) || sides.size() != 2 || IsServiceLink(sides[0])) {
      continue;
    }
    if (sides[0] != config_variable) {
      variables.emplace_back(sides[0], sides[1]);
    } else if (path.empty()) {
      path = sides[1];
    }
  }

  LoadedConfig loaded;
  if (!path.empty()) {
    MP_RETURN_IF_ERROR(LoadFile(path, loaded));
  }
  for (const auto& [name, value] : variables) {
    const auto setting = std::ranges::find(settings, name, &Setting::variable);
    if (setting == settings.end()) {
      std::vector<std::string> names(settings.size());
      std::ranges::transform(settings, names.begin(), &Setting::variable);
      return Invalid(absl::StrCat("the variable ", name, " names no setting", DidYouMean(name, names)));
    }
    MP_RETURN_IF_ERROR(Apply(*setting, value, absl::StrCat("variable ", name), loaded));
  }
  for (const auto& [name, value] : flags) {
    const auto setting = std::ranges::find(settings, name, &Setting::name);
    if (setting == settings.end()) {
      return MakeError(v1::INTERNAL_ERROR, absl::StrCat("--", name, " is no setting"));
    }
    MP_RETURN_IF_ERROR(Apply(*setting, value, absl::StrCat("flag --", name), loaded));
  }
  for (const Setting& setting : AllSettings()) {
    if (absl::Status checked = setting.Check(loaded.config); !checked.ok()) {
      return Invalid(absl::StrCat(loaded.sources[setting.name()], ": ", checked.message()));
    }
  }
  return loaded;
}

std::string PrintConfig(const LoadedConfig& loaded) {
  std::string text;
  const FieldDescriptor* topic = nullptr;
  for (const Setting& setting : AllSettings()) {
    if (&setting.topic() != topic) {
      absl::StrAppend(&text, topic == nullptr ? "" : "}\n", setting.topic().name(), " {\n");
      topic = &setting.topic();
    }
    const auto source = loaded.sources.find(setting.name());
    const std::string comment = source == loaded.sources.end() ? "" : absl::StrCat("  # ", source->second);
    if (setting.is_flag()) {
      absl::StrAppend(&text, "  ", setting.name(), ": ", setting.Text(loaded.config), comment, "\n");
      continue;
    }
    const google::protobuf::Message& message = loaded.config.GetReflection()->GetMessage(loaded.config, topic);
    TextFormat::Printer printer;
    printer.SetSingleLineMode(true);
    for (int i = 0; i < message.GetReflection()->FieldSize(message, &setting.field()); ++i) {
      std::string value;
      printer.PrintFieldValueToString(message, &setting.field(), i, &value);
      absl::StrAppend(&text, "  ", setting.name(), " { ", absl::StripTrailingAsciiWhitespace(value), " }", comment, "\n");
    }
  }
  return absl::StrCat(text, "}\n");
}

std::string SettingsHelp() {
  std::string text;
  const FieldDescriptor* topic = nullptr;
  for (const Setting& setting : AllSettings()) {
    if (&setting.topic() != topic) {
      topic = &setting.topic();
      absl::StrAppend(&text, "\n", topic->options().GetExtension(modelpress::server::setting).help(), " (", topic->name(),
                      "):\n");
    }
    if (setting.is_flag()) {
      absl::StrAppend(&text, "  --", setting.name(), "=", setting.Text(ServerConfig()), "\n        ", setting.info().help(),
                      "\n");
    } else {
      absl::StrAppend(&text, "  ", setting.name(), " { }  (in the file only)\n        ", setting.info().help(), "\n");
    }
  }
  return text;
}

}  // namespace modelpress::server
