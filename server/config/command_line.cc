#include "server/config/command_line.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "server/config/settings.h"

namespace modelpress::server {
namespace {

constexpr char kConfigFlag[] = "config";

absl::Status Invalid(absl::string_view message) { return MakeError(v1::REQUEST_INVALID, message); }

// Every flag by its name: whether it may stand without a value.
std::map<std::string, bool> FlagNames(absl::Span<const Command> commands) {
  std::map<std::string, bool> names = {{kConfigFlag, false}};
  for (const Setting& setting : AllSettings()) {
    if (setting.is_flag()) {
      names[setting.name()] = setting.is_bool();
    }
  }
  for (const Command& command : commands) {
    for (const CommandFlag& flag : command.flags) {
      names[flag.name] = flag.is_bool;
    }
  }
  return names;
}

std::vector<std::string> CommandNames(absl::Span<const Command> commands) {
  std::vector<std::string> names(commands.size());
  std::ranges::transform(commands, names.begin(), &Command::name);
  return names;
}

struct Words {
  std::vector<std::string> commands;
  NamedValues flags;
};

absl::StatusOr<Words> Sort(absl::Span<const std::string> words, const std::map<std::string, bool>& known) {
  Words sorted;
  for (auto word = words.begin(); word != words.end(); ++word) {
    absl::string_view text = *word;
    if (!absl::ConsumePrefix(&text, "--")) {
      if (absl::ConsumePrefix(&text, "-")) {
        return Invalid(absl::StrCat(*word, " is no flag; flags begin with --"));
      }
      sorted.commands.push_back(*word);
      continue;
    }
    const size_t equals = text.find('=');
    const std::string name(text.substr(0, equals));
    const auto flag = known.find(name);
    if (flag == known.end()) {
      std::vector<std::string> names;
      std::ranges::transform(known, std::back_inserter(names), [](const auto& entry) { return absl::StrCat("--", entry.first); });
      return Invalid(absl::StrCat("there is no flag --", name, DidYouMean(absl::StrCat("--", name), names)));
    }
    if (equals != absl::string_view::npos) {
      sorted.flags.emplace_back(name, text.substr(equals + 1));
    } else if (flag->second) {
      sorted.flags.emplace_back(name, "true");
    } else if (std::next(word) != words.end()) {
      sorted.flags.emplace_back(name, *++word);
    } else {
      return Invalid(absl::StrCat("--", name, " needs a value"));
    }
  }
  return sorted;
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> words, absl::Span<const Command> commands) {
  CommandLine line;
  auto has = [words](absl::string_view word) { return std::ranges::find(words, word) != words.end(); };
  line.help = has("--help") || has("-h");
  line.version = has("--version");
  if (line.help || line.version) {
    return line;
  }
  MP_ASSIGN_OR_RETURN(const Words sorted, Sort(words, FlagNames(commands)));
  const std::vector<std::string> names = CommandNames(commands);
  if (sorted.commands.size() != 1) {
    return Invalid(absl::StrCat("give one command: ", absl::StrJoin(names, ", ")));
  }
  line.command = sorted.commands.front();
  const auto command = std::ranges::find(commands, line.command, &Command::name);
  if (command == commands.end()) {
    return Invalid(absl::StrCat("there is no command ", line.command, DidYouMean(line.command, names)));
  }
  for (const CommandFlag& flag : command->flags) {
    line.flags[flag.name] = flag.standard;
  }
  const std::vector<Setting> settings = AllSettings();
  for (const auto& [name, value] : sorted.flags) {
    if (line.flags.contains(name)) {
      line.flags[name] = value;
    } else if (command->takes_settings && name == kConfigFlag) {
      line.config_file = value;
    } else if (command->takes_settings && std::ranges::find(settings, name, &Setting::name) != settings.end()) {
      line.settings.emplace_back(name, value);
    } else {
      return Invalid(absl::StrCat("--", name, " is no flag of the command ", line.command));
    }
  }
  return line;
}

std::string CommandHelp(absl::Span<const Command> commands) {
  std::string text;
  for (const Command& command : commands) {
    absl::StrAppend(&text, "  ", command.name, std::string(14 - std::min<size_t>(12, command.name.size()), ' '), command.help,
                    "\n");
    for (const CommandFlag& flag : command.flags) {
      absl::StrAppend(&text, "      --", flag.name, "=", flag.standard, "\n            ", flag.help, "\n");
    }
  }
  return text;
}

}  // namespace modelpress::server
