// The stores over PostgreSQL: all that they must do over any database.
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "server/jobs/job_events.h"
#include "server/jobs/sql_job_store.h"
#include "server/sql/schema.h"
#include "tests/server/base/fake_clock.h"
#include "tests/server/jobs/job_store_conformance.h"
#include "tests/server/sql/postgres_server.h"
#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/workspaces/workspace_store_conformance.h"

namespace modelpress::server {
namespace {

class PostgresStoreHarness final : public StoreHarness {
 public:
  std::unique_ptr<StoreHandle> Open(const Clock& clock, const Quotas& quotas) override {
    return SqlStoreHandle::Open(database_.url(), clock, quotas);
  }

 private:
  TestPostgresDatabase database_;
};

StoreHarnessFactory MakeHarness() {
  return [] { return std::make_unique<PostgresStoreHarness>(); };
}

INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreConformance, testing::Values(MakeHarness()), [](const auto&) { return "Server"; });
INSTANTIATE_TEST_SUITE_P(Postgres, WorkspaceStoreConformance, testing::Values(MakeHarness()),
                         [](const auto&) { return "Server"; });

// A database that is never polled.
class HintsOnly final : public Database {
 public:
  explicit HintsOnly(Database& database) : database_(database) {}
  absl::Status Write(Durability durability, absl::FunctionRef<absl::Status(Connection&)> body) override {
    return database_.Write(durability, body);
  }
  absl::Status Read(absl::FunctionRef<absl::Status(Connection&)> body) override { return database_.Read(body); }
  absl::StatusOr<uint64_t> Version() override { return 1; }
  absl::Duration poll_interval() const override { return absl::Hours(1); }
  std::unique_ptr<Subscription> Subscribe(std::function<void()> changed) override {
    return database_.Subscribe(std::move(changed));
  }

 private:
  Database& database_;
};

TEST(PostgresJobEventsTest, AChangeByAnotherProcessWakesWithoutAPoll) {
  const TestPostgresDatabase server;
  FakeClock clock;
  const Quotas quotas;
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Database> database, OpenDatabase(server.url()));
  HintsOnly hints_only(*database);
  SqlJobStore jobs(hints_only, clock, quotas);
  std::unique_ptr<SqlStoreHandle> other = SqlStoreHandle::Open(server.url(), clock, quotas);
  ASSERT_NE(other, nullptr);
  JobEvents events(jobs);
  const auto woken_by = [&events](const std::function<void()>& change) {
    const uint64_t seen = events.generation();
    std::promise<absl::Time> woken;
    events.Await(seen, absl::Minutes(1), [&woken] { woken.set_value(absl::Now()); });
    change();
    const absl::Time limit = absl::Now() + absl::Seconds(50);
    return woken.get_future().get() < limit;
  };
  ASSERT_TRUE(woken_by([] {}));  // when it has begun to listen
  EXPECT_TRUE(woken_by([&other] { EXPECT_OK(other->workspaces().CreateWorkspace({"default", "w"}, "", "")); }));
}

}  // namespace
}  // namespace modelpress::server
