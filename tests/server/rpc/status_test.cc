#include "server/rpc/status.h"

#include <gtest/gtest.h>

#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/rpc/error_details.pb.h"

namespace modelpress::server {
namespace {

template <typename Detail>
std::optional<Detail> Find(const google::rpc::Status& status) {
  for (const auto& any : status.details()) {
    if (Detail detail; any.UnpackTo(&detail)) {
      return detail;
    }
  }
  return std::nullopt;
}

TEST(StatusTest, EveryReasonHasItsCodeAndName) {
  const auto* reasons = v1::Reason_descriptor();
  for (int i = 0; i < reasons->value_count(); ++i) {
    const auto reason = static_cast<v1::Reason>(reasons->value(i)->number());
    if (reason == v1::REASON_UNSPECIFIED) {
      continue;
    }
    const grpc::Status status = ToGrpcStatus(MakeError(reason, "text"));
    EXPECT_EQ(static_cast<int>(status.error_code()), static_cast<int>(CodeOf(reason)));
    google::rpc::Status rpc;
    ASSERT_TRUE(rpc.ParseFromString(status.error_details()));
    EXPECT_EQ(Find<google::rpc::ErrorInfo>(rpc)->reason(), reasons->value(i)->name());
    EXPECT_EQ(Find<google::rpc::ErrorInfo>(rpc)->domain(), "modelpress");
  }
}

TEST(StatusTest, CallersAreNotToldWhereTheServerKeepsThings) {
  auto told = [](v1::Reason reason, const char* message) { return ToGrpcStatus(MakeError(reason, message)).error_message(); };
  EXPECT_EQ(told(v1::STORAGE_ERROR, "the server cannot open /srv/data/scratch/o-1/m.onnx: Input/output error"),
            "the server cannot open m.onnx: Input/output error");
  EXPECT_EQ(told(v1::STORAGE_FULL, "out/m.onnx: cannot write: No space left on device"),
            "out/m.onnx: cannot write: No space left on device");
  EXPECT_EQ(told(v1::STORAGE_FULL, "database /srv/data/modelpress.db: database or disk is full (SQLite code 13)"),
            "the server's disk is full; free space there and try again");
  EXPECT_EQ(told(v1::STORAGE_ERROR, "database /srv/data/modelpress.db: disk I/O error (SQLite code 266)"),
            "the server's database failed; its log says more");
  EXPECT_EQ(told(v1::STORAGE_UNAVAILABLE, "database postgresql://me@db.example/x: connection refused; try again"),
            "the server's database cannot be reached at the moment; try again");
  EXPECT_EQ(told(v1::REQUEST_INVALID, "/etc/passwd is no name of a file"), "/etc/passwd is no name of a file");
}

TEST(StatusTest, FieldBecomesViolation) {
  const google::rpc::Status rpc =
      ToRpcStatus(MakeError(v1::RECORD_VALUE, "bad", {.field = "record_file", .file = "r.txt", .line = 3}));
  EXPECT_EQ(rpc.message(), "r.txt:3: bad");
  const auto request = Find<google::rpc::BadRequest>(rpc);
  ASSERT_TRUE(request.has_value());
  EXPECT_EQ(request->field_violations(0).field(), "record_file");
  EXPECT_EQ(Find<google::rpc::ErrorInfo>(rpc)->metadata().at("line"), "3");
  EXPECT_FALSE(Find<google::rpc::PreconditionFailure>(rpc).has_value());
}

TEST(StatusTest, MissingFilesAreListed) {
  const google::rpc::Status rpc = ToRpcStatus(WithMetadata(MakeError(v1::FILE_NOT_FOUND, "gone"), "missing", "a\nb/c"));
  const auto failure = Find<google::rpc::PreconditionFailure>(rpc);
  ASSERT_TRUE(failure.has_value());
  ASSERT_EQ(failure->violations_size(), 2);
  EXPECT_EQ(failure->violations(1).type(), "MISSING");
  EXPECT_EQ(failure->violations(1).subject(), "b/c");
}

TEST(StatusTest, StatusWithoutReasonIsOurFault) {
  const google::rpc::Status rpc = ToRpcStatus(absl::NotFoundError("lost"));
  EXPECT_EQ(rpc.code(), static_cast<int>(absl::StatusCode::kInternal));
  EXPECT_EQ(Find<google::rpc::ErrorInfo>(rpc)->reason(), "INTERNAL_ERROR");
  EXPECT_NE(rpc.message().find("lost"), std::string::npos);
}

TEST(StatusTest, LongTextsFitIntoTrailers) {
  const grpc::Status status =
      ToGrpcStatus(MakeError(v1::MODEL_UNREADABLE, std::string(100'000, 'x'), {.file = std::string(9000, 'f')}));
  EXPECT_LT(status.error_message().size() + status.error_details().size(), 8000);
  std::string files;
  for (int i = 0; i < 1000; ++i) {
    absl::StrAppend(&files, "f\n");
  }
  const absl::Status every_part =
      MakeError(v1::FILE_NOT_FOUND, std::string(2000, '\n'),
                {.field = "model", .file = std::string(2000, 'f'), .layer = std::string(2000, '\xC3')});
  const grpc::Status cut = ToGrpcStatus(WithMetadata(every_part, "missing", files));
  // Percent-encoded and in base64: 8 KiB, where `grpc-status` and the names have to go as well.
  EXPECT_LE(3 * cut.error_message().size() + cut.error_details().size() * 4 / 3, 8192 - 256);
  google::rpc::Status rpc;
  ASSERT_TRUE(rpc.ParseFromString(cut.error_details()));
  EXPECT_FALSE(Find<google::rpc::ErrorInfo>(rpc)->metadata().at("layer").empty());
  EXPECT_GT(Find<google::rpc::PreconditionFailure>(rpc)->violations_size(), 10);
}

}  // namespace
}  // namespace modelpress::server
