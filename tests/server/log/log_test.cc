#include "server/log/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/log/log.h"

namespace modelpress::server {
namespace {

// What `log` logs.
std::string Logged(LogOutput::Format format, const std::function<void()>& log) {
  int pipe_fds[2];
  EXPECT_EQ(pipe(pipe_fds), 0);
  {
    const LogOutput output(format, pipe_fds[1]);
    log();
  }
  close(pipe_fds[1]);
  std::string text(60'000, '\0');
  size_t size = 0;
  for (ssize_t count = 1; count > 0; size += static_cast<size_t>(count)) {
    count = read(pipe_fds[0], text.data() + size, text.size() - size);
    EXPECT_GE(count, 0);
  }
  close(pipe_fds[0]);
  text.resize(size);
  return text;
}

TEST(LogTest, OneJsonObjectPerEntryWithTheThreadsFields) {
  const std::string text = Logged(LogOutput::Format::kJson, [] {
    const ScopedLogFields outer({{"operation", "o1"}, {"duration_s", 0.25}, {"attempt", int64_t{2}}});
    {
      const ScopedLogFields inner({{"stage", "read"}});
    }
    LOG(WARNING) << "line\nbreak \xFF \"quoted\"";
  });
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const nlohmann::json json = nlohmann::json::parse(text);
  EXPECT_EQ(json["severity"], "WARNING");
  EXPECT_EQ(json["message"], "line\nbreak \xEF\xBF\xBD \"quoted\"");
  EXPECT_EQ(json["operation"], "o1");
  EXPECT_EQ(json["duration_s"], 0.25);
  EXPECT_EQ(json["attempt"], 2);
  EXPECT_EQ(json["file"], "log_test.cc");
  EXPECT_FALSE(json.contains("stage"));
  EXPECT_FALSE(json.contains("suppressed"));
}

TEST(LogTest, ControlCharactersNeitherBreakLinesNorReachATerminal) {
  const std::string hostile =
      "a\r\n{\"severity\":\"ERROR\"}\x1b[2J\x7f\xc2\x9b"
      "m\tb\xc3\xa9";
  auto log = [&hostile] {
    const ScopedLogFields fields({{"peer", hostile}});
    LOG(INFO) << hostile;
  };
  const std::string text = Logged(LogOutput::Format::kText, log);
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  EXPECT_NE(text.find("INFO a\\x0d\\x0a{\"severity\":\"ERROR\"}\\x1b[2J\\x7f\\x9bm\\x09b\xc3\xa9 (peer=a\\x0d\\x0a"),
            std::string::npos)
      << text;
  const std::string json = Logged(LogOutput::Format::kJson, log);
  EXPECT_EQ(json.find('\n'), json.size() - 1);
  EXPECT_EQ(nlohmann::json::parse(json)["peer"], hostile);
}

TEST(LogTest, ErrorsThatRepeatAreLeftOutAndCounted) {
  const std::string text = Logged(LogOutput::Format::kJson, [] {
    for (int i = 0; i < 3 * RepeatLimiter::kPerWindow; ++i) {
      LOG(ERROR) << "again " << i;
    }
    LOG(ERROR) << "another";
    for (int i = 0; i < 3 * RepeatLimiter::kPerWindow; ++i) {
      LOG(INFO) << "all of these " << i;
    }
  });
  EXPECT_EQ(std::ranges::count(text, '\n'), 4 * RepeatLimiter::kPerWindow + 1);
}

TEST(LogTest, TheNextWindowTellsHowManyWereLeftOut) {
  constexpr absl::LogSeverity kError = absl::LogSeverity::kError;
  RepeatLimiter limiter;
  const absl::Time begin = absl::UnixEpoch();
  for (int i = 0; i < RepeatLimiter::kPerWindow; ++i) {
    EXPECT_EQ(limiter.Admit(kError, "f", 1, begin), 0);
  }
  EXPECT_EQ(limiter.Admit(kError, "f", 1, begin + absl::Seconds(59)), std::nullopt);
  EXPECT_EQ(limiter.Admit(kError, "f", 1, begin + absl::Seconds(59)), std::nullopt);
  EXPECT_EQ(limiter.Admit(kError, "f", 2, begin + absl::Seconds(59)), 0);
  EXPECT_EQ(limiter.Admit(kError, "f", 1, begin + absl::Seconds(60)), 2);
  EXPECT_EQ(limiter.Admit(kError, "f", 1, begin + absl::Seconds(60)), 0);
  EXPECT_EQ(limiter.Admit(kError, "f", 1, begin), 0) << "the clock was set back";
}

}  // namespace
}  // namespace modelpress::server
