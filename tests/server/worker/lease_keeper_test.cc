#include "server/worker/lease_keeper.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <thread>

#include "server/jobs/job_events.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/testing/unreliable_job_store.h"

namespace modelpress::server {
namespace {

v1::Progress Stage(const std::string& name) {
  v1::Progress progress;
  progress.set_stage(name);
  return progress;
}

// Progress that comes while the keeper asks the store is stored soon, not with the next heartbeat: the clock stands still here,
// so that there is none.
TEST(LeaseKeeperTest, StoresProgressThatComesWhileItLooks) {
  FakeClock clock;
  const Quotas quotas;
  SqliteStoreHarness harness;
  const std::unique_ptr<StoreHandle> stores = harness.Open(clock, quotas);
  ASSERT_OK(stores->workspaces().CreateWorkspace({"p", "w"}, "", ""));
  Job job;
  job.id = "j";
  job.project = "p";
  job.metadata.set_workspace("workspaces/w");
  job.metadata.set_method("SaveModel");
  ASSERT_OK(stores->jobs().Create(job, ""));
  ASSERT_OK_AND_ASSIGN(const std::optional<Job> claimed, stores->jobs().Claim({.owner = "me"}));
  ASSERT_TRUE(claimed.has_value());

  UnreliableJobStore jobs(stores->jobs());
  std::promise<void> first_look;
  std::promise<void> go_on;
  LeaseKeeper* keeper = nullptr;
  int looks = 0;
  jobs.BeforeEvery("HeldState", [&] {
    if (++looks == 1) {
      first_look.set_value();
      go_on.get_future().wait();
    } else if (looks == 2) {
      keeper->Report(Stage("new"));
    }
  });
  JobEvents events(jobs);
  LeaseKeeper the_keeper(jobs, events, clock, *claimed, absl::Seconds(10), absl::Minutes(5), [] {});
  keeper = &the_keeper;
  first_look.get_future().wait();
  // Before it goes on it has both old progress to store and a change to look at.
  the_keeper.Report(Stage("old"));
  std::promise<void> told;
  events.Await(events.generation(), absl::InfiniteDuration(), [&told] { told.set_value(); });  // after the keeper was
  events.Notify();
  told.get_future().wait();
  go_on.set_value();

  std::string stored;
  while (stored != "new") {
    ASSERT_OK_AND_ASSIGN(const Job now, stores->jobs().Get("j"));
    stored = now.metadata.progress().stage();
    std::this_thread::yield();
  }
  EXPECT_EQ(the_keeper.finding(), LeaseKeeper::Finding::kHeld);
}

}  // namespace
}  // namespace modelpress::server
