#include "server/worker/run_limits.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/time/time.h"
#include "modelpress/v1/compression.pb.h"

namespace modelpress::server {
namespace {

TEST(LimitEventTest, AnOrdinaryAnswerIsNotTouched) {
  RunEvent event;
  event.mutable_result()->add_warnings("careful");
  event.mutable_result()->add_outputs()->set_name("results/x.onnx");
  event.mutable_result()->mutable_response()->set_value(std::string(1000, 'x'));
  const std::string before = event.SerializeAsString();
  EXPECT_TRUE(LimitEvent(event).ok());
  EXPECT_EQ(event.SerializeAsString(), before);
}

TEST(LimitEventTest, TextsAreCutBetweenCharacters) {
  RunEvent event;
  event.mutable_progress()->set_stage(std::string(63, 'x') + "\u00e9");  // the character would take bytes 63 and 64
  EXPECT_TRUE(LimitEvent(event).ok());
  EXPECT_EQ(event.progress().stage(), std::string(63, 'x'));
}

TEST(LimitEventTest, WarningsAreCounted) {
  RunEvent event;
  for (int i = 0; i < 5000; ++i) {
    event.mutable_result()->add_warnings(std::string(i == 0 ? 100'000 : 3, 'w'));
  }
  EXPECT_TRUE(LimitEvent(event).ok());
  ASSERT_EQ(event.result().warnings_size(), 1000);
  EXPECT_EQ(event.result().warnings(0).size(), 4096);
  EXPECT_EQ(event.result().warnings(999), "4001 more warnings are not kept");
}

TEST(LimitEventTest, ALongReportIsLeftOut) {
  RunEvent event;
  event.mutable_result()->set_report(std::string(1 << 20, 'r'));
  EXPECT_TRUE(LimitEvent(event).ok());
  EXPECT_EQ(event.result().report().size(), 1 << 20);
  EXPECT_EQ(event.result().warnings_size(), 0);
  event.mutable_result()->mutable_report()->push_back('r');
  EXPECT_TRUE(LimitEvent(event).ok());
  EXPECT_EQ(event.result().report(), "");
  ASSERT_EQ(event.result().warnings_size(), 1);
  EXPECT_EQ(event.result().warnings(0), "the report is not kept: it has 1048577 bytes, over 1 MiB");
}

TEST(LimitEventTest, WhatNoEngineAnswersIsRefused) {
  RunEvent error;
  error.mutable_result()->mutable_error()->set_message(std::string(100'000, 'x'));
  EXPECT_FALSE(LimitEvent(error).ok());
  RunEvent response;
  response.mutable_result()->mutable_response()->set_value(std::string(4 << 20, 'x'));
  EXPECT_FALSE(LimitEvent(response).ok());
  RunEvent outputs;
  for (int i = 0; i <= 100'000; ++i) {
    outputs.mutable_result()->add_outputs();
  }
  EXPECT_FALSE(LimitEvent(outputs).ok());
  v1::SaveModelResponse empty_files;
  for (int i = 0; i < 600'000; ++i) {
    empty_files.add_external_data();
  }
  RunEvent files;
  files.mutable_result()->mutable_response()->PackFrom(empty_files);
  EXPECT_FALSE(LimitEvent(files).ok());
}

TEST(LogLimiterTest, AFloodIsDroppedAndCounted) {
  LogLimiter limiter;
  absl::Time now = absl::UnixEpoch();
  int taken = 0;
  for (int i = 0; i < 10'000; ++i) {
    taken += limiter.Take("line", now).has_value() ? 1 : 0;
  }
  EXPECT_EQ(taken, 500);
  EXPECT_EQ(limiter.dropped(), 9500);
  now += absl::Seconds(1);
  for (int i = 0; i < 10; ++i) {
    taken += limiter.Take("line", now).has_value() ? 1 : 0;
  }
  EXPECT_EQ(taken, 505);
}

TEST(LogLimiterTest, LinesAreShortAndOfOneLine) {
  LogLimiter limiter;
  EXPECT_EQ(limiter.Take("say \"h\u00e9\"\x1b[2J\tnow\r", absl::UnixEpoch()), "say \"h\u00e9\"?[2J?now?");
  EXPECT_EQ(limiter.Take(std::string(10'000, 'x'), absl::UnixEpoch())->size(), 2048);
}

}  // namespace
}  // namespace modelpress::server
