#include "server/workspaces/sql_workspace_store.h"

#include "tests/server/sql/sql_store_harness.h"
#include "tests/server/workspaces/workspace_store_conformance.h"

namespace modelpress::server {
namespace {

INSTANTIATE_TEST_SUITE_P(Sqlite, WorkspaceStoreConformance,
                         testing::Values(StoreHarnessFactory([] { return std::make_unique<SqliteStoreHarness>(); })),
                         [](const auto&) { return "File"; });

}  // namespace
}  // namespace modelpress::server
