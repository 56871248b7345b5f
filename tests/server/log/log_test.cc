#include "server/log/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "absl/log/log.h"

namespace modelpress::server {
namespace {

TEST(LogTest, OneJsonObjectPerEntryWithTheThreadsFields) {
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  {
    const LogOutput output(LogOutput::Format::kJson, pipe_fds[1]);
    const ScopedLogFields outer({{"operation", "o1"}});
    {
      const ScopedLogFields inner({{"stage", "read"}});
    }
    LOG(WARNING) << "line\nbreak \xFF \"quoted\"";
  }
  close(pipe_fds[1]);
  std::string text(1000, '\0');
  text.resize(static_cast<size_t>(read(pipe_fds[0], text.data(), text.size())));
  close(pipe_fds[0]);
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const nlohmann::json json = nlohmann::json::parse(text);
  EXPECT_EQ(json["severity"], "WARNING");
  EXPECT_EQ(json["message"], "line\nbreak \xEF\xBF\xBD \"quoted\"");
  EXPECT_EQ(json["operation"], "o1");
  EXPECT_EQ(json["file"], "log_test.cc");
  EXPECT_FALSE(json.contains("stage"));
}

}  // namespace
}  // namespace modelpress::server
