#include "server/worker/run_protocol.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
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
           std::string("\x81\x80\x80\x10", 4),               // 32 MiB and one byte
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

}  // namespace
}  // namespace modelpress::server
