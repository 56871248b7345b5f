#include "server/worker/run_protocol.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/unknown_field_set.h"
#include "server/worker/run_limits.h"
#include "server/worker/run_protocol.pb.h"

namespace modelpress::server {
namespace {

// The stages that the bytes tell of, in pieces of `piece` bytes; then "malformed" if the reader said so.
std::vector<std::string> Stages(const std::string& bytes, size_t piece) {
  FrameReader reader;
  std::vector<std::string> stages;
  for (size_t i = 0; i < bytes.size(); i += piece) {
    reader.Append(absl::string_view(bytes).substr(i, piece));
    RunEvent event;
    absl::StatusOr<bool> next = reader.Next(event);
    for (; next.ok() && *next; next = reader.Next(event)) {
      stages.push_back(event.progress().stage());
    }
    if (!next.ok()) {
      EXPECT_TRUE(absl::IsDataLoss(next.status())) << next.status();
      stages.emplace_back("malformed");
      break;
    }
  }
  return stages;
}

std::string Event(const std::string& stage) {
  RunEvent event;
  event.mutable_progress()->set_stage(stage);
  return Frame(event);
}

TEST(RunProtocolTest, FramesComeInPiecesOfAnySize) {
  const std::string bytes = Event("read") + Event(std::string(300, 's')) + Event("");
  const std::vector<std::string> stages = {"read", std::string(300, 's'), ""};
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    EXPECT_EQ(Stages(bytes, piece), stages) << piece;
  }
}

TEST(RunProtocolTest, LengthsThatAreNone) {
  const std::string message = Event("read");
  for (const std::string& length : {
           std::string("\x81\x80\x80\x0a", 4),               // 20 MiB and one byte
           std::string("\xff\xff\xff\xff\x7f"),              // more than 32 bits
           std::string("\x80\x80\x80\x80\x80\x01"),          // of six bytes
           std::string("\xf6\x8f\x8f\x8f\x90\x8f\xfe\x73"),  // of eight, whose last 32 bits are a length
           std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
       }) {
    for (size_t piece = 1; piece <= message.size() + length.size(); ++piece) {
      EXPECT_EQ(Stages(message + length, piece), (std::vector<std::string>{"read", "malformed"})) << piece;
    }
  }
}

TEST(RunProtocolTest, FarTooManyFieldsAreRefusedBeforeTheyAreParsed) {
  constexpr int kMany = 600'000;
  RunEvent outputs;
  RunEvent details;
  RunEvent mechanisms;
  RunEvent unknown;
  RunEvent group;
  google::protobuf::UnknownFieldSet& fields = *unknown.GetReflection()->MutableUnknownFields(&unknown);
  google::protobuf::UnknownFieldSet& inner = *group.GetReflection()->MutableUnknownFields(&group)->AddGroup(99);
  for (int i = 0; i < kMany; ++i) {
    outputs.mutable_result()->add_outputs();
    details.mutable_result()->mutable_error()->add_details();
    mechanisms.mutable_isolation()->add_mechanisms();
    fields.AddVarint(9, 0);
    inner.AddVarint(9, 0);
  }
  for (const RunEvent* event : {&outputs, &details, &mechanisms, &unknown, &group}) {
    const std::string bytes = Frame(*event);
    EXPECT_LT(bytes.size(), 4 * kMany);
    EXPECT_EQ(Stages(bytes, bytes.size()), std::vector<std::string>{"malformed"}) << bytes.size();
  }
}

TEST(RunProtocolTest, TheLargestAnswerIsTaken) {
  RunEvent event;
  RunResult& result = *event.mutable_result();
  result.mutable_response()->set_value(std::string((3 << 20) - 5, 'r'));  // and its head of five bytes
  for (int i = 0; i < 100'000; ++i) {
    RunResult::Output& output = *result.add_outputs();
    output.set_name(std::string(30, 'n'));
    output.set_sha256(std::string(64, 's'));
    output.set_size_bytes(UINT64_MAX);
  }
  for (int i = 0; i < 1000; ++i) {
    result.add_warnings(std::string(4096, 'w'));
  }
  FrameReader reader;
  reader.Append(Frame(event));
  RunEvent read;
  const absl::StatusOr<bool> next = reader.Next(read);
  ASSERT_TRUE(next.ok() && *next) << next.status();
  EXPECT_TRUE(LimitEvent(read).ok());
  EXPECT_EQ(read.SerializeAsString(), event.SerializeAsString());
}

// Else bytes that the two read differently would get past the count.
TEST(RunProtocolTest, NestedAsDeeplyAsTheParserGoesAndNoDeeper) {
  google::protobuf::Value value;
  for (int depth = 0; depth < 200; ++depth) {
    google::protobuf::Value outer;
    *outer.mutable_list_value()->add_values() = value;
    value = outer;
    const std::string bytes = value.SerializeAsString();
    google::protobuf::Value parsed;
    ASSERT_EQ(CheckFieldCount(bytes, *value.GetDescriptor()).ok(), parsed.ParseFromString(bytes)) << depth;
  }
}

}  // namespace
}  // namespace modelpress::server
