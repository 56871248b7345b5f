// The daemon's configuration: the file, then lines behind a zero byte that are variables ("MODELPRESSD_WORKERS=2") or words of
// the command line ("--workers=2"). What is accepted can be printed, and the print be read as the same.
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "server/config/command_line.h"
#include "server/config/load.h"
#include "server/config/settings.h"
#include "tests/fuzz/fuzzing.h"

namespace modelpress::server {
namespace {

void Run(absl::string_view input) {
  static InputFolder folder;
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string file = folder.Write("modelpressd.textproto", input.substr(0, end));
  std::vector<std::string> environment;
  std::vector<std::string> words = {"serve"};
  for (const absl::string_view line : absl::StrSplit(input.substr(std::min(end + 1, input.size())), '\n', absl::SkipEmpty())) {
    (absl::StartsWith(line, "-") ? words : environment).emplace_back(line);
  }
  const std::vector<Command> commands = {{.name = "serve", .help = "", .takes_settings = true, .flags = {}}};
  const absl::StatusOr<CommandLine> line = ParseCommandLine(words, commands);
  RequireClear(line.status());
  const absl::StatusOr<LoadedConfig> loaded = LoadConfig(line.ok() ? line->settings : NamedValues(), environment, file);
  RequireClear(loaded.status());
  if (!loaded.ok()) {
    return;
  }
  const std::string printed = PrintConfig(*loaded);
  const absl::StatusOr<LoadedConfig> again = LoadConfig({}, {}, folder.Write("printed.textproto", printed));
  Require(again.ok(), again.status().ToString());
  for (const Setting& setting : AllSettings()) {
    Require(!setting.is_flag() || setting.Text(again->config) == setting.Text(loaded->config), setting.name());
  }
}

}  // namespace
}  // namespace modelpress::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelpress::server::Run(modelpress::AsText(data, size));
  return 0;
}
