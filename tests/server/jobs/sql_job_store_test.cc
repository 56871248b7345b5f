#include "server/jobs/sql_job_store.h"

#include "absl/strings/str_cat.h"
#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/jobs/job_store_conformance.h"

namespace modelpress::server {
namespace {

INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreConformance,
                         testing::Values(StoreHarnessFactory([] { return std::make_unique<SqliteStoreHarness>(); })),
                         [](const auto&) { return "File"; });

TEST(SqlJobStoreTest, AFullDiskLosesNothing) {
  std::unique_ptr<SmallDisk> disk = SmallDisk::Mount(size_t{4} << 20);
  if (disk == nullptr) {
    GTEST_SKIP() << "needs CAP_SYS_ADMIN to mount a small file system";
  }
  FakeClock clock;
  const Quotas quotas;
  std::unique_ptr<SqlStoreHandle> handle = SqlStoreHandle::Open(disk->path() + "/modelpress.db", clock, quotas);
  ASSERT_NE(handle, nullptr);
  ASSERT_OK(handle->workspaces().CreateWorkspace({kProject, "w"}, "", ""));
  auto job = [](int i) {
    Job job;
    job.id = absl::StrCat("o", i);
    job.project = kProject;
    job.request.set_value(std::string(10'000, 'x'));
    job.metadata.set_workspace("workspaces/w");
    return job;
  };
  int created = 0;
  for (; created < 10; ++created) {
    ASSERT_OK(handle->jobs().Create(job(created), ""));
  }
  disk->Fill();
  absl::Status status;
  while (status.ok() && created < 10'000) {
    status = handle->jobs().Create(job(created), "").status();
    created += status.ok() ? 1 : 0;
  }
  EXPECT_REASON(status, STORAGE_FULL);
  auto count = [&handle] {
    auto counts = handle->jobs().Count();
    EXPECT_OK(counts);
    return counts->empty() ? 0 : counts->front().second;
  };
  EXPECT_EQ(count(), created);
  // What needs no space works; after a crash too.
  handle.reset();
  handle = SqlStoreHandle::Open(disk->path() + "/modelpress.db", clock, quotas);
  ASSERT_NE(handle, nullptr);
  EXPECT_EQ(count(), created);
  disk->Free();
  EXPECT_OK(handle->jobs().Create(job(created), ""));
  EXPECT_EQ(count(), created + 1);
}

}  // namespace
}  // namespace modelpress::server
