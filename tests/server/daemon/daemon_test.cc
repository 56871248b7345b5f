#include "server/daemon/daemon.h"

#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/daemon/health_probe.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

class DaemonTest : public DaemonFixture {};

TEST_F(DaemonTest, ServesHealthUntilItStops) {
  Start(Options());
  const std::string target = absl::StrCat("localhost:", daemon_->port());
  EXPECT_TRUE(ProbeHealth(target, absl::Seconds(5)).ok());
  const absl::Time begin = absl::Now();
  Stop();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(1));
  EXPECT_FALSE(ProbeHealth(target, absl::Milliseconds(200)).ok());
}

TEST_F(DaemonTest, PlaintextIsForLoopbackOnly) {
  DaemonOptions options = Options();
  options.listen = "0.0.0.0:0";
  const absl::Status refused = Daemon::Start(options).status();
  EXPECT_NE(refused.message().find("--insecure_plaintext"), std::string::npos) << refused;
  options.insecure_plaintext = true;
  Start(options);
  EXPECT_GT(daemon_->port(), 0);
  for (const char* loopback : {"localhost:1", "127.0.0.1:1", "127.1.2.3:0", "[::1]:5"}) {
    EXPECT_TRUE(IsLoopback(loopback)) << loopback;
  }
  for (const char* other :
       {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example:1", "127.example.com:1", ":1", "127.0.0.1.example:1"}) {
    EXPECT_FALSE(IsLoopback(other)) << other;
  }
}

TEST_F(DaemonTest, BusyPortIsToldNotCrashed) {
  Start(Options());
  DaemonOptions options = Options();
  options.listen = absl::StrCat("localhost:", daemon_->port());
  const absl::Status busy = Daemon::Start(options).status();
  EXPECT_NE(busy.message().find("cannot listen"), std::string::npos) << busy;
  options.listen = "localhost:0";
  options.metrics_listen = absl::StrCat("localhost:", daemon_->port());
  EXPECT_NE(Daemon::Start(options).status().message().find("metrics"), std::string::npos);
}

TEST_F(DaemonTest, DataFolderThatIsAFileIsTold) {
  DaemonOptions options = Options();
  std::ofstream(options.data_folder) << "a file";
  EXPECT_NE(Daemon::Start(options).status().message().find(options.data_folder), std::string::npos);
}

}  // namespace
}  // namespace modelpress::server
