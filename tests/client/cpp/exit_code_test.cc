#include "client/cpp/exit_code.h"

#include <cerrno>

#include "client/cpp/status.h"
#include "gtest/gtest.h"

namespace modelpress::client {
namespace {

TEST(ExitCodeTest, FollowsFromTheStatusCode) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), 65);
  EXPECT_EQ(ExitCodeOf(absl::FailedPreconditionError("")), 65);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 66);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), 69);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("")), 70);
  EXPECT_EQ(ExitCodeOf(absl::UnknownError("")), 70);
  EXPECT_EQ(ExitCodeOf(absl::DataLossError("")), 70);
  EXPECT_EQ(ExitCodeOf(absl::AlreadyExistsError("")), 73);
  EXPECT_EQ(ExitCodeOf(absl::ResourceExhaustedError("")), 75);
  EXPECT_EQ(ExitCodeOf(absl::AbortedError("")), 75);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), 75);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("")), 77);
  EXPECT_EQ(ExitCodeOf(absl::UnauthenticatedError("")), 77);
  EXPECT_EQ(ExitCodeOf(absl::CancelledError("")), 130);
}

TEST(ExitCodeTest, LocalFilesHaveTheirOwn) {
  EXPECT_EQ(ExitCodeOf(LocalIoError("cannot write", "/f", ENOSPC)), 74);
  EXPECT_EQ(ExitCodeOf(LocalIoError("cannot open", "/f", EACCES)), 74);
  EXPECT_EQ(ExitCodeOf(LocalIoError("cannot open", "/f", ENOENT)), 66);
}

}  // namespace
}  // namespace modelpress::client
