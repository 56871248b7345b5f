#include "server/jobs/job_store.h"

#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace modelpress::server {
namespace {

TEST(JobStoreTest, ToOperationShowsAnUnfinishedJob) {
  Job job;
  job.id = "o1";
  job.metadata.set_state(v1::OperationMetadata::CANCELLING);
  google::longrunning::Operation operation = ToOperation(job);
  EXPECT_EQ(operation.name(), "operations/o1");
  EXPECT_FALSE(operation.done());
  EXPECT_EQ(operation.result_case(), google::longrunning::Operation::RESULT_NOT_SET);
  v1::OperationMetadata metadata;
  ASSERT_TRUE(operation.metadata().UnpackTo(&metadata));
  EXPECT_EQ(metadata.state(), v1::OperationMetadata::CANCELLING);
}

TEST(JobStoreTest, ToOperationShowsTheResult) {
  Job job;
  job.metadata.set_state(v1::OperationMetadata::SUCCEEDED);
  job.response.emplace().set_value("r");
  EXPECT_TRUE(ToOperation(job).done());
  EXPECT_EQ(ToOperation(job).response().value(), "r");
  job.response.reset();
  job.metadata.set_state(v1::OperationMetadata::CANCELLED);
  job.error = CancelledError();
  google::longrunning::Operation operation = ToOperation(job);
  EXPECT_TRUE(operation.done());
  EXPECT_EQ(operation.error().code(), 1);
  google::rpc::ErrorInfo info;
  ASSERT_EQ(operation.error().details_size(), 1);
  ASSERT_TRUE(operation.error().details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "OPERATION_CANCELLED");
}

}  // namespace
}  // namespace modelpress::server
