#include "server/rpc/operations_service.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "grpcpp/client_context.h"
#include "server/rpc/operations_filter.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

TEST(FilterTest, Terms) {
  const absl::StatusOr<JobFilter> filter =
      ParseFilter(R"(workspace = "workspaces/w" AND method="SaveModel" AND state = RUNNING AND done = false)");
  ASSERT_TRUE(filter.ok()) << filter.status();
  EXPECT_EQ(filter->workspace, "workspaces/w");
  EXPECT_EQ(filter->method, "SaveModel");
  EXPECT_EQ(filter->state, v1::OperationMetadata::RUNNING);
  EXPECT_EQ(filter->done, false);
  EXPECT_TRUE(ParseFilter("  ").ok());
  for (const char* bad : {"x", "state = DONE", "state = STATE_UNSPECIFIED", "done = yes", "method = SaveModel", "a = \"b\"",
                          "done = true AND done = true", "done = true AND", "workspace = \"w\"", "method = \"\""}) {
    EXPECT_EQ(PlaceOf(ParseFilter(bad).status()).field, "filter") << bad;
  }
}

// A daemon without workers: operations stay as they are put.
class OperationsServiceTest : public DaemonFixture {
 protected:
  OperationsServiceTest() {
    Start(Options());
    MakeWorkspace("w");
    PutFile("workspaces/w/files/model/m.onnx", "not read here");
    PutFile("workspaces/w/files/model/weights.bin", "nor this");
    PutFile("workspaces/w/files/record/r.txt", "nor that");
  }

  static v1::SaveModelRequest Request() {
    v1::SaveModelRequest request;
    request.set_workspace("workspaces/w");
    request.set_modified_onnx_file("model/m.onnx");
    request.set_record_file("record/r.txt");
    request.set_save_path("results/x");
    return request;
  }
  grpc::Status Submit(const v1::SaveModelRequest& request, google::longrunning::Operation* operation) {
    grpc::ClientContext context;
    return compression_->SaveModel(&context, request, operation);
  }
  google::longrunning::Operation Submit() {
    google::longrunning::Operation operation;
    EXPECT_TRUE(Submit(Request(), &operation).ok());
    return operation;
  }
  grpc::Status Cancel(const std::string& name) {
    grpc::ClientContext context;
    google::longrunning::CancelOperationRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    return operations_->CancelOperation(&context, request, &empty);
  }
  grpc::Status Delete(const std::string& name) {
    grpc::ClientContext context;
    google::longrunning::DeleteOperationRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    return operations_->DeleteOperation(&context, request, &empty);
  }
};

TEST_F(OperationsServiceTest, AcceptsAndPinsInputs) {
  const google::longrunning::Operation operation = Submit();
  EXPECT_FALSE(operation.done());
  const v1::OperationMetadata metadata = MetadataOf(operation);
  EXPECT_EQ(metadata.state(), v1::OperationMetadata::PENDING);
  EXPECT_EQ(metadata.method(), "SaveModel");
  ASSERT_EQ(metadata.inputs_size(), 3);
  EXPECT_EQ(metadata.inputs(0).name(), "workspaces/w/files/model/m.onnx");
  EXPECT_EQ(metadata.inputs(0).sha256(), Sha256Hex("not read here"));
  EXPECT_EQ(metadata.inputs(2).name(), "workspaces/w/files/record/r.txt");
  // The workspace is in use.
  grpc::ClientContext context;
  v1::DeleteWorkspaceRequest request;
  request.set_name("workspaces/w");
  google::protobuf::Empty empty;
  EXPECT_EQ(ReasonOf(workspaces_->DeleteWorkspace(&context, request, &empty)), "WORKSPACE_BUSY");
}

TEST_F(OperationsServiceTest, CallsThatCannotStartFailAtOnce) {
  google::longrunning::Operation operation;
  v1::SaveModelRequest request = Request();
  request.set_modified_onnx_file("model/none.onnx");
  request.set_record_file("record/none.txt");
  const grpc::Status missing = Submit(request, &operation);
  EXPECT_EQ(missing.error_code(), grpc::StatusCode::NOT_FOUND);
  google::rpc::PreconditionFailure failure;
  const google::rpc::Status details = DetailsOf(missing);
  for (const auto& detail : details.details()) {
    detail.UnpackTo(&failure);
  }
  ASSERT_EQ(failure.violations_size(), 2);
  EXPECT_EQ(failure.violations(0).subject(), "model/none.onnx");
  EXPECT_EQ(failure.violations(1).subject(), "record/none.txt");

  request = Request();
  request.set_save_path("../x");
  EXPECT_EQ(ReasonOf(Submit(request, &operation)), "NAME_INVALID");
  request = Request();
  request.set_workspace("workspaces/none");
  EXPECT_EQ(ReasonOf(Submit(request, &operation)), "WORKSPACE_NOT_FOUND");
  request = Request();
  request.clear_record_file();
  EXPECT_EQ(MetadataOf(Submit(request, &operation), "field"), "record_file");
  request = Request();
  request.mutable_options()->mutable_execution_timeout()->set_seconds(-1);
  EXPECT_EQ(ReasonOf(Submit(request, &operation)), "REQUEST_INVALID");
}

TEST_F(OperationsServiceTest, SameRequestIdGivesSameOperation) {
  v1::SaveModelRequest request = Request();
  request.mutable_options()->set_request_id("123e4567-e89b-12d3-a456-426614174000");
  google::longrunning::Operation first;
  google::longrunning::Operation second;
  ASSERT_TRUE(Submit(request, &first).ok());
  ASSERT_TRUE(Submit(request, &second).ok());
  EXPECT_EQ(first.name(), second.name());
  request.set_save_path("results/other");
  EXPECT_EQ(ReasonOf(Submit(request, &second)), "REQUEST_ID_REUSED");
}

TEST_F(OperationsServiceTest, SameRequestIdGivesSameOperationWhenItsInputsAreGone) {
  v1::SaveModelRequest request = Request();
  request.mutable_options()->set_request_id("123e4567-e89b-12d3-a456-426614174000");
  google::longrunning::Operation first;
  google::longrunning::Operation second;
  ASSERT_TRUE(Submit(request, &first).ok());
  for (const char* file : {"model/m.onnx", "record/r.txt"}) {
    grpc::ClientContext context;
    v1::DeleteFileRequest gone;
    gone.set_name(absl::StrCat("workspaces/w/files/", file));
    google::protobuf::Empty empty;
    ASSERT_TRUE(workspaces_->DeleteFile(&context, gone, &empty).ok());
  }
  const grpc::Status again = Submit(request, &second);
  EXPECT_TRUE(again.ok()) << again.error_message();
  EXPECT_EQ(first.name(), second.name());
  request.set_save_path("results/other");
  EXPECT_EQ(ReasonOf(Submit(request, &second)), "REQUEST_ID_REUSED");
  request.mutable_options()->clear_request_id();
  EXPECT_EQ(ReasonOf(Submit(request, &second)), "FILE_NOT_FOUND");
}

TEST_F(OperationsServiceTest, ListFiltersAndPages) {
  std::vector<std::string> names;
  names.reserve(5);
  for (int i = 0; i < 5; ++i) {
    names.push_back(Submit().name());
  }
  ASSERT_TRUE(Cancel(names[1]).ok());
  google::longrunning::ListOperationsRequest request;
  request.set_name("operations");
  request.set_filter("state = PENDING");
  request.set_page_size(3);
  std::vector<std::string> listed;
  do {
    grpc::ClientContext context;
    google::longrunning::ListOperationsResponse page;
    ASSERT_TRUE(operations_->ListOperations(&context, request, &page).ok());
    for (const auto& operation : page.operations()) {
      listed.push_back(operation.name());
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, (std::vector<std::string>{names[4], names[3], names[2], names[0]}));
}

TEST_F(OperationsServiceTest, CancelledPendingOperationCanBeDeleted) {
  const std::string name = Submit().name();
  EXPECT_EQ(ReasonOf(Delete(name)), "OPERATION_RUNNING");
  ASSERT_TRUE(Cancel(name).ok());
  const google::longrunning::Operation operation = Wait(name, 10);
  EXPECT_TRUE(operation.done());
  EXPECT_EQ(ReasonOf(operation.error()), "OPERATION_CANCELLED");
  EXPECT_TRUE(Cancel(name).ok());  // nothing to do is no error
  EXPECT_TRUE(Delete(name).ok());
  EXPECT_EQ(ReasonOf(Delete(name)), "OPERATION_NOT_FOUND");
  EXPECT_EQ(ReasonOf(Cancel(name)), "OPERATION_NOT_FOUND");
}

TEST_F(OperationsServiceTest, WaitEndsWithTheOperationOrItsTimeout) {
  const std::string name = Submit().name();
  EXPECT_FALSE(Wait(name, 0).done());
  auto waiting = std::async(std::launch::async, [this, &name] { return Wait(name, 60); });
  ASSERT_TRUE(Cancel(name).ok());
  EXPECT_TRUE(waiting.get().done());
}

TEST_F(OperationsServiceTest, ManyWaitsHoldNoThread) {
  const std::string name = Submit().name();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<google::longrunning::Operation> answers(100);
  std::vector<std::promise<grpc::Status>> done(answers.size());
  google::longrunning::WaitOperationRequest request;
  request.set_name(name);
  for (size_t i = 0; i < answers.size(); ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    operations_->async()->WaitOperation(contexts[i].get(), &request, &answers[i],
                                        [&done, i](grpc::Status status) { done[i].set_value(std::move(status)); });
  }
  for (int i = 0; i < 20; ++i) {
    Submit();  // others are served meanwhile
  }
  contexts[0]->TryCancel();
  EXPECT_EQ(done[0].get_future().get().error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(Cancel(name).ok());
  for (size_t i = 1; i < answers.size(); ++i) {
    EXPECT_TRUE(done[i].get_future().get().ok());
    EXPECT_TRUE(answers[i].done());
  }
}

TEST_F(OperationsServiceTest, WaitIsAnsweredWhenTheServerStops) {
  const std::string name = Submit().name();
  grpc::ClientContext context;
  google::longrunning::WaitOperationRequest request;
  request.set_name(name);
  google::longrunning::Operation operation;
  std::promise<grpc::Status> done;
  operations_->async()->WaitOperation(&context, &request, &operation,
                                      [&done](grpc::Status status) { done.set_value(std::move(status)); });
  Submit();  // behind it on the same connection: now the server has it
  const absl::Time begin = absl::Now();
  Stop();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(1));
  const grpc::Status status = done.get_future().get();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(operation.name(), name);
  Start(Options());
  EXPECT_FALSE(Wait(name, 0).done());  // still there
}

}  // namespace
}  // namespace modelpress::server
