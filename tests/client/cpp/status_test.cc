#include "client/cpp/status.h"

#include <cerrno>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace modelpress::client {
namespace {

google::rpc::Status ServerError() {
  google::rpc::ErrorInfo info;
  info.set_reason("RECORD_VALUE");
  info.set_domain("modelpress");
  (*info.mutable_metadata())["field"] = "record_file";
  (*info.mutable_metadata())["file"] = "record/r.txt";
  (*info.mutable_metadata())["line"] = "3";
  (*info.mutable_metadata())["column"] = "5";
  (*info.mutable_metadata())["layer"] = "conv1";
  google::rpc::Status status;
  status.set_code(3);
  status.set_message("record/r.txt:3:5: layer 'conv1': scale_d must be positive");
  status.add_details()->PackFrom(info);
  return status;
}

TEST(ClientStatusTest, KeepsTheServersDetails) {
  ErrorDetails details = DetailsOf(FromGrpc({grpc::StatusCode::INVALID_ARGUMENT, "text", ServerError().SerializeAsString()}));
  EXPECT_EQ(details.reason, "RECORD_VALUE");
  EXPECT_EQ(details.message, "record/r.txt:3:5: layer 'conv1': scale_d must be positive");
  EXPECT_EQ(details.field, "record_file");
  EXPECT_EQ(details.file, "record/r.txt");
  EXPECT_EQ(details.line, 3);
  EXPECT_EQ(details.column, 5);
  EXPECT_EQ(details.layer, "conv1");
}

TEST(ClientStatusTest, ListsMissingFiles) {
  google::rpc::PreconditionFailure failure;
  for (const char* name : {"model/a.bin", "model/b.bin"}) {
    auto* violation = failure.add_violations();
    violation->set_type("MISSING");
    violation->set_subject(name);
  }
  google::rpc::Status status;
  status.set_code(5);
  status.add_details()->PackFrom(failure);
  EXPECT_THAT(DetailsOf(FromRpc(status)).missing_files, testing::ElementsAre("model/a.bin", "model/b.bin"));
}

TEST(ClientStatusTest, SurvivesDetailsThatAreNone) {
  absl::Status status = FromGrpc({grpc::StatusCode::INTERNAL, "text", "\xff\xff not a message"});
  EXPECT_EQ(status, absl::InternalError("text"));
  google::rpc::ErrorInfo info;
  (*info.mutable_metadata())["line"] = "many";
  google::rpc::Status odd;
  odd.set_code(13);
  odd.add_details()->PackFrom(info);
  EXPECT_EQ(DetailsOf(FromRpc(odd)).line, 0);
}

TEST(ClientStatusTest, NamesTheLocalFile) {
  absl::Status status = WithFileName(FromRpc(ServerError()), {{"record/r.txt", "./factors/r.txt"}});
  EXPECT_EQ(status.message(), "./factors/r.txt:3:5: layer 'conv1': scale_d must be positive");
  EXPECT_EQ(DetailsOf(status).file, "./factors/r.txt");
  EXPECT_EQ(DetailsOf(status).layer, "conv1");
  absl::Status other = WithFileName(FromRpc(ServerError()), {{"model/m.onnx", "m.onnx"}});
  EXPECT_EQ(DetailsOf(other).file, "record/r.txt");
}

TEST(ClientStatusTest, LocalErrorsHaveTheSameForm) {
  absl::Status status = LocalIoError("cannot write the file", "/x/y", ENOSPC);
  EXPECT_EQ(status.message(), "/x/y: cannot write the file: No space left on device");
  EXPECT_EQ(DetailsOf(status).reason, kLocalIoReason);
  EXPECT_EQ(DetailsOf(LocalIoError("", "/x/y", ENOENT)).reason, "FILE_NOT_FOUND");
  EXPECT_EQ(DetailsOf(WithNote(status, "more")).file, "/x/y");
  EXPECT_EQ(DetailsOf(LocalIoError("", "/caf\xe9", EIO)).file, "/caf?");  // a path need not be UTF-8
}

}  // namespace
}  // namespace modelpress::client
