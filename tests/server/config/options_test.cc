#include "server/config/options.h"

#include <gtest/gtest.h>

#include "google/protobuf/text_format.h"
#include "tests/server/base/status_testing.h"

namespace modelpress::server {
namespace {

ServerConfig Config(const std::string& text) {
  ServerConfig config;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &config)) << text;
  return config;
}

TEST(OptionsTest, UnitsBecomeTypes) {
  ASSERT_OK_AND_ASSIGN(
      const DaemonOptions options,
      ToDaemonOptions(Config("storage { data_dir: '/d' } rpc { listen: 'localhost:7' drain_timeout_s: 1.5 }"
                             "work { workers: 3 threads_per_operation: 5 child_memory_limit_mb: 2 child_cpu_limit_s: 7"
                             " child_file_limit_mb: 3 max_execution_s: 60 lease_s: 0.5 }"
                             "observation { metrics_listen: '' }"),
                      DaemonRole::kServe));
  EXPECT_EQ(options.data_folder, "/d");
  EXPECT_EQ(options.listen, "localhost:7");
  EXPECT_FALSE(options.insecure_plaintext);
  EXPECT_EQ(options.drain_timeout, absl::Milliseconds(1500));
  EXPECT_EQ(options.metrics_listen, "");
  EXPECT_EQ(options.workers, 3);
  EXPECT_EQ(options.worker.threads_per_operation, 5);
  EXPECT_EQ(options.worker.limits.memory_bytes, 2 << 20);
  EXPECT_EQ(options.worker.limits.cpu_seconds, 7);
  EXPECT_EQ(options.worker.limits.file_bytes, 3 << 20);
  EXPECT_EQ(options.worker.max_execution, absl::Minutes(1));
  EXPECT_EQ(options.worker.lease, absl::Milliseconds(500));
}

TEST(OptionsTest, DefaultsAreThoseOfTheSchema) {
  ASSERT_OK_AND_ASSIGN(const DaemonOptions serve, ToDaemonOptions(Config("storage { data_dir: '/d' }"), DaemonRole::kServe));
  EXPECT_EQ(serve.listen, "localhost:50051");
  EXPECT_EQ(serve.metrics_listen, "localhost:9464");
  EXPECT_GE(serve.worker.threads_per_operation, 1);
  EXPECT_EQ(serve.worker.limits.memory_bytes, 0);
  ASSERT_OK_AND_ASSIGN(const DaemonOptions work, ToDaemonOptions(Config("storage { data_dir: '/d' }"), DaemonRole::kWork));
  EXPECT_EQ(work.listen, "");
}

TEST(OptionsTest, WhatARoleNeeds) {
  EXPECT_REASON(ToDaemonOptions(ServerConfig(), DaemonRole::kServe), REQUEST_INVALID);
  const ServerConfig no_address = Config("storage { data_dir: '/d' } rpc { listen: '' }");
  EXPECT_REASON(ToDaemonOptions(no_address, DaemonRole::kServe), REQUEST_INVALID);
  EXPECT_OK(ToDaemonOptions(no_address, DaemonRole::kWork));
  const ServerConfig no_workers = Config("storage { data_dir: '/d' } work { workers: 0 }");
  EXPECT_OK(ToDaemonOptions(no_workers, DaemonRole::kServe));
  EXPECT_REASON(ToDaemonOptions(no_workers, DaemonRole::kWork), REQUEST_INVALID);
}

TEST(OptionsTest, QuotasOfOneProjectOverThoseOfAll) {
  ASSERT_OK_AND_ASSIGN(
      const DaemonOptions options,
      ToDaemonOptions(Config("storage { data_dir: '/d' } quotas { quota_bytes: 100 quota_running: 2 quota_pending: 9"
                             " quota_workspaces: 4 project_quota { project: 'a' bytes: 500 running: 0 } }"),
                      DaemonRole::kServe));
  const ProjectQuota& a = options.quotas.Of("a");
  EXPECT_EQ(a.bytes, 500);
  EXPECT_EQ(a.running, 0) << "no limit, on purpose";
  EXPECT_EQ(a.pending, 9);
  EXPECT_EQ(a.workspaces, 4);
  EXPECT_EQ(options.quotas.Of("b").bytes, 100);
  EXPECT_EQ(options.quotas.Of("b").running, 2);
  EXPECT_REASON(ToDaemonOptions(Config("storage { data_dir: '/d' } quotas { project_quota { bytes: 1 } }"), DaemonRole::kServe),
                REQUEST_INVALID);
  EXPECT_REASON(
      ToDaemonOptions(Config("storage { data_dir: '/d' } quotas { project_quota { project: 'a' } project_quota { project: "
                             "'a' } }"),
                      DaemonRole::kServe),
      REQUEST_INVALID);
}

}  // namespace
}  // namespace modelpress::server
