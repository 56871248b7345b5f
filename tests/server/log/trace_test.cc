#include "server/log/trace.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace modelpress::server {
namespace {

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpanId[] = "00f067aa0ba902b7";

std::string Header(absl::string_view version, absl::string_view flags) {
  return absl::StrCat(version, "-", kTraceId, "-", kSpanId, "-", flags);
}

TEST(TraceTest, ReadsWhatTheRecommendationAllows) {
  const TraceContext sampled{kTraceId, kSpanId, true};
  const TraceContext unsampled{kTraceId, kSpanId, false};
  EXPECT_EQ(ParseTraceparent(Header("00", "01")), sampled);
  EXPECT_EQ(ParseTraceparent(Header("00", "00")), unsampled);
  EXPECT_EQ(ParseTraceparent(Header("00", "03")), sampled) << "unknown flags are no error";
  EXPECT_EQ(ParseTraceparent(Header("00", "fe")), unsampled);
  EXPECT_EQ(ParseTraceparent(Header("cc", "01")), sampled) << "a later version is read as far as it is known";
  EXPECT_EQ(ParseTraceparent(Header("cc", "01-what-the-future-will-be")), sampled);
}

TEST(TraceTest, RefusesEverythingElse) {
  const std::string valid = Header("00", "01");
  for (size_t size = 0; size < valid.size(); ++size) {
    EXPECT_EQ(ParseTraceparent(valid.substr(0, size)), std::nullopt) << size;
  }
  for (size_t i = 0; i < valid.size(); ++i) {
    for (const char c : {'g', 'F', ' ', '\n', '\0'}) {
      std::string changed = valid;
      changed[i] = c;
      EXPECT_EQ(ParseTraceparent(changed), std::nullopt) << i << " " << changed;
    }
  }
  EXPECT_EQ(ParseTraceparent(Header("ff", "01")), std::nullopt);
  EXPECT_EQ(ParseTraceparent(Header("00", "01-more")), std::nullopt) << "version 00 has exactly 55 characters";
  EXPECT_EQ(ParseTraceparent(Header("cc", "01.more")), std::nullopt);
  EXPECT_EQ(ParseTraceparent(absl::StrCat(" ", valid)), std::nullopt);
  EXPECT_EQ(ParseTraceparent(absl::StrCat("00-", std::string(32, '0'), "-", kSpanId, "-01")), std::nullopt);
  EXPECT_EQ(ParseTraceparent(absl::StrCat("00-", kTraceId, "-", std::string(16, '0'), "-01")), std::nullopt);
}

TEST(TraceTest, GoesOnWithTheTraceInASpanOfItsOwn) {
  const TraceContext child = ContinueTrace(Header("00", "01"));
  EXPECT_EQ(child.trace_id, kTraceId);
  EXPECT_NE(child.span_id, kSpanId);
  EXPECT_TRUE(child.sampled);
  EXPECT_EQ(ParseTraceparent(FormatTraceparent(child)), child);
  EXPECT_NE(ContinueTrace(Header("00", "01")).span_id, child.span_id);
}

TEST(TraceTest, BeginsATraceWhereNoneCame) {
  for (const char* header : {"", "rubbish"}) {
    const TraceContext first = ContinueTrace(header);
    const TraceContext second = ContinueTrace(header);
    EXPECT_EQ(ParseTraceparent(FormatTraceparent(first)), first);
    EXPECT_FALSE(first.sampled);
    EXPECT_NE(first.trace_id, second.trace_id);
    EXPECT_NE(first.span_id, second.span_id);
  }
}

TEST(TraceTest, FieldsForTheLog) {
  EXPECT_EQ(TraceFields(Header("00", "01")), (LogFields{{"trace_id", kTraceId}, {"span_id", kSpanId}}));
  EXPECT_EQ(TraceFields("rubbish"), LogFields());
}

}  // namespace
}  // namespace modelpress::server
