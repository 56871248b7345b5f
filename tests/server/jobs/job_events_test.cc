#include "server/jobs/job_events.h"

#include <atomic>
#include <future>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "server/base/quotas.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/test_folder.h"
#include "tests/server/sql/sql_store_harness.h"

namespace modelpress::server {
namespace {

constexpr char kProject[] = "default";

class JobEventsTest : public testing::Test {
 protected:
  void SetUp() override {
    store_ = SqlStoreHandle::Open(folder_.path() + "/modelpress.db", clock_, quotas_);
    ASSERT_NE(store_, nullptr);
    ASSERT_OK(store_->workspaces().CreateWorkspace({kProject, "w"}, "", ""));
    for (const char* id : {"o1", "o2"}) {
      Job job;
      job.id = id;
      job.project = kProject;
      job.metadata.set_workspace("workspaces/w");
      job.metadata.set_state(v1::OperationMetadata::PENDING);
      ASSERT_OK(store_->jobs().Create(job, ""));
    }
    events_ = std::make_unique<JobEvents>(store_->jobs());
  }
  // Ends a job, and tells of it as the one who did it.
  void End(const std::string& id) {
    ASSERT_OK(store_->jobs().RequestCancel(kProject, id));
    events_->Notify();
  }

  TestFolder folder_;
  FakeClock clock_;
  const Quotas quotas_;
  std::unique_ptr<SqlStoreHandle> store_;
  std::unique_ptr<JobEvents> events_;
};

TEST_F(JobEventsTest, TheEndOfAJobWakesThoseWhoWaitForIt) {
  std::atomic<bool> other = false;
  std::promise<void> ended;
  // In the order in which they came they are woken: `other` would be before `ended`.
  const uint64_t ticket = events_->AwaitEnd("o1", events_->generation(), absl::InfiniteDuration(), [&] { other = true; });
  events_->AwaitEnd("o2", events_->generation(), absl::InfiniteDuration(), [&] { ended.set_value(); });
  End("o2");
  ended.get_future().wait();
  EXPECT_FALSE(other);
  events_->Cancel(ticket);
}

TEST_F(JobEventsTest, AnEndBeforeTheWaitIsNotMissed) {
  for (const bool deleted : {false, true}) {
    const uint64_t seen = events_->generation();
    const std::string id = deleted ? "o2" : "o1";
    End(id);
    if (deleted) {
      ASSERT_OK(store_->jobs().Delete(kProject, id));
    }
    std::promise<void> ended;
    events_->AwaitEnd(id, seen, absl::InfiniteDuration(), [&] { ended.set_value(); });
    ended.get_future().wait();
  }
}

TEST_F(JobEventsTest, AllAreWokenOnRequestThoseToComeToo) {
  const uint64_t seen = events_->generation();
  std::promise<void> before;
  events_->AwaitEnd("o1", seen, absl::InfiniteDuration(), [&] { before.set_value(); });
  events_->WakeAll();
  before.get_future().wait();
  std::promise<void> after;
  events_->AwaitEnd("o1", seen, absl::InfiniteDuration(), [&] { after.set_value(); });
  after.get_future().wait();
  std::promise<void> late;
  events_->AwaitEnd("o1", events_->generation(), absl::Milliseconds(1), [&] { late.set_value(); });
  late.get_future().wait();
}

}  // namespace
}  // namespace modelpress::server
