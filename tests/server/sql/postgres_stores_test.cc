// The stores over PostgreSQL: all that they must do over any database.
#include <memory>

#include "tests/server/jobs/job_store_conformance.h"
#include "tests/server/sql/postgres_server.h"
#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/workspaces/workspace_store_conformance.h"

namespace modelpress::server {
namespace {

class PostgresStoreHarness final : public StoreHarness {
 public:
  std::unique_ptr<StoreHandle> Open(const Clock& clock) override { return SqlStoreHandle::Open(database_.url(), clock); }

 private:
  TestPostgresDatabase database_;
};

StoreHarnessFactory MakeHarness() {
  return [] { return std::make_unique<PostgresStoreHarness>(); };
}

INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreConformance, testing::Values(MakeHarness()), [](const auto&) { return "Server"; });
INSTANTIATE_TEST_SUITE_P(Postgres, WorkspaceStoreConformance, testing::Values(MakeHarness()),
                         [](const auto&) { return "Server"; });

}  // namespace
}  // namespace modelpress::server
