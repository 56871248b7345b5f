#include "server/jobs/cost.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "modelpress/v1/compression.pb.h"
#include "tests/server/base/status_testing.h"

namespace modelpress::server {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(CostTest, EveryMethodIsInTheTable) {
  const google::protobuf::ServiceDescriptor* service =
      v1::SaveModelRequest::descriptor()->file()->FindServiceByName("Compression");
  ASSERT_NE(service, nullptr);
  for (int i = 0; i < service->method_count(); ++i) {
    EXPECT_GT(EstimateCost(service->method(i)->name(), {}, {}).memory_bytes, 0) << service->method(i)->name();
  }
}

TEST(CostTest, MeasuredPeaksAreWithinTheEstimate) {
  EXPECT_GT(EstimateCost("SaveModel", {.models = 102'000'000}, {}).memory_bytes, 123'000'000);
  EXPECT_GT(EstimateCost("SaveModel", {.models = 1'000'000, .beside = 345'000'000}, {}).memory_bytes, 162'000'000);
  EXPECT_GT(EstimateCost("CreatePruneRetrainModel", {.models = 102'000'000}, {}).memory_bytes, 105'000'000);
  EXPECT_GT(EstimateCost("QuantizeModel", {.models = 5'000'000, .others = 60'000'000}, {}).memory_bytes, 560'000'000);
}

TEST(CostTest, CalibrationDataCostsNothing) {
  EXPECT_EQ(EstimateCost("Calibrate", {.models = 10, .others = 1 << 30}, {}).memory_bytes,
            EstimateCost("Calibrate", {.models = 10}, {}).memory_bytes);
}

TEST(CostTest, NothingIsExpectedToNeedMoreThanTheLimits) {
  const JobCost cost = EstimateCost("QuantizeModel", {.models = 1 << 30, .beside = uint64_t{1} << 40},
                                    {.memory_bytes = 3 * kMiB, .disk_bytes = 5 * kMiB});
  EXPECT_EQ(cost.memory_bytes, 3 * kMiB);
  EXPECT_EQ(cost.disk_bytes, 5 * kMiB);
}

TEST(CostTest, WhatCanNeverRunIsRefused) {
  const CostLimits limits{.memory_bytes = 100 * kMiB, .disk_bytes = 500 * kMiB};
  EXPECT_OK(CheckCost("QuantizeModel", {.models = 100 * kMiB}, limits));
  const absl::Status refused = CheckCost("QuantizeModel", {.models = 101 * kMiB}, limits);
  EXPECT_REASON(refused, RESOURCE_LIMIT);
  EXPECT_NE(refused.message().find("101 MiB of memory"), absl::string_view::npos) << refused;
  EXPECT_OK(CheckCost("SaveModel", {.models = 101 * kMiB}, limits));  // which maps its model
  EXPECT_REASON(CheckCost("SaveModel", {.models = 501 * kMiB}, limits), RESOURCE_LIMIT);
  EXPECT_OK(CheckCost("QuantizeModel", {.models = 1 << 30}, {}));
}

}  // namespace
}  // namespace modelpress::server
