#include "server/config/load.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/config/settings.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

class LoadTest : public testing::Test {
 protected:
  std::string File(const std::string& text) {
    const std::string path = folder_.path() + "/config.textproto";
    WriteTestFile(path, text);
    return path;
  }
  std::string Error(const NamedValues& flags, const std::vector<std::string>& environment, const std::string& file = "") {
    const absl::StatusOr<LoadedConfig> loaded = LoadConfig(flags, environment, file);
    EXPECT_REASON(loaded, REQUEST_INVALID);
    return std::string(loaded.status().message());
  }

  const TestFolder folder_;
};

TEST_F(LoadTest, FlagOverVariableOverFileOverDefault) {
  const std::string path = File("work {\n  workers: 2\n  lease_s: 5\n  max_execution_s: 60\n}\nrpc { listen: 'localhost:1' }\n");
  ASSERT_OK_AND_ASSIGN(const LoadedConfig loaded,
                       LoadConfig({{"workers", "3"}, {"workers", "4"}},
                                  {"MODELPRESSD_WORKERS=7", "MODELPRESSD_LEASE_S=6", "PATH=/bin", "MODELPRESS_BIN_DIR=x"}, path));
  EXPECT_EQ(loaded.config.work().workers(), 4);
  EXPECT_EQ(loaded.config.work().lease_s(), 6);
  EXPECT_EQ(loaded.config.work().max_execution_s(), 60);
  EXPECT_EQ(loaded.config.rpc().listen(), "localhost:1");
  EXPECT_EQ(loaded.config.rpc().drain_timeout_s(), 30);
  EXPECT_EQ(loaded.sources, (std::map<std::string, std::string>{{"workers", "flag --workers"},
                                                                {"lease_s", "variable MODELPRESSD_LEASE_S"},
                                                                {"max_execution_s", path + ":4"},
                                                                {"listen", path + ":6"}}));
}

TEST_F(LoadTest, TheVariableNamesTheFileUnlessTheFlagDoes) {
  const std::string path = File("work { workers: 2 }");
  const std::vector<std::string> environment = {absl::StrCat("MODELPRESSD_CONFIG=", path)};
  ASSERT_OK_AND_ASSIGN(const LoadedConfig loaded, LoadConfig({}, environment, ""));
  EXPECT_EQ(loaded.config.work().workers(), 2);
  const std::string other = folder_.path() + "/other";
  EXPECT_EQ(Error({}, environment, other), absl::StrCat("cannot read --config=", other, ": No such file or directory"));
  EXPECT_EQ(Error({}, {}, folder_.path()), absl::StrCat("cannot read --config=", folder_.path(), ": Is a directory"));
}

TEST_F(LoadTest, EmptyFileAndEmptyValuesAreValues) {
  ASSERT_OK_AND_ASSIGN(const LoadedConfig loaded, LoadConfig({{"metrics_listen", ""}}, {"MODELPRESSD_PORT_FILE="}, File("")));
  EXPECT_EQ(loaded.config.observation().metrics_listen(), "");
  EXPECT_EQ(loaded.sources.size(), 2);
  EXPECT_EQ(Error({}, {"MODELPRESSD_WORKERS="}), "variable MODELPRESSD_WORKERS: '' is not a whole number");
}

TEST_F(LoadTest, NothingUnknownIsIgnored) {
  EXPECT_EQ(Error({}, {"MODELPRESSD_WORKER=2"}),
            "the variable MODELPRESSD_WORKER names no setting; did you mean MODELPRESSD_WORKERS?");
  EXPECT_EQ(Error({}, {"MODELPRESSD_PROJECT_QUOTA=x"}).find("the variable MODELPRESSD_PROJECT_QUOTA names no setting"), 0);
  const std::string path = folder_.path() + "/config.textproto";
  EXPECT_EQ(Error({}, {}, File("work {\n  worker: 2\n}")),
            absl::StrCat(path,
                         ":2:9: Message type \"modelpress.server.Work\" has no field named \"worker\"."
                         "; did you mean workers?"));
  EXPECT_NE(Error({}, {}, File("workers: 2")).find("; it belongs into 'work { }'"), std::string::npos);
  EXPECT_NE(Error({}, {}, File("wrok { }")).find("; did you mean work?"), std::string::npos);
  EXPECT_NE(Error({}, {}, File("work { workers: 1 workers: 2 }")).find("specified multiple times"), std::string::npos);
  EXPECT_NE(Error({}, {}, File("work { workers: 1")).find(absl::StrCat(path, ":1:")), std::string::npos);
}

TEST_F(LoadTest, WhatKubernetesSetsForAServiceOfThisNameIsNotOurs) {
  EXPECT_OK(LoadConfig(
      {},
      {"MODELPRESSD_PORT=tcp://10.0.0.1:50051", "MODELPRESSD_PORT_50051_TCP=tcp://10.0.0.1:50051",
       "MODELPRESSD_PORT_50051_TCP_ADDR=10.0.0.1", "MODELPRESSD_SERVICE_HOST=10.0.0.1", "MODELPRESSD_SERVICE_PORT_GRPC=50051"},
      ""));
  ASSERT_OK_AND_ASSIGN(const LoadedConfig loaded, LoadConfig({}, {"MODELPRESSD_PORT_FILE=/x"}, ""));
  EXPECT_EQ(loaded.config.rpc().port_file(), "/x");
}

TEST_F(LoadTest, BoundsTellWhoBrokeThem) {
  EXPECT_EQ(Error({{"workers", "-1"}}, {}), "flag --workers: workers must be 0 or more, not -1");
  EXPECT_EQ(Error({}, {"MODELPRESSD_LEASE_S=0"}), "variable MODELPRESSD_LEASE_S: lease_s must be 0.1 or more, not 0");
  const std::string path = folder_.path() + "/config.textproto";
  EXPECT_EQ(Error({}, {}, File("quotas {\n project_quota { project: 'a' }\n project_quota { project: 'b' pending: -2 }\n}")),
            absl::StrCat(path, ":2: project_quota[1].pending must be 0 or more, not -2"));
}

TEST_F(LoadTest, WhatIsPrintedIsAFileThatSaysTheSame) {
  const std::string path = File(
      "storage { data_dir: '/d \"q\"' }\nquotas { quota_bytes: 5 project_quota { project: 'a' bytes: 7 } project_quota { "
      "project: 'b' } }");
  ASSERT_OK_AND_ASSIGN(const LoadedConfig loaded, LoadConfig({{"insecure_plaintext", "true"}, {"lease_s", "0.25"}}, {}, path));
  const std::string printed = PrintConfig(loaded);
  EXPECT_NE(printed.find(absl::StrCat("  data_dir: \"/d \\\"q\\\"\"  # ", path, ":1\n")), std::string::npos) << printed;
  EXPECT_NE(printed.find("  insecure_plaintext: true  # flag --insecure_plaintext\n"), std::string::npos) << printed;
  EXPECT_NE(printed.find("  workers: 1\n"), std::string::npos) << printed;
  ASSERT_OK_AND_ASSIGN(const LoadedConfig again, LoadConfig({}, {}, File(printed)));
  ASSERT_EQ(again.config.quotas().project_quota_size(), 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(again.config.quotas().project_quota(i).DebugString(), loaded.config.quotas().project_quota(i).DebugString());
  }
  for (const Setting& setting : AllSettings()) {
    if (setting.is_flag()) {
      EXPECT_EQ(setting.Text(again.config), setting.Text(loaded.config));
    }
  }
}

TEST_F(LoadTest, HelpNamesEverySetting) {
  const std::string help = SettingsHelp();
  for (const Setting& setting : AllSettings()) {
    const std::string line = setting.is_flag() ? absl::StrCat("  --", setting.name(), "=", setting.Text(ServerConfig()), "\n")
                                               : absl::StrCat("  ", setting.name(), " { }");
    EXPECT_NE(help.find(line), std::string::npos) << line;
  }
}

}  // namespace
}  // namespace modelpress::server
