#include "engine/base/status.h"

#include <string>

#include "engine/base/limits.h"
#include "gtest/gtest.h"

namespace modelpress {
namespace {

TEST(StatusTest, EveryReasonHasACode) {
  const auto* descriptor = v1::Reason_descriptor();
  for (int i = 0; i < descriptor->value_count(); ++i) {
    auto reason = static_cast<v1::Reason>(descriptor->value(i)->number());
    if (reason != v1::REASON_UNSPECIFIED) {
      EXPECT_NE(CodeOf(reason), absl::StatusCode::kUnknown) << descriptor->value(i)->name();
      EXPECT_NE(CodeOf(reason), absl::StatusCode::kOk) << descriptor->value(i)->name();
    }
  }
}

TEST(StatusTest, TextNamesThePlace) {
  absl::Status status =
      MakeError(v1::RECORD_VALUE, "scale_d must be positive", {.file = "r.txt", .line = 3, .column = 5, .layer = "conv1"});
  EXPECT_EQ(status.message(), "r.txt:3:5: layer 'conv1': scale_d must be positive");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), v1::RECORD_VALUE);
  EXPECT_EQ(PlaceOf(status).line, 3);
}

TEST(StatusTest, OuterFunctionsFillInWhatInnerOnesDidNotKnow) {
  absl::Status status = MakeError(v1::TENSOR_INVALID, "weight is not finite", {.layer = "fc"});
  status = AtPlace(status, {.field = "modified_onnx_file", .file = "m.onnx", .layer = "ignored"});
  EXPECT_EQ(status.message(), "m.onnx: layer 'fc': weight is not finite");
  EXPECT_EQ(PlaceOf(status).field, "modified_onnx_file");
}

TEST(StatusTest, TakesNamesOfAnyBytesAndLength) {
  const std::string name = "caf\xe9";  // Latin-1
  const absl::Status status =
      AtPlace(MakeError(v1::TENSOR_INVALID, "no data for '" + name + "'", {.layer = name}), {.file = "m"});
  EXPECT_EQ(status.message(), "m: layer 'caf\\xe9': no data for 'caf\\xe9'");
  EXPECT_EQ(ReasonOf(status), v1::TENSOR_INVALID);
  EXPECT_EQ(PlaceOf(status).layer, "caf\\xe9");
  EXPECT_EQ(MetadataOf(WithMetadata(status, "input", name))["input"], "caf\\xe9");

  const std::string long_name(1 << 20, 'x');
  const absl::Status cut = WithMetadata(MakeError(v1::GRAPH_INVALID, long_name, {.layer = long_name}), "input", long_name);
  EXPECT_LE(cut.message().size(), kMaxErrorMessageBytes + kMaxErrorPlaceBytes + 20);
  EXPECT_EQ(PlaceOf(cut).layer.size(), kMaxErrorPlaceBytes);
  EXPECT_EQ(MetadataOf(cut)["input"].size(), kMaxErrorMessageBytes);
}

TEST(StatusTest, OnlyInfrastructureErrorsAreWorthAnotherAttempt) {
  EXPECT_TRUE(IsInfrastructureError(MakeError(v1::STORAGE_FULL, "disk full")));
  EXPECT_FALSE(IsInfrastructureError(MakeError(v1::MODEL_UNREADABLE, "bad")));
  EXPECT_FALSE(IsInfrastructureError(absl::OkStatus()));
}

}  // namespace
}  // namespace modelpress
