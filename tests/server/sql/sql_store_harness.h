#ifndef MODELPRESS_TESTS_SERVER_SQL_SQL_STORE_HARNESS_H_
#define MODELPRESS_TESTS_SERVER_SQL_SQL_STORE_HARNESS_H_

#include <memory>
#include <string>
#include <utility>

#include "server/jobs/sql_job_store.h"
#include "server/sql/schema.h"
#include "server/workspaces/sql_workspace_store.h"
#include "tests/server/base/status_testing.h"
#include "tests/server/base/store_harness.h"
#include "tests/server/base/test_folder.h"

namespace modelpress::server {

class SqlStoreHandle final : public StoreHandle {
 public:
  // nullptr, with a failure of the test, if the database at `location` cannot be opened.
  static std::unique_ptr<SqlStoreHandle> Open(const std::string& location, const Clock& clock, const Quotas& quotas) {
    absl::StatusOr<std::unique_ptr<Database>> database = OpenDatabase(location);
    EXPECT_OK(database);
    return database.ok() ? std::unique_ptr<SqlStoreHandle>(new SqlStoreHandle(*std::move(database), clock, quotas)) : nullptr;
  }

  JobStore& jobs() override { return jobs_; }
  WorkspaceStore& workspaces() override { return workspaces_; }

 private:
  SqlStoreHandle(std::unique_ptr<Database> database, const Clock& clock, const Quotas& quotas)
      : database_(std::move(database)), jobs_(*database_, clock, quotas), workspaces_(*database_, clock, quotas) {}

  const std::unique_ptr<Database> database_;
  SqlJobStore jobs_;
  SqlWorkspaceStore workspaces_;
};

class SqliteStoreHarness final : public StoreHarness {
 public:
  std::unique_ptr<StoreHandle> Open(const Clock& clock, const Quotas& quotas) override {
    return SqlStoreHandle::Open(folder_.path() + "/modelpress.db", clock, quotas);
  }

 private:
  TestFolder folder_;
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_SQL_SQL_STORE_HARNESS_H_
