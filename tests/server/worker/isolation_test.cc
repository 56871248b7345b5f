#include "server/worker/isolation.h"

#include <gtest/gtest.h>
#include <prometheus/metric_family.h>
#include <unistd.h>

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {
namespace {

std::map<std::string, double> Shown(const Metrics& metrics) {
  std::map<std::string, double> shown;
  for (const prometheus::MetricFamily& family : metrics.registry()->Collect()) {
    if (family.name == "modelpress_child_isolation") {
      for (const prometheus::ClientMetric& metric : family.metric) {
        shown[metric.label.at(0).value] = metric.gauge.value;
      }
    }
  }
  return shown;
}

TEST(IsolationTest, ModesAreRead) {
  EXPECT_EQ(*ParseIsolationMode("require"), IsolationMode::kRequire);
  EXPECT_EQ(*ParseIsolationMode("best_effort"), IsolationMode::kBestEffort);
  EXPECT_EQ(*ParseIsolationMode("off"), IsolationMode::kOff);
  EXPECT_REASON(ParseIsolationMode("no"), REQUEST_INVALID);
}

TEST(IsolationTest, ChildUserOfARootServer) {
  if (geteuid() != 0) {
    GTEST_SKIP() << "needs root";
  }
  ASSERT_OK_AND_ASSIGN(const std::optional<SandboxUser> usual, ResolveChildUser(""));
  ASSERT_TRUE(usual.has_value());
  EXPECT_EQ(usual->uid, 65534);
  EXPECT_EQ(usual->gid, 65534);
  ASSERT_OK_AND_ASSIGN(const std::optional<SandboxUser> without_entry, ResolveChildUser("54321"));
  EXPECT_EQ(without_entry->uid, 54321);
  EXPECT_EQ(without_entry->gid, 54321);
  ASSERT_OK_AND_ASSIGN(const std::optional<SandboxUser> named, ResolveChildUser("nobody"));
  EXPECT_EQ(named->uid, 65534);
  ASSERT_OK_AND_ASSIGN(const std::optional<SandboxUser> root, ResolveChildUser("root"));
  EXPECT_FALSE(root.has_value());
  EXPECT_REASON(ResolveChildUser("no-such-user"), REQUEST_INVALID);
}

TEST(IsolationTest, ChildUserOfAnOrdinaryServer) {
  EXPECT_EQ(RunInChild([] {
              if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) {
                return 2;
              }
              const absl::StatusOr<std::optional<SandboxUser>> none = ResolveChildUser("");
              return none.ok() && !none->has_value() && !ResolveChildUser("65534").ok() ? 0 : 1;
            }),
            0);
}

TEST(IsolationTest, SpecSaysWhatIsWanted) {
  const IsolationSpec off = SpecOf({.mode = IsolationMode::kOff, .user = SandboxUser{1, 2}});
  EXPECT_FALSE(off.enter() || off.require() || off.own_user());
  const IsolationSpec require = SpecOf({.mode = IsolationMode::kRequire, .user = SandboxUser{1, 2}});
  EXPECT_TRUE(require.enter() && require.require() && require.own_user());
  EXPECT_EQ(require.uid(), 1);
  EXPECT_EQ(require.gid(), 2);
}

TEST(IsolationTest, WhatHoldsIsShown) {
  Metrics metrics;
  Isolation isolation;
  auto say = [&isolation](const std::string& name, bool active) {
    Isolation::Mechanism& mechanism = *isolation.add_mechanisms();
    mechanism.set_name(name);
    mechanism.set_active(active);
  };
  say(kLandlock, false);
  say(kSeccomp, true);
  say("of the child's invention", true);
  ReportIsolation(isolation, metrics);
  EXPECT_EQ(Shown(metrics), (std::map<std::string, double>{{kLandlock, 0}, {kSeccomp, 1}}));
  EXPECT_FALSE(metrics.SetIsolation(kLandlock, false));
  EXPECT_TRUE(metrics.SetIsolation(kLandlock, true));
}

TEST(IsolationTest, RequireWantsAChildThatSaysSo) {
  Metrics metrics;
  IsolationOptions options{.mode = IsolationMode::kRequire};
  EXPECT_REASON(CheckIsolation("/bin/false", options, metrics), INTERNAL_ERROR);
  options.mode = IsolationMode::kOff;
  EXPECT_OK(CheckIsolation("/bin/false", options, metrics));
  EXPECT_EQ(Shown(metrics), (std::map<std::string, double>{{kPrivileges, 0}, {kOwnUser, 0}, {kLandlock, 0}, {kSeccomp, 0}}));
}

}  // namespace
}  // namespace modelpress::server
