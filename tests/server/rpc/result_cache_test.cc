// The result cache as callers see it: a daemon with a worker, real operations on a real model.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

using google::longrunning::Operation;

std::string ReadGolden(const std::string& name) {
  const char* source = std::getenv("MODELPRESS_SOURCE_DIR");
  std::stringstream text;
  text << std::ifstream(absl::StrCat(source == nullptr ? "." : source, "/tests/golden/save/conv2d_bn_relu_linear/", name),
                        std::ios::binary)
              .rdbuf();
  EXPECT_FALSE(text.str().empty()) << name;
  return text.str();
}

class ResultCacheTest : public DaemonFixture {
 protected:
  ResultCacheTest() {
    DaemonOptions options = Options();
    options.workers = 1;
    Start(options);
    for (const char* workspace : {"w", "v"}) {
      MakeWorkspace(workspace);
      PutFile(absl::StrCat("workspaces/", workspace, "/files/model/m.onnx"), ReadGolden("modified.onnx"));
      PutFile(absl::StrCat("workspaces/", workspace, "/files/record/r.txt"), ReadGolden("record.txt"));
    }
  }

  static v1::SaveModelRequest Request(const std::string& workspace = "w") {
    v1::SaveModelRequest request;
    request.set_workspace("workspaces/" + workspace);
    request.set_modified_onnx_file("model/m.onnx");
    request.set_record_file("record/r.txt");
    request.set_save_path("results/x");
    return request;
  }
  // Calls and waits for the end, which must be a success.
  Operation Call(const v1::SaveModelRequest& request) {
    grpc::ClientContext context;
    Operation operation;
    const grpc::Status status = compression_->SaveModel(&context, request, &operation);
    EXPECT_TRUE(status.ok()) << status.error_message();
    done_at_once_ = operation.done();
    if (!operation.done()) {
      operation = Wait(operation.name(), 60);
    }
    const v1::OperationMetadata metadata = MetadataOf(operation);
    EXPECT_EQ(metadata.state(), v1::OperationMetadata::SUCCEEDED) << operation.error().ShortDebugString();
    EXPECT_EQ(metadata.cached(), done_at_once_);
    EXPECT_EQ(metadata.attempt(), done_at_once_ ? 0 : 1);
    return operation;
  }
  bool Cached(const v1::SaveModelRequest& request) {
    Call(request);
    return done_at_once_;
  }
  static v1::SaveModelResponse ResponseOf(const Operation& operation) {
    v1::SaveModelResponse response;
    EXPECT_TRUE(operation.response().UnpackTo(&response));
    return response;
  }
  void DeleteFile(const std::string& name) {
    grpc::ClientContext context;
    v1::DeleteFileRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    EXPECT_TRUE(workspaces_->DeleteFile(&context, request, &empty).ok());
  }

  bool done_at_once_ = false;
};

TEST_F(ResultCacheTest, TheSecondCallIsDoneAtOnce) {
  const Operation first = Call(Request());
  EXPECT_FALSE(done_at_once_);
  const v1::SaveModelResponse computed = ResponseOf(first);
  for (const std::string workspace : {"w", "v"}) {
    SCOPED_TRACE(workspace);
    const Operation second = Call(Request(workspace));
    EXPECT_TRUE(done_at_once_);
    EXPECT_NE(second.name(), first.name());
    const v1::SaveModelResponse response = ResponseOf(second);
    EXPECT_EQ(response.deploy_model().name(), absl::StrCat("workspaces/", workspace, "/files/results/x_deploy_model.onnx"));
    EXPECT_EQ(response.report().name(), absl::StrCat("workspaces/", workspace, "/files/results/x_report.json"));
    EXPECT_EQ(response.deploy_model().sha256(), computed.deploy_model().sha256());
    EXPECT_EQ(response.fake_quant_model().sha256(), computed.fake_quant_model().sha256());
    EXPECT_EQ(response.report().sha256(), computed.report().sha256());
    const v1::OperationMetadata metadata = MetadataOf(second);
    EXPECT_EQ(metadata.workspace(), absl::StrCat("workspaces/", workspace));
    EXPECT_EQ(metadata.outputs_size(), MetadataOf(first).outputs_size());
    EXPECT_EQ(MetadataOf(Wait(second.name(), 0)).SerializeAsString(), metadata.SerializeAsString());
    v1::DownloadFileRequest download;
    download.set_name(response.deploy_model().name());
    std::string content;
    ASSERT_TRUE(Download(download, &content).ok());
    EXPECT_EQ(Sha256Hex(content), computed.deploy_model().sha256());
  }
}

TEST_F(ResultCacheTest, WhatMakesNoDifferenceToTheResultIsIgnored) {
  EXPECT_FALSE(Cached(Request()));
  v1::SaveModelRequest request = Request();
  request.mutable_options()->set_request_id("01234567-89ab-cdef-0123-456789abcdef");
  request.mutable_options()->mutable_execution_timeout()->set_seconds(77);
  EXPECT_TRUE(Cached(request));
}

TEST_F(ResultCacheTest, AnyDifferenceRunsAgain) {
  EXPECT_FALSE(Cached(Request()));
  EXPECT_TRUE(Cached(Request("v")));
  v1::SaveModelRequest request = Request();
  request.set_save_path("results/y");
  EXPECT_FALSE(Cached(request));
  request = Request();
  request.mutable_options()->set_reference_defects(true);
  EXPECT_FALSE(Cached(request));
  // The same bytes under another name, and other bytes under the same name.
  PutFile("workspaces/w/files/record/s.txt", ReadGolden("record.txt"));
  request = Request();
  request.set_record_file("record/s.txt");
  EXPECT_FALSE(Cached(request));
  PutFile("workspaces/w/files/record/r.txt", absl::StrCat(ReadGolden("record.txt"), "\n"));
  EXPECT_FALSE(Cached(Request()));
  EXPECT_TRUE(Cached(Request()));
  EXPECT_TRUE(Cached(Request("v")));  // which has the files of the first call still
}

TEST_F(ResultCacheTest, NoCacheRunsAgain) {
  EXPECT_FALSE(Cached(Request()));
  v1::SaveModelRequest request = Request();
  request.mutable_options()->set_no_cache(true);
  EXPECT_FALSE(Cached(request));
  EXPECT_FALSE(Cached(request));
}

TEST_F(ResultCacheTest, AResultWhoseFilesAreGoneIsComputedAgain) {
  const v1::SaveModelResponse response = ResponseOf(Call(Request()));
  DeleteFile(response.deploy_model().name());
  EXPECT_FALSE(Cached(Request("v")));
  EXPECT_TRUE(Cached(Request()));  // now v has it
  v1::DownloadFileRequest download;
  download.set_name(response.deploy_model().name());
  std::string content;
  ASSERT_TRUE(Download(download, &content).ok());
  EXPECT_EQ(Sha256Hex(content), response.deploy_model().sha256());
}

}  // namespace
}  // namespace modelpress::server
