#include "server/config/command_line.h"

#include <gtest/gtest.h>

#include "tests/server/base/status_testing.h"

namespace modelpress::server {
namespace {

const std::vector<Command>& Commands() {
  static const auto* const commands = new std::vector<Command>{
      {.name = "serve", .help = "serves"},
      {.name = "save",
       .help = "saves",
       .flags = {{.name = "to", .help = "where"}, {.name = "verify", .standard = "false", .is_bool = true}}},
      {.name = "probe", .help = "probes", .takes_settings = false},
  };
  return *commands;
}

absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& words) { return ParseCommandLine(words, Commands()); }

std::string Error(const std::vector<std::string>& words) {
  const absl::StatusOr<CommandLine> line = Parse(words);
  EXPECT_REASON(line, REQUEST_INVALID);
  return std::string(line.status().message());
}

TEST(CommandLineTest, FlagsInAnyOrderAndForm) {
  ASSERT_OK_AND_ASSIGN(const CommandLine line,
                       Parse({"--workers=2", "save", "--data_dir", "--odd", "--listen=", "--insecure_plaintext", "--config=f",
                              "--to=a=b", "--insecure_plaintext=false"}));
  EXPECT_EQ(line.command, "save");
  EXPECT_EQ(line.config_file, "f");
  EXPECT_EQ(line.settings, (NamedValues{{"workers", "2"},
                                        {"data_dir", "--odd"},
                                        {"listen", ""},
                                        {"insecure_plaintext", "true"},
                                        {"insecure_plaintext", "false"}}));
  EXPECT_EQ(line.flags, (std::map<std::string, std::string>{{"to", "a=b"}, {"verify", "false"}}));
}

TEST(CommandLineTest, WhatIsWrongIsTold) {
  EXPECT_EQ(Error({}), "give one command: serve, save, probe");
  EXPECT_EQ(Error({"serve", "save"}), "give one command: serve, save, probe");
  EXPECT_EQ(Error({"sevre"}), "there is no command sevre; did you mean serve?");
  EXPECT_EQ(Error({"serve", "--worker=1"}), "there is no flag --worker; did you mean --workers?");
  EXPECT_EQ(Error({"serve", "--shiny"}), "there is no flag --shiny");
  EXPECT_EQ(Error({"serve", "-workers=1"}), "-workers=1 is no flag; flags begin with --");
  EXPECT_EQ(Error({"serve", "--workers"}), "--workers needs a value");
  EXPECT_EQ(Error({"serve", "--to=x"}), "--to is no flag of the command serve");
  EXPECT_EQ(Error({"probe", "--workers=1"}), "--workers is no flag of the command probe");
  EXPECT_EQ(Error({"probe", "--config=x"}), "--config is no flag of the command probe");
  EXPECT_EQ(Error({"serve", "--project_quota=x"}), "there is no flag --project_quota");
}

TEST(CommandLineTest, HelpWinsOverEverything) {
  ASSERT_OK_AND_ASSIGN(CommandLine line, Parse({"nonsense", "--help"}));
  EXPECT_TRUE(line.help);
  ASSERT_OK_AND_ASSIGN(line, Parse({"-h"}));
  EXPECT_TRUE(line.help);
  ASSERT_OK_AND_ASSIGN(line, Parse({"--version"}));
  EXPECT_TRUE(line.version);
  const std::string help = CommandHelp(Commands());
  EXPECT_NE(help.find("serve"), std::string::npos);
  EXPECT_NE(help.find("--verify=false"), std::string::npos);
}

}  // namespace
}  // namespace modelpress::server
