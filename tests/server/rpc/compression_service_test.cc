#include "server/rpc/compression_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "server/base/sha256.h"
#include "tests/server/testing/daemon_fixture.h"

namespace modelpress::server {
namespace {

using google::longrunning::Operation;
using testing::ElementsAre;

v1::QuantizeModelRequest OneShot() {
  v1::QuantizeModelRequest request;
  request.set_workspace("workspaces/w");
  request.set_model("model/m.onnx");
  request.mutable_calibration_data()->set_path("data");
  request.set_save_path("out/m");
  return request;
}

// A daemon without workers: operations stay as they are put.
class CompressionServiceTest : public DaemonFixture {
 protected:
  template <typename Request>
  using Method = grpc::Status (v1::Compression::Stub::*)(grpc::ClientContext*, const Request&, Operation*);

  CompressionServiceTest() {
    Start(Options());
    MakeWorkspace("w");
    for (const char* path : {"model/m.onnx", "model/w.bin", "c.json", "c.cfg", "manifest.json", "data/0/a.npy", "data/1.npy",
                             "data-2.npz", "sample.npy", "modified/m.onnx", "modified/w.external"}) {
      PutFile(absl::StrCat("workspaces/w/files/", path), path);
    }
  }

  template <typename Request>
  grpc::Status Call(Method<Request> method, Request request) {
    request.set_workspace("workspaces/w");
    grpc::ClientContext context;
    return (*compression_.*method)(&context, request, &operation_);
  }
  // Paths of the inputs that the last call pinned, in order.
  std::vector<std::string> Pinned() const {
    std::vector<std::string> paths;
    const v1::OperationMetadata metadata = MetadataOf(operation_);
    for (const v1::File& file : metadata.inputs()) {
      paths.push_back(file.name().substr(std::string("workspaces/w/files/").size()));
      EXPECT_EQ(file.sha256(), Sha256Hex(paths.back()));  // each holds its own path
    }
    return paths;
  }

  static std::vector<std::string> MissingFiles(const grpc::Status& status) {
    std::vector<std::string> files;
    const google::rpc::Status details = DetailsOf(status);
    google::rpc::PreconditionFailure failure;
    for (const auto& detail : details.details()) {
      detail.UnpackTo(&failure);
    }
    for (const auto& violation : failure.violations()) {
      files.push_back(violation.subject());
    }
    return files;
  }

  Operation operation_;
};

TEST_F(CompressionServiceTest, CreateQuantConfig) {
  v1::CreateQuantConfigRequest request;
  request.set_config_file("new.json");
  request.set_model("model/m.onnx");
  ASSERT_TRUE(Call(&v1::Compression::Stub::CreateQuantConfig, request).ok());
  EXPECT_THAT(Pinned(), ElementsAre("model/m.onnx", "model/w.bin"));
  EXPECT_EQ(MetadataOf(operation_).method(), "CreateQuantConfig");
  request.set_config_definition("c.cfg");
  request.set_module_manifest("manifest.json");
  ASSERT_TRUE(Call(&v1::Compression::Stub::CreateQuantConfig, request).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.cfg", "manifest.json", "model/m.onnx", "model/w.bin"));
  request.clear_config_file();
  EXPECT_EQ(MetadataOf(Call(&v1::Compression::Stub::CreateQuantConfig, request), "field"), "config_file");
}

TEST_F(CompressionServiceTest, RetrainingReadsAndWritesTheRecord) {
  v1::CreatePruneRetrainModelRequest create;
  create.set_model("model/m.onnx");
  create.set_config_definition("c.cfg");
  create.set_record_file("r.txt");
  create.set_save_path("out/m");
  ASSERT_TRUE(Call(&v1::Compression::Stub::CreatePruneRetrainModel, create).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.cfg", "model/m.onnx", "model/w.bin"));
  EXPECT_EQ(MetadataOf(operation_).method(), "CreatePruneRetrainModel");

  v1::RestoreCompressedRetrainModelRequest restore;
  restore.set_model("model/m.onnx");
  restore.set_config_definition("c.cfg");
  restore.set_record_file("r.txt");
  EXPECT_EQ(MissingFiles(Call(&v1::Compression::Stub::RestoreCompressedRetrainModel, restore)),
            std::vector<std::string>{"r.txt"});
  PutFile("workspaces/w/files/r.txt", "r.txt");
  ASSERT_TRUE(Call(&v1::Compression::Stub::RestoreCompressedRetrainModel, restore).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.cfg", "model/m.onnx", "model/w.bin", "r.txt"));
  EXPECT_EQ(MetadataOf(operation_).method(), "RestoreCompressedRetrainModel");
}

TEST_F(CompressionServiceTest, QuantizePreprocess) {
  v1::QuantizePreprocessRequest request;
  request.set_config_file("c.json");
  request.set_record_file("r.txt");
  request.set_model("model/m.onnx");
  EXPECT_EQ(MetadataOf(Call(&v1::Compression::Stub::QuantizePreprocess, request), "field"), "calibration_data.path");
  request.mutable_calibration_data()->set_path("data-2.npz");
  ASSERT_TRUE(Call(&v1::Compression::Stub::QuantizePreprocess, request).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.json", "data-2.npz", "model/m.onnx", "model/w.bin"));
}

TEST_F(CompressionServiceTest, QuantizeModel) {
  ASSERT_TRUE(Call(&v1::Compression::Stub::QuantizeModel, OneShot()).ok());
  EXPECT_THAT(Pinned(), ElementsAre("data/0/a.npy", "data/1.npy", "model/m.onnx", "model/w.bin"));
  // A record file is read where there is one (it may hold balance factors).
  PutFile("workspaces/w/files/out/m_record.txt", "out/m_record.txt");
  v1::QuantizeModelRequest request = OneShot();
  request.set_record_file("out/m_record.txt");
  request.mutable_sample_data()->set_path("sample.npy");
  request.set_config_definition("c.cfg");
  ASSERT_TRUE(Call(&v1::Compression::Stub::QuantizeModel, request).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.cfg", "data/0/a.npy", "data/1.npy", "model/m.onnx", "model/w.bin", "out/m_record.txt",
                                    "sample.npy"));
  // One that the service names itself is not.
  ASSERT_TRUE(Call(&v1::Compression::Stub::QuantizeModel, OneShot()).ok());
  EXPECT_THAT(Pinned(), ElementsAre("data/0/a.npy", "data/1.npy", "model/m.onnx", "model/w.bin"));
  request.set_record_file("out/m_deploy_model.onnx");
  EXPECT_EQ(ReasonOf(Call(&v1::Compression::Stub::QuantizeModel, request)), "REQUEST_INVALID");
}

TEST_F(CompressionServiceTest, Calibrate) {
  v1::CalibrateRequest request;
  request.set_modified_onnx_file("modified/m.onnx");
  request.set_record_file("r.txt");
  request.set_config_file("c.json");
  request.mutable_calibration_data()->set_path("data");
  EXPECT_EQ(MissingFiles(Call(&v1::Compression::Stub::Calibrate, request)), std::vector<std::string>{"r.txt"});
  PutFile("workspaces/w/files/r.txt", "r.txt");
  ASSERT_TRUE(Call(&v1::Compression::Stub::Calibrate, request).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.json", "data/0/a.npy", "data/1.npy", "modified/m.onnx", "modified/w.external", "r.txt"));
  // Key-value caches: the model alone, and a record that need not be there.
  request.clear_modified_onnx_file();
  request.set_model("model/m.onnx");
  request.set_record_file("kv.txt");
  ASSERT_TRUE(Call(&v1::Compression::Stub::Calibrate, request).ok());
  EXPECT_THAT(Pinned(), ElementsAre("c.json", "data/0/a.npy", "data/1.npy", "model/m.onnx", "model/w.bin"));
}

TEST_F(CompressionServiceTest, EveryMissingFileIsNamed) {
  v1::QuantizeModelRequest request = OneShot();
  request.mutable_calibration_data()->set_path("dat");  // neither a file nor a folder, although a prefix of both
  request.set_model("model/none.onnx");
  request.set_module_manifest("none.json");
  const grpc::Status status = Call(&v1::Compression::Stub::QuantizeModel, request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(MissingFiles(status), ElementsAre("model/none.onnx", "none.json", "dat"));
}

TEST_F(CompressionServiceTest, TheOrderOfAMapDoesNotMakeAnotherRequest) {
  v1::QuantizeModelRequest request = OneShot();
  request.mutable_options()->set_request_id("123e4567-e89b-12d3-a456-426614174000");
  std::string name;
  for (int round = 0; round < 20; ++round) {
    v1::QuantizeModelRequest again = request;
    for (int i = 0; i < 20; ++i) {
      const int axis = (i * 7 + round) % 20;
      (*(*again.mutable_dynamic_axes())[absl::StrCat("input", axis)].mutable_labels())[axis] = "n";
    }
    const grpc::Status status = Call(&v1::Compression::Stub::QuantizeModel, again);
    ASSERT_TRUE(status.ok()) << status.error_message();
    name = round == 0 ? operation_.name() : name;
    EXPECT_EQ(operation_.name(), name);
  }
}

}  // namespace
}  // namespace modelpress::server
