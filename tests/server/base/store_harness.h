// What the conformance suites of JobStore and WorkspaceStore need of a driver.
#ifndef MODELPRESS_TESTS_SERVER_BASE_STORE_HARNESS_H_
#define MODELPRESS_TESTS_SERVER_BASE_STORE_HARNESS_H_

#include <functional>
#include <memory>

#include "server/base/quotas.h"
#include "server/jobs/job_store.h"
#include "server/workspaces/workspace_store.h"
#include "tests/server/base/fake_clock.h"

namespace modelpress::server {

// The stores as one process has them open. Closing is destroying.
class StoreHandle {
 public:
  virtual ~StoreHandle() = default;
  virtual JobStore& jobs() = 0;
  virtual WorkspaceStore& workspaces() = 0;
};

// One store, empty at first, gone with the harness.
class StoreHarness {
 public:
  virtual ~StoreHarness() = default;
  // Opens it as a freshly started process would. Any number of handles may be open at the same time. `clock` and `quotas` must
  // outlive the handle.
  virtual std::unique_ptr<StoreHandle> Open(const Clock& clock, const Quotas& quotas) = 0;
};

using StoreHarnessFactory = std::function<std::unique_ptr<StoreHarness>()>;

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_SERVER_BASE_STORE_HARNESS_H_
